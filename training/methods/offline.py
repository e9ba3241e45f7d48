"""Training on what lies on disk, by the configured method, in this process or in several.

With ``accelerate`` in the config, the same training runs in the processes that ``accelerate
launch`` starts from that file (several devices or machines, FSDP, DeepSpeed), and this process
waits for it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import IO, Any

from prefloop.training.config import TrainConfig
from prefloop.training.errors import TrainingError
from prefloop.training.methods.dpo import Dpo
from prefloop.training.methods.kto import Kto
from prefloop.training.methods.sft import Sft
from prefloop.training.session.fit import OnStep, TrainResult, fit
from prefloop.training.session.job import Job
from prefloop.training.session.method import TrainingMethod

logger = logging.getLogger(__name__)

STEP, PROBLEM, WARNING = "@prefloop-step ", "@prefloop-problem ", "@prefloop-warning "
"""What the lines begin with by which a launched training reports."""
_LAST_LINES = 20


def train_offline(job: Job, *, on_step: OnStep | None = None, verbose: bool = False) -> TrainResult:
    """``prefloop.training.session.fit.fit`` by the method that the job's config names, in the
    processes that its ``accelerate`` describes where there is one."""
    if job.config.accelerate and not job.out.exists():
        _launch(job, job.config.accelerate, on_step)
    return fit(job, offline_method(job.config), on_step=on_step, verbose=verbose)


def offline_method(config: TrainConfig) -> TrainingMethod[Any]:
    """The method that ``config`` names, of those that train on what lies on disk."""
    methods: dict[str, TrainingMethod[Any]] = {"dpo": Dpo(), "kto": Kto(), "sft": Sft()}
    return methods[config.method]


def _launch(job: Job, config_file: Path, on_step: OnStep | None) -> None:
    """Run ``prefloop.training.worker`` under ``accelerate launch``; its steps go to ``on_step``."""
    if not config_file.is_file():
        raise TrainingError(
            f"{config_file}: no such file: train.accelerate names what `accelerate config` wrote"
        )
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
