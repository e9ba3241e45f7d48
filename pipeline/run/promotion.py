"""What the next round begins with, which policy is the one to keep, and whether a further round is
worth its price.

What a round samples from follows ``evaluate.promote``. What is named as the policy to keep is
another question, and the evidence answers it: see :func:`keeping`.

Policies are counted: policy 0 is the starting policy, policy k + 1 the one that round k trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prefloop.data.shards import atomic_write_json, damaged, read_json_object
from prefloop.labelers.statistics.estimate import Estimate
from prefloop.pipeline.run.round_guards import guard_alarms
from prefloop.pipeline.run.run_dir import EVALUATION, JURY, RoundDir, RunDir
from prefloop.training.config import EvaluateConfig, Guards

PROMOTION = "promotion"
"""Name, in metrics, of the jury's win rate with the interval that promotion goes by, where it is
another than that of ``win_rate``."""
_WIDEST = {"low": 0.0, "high": 1.0}
_NOTE_REMEDY = "delete it: the same command works out again what the round begins with"


@dataclass(frozen=True)
class RoundOutcome:
    """How a round's policy did against the one before."""

    round: int
    won: bool
    """Its win rate is above a half by more than chance (the interval lies above 0.5), and it set
    off no guard."""
    rate: PromotionRate | None
    """Against the policy before it; null where no vote could be read."""
    guard: str | None
    """The guard that it set off."""


@dataclass(frozen=True)
class PromotionRate:
    """A win rate with the interval that promotion goes by."""

    value: float
    low: float
    high: float
    of_all_rounds: bool = False
    """Whether the interval is the wider one by which the rounds share one chance of error."""

    def __str__(self) -> str:
        wider = " for all rounds together" if self.of_all_rounds else ""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]{wider}"


@dataclass(frozen=True)
class Keeping:
    """The best-supported policy of a run."""

    folder: RoundDir | None
    """The round that trained it; null: none did better than the starting policy."""
    passed_over: Mapping[int, str]
    """By round, why the policy of a later round is not the one to keep."""
    evaluated: bool
    """Whether any round's policy was evaluated."""

    @property
    def because(self) -> str:
        """Why no later round's policy is kept, in words; empty where there is none."""
        return "; ".join(f"round {index} {why}" for index, why in self.passed_over.items())


@dataclass(frozen=True)
class _Rules:
    """The settings that decide what a round begins with."""

    always: bool
    guards: Guards | None

    @classmethod
    def of(cls, evaluate: EvaluateConfig, guards: Guards | None) -> _Rules:
        return cls(evaluate.promote == "always" or not evaluate.enabled, guards)

    @classmethod
    def of_run(cls, run: RunDir) -> _Rules:
        """Those of the run's config, read leniently: it may be of another version."""
        try:
            raw = run.read_config()
        except FileNotFoundError:
            raw = {}
        evaluate, train = raw.get("evaluate"), raw.get("train")
        evaluate = evaluate if isinstance(evaluate, Mapping) else {}
        always = evaluate.get("promote") == "always" or evaluate.get("enabled") is False
        guards = train.get("guards") if isinstance(train, Mapping) else None
        return cls(always, _lenient_guards(guards) if train is not None else None)


def _lenient_guards(raw: Any) -> Guards:
    known = raw if isinstance(raw, Mapping) else {}
    try:
        return Guards.model_validate({k: v for k, v in known.items() if k in Guards.model_fields})
    except ValidationError:
        return Guards()


def promotion_confidence(evaluate: EvaluateConfig, rounds: int) -> float:
    """Coverage of the interval that a round's policy has to have above 0.5 to be promoted.

    An interval of coverage ``confidence`` lies above 0.5 by chance, for a policy that is no better,
    in half of 1 - ``confidence``. Looked at round after round on the same prompts, that adds up. So
    1 - ``confidence`` is spent on the whole run, the same part of it in each of its planned rounds:
    Bonferroni's inequality (Dunn 1961, Journal of the American Statistical Association 56), the
    even spending of what sequential trials call alpha (Lan and DeMets 1983, Biometrika 70). It
    holds however the rounds depend on each other. One or two rounds spend no more than that by
    their intervals as they are.
    """
    if evaluate.promote_error == "round" or rounds <= 2:
        return evaluate.confidence
    return 1 - 2 * (1 - evaluate.confidence) / rounds


