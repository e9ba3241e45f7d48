"""What is asked of a training of a policy, and everything that decides the new weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.data.hashing import content_id, folder_revision
from prefloop.data.strict import fingerprint
from prefloop.training.config import TrainConfig
from prefloop.training.inputs.rendering import Rendering
from prefloop.training.session.setup import environment

_MARGIN_NATS = 200.0


@dataclass(frozen=True)
class Job:
    """One training of a policy."""

    policy: Path
    """Checkpoint or adapter folder, as is ``reference``."""
    reference: Path
    files: tuple[Path, ...]
    """Parquet shards: triples, or labelled answers for ``kto``; none where answers are sampled
    meanwhile."""
    out: Path
    config: TrainConfig
    seed: int
    replay: tuple[Path, ...] = ()
    """Triples of earlier rounds to draw some of."""
    held_out: tuple[Path, ...] = ()
    """Triples that are measured while training, where the config says so; their prompts are never
    trained on."""
    kept_reference: Path | None = None
    """File for the reference's log-probabilities, which are computed once for these data."""
    rendering: Rendering = Rendering()  # noqa: RUF009
    """How a policy that thinks was sampled."""

    def dump(self) -> str:
        """As JSON, for another process."""
        kept = self.kept_reference
        return json.dumps(
            {
                "policy": _full(self.policy),
                "reference": _full(self.reference),
                "files": [_full(path) for path in self.files],
                "replay": [_full(path) for path in self.replay],
                "held_out": [_full(path) for path in self.held_out],
                "out": _full(self.out),
                "kept_reference": _full(kept) if kept else None,
                "config": self.config.model_dump(mode="json"),
                "seed": self.seed,
                "template_kwargs": dict(self.rendering.template_kwargs),
                "sampled": [_full(path) for path in self.rendering.sampled],
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
            held_out=tuple(map(Path, raw["held_out"])),
            kept_reference=Path(kept) if kept else None,
            rendering=Rendering(raw["template_kwargs"], tuple(map(Path, raw["sampled"]))),
        )


def _full(path: Path) -> str:
    """For a process that may stand elsewhere."""
    return str(path.resolve())


def settings_of(job: Job, max_length: int, *, takes_reference: bool) -> dict[str, Any]:
    """Everything that decides the new weights except the data: the round's record."""
    config = job.config
    watched = fingerprint(config)
    if config.guards.max_margin is None and config.guards.max_margin_nats == _MARGIN_NATS:
        # As earlier trainings recorded the same limit.
        watched["guards"] = {**watched["guards"], "max_margin": 20.0}
        del watched["guards"]["max_margin_nats"]
    rendered = dict(job.rendering.template_kwargs)
    launched = config.accelerate and content_id(config.accelerate.read_text(encoding="utf-8"))
    where = environment(config)
    if (
        config.cluster
    ):  # who waits for it may have other devices, and another number of CPUs will do
        watched["cluster"] = config.cluster.workers
        where |= {"precision": config.precision, "device": "cluster"}
    return (
        watched
        | where
        | {
            "accelerate": launched,
            "max_length": max_length,
            "policy_revision": folder_revision(job.policy),
            "reference_revision": folder_revision(job.reference) if takes_reference else None,
            "seed": job.seed,
        }
        | ({"template_kwargs": rendered} if rendered else {})
    )
