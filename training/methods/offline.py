"""Training on what lies on disk, by the configured method, in this process or in several.

With ``accelerate`` in the config, the same training runs in the processes that ``accelerate
launch`` starts from that file (several devices or machines, FSDP, DeepSpeed), with ``cluster`` in
those that a Ray cluster starts, and this process waits for it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

from prefloop.training.cluster.processes import on_cluster
from prefloop.training.cluster.sharding import sharding_of
from prefloop.training.config import ClusterConfig, TrainConfig
from prefloop.training.errors import TrainingError
from prefloop.training.methods.dpo import Dpo
from prefloop.training.methods.kto import Kto
from prefloop.training.methods.sft import Sft
from prefloop.training.session.fit import OnStep, TrainResult, fit
from prefloop.training.session.job import Job
from prefloop.training.session.method import TrainingMethod
from prefloop.training.session.setup import has_gpu

logger = logging.getLogger(__name__)

STEP, PROBLEM, WARNING = "@prefloop-step ", "@prefloop-problem ", "@prefloop-warning "
"""What the lines begin with by which a launched training reports."""
_LAST_LINES = 20


def train_offline(job: Job, *, on_step: OnStep | None = None, verbose: bool = False) -> TrainResult:
    """``prefloop.training.session.fit.fit`` by the method that the job's config names, in the
    processes that its ``cluster`` or ``accelerate`` describes where there is one."""
    if not job.out.exists():
        if job.config.cluster:
            _on_cluster(job, job.config.cluster, on_step)
        elif job.config.accelerate:
            _launch(job, job.config.accelerate, on_step)
    return fit(job, offline_method(job.config), on_step=on_step, verbose=verbose)


def offline_method(config: TrainConfig) -> TrainingMethod[Any]:
    """The method that ``config`` names, of those that train on what lies on disk."""
    methods: dict[str, TrainingMethod[Any]] = {"dpo": Dpo(), "kto": Kto(), "sft": Sft()}
    return methods[config.method]


def train_as_one(text: str, say: Callable[[str, Any], None]) -> None:
    """Train the job that ``text`` describes as one of several processes, and let ``say`` have its
    steps and warnings. Raises as :func:`train_offline`."""
    from accelerate import PartialState

    # Joins the other processes, and takes this one's device.
    state = PartialState(cpu=not has_gpu())
    if state.is_main_process:
        _hand_on_warnings(partial(say, WARNING))
    job = Job.load(text)
    fit(job, offline_method(job.config), on_step=partial(say, STEP))


def _hand_on_warnings(say: Callable[[str], None]) -> None:
    """Libraries' stay among the lines that nobody asked for."""

    class Saying(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(record.getMessage())

    ours = logging.getLogger("prefloop")
    ours.addHandler(Saying(logging.WARNING))
    ours.propagate = False


def _on_cluster(job: Job, cluster: ClusterConfig, on_step: OnStep | None) -> None:
    """Train in processes on a Ray cluster; the steps go to ``on_step``, each once."""
    sharding = {}
    if job.config.accelerate:
        _require_file(job.config.accelerate)
        sharding = sharding_of(job.config.accelerate)
    job.out.parent.mkdir(parents=True, exist_ok=True)
    last = 0.0

    def hear(kind: str, what: Any) -> None:
        nonlocal last
        if kind == WARNING:
            logger.warning("%s", what)
        elif what["step"] > last:  # a training that is begun again repeats some
            last = what["step"]
            if on_step:
                on_step(what)

    on_cluster(
        train_as_one, job.dump(), cluster,
        state=job.out.with_name(f".{job.out.name}.cluster"), environment=sharding, hear=hear,
    )  # fmt: skip


def _require_file(config_file: Path) -> None:
    if not config_file.is_file():
        raise TrainingError(
            f"{config_file}: no such file: train.accelerate names what `accelerate config` wrote"
        )


def _launch(job: Job, config_file: Path, on_step: OnStep | None) -> None:
    """Run ``prefloop.training.worker`` under ``accelerate launch``; its steps go to ``on_step``."""
    _require_file(config_file)
    job.out.parent.mkdir(parents=True, exist_ok=True)
    spec = job.out.parent / f".{job.out.name}.job.json"
    spec.write_text(job.dump(), encoding="utf-8")
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config_file),
        "-m", "prefloop.training.worker", str(spec),
    ]  # fmt: skip
    # `-m` would put the working directory before everything that is installed, and a user's own
    # package `datasets` in place of the library.
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    with subprocess.Popen(  # noqa: S603  # this interpreter, accelerate, the user's own file
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            problem, last = _follow(process.stdout, on_step)
        except BaseException:
            process.terminate()  # torch's launcher ends its processes with it
            raise
        code = process.wait()
    spec.unlink(missing_ok=True)
    if problem:
        raise TrainingError(problem)
    if code:
        raise TrainingError(
            f"the training that accelerate launched from {config_file} ended with status {code}; "
            "its last lines:\n" + "\n".join(last)
        )


def _follow(output: IO[str], on_step: OnStep | None) -> tuple[str | None, list[str]]:
    """What went wrong, if a worker said so, and the last lines of its output."""
    problem: str | None = None
    last: deque[str] = deque(maxlen=_LAST_LINES)
    for line in output:
        if STEP in line:
            if on_step:
                on_step(json.loads(line.partition(STEP)[2]))
        elif WARNING in line:
            logger.warning("%s", line.partition(WARNING)[2].strip())
        elif PROBLEM in line:
            problem = problem or line.partition(PROBLEM)[2].strip()
        else:
            last.append(line.rstrip())
    return problem, list(last)
