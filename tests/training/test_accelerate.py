"""Trainings in processes that accelerate launches: two of them, FSDP, on the CPU."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from prefloop.training.config import TrainConfig
from prefloop.training.errors import TrainingError
from prefloop.training.methods.offline import train_offline
from prefloop.training.session.fit import TrainResult
from prefloop.training.session.job import Job
from tests.helpers.dpo_data import rows, write
from tests.helpers.engine_models import make_model

FSDP = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
num_processes: 2
num_machines: 1
machine_rank: 0
use_cpu: true
mixed_precision: 'no'
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_cpu_ram_efficient_loading: false
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("policy"), layers=2, width=64))


@pytest.fixture(scope="module")
def job(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """In one process, eight pairs a step."""
    folder = tmp_path_factory.mktemp("one")
    shard = write(folder / "t.parquet", rows(32))
    config = TrainConfig(batch_size=8, learning_rate=1e-3, epochs=2, save_steps=2)
    return Job(policy, policy, (shard,), folder / "policy", config, 5)


def launched(job: Job, folder: Path, text: str = FSDP) -> Job:
    """The same in two processes, four pairs a step each."""
    folder.mkdir(exist_ok=True)
    file = folder / "accelerate.yaml"
    file.write_text(text, encoding="utf-8")
    config = job.config.model_copy(update={"batch_size": 4, "accelerate": file})
    return Job(
        job.policy, job.reference, job.files, folder / "policy", config, job.seed,
        kept_reference=folder / "logps.parquet",
    )  # fmt: skip


def workers(job: Job) -> list[str]:
    """Processes that were launched for ``job``."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(job.out.parent / f".{job.out.name}.job.json") in command:
                found.append(command)
    return found


def assert_as_alone(result: TrainResult, alone: TrainResult) -> None:
    """Eight steps, with the losses and the weights of one process but for rounding."""
    assert [log["step"] for log in result.history] == list(range(1, 9))
    for mine, theirs in zip(result.history, alone.history, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=2e-4)
    one, other = (load_file(each.policy_path / "model.safetensors") for each in (alone, result))
    assert one.keys() == other.keys()
    for name, weights in one.items():
        assert weights == pytest.approx(other[name], abs=2e-4), name


def ordered(job: Job, order: str, folder: Path) -> Job:
    config = job.config.model_copy(update={"order": order})
    return replace(job, config=config, out=folder / "one" / "policy")


def test_two_processes_train_as_one_does(job: Job, tmp_path: Path) -> None:
    job = ordered(job, "random", tmp_path)
    assert_as_alone(train_offline(launched(job, tmp_path / "two")), train_offline(job))


def test_two_processes_train_as_one_does_also_after_a_kill(job: Job, tmp_path: Path) -> None:
    """Killed in the middle of the second epoch."""
    job = ordered(job, "length", tmp_path)
    alone = train_offline(job)
    assert alone.steps == 8
    two = launched(job, tmp_path / "two")
    spec = tmp_path / "job.json"
    spec.write_text(two.dump(), encoding="utf-8")
    # kill -9, once there is a checkpoint in the middle of the round.
    script = (
        "import sys; from pathlib import Path; "
        "from prefloop.training.methods.offline import train_offline; "
        "from prefloop.training.session.job import Job; "
        "train_offline(Job.load(Path(sys.argv[1]).read_text()))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(spec)])
    marker = two.out.parent / ".policy.checkpoints" / "checkpoint-6" / "prefloop_complete"
    deadline = time.monotonic() + 180
    while not marker.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert marker.exists()
    while workers(two) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not workers(two)  # what it launched goes too
    assert not two.out.exists()

    steps: list[int] = []
    result = train_offline(two, on_step=lambda log: steps.append(int(log["step"])))
    assert steps
    assert steps[0] > 6  # from the checkpoint on
    assert_as_alone(result, alone)
    assert not list(two.out.glob("*.bin"))  # no pickle
    assert not (two.out.parent / ".policy.checkpoints").exists()
    assert train_offline(two).history == result.history  # nothing is launched again


def test_a_problem_of_a_launched_training_is_one_line(job: Job, tmp_path: Path) -> None:
    missing = launched(job, tmp_path / "missing")
    assert missing.config.accelerate is not None
    missing.config.accelerate.unlink()
    with pytest.raises(TrainingError, match=r"accelerate.yaml: no such file"):
        train_offline(missing)
    short = launched(job, tmp_path / "short")
    config = short.config.model_copy(update={"max_length": 2})
    with pytest.raises(TrainingError, match="is longer than 2 tokens") as caught:
        train_offline(
            Job(short.policy, short.reference, short.files, short.out, config, short.seed)
        )
    assert "\n" not in str(caught.value)
