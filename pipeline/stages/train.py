"""The train stage: a DPO round on the dataset written so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.hashing import derive_seed
from pipeline.config import RunConfig
from pipeline.progress import StepProgress
from pipeline.run_dir import RoundDir, RunDir, RunError, Stopwatch
from pipeline.stages.write import split_files
from training.winrate import metrics_table

TRAINING_CURVES = 0
"""Index of the metric shard with the training curves."""


def train_round(
    config: RunConfig, run: RunDir, folder: RoundDir, *, start: str, previous: str
) -> None:
    """Train policy k + 1 from policy k (``previous``) and keep the training curves.

    Raises ``TrainingError`` where there is nothing to train on or the loss is not finite, and
    ``RunError`` where a guard stopped the training and the run is not to go on after that.
    """
    settings = config.train
    if settings is None:
        return
    if folder.metrics.exists(TRAINING_CURVES):
        _refuse_to_go_on(config, run, folder)
        return
    from training.averaging import average_policies
    from training.dpo import train_dpo

    watch = Stopwatch()
    rounds = range(folder.index + 1) if settings.data == "accumulated" else [folder.index]
    files = [path for index in rounds for path in split_files(run, "train", index)]
    earlier = range(folder.index) if settings.data == "replay" else []
    replay = [path for index in earlier for path in split_files(run, "train", index)]
    reference = folder.reference(settings.reference, start)
    if settings.reference == "average" and folder.index:
        trained = [run.round(index).policy for index in range(folder.index)]
        average_policies([Path(start), *trained], reference)
    with StepProgress(f"round {folder.index} train", 0, unit="steps") as progress:

        def on_step(log: dict[str, Any]) -> None:
            progress.update(int(log["step"]), int(log["total_steps"]))

        result = train_dpo(
            policy=Path(previous),
            reference=reference,
            triples=files,
            replay=replay,
            out=folder.policy,
            config=settings,
            seed=derive_seed(config.seed, "train", folder.index),
            on_step=on_step,
        )
    folder.metrics.write(TRAINING_CURVES, metrics_table(curves(result.history, folder.index)))
    run.note("train", folder.index, watch.lap(), **result.settings, guard=result.guard)
    _refuse_to_go_on(config, run, folder)


def _refuse_to_go_on(config: RunConfig, run: RunDir, folder: RoundDir) -> None:
    assert config.train is not None
    if config.train.guards.then == "go_on":
        return
    for note in run.notes():
        if note["stage"] == "train" and note["round"] == folder.index and note.get("guard"):
            guard = note["guard"]
            raise RunError(
                f"round {folder.index}: guard {guard['guard']} stopped training at step "
                f"{guard['step']} ({guard['value']:.4g}, limit {guard['limit']:.4g}); its policy "
                f"has the weights of step {guard['restored_step']}. {guard['remedy']}. To go on "
                "from that policy: --set train.guards.then=go_on"
            )


def curves(history: list[dict[str, Any]], round_index: int) -> list[dict[str, Any]]:
    """Trainer logs as metric rows, one for each number of each step."""
    return [
        {"round": round_index, "name": name, "value": float(value), "step": int(log["step"])}
        for log in history
        for name, value in log.items()
        if name not in {"step", "epoch", "total_steps"} and isinstance(value, int | float)
    ]
