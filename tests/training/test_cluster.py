"""Trainings in processes on a real Ray cluster of two nodes of one CPU each."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from prefloop.pipeline.config import ConfigError, validate_config
from prefloop.training.cluster.sharding import sharding_of
from prefloop.training.config import TrainConfig
from prefloop.training.errors import TrainingError
from prefloop.training.methods import offline
from prefloop.training.methods.offline import STEP, train_as_one, train_offline
from prefloop.training.session.fit import TrainResult
from prefloop.training.session.job import Job
from tests.helpers.dpo_data import rows, write
from tests.helpers.engine_models import make_model
from tests.helpers.paths import ROOT
from tests.pipeline.executors.ray_cluster import QUIET, add_node, kill, ray_cluster, until
from tests.training.test_accelerate import FSDP, assert_as_alone

# By a thread: Ray may hang where no signal of Python's is heard.
pytestmark = pytest.mark.timeout(1800, method="thread")

DEEPSPEED = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
num_processes: 2
num_machines: 1
machine_rank: 0
mixed_precision: 'no'
deepspeed_config: {zero_stage: 3}
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    pytest.importorskip("ray", reason="Ray is not installed")
    with ray_cluster() as here:
        yield here


@pytest.fixture(scope="module")
def cluster(nodes: Any) -> str:
    return str(nodes.address)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("policy"), layers=2, width=64))


@pytest.fixture(scope="module")
def alone(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, TrainResult]:
    """In one process, eight pairs a step."""
    folder = tmp_path_factory.mktemp("one")
    shard = write(folder / "t.parquet", rows(32))
    config = TrainConfig(batch_size=8, learning_rate=1e-3, epochs=2, save_steps=2)
    job = Job(policy, policy, (shard,), folder / "policy", config, 5)
    return job, train_offline(job)


def on(address: str, job: Job, folder: Path, **changes: Any) -> Job:
    """The same in two processes, four pairs a step each."""
    settings = {"workers": 2, "address": address, "attempts": 2} | changes.pop("cluster", {})
    raw = job.config.model_dump(mode="json") | {"batch_size": 4, "cluster": settings} | changes
    config = TrainConfig.model_validate(raw)
    return Job(
        job.policy, job.reference, job.files, folder / "policy", config, job.seed,
        kept_reference=folder / "logps.parquet",
    )  # fmt: skip


OF_RAY = (
    "ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_AutoscalingCoordinatorActor",
)  # fmt: skip
"""What Ray has once for each node, and once for a cluster."""


def processes(what: str = "RayTrainWorker") -> list[psutil.Process]:
    """Those that train, or all whose names with Ray begin so."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            name = "".join(process.cmdline()[:1])
            if name.startswith(f"ray::{what}") and not name.startswith(OF_RAY):
                found.append(process)
        except psutil.Error:
            continue
    return found


def nothing_is_left() -> bool:
    """Whether all that the cluster was asked for is at its end."""
    return until(lambda: not processes(""))


HOLD = 5
"""The step at which a training waits, having taken it: the last checkpoint is of the one before."""


def train_until_held(text: str, say: Callable[[str, Any], None]) -> None:
    """``train_as_one``, which waits at a step as long as there is a file ``held`` beside the
    policy, and tells there which process waits, and which steps were taken."""
    folder = Job.load(text).out.parent

    def tell(kind: str, what: Any) -> None:
        if kind == STEP:
            with (folder / "taken").open("a", encoding="utf-8") as file:
                file.write(f"{what['step']:g} ")
            if what["step"] == HOLD and (folder / "held").exists():
                (folder / "held").write_text(str(os.getpid()), encoding="utf-8")
        say(kind, what)
        while kind == STEP and what["step"] == HOLD and (folder / "held").exists():
            time.sleep(0.05)

    train_as_one(text, tell)


def holding(
    folder: Path, then: Callable[[psutil.Process], None]
) -> tuple[list[int], Callable[[dict[str, float]], None]]:
    """Let the training in ``folder`` be held, and do ``then`` with the process that waits: the
    steps as they are told, and who is to be told of them."""
    held = folder / "held"
    held.touch()
    steps: list[int] = []

    def on_step(log: dict[str, float]) -> None:
        steps.append(int(log["step"]))
        if steps[-1] == HOLD:
            then(psutil.Process(int(held.read_text(encoding="utf-8"))))
            held.unlink()

    return steps, on_step


def steps_taken(folder: Path) -> list[int]:
    return list(map(int, (folder / "taken").read_text(encoding="utf-8").split()))


