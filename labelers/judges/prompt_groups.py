"""The pairs of one prompt together, for judges that look at candidates rather than at pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.data.protocol import Message
from prefloop.labelers.base import Answer, Pair


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """A prompt and the answers to it that are in ``pairs``, sorted by candidate id.

    ``reference`` is null where the reference answer is among them: showing it as known to be good
    would give it away.
    """

    prompt_id: str
    messages: tuple[Message, ...]
    reference: str | None
    answers: tuple[Answer, ...]
    metadata: Mapping[str, Any]


def by_prompt(pairs: Sequence[Pair]) -> list[PromptGroup]:
    """One group for each prompt of ``pairs``, in the order in which they first occur."""
    first: dict[str, Pair] = {}
    answers: dict[str, dict[str, Answer]] = {}
    for pair in pairs:
        first.setdefault(pair.prompt_id, pair)
        for answer in (pair.a, pair.b):
            answers.setdefault(pair.prompt_id, {})[answer.candidate_id] = answer
    return [
        _group(pair, [found for _, found in sorted(answers[prompt_id].items())])
        for prompt_id, pair in first.items()
    ]


def _group(pair: Pair, answers: list[Answer]) -> PromptGroup:
    on_trial = any(answer.origin == "reference" for answer in answers)
    reference = None if on_trial else pair.reference
    return PromptGroup(pair.prompt_id, pair.messages, reference, tuple(answers), pair.metadata)