def promotion_estimate(estimate: Estimate) -> Estimate:
    """A win rate with the interval that promotion goes by, from its interval of
    :func:`promotion_confidence`: wider by half a comparison on both sides (Yates's correction), as
    wins are whole, and few prompts would pass a high bar too often without it."""
    half = 1 / (2 * estimate.n)
    low, high = max(estimate.low - half, 0.0), min(estimate.high + half, 1.0)
    return replace(estimate, low=low, high=high)


def verdicts(run: RunDir) -> list[RoundOutcome]:
    """Of every round that was evaluated, by the jury on held-out prompts."""
    guards = _Rules.of_run(run).guards
    return [_outcome(folder, guards) for folder in run.rounds() if _is_evaluated(folder)]


def keeping(run: RunDir) -> Keeping:
    """The policy to keep, as far as the rounds were evaluated.

    A round's policy takes the place of the one that was kept so far if it won against it, lost
    against none that it was compared with, and set off no guard. Where the two were not compared,
    as the round began with a policy that is not kept (``promote: always``), both were with the
    starting policy: it takes the place if its interval there lies above the other's. A policy
    without a verdict is never kept.
    """
    rules = _Rules.of_run(run)
    best = 0
    passed: dict[int, str] = {}
    evaluated = False
    for folder in run.rounds():
        if not _is_evaluated(folder):
            if folder.policy.exists():
                passed[folder.index] = "is not evaluated"
            continue
        evaluated = True
        why = _why_not(run, folder, best, rules)
        if why is None:
            best, passed = folder.index + 1, {}
        else:
            passed[folder.index] = why
    return Keeping(run.round(best - 1) if best else None, passed, evaluated)


