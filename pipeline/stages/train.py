"""The train stage: a round of training on what the round wrote, by the configured method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.data.hashing import derive_seed
from prefloop.labelers.scorers.compute_threads import computing_with
from prefloop.pipeline.run.context import RoundContext
from prefloop.pipeline.run.metrics import metrics_table
from prefloop.pipeline.run.progress import StepProgress
from prefloop.pipeline.run.promotion import Lineage
from prefloop.pipeline.run.round_guards import GuardStopped
from prefloop.pipeline.run.run_dir import TRAINING_CURVES, RunDir, RunError, Stopwatch
from prefloop.pipeline.stages.rendering import rendering_of, warn_of_thoughts
from prefloop.pipeline.stages.write import split_files
from prefloop.training.config import Guards, TrainConfig
from prefloop.training.methods.offline import train_offline
from prefloop.training.session.job import Job
from prefloop.training.session.records import guard_of, harm_to, summary_of

if TYPE_CHECKING:
    from prefloop.training.session.fit import OnStep, TrainResult


def train_round(context: RoundContext, settings: TrainConfig, origin: Lineage) -> None:
    """Train policy k + 1 from the policy that the round began with, and keep the training curves.

    Raises ``TrainingError`` where there is nothing to train on or the loss is not finite, and
    ``RunError`` where a guard stopped the training and the run is not to go on after that.
    """
    run, folder, index = context.run, context.folder, context.index

    def train(on_step: OnStep) -> TrainResult:
        seed = derive_seed(context.seed, "train", index)
        begin = warmed_up(context, settings, origin, seed)
        reference = reference_policy(context, settings, origin)  # looks at the warm-up's policy
        warn_of_thoughts(context, begin)
        rounds = range(index + 1) if settings.data == "accumulated" else [index]
        earlier = range(index) if settings.data == "replay" else []
        job = Job(
            policy=begin,
            reference=reference,
            files=_files(run, rounds, unpaired=settings.method == "kto"),
            replay=_files(run, earlier),
            held_out=_files(run, [index], split="test") if settings.stop_early else (),
            out=folder.policy,
            config=settings,
            seed=seed,
            kept_reference=folder.reference_logps,
            rendering=rendering_of(context, range(index + 1), begin),
        )
        return train_offline(job, on_step=on_step)

    run_training(context, settings.guards, train)


def run_training(
    context: RoundContext, guards: Guards, train: Callable[[OnStep], TrainResult]
) -> None:
    """Call ``train`` unless the round is trained, and keep its curves and record.

    Raises ``RunError`` where a guard stopped the training and that ends the run.
    """
    if trained_before(context, guards):
        return
    metrics = context.folder.metrics
    watch = Stopwatch()
    threads = computing_with(context.training_threads)
    with threads, _progress(f"round {context.index} train") as on_step:
        result = train(partial(_tell, context, on_step))
    metrics.write(TRAINING_CURVES, metrics_table(curves(result.history, context.index)))
    early = {"early": result.early} if result.early else {}
    context.note("train", watch.lap(), **result.settings, guard=result.guard, **early)
    raise_if_guard_stopped(context, guards)


def trained_before(context: RoundContext, guards: Guards) -> bool:
    """Whether the round is trained. Raises ``RunError`` where a guard stopped that and ends the
    run, and where its policy is not as it was written any more."""
    metrics, policy = context.folder.metrics, context.folder.policy
    if not metrics.exists(TRAINING_CURVES):
        return False
    record = summary_of(policy)
    harm = harm_to(policy) if policy.exists() else None  # one that is not needed may be deleted
    if harm:
        raise RunError(
            f"{policy} {harm}: put it back from a copy, or delete it and "
            f"{metrics.path(TRAINING_CURVES)}: the same command then trains it again"
        )
    if record and not _train_notes(context):  # it was killed before it could write this line
        context.note("train", record["seconds"], **record["settings"], guard=record["guard"])
    raise_if_guard_stopped(context, guards)
    return True


def reference_policy(context: RoundContext, settings: TrainConfig, origin: Lineage) -> Path:
    """The reference policy of a round's training, made where it is an average.

    Raises ``RunError`` where the policy after the warm-up, which all began with, was lost since or
    changed.
    """
    warm = context.run.round(0).warm_up
    harm = None if settings.sft_warmup is None else harm_to(warm)
    if harm:
        begun = context.run.round(0).metrics.exists(TRAINING_CURVES)
        again = "use a new --run-dir" if begun else "delete it: the same command makes it again"
        raise RunError(f"{warm} {harm}: put it back from a copy, or {again}")
    start = warm if warm.exists() else origin.start
    if settings.reference == "start" or origin.previous_index == 0:
        return start
    if settings.reference in ("previous", "ema"):
        return origin.previous
    from prefloop.training.policy.averaging import average_policies

    return average_policies([start, *origin.before[1:]], context.folder.root / "reference")


def warmed_up(context: RoundContext, settings: TrainConfig, origin: Lineage, seed: int) -> Path:
    """The policy that a round trains: after supervised training on the chosen answers of round 0,
    where that is asked for."""
    if settings.sft_warmup is None or origin.previous_index:
        return origin.previous
    warm = context.run.round(0).warm_up
    if warm.exists() or context.index:
        return warm
    asked = settings.sft_warmup
    own = settings.model_copy(
        update={
            "method": "sft",
            "learning_rate": asked.learning_rate,
            "epochs": asked.epochs,
            "sft_warmup": None,
            "stop_early": None,
        }
    )
    warm.parent.mkdir(parents=True, exist_ok=True)
    with _progress(f"round {context.index} warm-up") as on_step:
        files = _files(context.run, [context.index])
        rendering = rendering_of(context, [context.index], origin.previous)
        job = Job(origin.previous, origin.previous, files, warm, own, seed, rendering=rendering)
        train_offline(job, on_step=on_step)
    return warm


def _files(
    run: RunDir, rounds: Iterable[int], *, split: str = "train", unpaired: bool = False
) -> tuple[Path, ...]:
    return tuple(
        path for index in rounds for path in split_files(run, split, index, unpaired=unpaired)
    )


def _tell(context: RoundContext, on_step: OnStep, log: dict[str, Any]) -> None:
    on_step(log)
    if context.on_step:
        context.on_step(context.index, log)


@contextmanager
def _progress(title: str) -> Iterator[OnStep]:
    with StepProgress(title, 0, unit="steps") as progress:

        def on_step(log: dict[str, Any]) -> None:
            progress.update(int(log["step"]), int(log["total_steps"]))

        yield on_step


def raise_if_guard_stopped(context: RoundContext, guards: Guards) -> None:
    """Raise ``GuardStopped`` where a guard stopped the round's training and that ends the run."""
    if guards.then == "go_on":
        return
    # The policy carries its record from the moment it exists; the journal may lack a line.
    noted = (note.get("guard") for note in _train_notes(context))
    guard = guard_of(context.folder.policy) or next(filter(None, noted), None)
    if guard:
        raise GuardStopped(
            f"round {context.index}: guard {guard['guard']} stopped training at step "
            f"{guard['step']} ({guard['value']:.4g}, limit {guard['limit']:.4g}); its policy "
            f"has the weights of step {guard['restored_step']}. {guard['remedy']}. To go on "
            "from that policy: --set train.guards.then=go_on"
        )


def _train_notes(context: RoundContext) -> list[dict[str, Any]]:
    return [
        note
        for note in context.run.notes()
        if note["stage"] == "train" and note["round"] == context.index
    ]


def curves(history: list[dict[str, Any]], round_index: int) -> list[dict[str, Any]]:
    """Trainer logs as metric rows, one for each number of each step."""
    return [
        {"round": round_index, "name": name, "value": float(value), "step": int(log["step"])}
        for log in history
        for name, value in sorted(log.items())  # a resumed trainer's log is in another order
        if name not in {"step", "epoch", "total_steps"} and isinstance(value, int | float)
    ]
