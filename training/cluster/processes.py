"""One piece of work in several processes of a Ray cluster, which reach each other by torch.

Ray Train starts the processes, joins them, and starts all of them again where one died. What they
have to say comes to the process that waits for them, as the lines of a launched training do.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefloop.data.errors import PrefloopError
from prefloop.training.cluster.joining import ClusterError, import_ray, join_cluster
from prefloop.training.cluster.places import Node, clear_places, place_of
from prefloop.training.config import ClusterConfig
from prefloop.training.errors import TrainingError

KEY = "train.cluster"
_LOOK_S = 0.5
"""Seconds between two looks at what the processes have said."""
_END_S = 10.0
"""Seconds that the end of all of it waits for an answer."""

Say = Callable[[str, Any], None]
"""Says something of a kind to the process that waits."""
SharedWork = Callable[[str, Say], None]
"""What each process does, given a text; it must be found by its name in every process. A
``PrefloopError`` ends the whole, whatever else it raises is tried again."""


@dataclass
class Ear:
    """Keeps what is said until it is asked for. It is an actor, on the cluster."""

    said: deque[tuple[str, Any]] = field(default_factory=deque)
    problem: str | None = None
    """What ended the work for good."""
    room: Any = None
    """Of the processes that were begun last: their placement group."""

    def say(self, kind: str, what: Any) -> None:
        """Keep it."""
        self.said.append((kind, what))

    def give_up(self, problem: str) -> None:
        """Nothing is to be tried again. The first of several problems counts."""
        self.problem = self.problem or problem

    def begin_in(self, room: Any) -> None:
        """A process has begun in a placement group."""
        self.room = room

    def last_room(self) -> Any:
        """The placement group that was begun in last; null where none was."""
        return self.room

    def taken(self) -> tuple[list[tuple[str, Any]], str | None]:
        """All that was said since the last time, and the problem."""
        taken = list(self.said)
        self.said.clear()
        return taken, self.problem


def on_cluster(
    work: SharedWork,
    text: str,
    settings: ClusterConfig,
    *,
    state: Path,
    environment: Mapping[str, str],
    hear: Callable[[str, Any], None],
) -> None:
    """Have ``work`` done with ``text`` by the processes that ``settings`` describe, and wait for
    them. What they say comes to ``hear``, which may end it by raising.

    ``state``: a folder of this work alone, which all of them see, and which is there meanwhile. Who
    was begun with it before, and does not know yet that it is over, is waited for.
    ``environment``: further variables of the processes. Raises ``TrainingError``.
    """
    try:
        is_ours = join_cluster(settings.address, f"{KEY}.address")
    except ClusterError as error:
        raise TrainingError(str(error)) from None
    try:
        _Whole(work, text, settings, state.absolute(), dict(environment)).follow(hear)
    finally:
        if is_ours:
            import_ray(KEY).shutdown()


@dataclass
class Fit:
    """Has Ray Train do the work. It is an actor, on the cluster: what it began ends with it, so
    that killing it ends the whole, whatever Ray is about at the time."""

    work: SharedWork
    text: str
    settings: ClusterConfig
    state: Path
    environment: dict[str, str]

    def run(self, ear: Any) -> str | None:
        """Do it, and tell ``ear``; what stopped it, null where it was done."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        for name in ("ray.train", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        settings = self.settings
        try:
            _ending_with_us(TorchTrainer)(
                _process,
                train_loop_config={
                    "ear": ear,
                    "work": self.work,
                    "text": self.text,
                    "state": self.state,
                    "environment": self.environment,
                },
                scaling_config=ScalingConfig(
                    num_workers=settings.workers,
                    use_gpu=_has_gpus(import_ray(KEY)),
                    resources_per_worker={"CPU": settings.cpus},
                    accelerator_type=settings.accelerator_type,
                ),
                run_config=RunConfig(
                    storage_path=str(self.state),
                    failure_config=FailureConfig(max_failures=settings.attempts - 1),
                ),
            ).fit()
        except Exception as error:  # noqa: BLE001  # handed to who waits
            return _explained(error, settings)
        return None


