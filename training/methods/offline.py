"""Training on what lies on disk, by the configured method, in this process or in several.

With ``accelerate`` in the config, the same training runs in the processes that ``accelerate
launch`` starts from that file (several devices or machines, FSDP, DeepSpeed), and this process
waits for it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from prefloop.training.config import TrainConfig
from prefloop.training.errors import TrainingError
from prefloop.training.session.fit import OnStep, TrainResult

STEP, PROBLEM = "@prefloop-step ", "@prefloop-problem "
"""What the lines begin with by which a launched training reports."""
_LAST_LINES = 20


@dataclass(frozen=True)
class Job:
    """One training on Parquet shards."""

    policy: Path
    """Checkpoint or adapter folder, as is ``reference``."""
    reference: Path
    files: tuple[Path, ...]
    """Triples, or labelled answers for ``kto``."""
    out: Path
    config: TrainConfig
    seed: int
    replay: tuple[Path, ...] = ()
    kept_reference: Path | None = None

    def dump(self) -> str:
        """As JSON, for another process."""
        kept = self.kept_reference
        return json.dumps(
            {
                "policy": _full(self.policy),
                "reference": _full(self.reference),
                "files": [_full(path) for path in self.files],
                "replay": [_full(path) for path in self.replay],
                "out": _full(self.out),
                "kept_reference": _full(kept) if kept else None,
                "config": self.config.model_dump(mode="json"),
                "seed": self.seed,
            }
        )

    @staticmethod
    def load(text: str) -> Job:
        """What ``dump`` wrote."""
        raw = json.loads(text)
        kept = raw["kept_reference"]
        return Job(
            policy=Path(raw["policy"]),
            reference=Path(raw["reference"]),
            files=tuple(map(Path, raw["files"])),
            out=Path(raw["out"]),
            config=TrainConfig.model_validate(raw["config"]),
            seed=raw["seed"],
            replay=tuple(map(Path, raw["replay"])),
            kept_reference=Path(kept) if kept else None,
        )


def _full(path: Path) -> str:
    """For a process that may stand elsewhere."""
    return str(path.resolve())


def train_offline(job: Job, *, on_step: OnStep | None = None, verbose: bool = False) -> TrainResult:
    """Do ``job``; see ``prefloop.training.methods.dpo.train_dpo``,
    ``prefloop.training.methods.kto.train_kto`` and ``prefloop.training.methods.sft.train_sft``.
    Raises ``TrainingError``."""
    if job.config.accelerate and not job.out.exists():
        _launch(job, job.config.accelerate, on_step)
    return train_here(job, on_step=on_step, verbose=verbose)


def train_here(job: Job, *, on_step: OnStep | None = None, verbose: bool = False) -> TrainResult:
    """Do ``job`` in this process, which may be one of several."""
    common: dict[str, Any] = {
        "policy": job.policy, "out": job.out, "config": job.config, "seed": job.seed,
        "on_step": on_step, "verbose": verbose,
    }  # fmt: skip
    if job.config.method == "sft":
        from prefloop.training.methods.sft import train_sft

        return train_sft(answers=job.files, **common)
    common |= {"reference": job.reference, "kept_reference": job.kept_reference}
    if job.config.method == "kto":
        from prefloop.training.methods.kto import train_kto

        return train_kto(answers=job.files, **common)
    from prefloop.training.methods.dpo import train_dpo

    return train_dpo(triples=job.files, replay=job.replay, **common)


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
    with subprocess.Popen(  # noqa: S603  # this interpreter, accelerate, the user's own file
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
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
        elif PROBLEM in line:
            problem = problem or line.partition(PROBLEM)[2].strip()
        else:
            last.append(line.rstrip())
    return problem, list(last)
