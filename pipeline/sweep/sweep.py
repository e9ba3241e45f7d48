"""`prefloop run --sweep`: several values of a setting, over the same answers and votes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefloop.data.errors import PrefloopError
from prefloop.data.shards import atomic_write_json
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.loop import run_loop
from prefloop.pipeline.run.run_dir import EVALUATION, JURY, RunDir
from prefloop.pipeline.stages.write import rows_written
from prefloop.pipeline.sweep.shared_round import open_trial, share_round
from prefloop.pipeline.sweep.swept import Trial

logger = logging.getLogger(__name__)

_FIGURES = {
    ("win_rate", "start", JURY): "win_rate",
    ("length_controlled_win_rate", "start", JURY): "length_controlled_win_rate",
    ("kl", "start", None): "kl",
    ("mean_tokens", None, None): "mean_tokens",
    ("reward_accuracy", None, None): "reward_accuracy",
}
"""By name, opponent and labeler of the metric."""


@dataclass(frozen=True)
class TrialFigure:
    """A figure with its interval, where it has one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class TrialResult:
    """What came of one combination of values."""

    label: str
    settings: dict[str, Any]
    folder: Path
    round: int | None
    """Of the last policy that was evaluated, which the figures are about."""
    triples: int
    """In the training split."""
    figures: dict[str, TrialFigure]
    """``win_rate`` against the starting policy, ``kl`` to it and so on, and ``score by NAME`` for
    each labeler that gives scores."""
    failed: str | None
    """Why it did not come to its end."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep found."""

    run: Path
    """Where the answers and votes lie."""
    keys: tuple[str, ...]
    trials: tuple[TrialResult, ...]
    page: Path

    @property
    def notes(self) -> list[str]:
        """What to know about the figures."""
        if len(self.trials) < 2:
            return []
        return [
            f"the best of {len(self.trials)} looks better than it is: all were measured on the "
            "same prompts, and each interval holds by itself; confirm it on others "
            "(`prefloop compare`)"
        ]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "run": str(self.run),
            "keys": list(self.keys),
            "page": str(self.page),
            "notes": self.notes,
            "trials": [{**asdict(one), "folder": str(one.folder)} for one in self.trials],
        }


def _with_pairs_alone(config: RunConfig) -> RunConfig:
    """``config``, without the answers and votes in the dataset: the shared run has the same."""
    return config.model_copy(
        update={"write": config.write.model_copy(update={"every_answer": False})}
    )


async def run_sweep(shared: RunConfig, trials: Sequence[Trial], *, check: bool = True) -> Sweep:
    """Sample and label once, in the run directory of ``shared``; then train and evaluate each of
    ``trials`` in its own. What is there is not done again.

    A trial that fails (a guard that ends it, filters that drop all) is told in its place, and the
    others go on. Raises subclasses of ``PrefloopError`` for what is shared, and where all fail.
    """
    run = RunDir(Path(shared.run_dir))
    await share_round(shared, run, check=check)
    results: list[TrialResult] = []
    last: PrefloopError | None = None
    for number, trial in enumerate(trials, 1):
        logger.info("sweep: %s (%d of %d)", trial.label, number, len(trials))
        with run.lock():
            directory = open_trial(run, trial)
        failed = None
        try:
            await run_loop(_with_pairs_alone(trial.config), directory)
        except PrefloopError as error:
            logger.warning("sweep: %s: %s", trial.label, error)
            failed, last = str(error), error
        results.append(_result(trial, directory, failed))
    if last is not None and all(one.failed for one in results):
        raise last
    keys = tuple(trials[0].settings)
    stem = run.root / "sweep" / "+".join(keys)[:100]
    found = Sweep(run.root, keys, tuple(results), stem.with_name(f"{stem.name}.html"))
    atomic_write_json(stem.with_name(f"{stem.name}.json"), found.as_dict())
    return found


def _result(trial: Trial, run: RunDir, failed: str | None) -> TrialResult:
    """What lies in ``run``; nothing where the trial failed, as that may be of other settings."""
    if failed is not None:
        return TrialResult(trial.label, trial.settings, run.root, None, 0, {}, failed)
    written = [folder for folder in run.rounds() if folder.written.exists()]
    evaluated = [folder for folder in run.rounds() if folder.metrics.exists(EVALUATION)]
    figures: dict[str, TrialFigure] = {}
    for row in evaluated[-1].metrics.read(EVALUATION).to_pylist() if evaluated else ():
        name = _FIGURES.get((row["name"], row["against"], row["labeler"]))
        if row["name"] == "mean_score" and row["against"] is None:
            name = f"score by {row['labeler']}"
        if name is not None:
            figures[name] = TrialFigure(row["value"], row["low"], row["high"])
    return TrialResult(
        label=trial.label,
        settings=trial.settings,
        folder=run.root,
        round=evaluated[-1].index if evaluated else None,
        triples=sum(rows_written(folder)["train"] for folder in written),
        figures=figures,
        failed=None,
    )