def _why_not(run: RunDir, folder: RoundDir, best: int, rules: _Rules) -> str | None:
    """Why the policy of a round does not take the place of policy ``best``; null where it does."""
    guard = _guard_of(folder, rules.guards)
    if guard:
        return f"set off the guard {guard}"
    rates = _rates(folder)
    opponents = {"previous": _indices(run, folder.index, rules)[-1], "start": 0}
    for against, rate in rates.items():
        if rate.high < 0.5:
            before = "starting policy" if opponents[against] == 0 else "policy before it"
            return f"lost against the {before} ({rate})"
    direct = [against for against, policy in opponents.items() if policy == best]
    if direct:
        found = next((rates[against] for against in direct if against in rates), None)
        if found is None:
            return "has no verdict"
        named = "it" if best else "the starting policy"
        return None if found.low > 0.5 else f"did not win against {named} ({found})"
    mine, its = rates.get("start"), _rates(run.round(best - 1)).get("start")
    if mine is None or its is None:
        return "has no verdict"
    if mine.low > its.high:
        return None
    return f"was not compared with it, and does no better against the starting policy ({mine})"


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

    With ``evaluate.promote: winner`` a policy is promoted that won against the one it came from and
    set off no guard of the round; without a verdict, as no vote could be read, it did not win.
    Where nothing is evaluated, or there are no held-out prompts, every policy is promoted. What a
    round was begun with it goes on with.
    """
    indices = _indices(run, round_index, _Rules.of(evaluate, guards))
    paths = [run.round(index - 1).policy if index else Path(start) for index in indices]
    return Lineage(Path(start), indices[-1], paths[-1], tuple(paths))


def begin_round(
    run: RunDir, round_index: int, start: str, evaluate: EvaluateConfig, guards: Guards | None
) -> Lineage:
    """:func:`lineage`, kept in the round's folder, so that the round goes on with it whatever a
    later version makes of the same figures; the caller holds the lock."""
    folder = run.round(round_index)
    found = lineage(run, round_index, start, evaluate, guards)
    if not folder.begins_with.exists():
        folder.root.mkdir(parents=True, exist_ok=True)
        indices = _indices(run, round_index, _Rules.of(evaluate, guards))
        atomic_write_json(folder.begins_with, {"policies": indices})
    return found


def _indices(run: RunDir, round_index: int, rules: _Rules) -> list[int]:
    """The policies that rounds up to this one were begun with, without repeats."""
    if not round_index:
        return [0]
    folder, last = run.round(round_index), run.round(round_index - 1)
    if folder.begins_with.exists():
        return _noted(folder)
    earlier = _indices(run, round_index - 1, rules)
    # A version that kept no note took a policy without a verdict for one that won.
    kept_no_note = bool(folder.candidates.indices())
    outcome = _outcome(last, rules.guards)
    without_verdict = outcome.rate is None and (kept_no_note or not _is_evaluated(last))
    good = outcome.won or (without_verdict and outcome.guard is None)
    return [*earlier, round_index] if rules.always or good else earlier


def _noted(folder: RoundDir) -> list[int]:
    found = read_json_object(folder.begins_with, _NOTE_REMEDY).get("policies")
    if not isinstance(found, list) or not found or not all(type(one) is int for one in found):
        raise damaged(folder.begins_with, "no policies", _NOTE_REMEDY)
    return found


def plateau(patience: int | None, run: RunDir) -> str | None:
    """Why no further round is worth it, in one line; null where the run goes on.

    With ``patience``, a run ends when so many rounds in a row did not win, or set off a guard.
    """
    found = verdicts(run)
    if patience is None or len(found) < patience:
        return None
    last = found[-patience:]
    if any(verdict.won for verdict in last):
        return None
    best = keeping(run).folder
    kept = f"the policy to keep is {best.policy}" if best else "no round's policy is worth keeping"
    latest = last[-1]
    return (
        f"round {latest.round} {_said(latest)}"
        + (f", nor did the {patience - 1} before it win" if patience > 1 else "")
        + f": the run ends here; {kept}"
    )


def _said(outcome: RoundOutcome) -> str:
    if outcome.guard:
        return f"set off the guard {outcome.guard}"
    what = f"win rate {outcome.rate}" if outcome.rate else "no vote could be read"
    return f"did not win against the policy before it ({what})"


def _is_evaluated(folder: RoundDir) -> bool:
    return folder.metrics.exists(EVALUATION)


def _outcome(folder: RoundDir, guards: Guards | None) -> RoundOutcome:
    rate = _rates(folder).get("previous")
    guard = _guard_of(folder, guards)
    won = rate is not None and rate.low > 0.5 and guard is None
    return RoundOutcome(folder.index, won, rate, guard)


def _guard_of(folder: RoundDir, guards: Guards | None) -> str | None:
    return next((alarm.guard for alarm in guard_alarms(folder, guards) if alarm.stops), None)


def _rates(folder: RoundDir) -> dict[str, PromotionRate]:
    """The jury's win rates of a round's policy against the policy before it and the starting one,
    as promotion sees them."""
    if not _is_evaluated(folder):
        return {}
    found: dict[tuple[str, str], PromotionRate] = {}
    for row in folder.metrics.read(EVALUATION).to_pylist():
        if row["labeler"] == JURY and row["name"] in ("win_rate", PROMOTION):
            low, high = (end if row[key] is None else row[key] for key, end in _WIDEST.items())
            wider = row["name"] == PROMOTION
            found[row["name"], row["against"]] = PromotionRate(row["value"], low, high, wider)
    rates = {}
    for against in ("previous", "start"):
        rate = found.get((PROMOTION, against)) or found.get(("win_rate", against))
        if rate is not None:
            rates[against] = rate
    return rates
