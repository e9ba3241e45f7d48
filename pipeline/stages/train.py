"""The train stage: a round of training on what the round wrote, by the configured method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.data.hashing import derive_seed
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.run.metrics import metrics_table
from prefloop.pipeline.run.progress import StepProgress
from prefloop.pipeline.run.promotion import Lineage
from prefloop.pipeline.run.run_dir import TRAINING_CURVES, RoundDir, RunDir, RunError, Stopwatch
from prefloop.pipeline.stages.write import split_files
from prefloop.training.config import TrainConfig
from prefloop.training.methods.offline import Job, train_offline

if TYPE_CHECKING:
    from prefloop.training.session.fit import OnStep, TrainResult


def train_round(config: RunConfig, run: RunDir, folder: RoundDir, origin: Lineage) -> None:
    """Train policy k + 1 from the policy that the round began with, and keep the training curves.

    Raises ``TrainingError`` where there is nothing to train on or the loss is not finite, and
    ``RunError`` where a guard stopped the training and the run is not to go on after that.
    """

    def train(settings: TrainConfig, on_step: OnStep) -> TrainResult:
        seed = derive_seed(config.seed, "train", folder.index)
        begin = warmed_up(config, run, folder, origin, seed)
        reference = reference_policy(config, run, folder, origin)
        rounds = range(folder.index + 1) if settings.data == "accumulated" else [folder.index]
        earlier = range(folder.index) if settings.data == "replay" else []
        job = Job(
            policy=begin,
            reference=reference,
            files=_files(run, rounds, unpaired=settings.method == "kto"),
            replay=_files(run, earlier),
            out=folder.policy,
            config=settings,
            seed=seed,
            kept_reference=folder.reference_logps,
        )
        return train_offline(job, on_step=on_step)

    run_training(config, run, folder, train)


def run_training(
    config: RunConfig,
    run: RunDir,
    folder: RoundDir,
    train: Callable[[TrainConfig, OnStep], TrainResult],
) -> None:
    """Call ``train`` unless the round is trained, and keep its curves and record."""
    settings = config.train
    if settings is None:
        return
    if folder.metrics.exists(TRAINING_CURVES):
        raise_if_guard_stopped(config, run, folder)
        return
    watch = Stopwatch()
    with _progress(f"round {folder.index} train") as on_step:
        result = train(settings, on_step)
    folder.metrics.write(TRAINING_CURVES, metrics_table(curves(result.history, folder.index)))
    run.note("train", folder.index, watch.lap(), **result.settings, guard=result.guard)
    raise_if_guard_stopped(config, run, folder)


def reference_policy(config: RunConfig, run: RunDir, folder: RoundDir, origin: Lineage) -> Path:
    """The reference policy of a round's training, made where it is an average."""
    assert config.train is not None
    warm = run.round(0).warm_up
    start = warm if warm.exists() else origin.start
    if config.train.reference == "start" or origin.previous_index == 0:
        return start
    if config.train.reference == "previous":
        return origin.previous
    from prefloop.training.policy.averaging import average_policies

    return average_policies([start, *origin.before[1:]], folder.root / "reference")


def warmed_up(config: RunConfig, run: RunDir, folder: RoundDir, origin: Lineage, seed: int) -> Path:
    """The policy that a round trains: after supervised training on the chosen answers of round 0,
    where that is asked for."""
    settings = config.train
    if settings is None or settings.sft_warmup is None or origin.previous_index:
        return origin.previous
    warm = run.round(0).warm_up
    if warm.exists() or folder.index:
        return warm
    asked = settings.sft_warmup
    own = settings.model_copy(
        update={
            "method": "sft", "learning_rate": asked.learning_rate, "epochs": asked.epochs,
            "sft_warmup": None,
        }
    )  # fmt: skip
    warm.parent.mkdir(parents=True, exist_ok=True)
    with _progress(f"round {folder.index} warm-up") as on_step:
        files = _files(run, [folder.index])
        job = Job(origin.previous, origin.previous, files, warm, own, seed)
        train_offline(job, on_step=on_step)
    return warm


def _files(run: RunDir, rounds: Iterable[int], *, unpaired: bool = False) -> tuple[Path, ...]:
    return tuple(
        path for index in rounds for path in split_files(run, "train", index, unpaired=unpaired)
    )


@contextmanager
def _progress(title: str) -> Iterator[OnStep]:
    with StepProgress(title, 0, unit="steps") as progress:

        def on_step(log: dict[str, Any]) -> None:
            progress.update(int(log["step"]), int(log["total_steps"]))

        yield on_step


def raise_if_guard_stopped(config: RunConfig, run: RunDir, folder: RoundDir) -> None:
    """Raise ``RunError`` where a guard stopped the round's training and that ends the run."""
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
