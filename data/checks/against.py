"""Evaluation sets to compare the prompts of preference data with."""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.data.config import NearDuplicates, PromptsConfig, PromptSource
from prefloop.data.errors import InputError
from prefloop.data.prompts.evaluation_sets import KnownPrompts, read_evaluation_set


class EvaluationSet:
    """Prompts of a named evaluation set that training data must not hold.

    What counts as an overlap is :class:`prefloop.data.prompts.evaluation_sets.KnownPrompts`'s, with
    the defaults that prompts are read with.
    """

    def __init__(self, name: str, path: str) -> None:
        """Raises ``InputError`` for a set that cannot be read, and for its first bad row."""
        self.name = name
        prompts = read_evaluation_set(PromptSource(path=path))
        if not prompts:
            raise InputError(f"{path}: holds no prompt: nothing can be compared with it")
        self._known = KnownPrompts(
            prompts,
            threshold=float(PromptsConfig.model_fields["overlap_threshold"].default),
            ngram=NearDuplicates().ngram,
        )

    def find(self, turns: Sequence[str]) -> str | None:
        """What of the set a prompt overlaps with in which the user says ``turns``."""
        return self._known.find(turns)


def parse_against(text: str) -> EvaluationSet:
    """``"NAME=PATH"`` as the set at PATH. Raises ``InputError``."""
    name, equals, path = text.partition("=")
    if not equals or not name.strip() or not path.strip():
        raise InputError(f"--against {text}: write NAME=PATH, e.g. mtbench=mt_bench.jsonl")
    return EvaluationSet(name.strip(), path.strip())