@pytest.mark.slow
def test_a_process_that_is_killed_is_replaced_and_the_weights_are_those_of_one(
    cluster: str, alone: tuple[Job, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are sharded here; where a node is killed, each process has all of them."""
    monkeypatch.setattr(offline, "train_as_one", train_until_held)
    file = tmp_path / "accelerate.yaml"
    file.write_text(FSDP, encoding="utf-8")
    steps, on_step = holding(tmp_path, kill)
    job = on(cluster, alone[0], tmp_path, accelerate=str(file))
    result = train_offline(job, on_step=on_step)
    assert steps_taken(tmp_path) == [*range(1, HOLD + 1), *range(HOLD, 9)]
    assert steps == list(range(1, 9))  # each is heard once, though some were taken twice
    assert_as_alone(result, alone[1])
    assert until(lambda: not processes())
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"accelerate.yaml", "logps.parquet", "policy", "taken"}
    again = train_offline(job)  # made already: nobody is asked
    assert again.history == result.history


@pytest.mark.slow
def test_a_node_that_is_killed_is_done_without_where_there_is_another(
    nodes: Any, alone: tuple[Job, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline, "train_as_one", train_until_held)

    def kill_node(of: psutil.Process) -> None:
        raylet = of.ppid()
        [node] = [
            one for one in nodes.worker_nodes
            if raylet in [each.process.pid for each in one.all_processes["raylet"]]
        ]  # fmt: skip
        nodes.remove_node(node, allow_graceful=False)
        kill(of)  # it lives on for a second where its machine does

    steps, on_step = holding(tmp_path, kill_node)
    add_node(nodes)
    result = train_offline(on(nodes.address, alone[0], tmp_path), on_step=on_step)
    assert_as_alone(result, alone[1])
    assert steps == list(range(1, 9))
    assert steps_taken(tmp_path) == [*range(1, HOLD + 1), *range(HOLD, 9)]
    assert nothing_is_left()


WAITING = """
import sys
from prefloop.training.methods import offline
from prefloop.training.session.job import Job
from tests.training.test_cluster import train_until_held
offline.train_as_one = train_until_held
offline.train_offline(Job.load(sys.stdin.read()))
"""
"""Of the process that waits for a training."""


@pytest.mark.slow
def test_a_training_ends_with_who_waits_for_it_and_the_same_command_goes_on(
    nodes: Any, alone: tuple[Job, TrainResult], tmp_path: Path
) -> None:
    job = on(nodes.address, alone[0], tmp_path)
    held = tmp_path / "held"
    held.touch()

    def waiting() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", WAITING], cwd=ROOT, stdin=subprocess.PIPE, text=True,
            env=os.environ | QUIET | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert process.stdin
        process.stdin.write(job.dump())
        process.stdin.close()
        return process

    first = waiting()
    assert until(lambda: bool(held.read_text(encoding="utf-8")), 900)
    assert len(processes()) == 2
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert nothing_is_left(), processes("")
    held.unlink()
    assert waiting().wait(900) == 0
    assert_as_alone(train_offline(job), alone[1])
    assert steps_taken(tmp_path) == [*range(1, HOLD + 1), *range(HOLD, 9)]
    assert nothing_is_left()


@pytest.mark.slow
def test_a_problem_is_said_once_and_nothing_is_tried_again(
    cluster: str, alone: tuple[Job, TrainResult], tmp_path: Path
) -> None:
    job = on(cluster, alone[0], tmp_path, max_length=2)
    with pytest.raises(TrainingError) as problem:
        train_offline(job)
    assert until(lambda: not processes())
    with pytest.raises(TrainingError) as here:
        train_offline(
            Job(job.policy, job.reference, job.files, tmp_path / "here",
                alone[0].config.model_copy(update={"max_length": 2}), 5)
        )  # fmt: skip
    assert str(problem.value) == str(here.value)


@pytest.mark.slow
def test_a_cluster_that_is_too_small_is_named_and_not_waited_for(
    cluster: str, alone: tuple[Job, TrainResult], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="nodes have room for 2 processes of 1 CPUs: add nodes"):
        train_offline(on(cluster, alone[0], tmp_path, cluster={"workers": 3}))


def test_what_does_not_go_with_a_cluster_is_refused() -> None:
    for more, words in (
        ({"method": "grpo"}, "cluster is for training on what was sampled before"),
        ({"reference": "ema", "precompute_reference_logprobs": False}, "leave out cluster"),
        ({"cluster": {"workers": 0}}, "train.cluster.workers"),
    ):
        raw = {
            "prompts": {"train": {"path": "p.jsonl"}},
            "label": {"labelers": [{"type": "verifier"}]},
            "train": {"cluster": {"workers": 2}} | more,
        }
        with pytest.raises(ConfigError, match=re.escape(words)):
            validate_config(raw, "test")


def test_a_file_of_accelerate_says_what_is_sharded_and_changes_nothing_here(tmp_path: Path) -> None:
    before = dict(os.environ)
    file = tmp_path / "accelerate.yaml"
    file.write_text(FSDP, encoding="utf-8")
    found = sharding_of(file)
    assert found["ACCELERATE_USE_FSDP"] == "true"
    assert found["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "LlamaDecoderLayer"
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} & found.keys()
    assert dict(os.environ) == before
    file.write_text(DEEPSPEED, encoding="utf-8")
    with pytest.raises(TrainingError, match="DeepSpeed"):
        sharding_of(file)
    file.write_text("num_processes: [", encoding="utf-8")
    with pytest.raises(TrainingError, match="cannot be read by accelerate"):
        sharding_of(file)