@dataclass
class _Whole:
    work: SharedWork
    text: str
    settings: ClusterConfig
    state: Path
    environment: dict[str, str]

    def follow(self, hear: Callable[[str, Any], None]) -> None:
        """Do it, and hear what the processes say."""
        ray = import_ray(KEY)
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        _require_room(ray, self.settings)
        # Where this process is: with its node, who listens is gone too.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        beside = ray.remote(num_cpus=0, scheduling_strategy=here)
        self.state.mkdir(parents=True, exist_ok=True)
        ear = beside(Ear).remote()
        fit = beside(Fit).remote(self.work, self.text, self.settings, self.state, self.environment)
        try:
            ended = fit.run.remote(ear)
            while not ray.wait([ended], timeout=_LOOK_S)[0]:
                _hear_all(ray, ear, hear)
            _hear_all(ray, ear, hear)
            if problem := _answer(ray, ended):
                raise TrainingError(problem)
        finally:
            ray.kill(fit)
            with suppress(ray.exceptions.RayError):
                if room := ray.get(ear.last_room.remote(), timeout=_END_S):
                    ray.util.remove_placement_group(room)
            ray.kill(ear)
            clear_places(self.state)


def _ending_with_us(trainer: Any) -> Any:
    """Ray Train's ``trainer`` without the actor that looks whether its controller is alive, and
    gives back the processes' room where it is not. It outlives whoever began it, and for good where
    the cluster has no dashboard to ask. The room is given back here, or with our connection."""

    class Trainer(trainer):  # type: ignore[misc]  # known when Ray is imported
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [
                one for one in callbacks if type(one).__name__ != "PlacementGroupCleanerCallback"
            ]

    return Trainer


def _process(config: Mapping[str, Any]) -> None:
    """In each of the processes."""
    from ray.train import get_context

    ray = import_ray(KEY)
    ear = config["ear"]
    os.environ.update(config["environment"])
    ray.get(ear.begin_in.remote(ray.util.get_current_placement_group()))

    def say(kind: str, what: Any) -> None:
        # Waited for: who trains with nobody to hear it is to end.
        ray.get(ear.say.remote(kind, what))

    try:
        here = Node(ray.get_runtime_context().get_node_id(), _has_node)
        with place_of(get_context().get_world_rank(), config["state"], here):
            config["work"](config["text"], say)
    except PrefloopError as error:
        ray.get(ear.give_up.remote(" ".join(str(error).split())))
        raise
    except Exception:
        traceback.print_exc()  # into its log in Ray's dashboard
        raise


def _hear_all(ray: Any, ear: Any, hear: Callable[[str, Any], None]) -> None:
    said, problem = _answer(ray, ear.taken.remote())
    for kind, what in said:
        hear(kind, what)
    if problem:  # Ray would try again
        raise TrainingError(problem)


def _answer(ray: Any, asked: Any) -> Any:
    try:
        return ray.get(asked)
    except ray.exceptions.RayError as error:
        raise TrainingError(
            f"the cluster does not tell how the training goes on ({_last_line(error)}): the same "
            "command goes on from the last checkpoint"
        ) from None


def _has_node(name: str) -> bool:
    return any(node["NodeID"] == name for node in import_ray(KEY).nodes() if node["Alive"])


def _has_gpus(ray: Any) -> bool:
    return any(node["Resources"].get("GPU", 0) > 0 for node in ray.nodes() if node["Alive"])


def _require_room(ray: Any, settings: ClusterConfig) -> None:
    """Raise ``TrainingError`` where the cluster is too small: Ray would wait for ever."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = _has_gpus(ray)
    room = sum(
        min(
            int(node.get("CPU", 0) // settings.cpus),
            int(node.get("GPU", 0)) if gpus else settings.workers,
        )
        for node in alive
    )
    if room < settings.workers:
        what = f"{settings.cpus:g} CPUs" + (" and a GPU" if gpus else "")
        raise TrainingError(
            f"{KEY}.workers {settings.workers}: the cluster's {len(alive)} nodes have room for "
            f"{room} processes of {what}: add nodes, or lower {KEY}.workers or {KEY}.cpus"
        )


def _explained(error: Exception, settings: ClusterConfig) -> str:
    """``error`` of Ray Train as one line."""
    failures = getattr(error, "worker_failures", None) or {}
    reason = next(iter(failures.values()), error)
    cause = getattr(reason, "cause", None) or reason
    return (
        f"the training on the cluster was begun {settings.attempts} times, and each time a process "
        f"of it ended ({_last_line(cause)}): see the processes' logs in Ray's dashboard, for want "
        "of memory lower train.batch_size. The same command goes on from the last checkpoint"
    )


def _last_line(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no reason given'}"
