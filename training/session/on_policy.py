"""What trainings on answers of the policy as it is ask for: sampled and labelled answers, by leg.

A leg is the work between two looks at the policy. Whoever samples is given a leg's number and a
way to have the policy's weights as they are now; a leg that was made before (in an attempt that
was killed) needs no weights, so none are written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.data.hashing import content_id, json_hash, prompt_id
from prefloop.data.protocol import Message
from prefloop.training.errors import TrainingError
from prefloop.training.policy.checkpoints import complete_policy

WeightsNow = Callable[[], Path]
"""Gives a folder with the policy as it is now; it lasts until the next leg."""


@dataclass(frozen=True)
class Group:
    """The answers to one prompt, as many as were asked for."""

    texts: Sequence[str | Sequence[int]]
    """Or the tokens that were sampled, of a policy that thinks."""
    complete: Sequence[bool]
    """False for an answer that was cut off at its token limit: it has no end."""
    rewards: Sequence[float]
    """NaN where nobody gave one; the answer then counts for nothing."""
    logprobs: Sequence[float | None] = ()
    """What the engine that sampled says of each answer, its end among it: summed over its tokens,
    in nats, untempered. Null where it does not say; empty where nobody does."""
    tokens: Sequence[int] = ()
    """How many tokens ``logprobs`` are of."""


Triples = Callable[[int, WeightsNow], Sequence[Path]]
"""Leg -> Parquet shards of ``schemas.TRIPLE``; none where no pair was kept."""
Groups = Callable[[int, WeightsNow], Sequence[Group]]
"""Leg -> the group of each of its prompts, in their order."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of a round, leg by leg, ``per_leg`` of them each."""

    messages: Sequence[Sequence[Message]]
    per_leg: int
    held_out: frozenset[str] = frozenset()
    """Ids (``prefloop.data.hashing.prompt_id``) of those that are answered and labelled like the
    others and never trained on."""

    @property
    def legs(self) -> int:
        """How many legs; prompts that do not fill one are left out."""
        return len(self.messages) // self.per_leg

    def about(self) -> list[Any]:
        """Hash of all prompts, and how they are cut: for the fingerprint of a training."""
        hashes = content_id(*(json_hash(list(one)) for one in self.messages))
        return [hashes, self.per_leg, *sorted(self.held_out)]

    def is_held_out(self, messages: Sequence[Message]) -> bool:
        """Whether a prompt is not to be trained on."""
        return bool(self.held_out) and prompt_id(list(messages)) in self.held_out

    def require_leg(self, leg: str) -> None:
        """Raise ``TrainingError`` where the prompts do not fill one ``leg``."""
        if not self.legs:
            raise TrainingError(
                f"{len(self.messages)} prompts are fewer than the {self.per_leg} of {leg}"
            )


class Weights:
    """The policy's weights for the sampler: written when asked for, one leg's at a time."""

    def __init__(self, policy: Path, folder: Path) -> None:
        """``policy`` is what training begins with; ``folder`` is where weights are put."""
        self.policy, self.folder = policy, folder
        self.trainer: Any = None
        """Set by the caller before the first step."""

    def now(self) -> Path:
        """A folder with the weights of this step. Step 0 is the policy itself."""
        from prefloop.training.session.watch import save_weights

        step = int(self.trainer.state.global_step)
        if step == 0:
            return self.policy
        target = self.folder / str(step)
        if not target.exists():
            # An engine is compared with what it served before, so that stays one leg longer.
            for old in sorted(self.folder.glob("[0-9]*"), key=lambda path: int(path.name))[:-1]:
                shutil.rmtree(old)
            partial = self.folder / f".{step}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            save_weights(self.trainer, partial)
            complete_policy(self.policy, partial)
            partial.rename(target)
        return target
