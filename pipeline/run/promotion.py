"""Which round's policy is worth keeping, what the next round begins with, and whether it is worth
its price.

Policies are counted: policy 0 is the starting policy, policy k + 1 the one that round k trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prefloop.pipeline.run.round_guards import guard_alarms
from prefloop.pipeline.run.run_dir import EVALUATION, JURY, RoundDir, RunDir
from prefloop.training.config import EvaluateConfig, Guards


@dataclass(frozen=True)
class RoundOutcome:
    """How a round's policy did against the one before."""

    round: int
    won: bool
    """Its win rate is above a half by more than chance: the interval lies above 0.5."""
    win_rate: float
    low: float
    high: float


def verdicts(run: RunDir) -> list[RoundOutcome]:
    """Of every round that was evaluated, by the jury on held-out prompts."""
    return [found for folder in run.rounds() if (found := _verdict(folder)) is not None]


def promoted(run: RunDir) -> RoundDir | None:
    """The last round whose policy won against the one before; null where none did."""
    won = [verdict.round for verdict in verdicts(run) if verdict.won]
    return run.round(won[-1]) if won else None


@dataclass(frozen=True)
class Lineage:
    """The policies that a round begins with."""

    start: Path
    """The starting policy."""
    previous_index: int
    previous: Path
    """The policy that this round samples from and trains."""
    before: tuple[Path, ...]
    """All that rounds were begun with so far, without repeats; the last one is ``previous``."""


def lineage(
    run: RunDir, round_index: int, start: str, evaluate: EvaluateConfig, guards: Guards | None
) -> Lineage:
    """What round ``round_index`` begins with, by how the rounds before it did.

    With ``evaluate.promote: winner`` a policy that did not win against the one it came from, or
    that set off a guard of the round, is not promoted. Without an evaluation every policy is.
    """
    indices = [0]
    always = evaluate.promote == "always" or not evaluate.enabled
    for index in range(round_index):
        folder = run.round(index)
        verdict = _verdict(folder)
        good = (verdict is None or verdict.won) and not any(
            alarm.stops for alarm in guard_alarms(folder, guards)
        )
        if always or good:
            indices.append(index + 1)
    paths = [run.round(index - 1).policy if index else Path(start) for index in indices]
    return Lineage(Path(start), indices[-1], paths[-1], tuple(paths))


def plateau(patience: int | None, run: RunDir) -> str | None:
    """Why no further round is worth it, in one line; null where the run goes on.

    With ``patience``, a run ends when so many rounds in a row did not win.
    """
    found = verdicts(run)
    if patience is None or len(found) < patience:
        return None
    last = found[-patience:]
    if any(verdict.won for verdict in last):
        return None
    best = promoted(run)
    kept = f"the policy to keep is {best.policy}" if best else "no round's policy is worth keeping"
    latest = last[-1]
    return (
        f"round {latest.round} did not win against the policy before it (win rate "
        f"{latest.win_rate:.3f} [{latest.low:.3f}, {latest.high:.3f}])"
        + (f", nor did the {patience - 1} before it" if patience > 1 else "")
        + f": the run ends here; {kept}"
    )


def _verdict(folder: RoundDir) -> RoundOutcome | None:
    if not folder.metrics.exists(EVALUATION):
        return None
    for row in folder.metrics.read(EVALUATION).to_pylist():
        if (row["name"], row["against"], row["labeler"]) == ("win_rate", "previous", JURY):
            low, high = row["low"], row["high"]
            return RoundOutcome(folder.index, low > 0.5, row["value"], low, high)
    return None
