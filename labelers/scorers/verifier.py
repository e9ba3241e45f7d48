"""The verifier: a function scores each answer on its own, and the higher score wins."""

from __future__ import annotations

import asyncio
import importlib
import math
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefloop.data.utf8 import escaped
from prefloop.labelers.base import Answer, LabelerError, Pair, Preference, Vote, vote_on
from prefloop.labelers.config import VerifierLabeler
from prefloop.labelers.scorers import constraints
from prefloop.labelers.scorers.ifeval.following import followed

Score = Callable[..., Any]
"""``(text, *, messages, reference, metadata)`` to a number or a boolean."""

_ROUNDING = 1e-9
"""Scores such as 0.75 - 0.5 and 0.25 are to count as equal differences."""


class Verifier:
    """Votes by the scores of a function, or of the constraints that came with the prompt.

    An answer that cannot be scored (the function raised, or gave no finite number; the prompt has
    no constraints) makes the votes on its pairs invalid, with the reason in ``completion``.
    """

    def __init__(self, config: VerifierLabeler) -> None:
        """Raises ``LabelerError`` where ``config.function`` cannot be imported."""
        self.name = config.name
        self._min_gap = config.min_gap
        self._column = config.constraints_column
        self._mode = config.mode
        self._score = load_function(config.function) if config.function else self._by_constraints
        if config.constraints == "ifeval":
            self._score = self._by_ifeval
        # Blocks are labelled at the same time; the user's function need not be thread-safe.
        self._one_at_a_time = threading.Lock()

    async def label(self, pairs: Sequence[Pair], *, block: str) -> list[Vote]:  # noqa: ARG002
        """One vote (order ``none``) for each pair. Each answer is scored once, however many pairs
        it is in. Scoring runs in a thread, so that engines are not kept waiting."""
        return await asyncio.to_thread(self._label, pairs)

    def _label(self, pairs: Sequence[Pair]) -> list[Vote]:
        scores: dict[str, float | str] = {}
        with self._one_at_a_time:
            for pair in pairs:
                for answer in (pair.a, pair.b):
                    if answer.candidate_id not in scores:
                        scores[answer.candidate_id] = self._score_of(answer, pair)
        return [
            self._vote(pair, scores[pair.a.candidate_id], scores[pair.b.candidate_id])
            for pair in pairs
        ]

    def _score_of(self, answer: Answer, pair: Pair) -> float | str:
        """The finite score of an answer, or why there is none."""
        try:
            score = float(
                self._score(
                    answer.text,
                    messages=pair.messages,
                    reference=pair.reference,
                    metadata=pair.metadata,
                )
            )
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's function may do this
            return escaped(f"{type(error).__name__}: {error}")
        return score if math.isfinite(score) else f"the score is {score}, not a finite number"

    def _vote(self, pair: Pair, of_a: float | str, of_b: float | str) -> Vote:
        if isinstance(of_a, str) or isinstance(of_b, str):
            return vote_on(
                pair,
                self.name,
                order="none",
                preference="invalid",
                score_a=None if isinstance(of_a, str) else of_a,
                score_b=None if isinstance(of_b, str) else of_b,
                completion=next(one for one in (of_a, of_b) if isinstance(one, str)),
            )
        preference: Preference = "tie"
        if abs(of_a - of_b) > self._min_gap + _ROUNDING:
            preference = "a" if of_a > of_b else "b"
        return vote_on(
            pair,
            self.name,
            order="none",
            preference=preference,
            p_a={"a": 1.0, "tie": 0.5, "b": 0.0}[preference],
            score_a=of_a,
            score_b=of_b,
        )

    def _by_constraints(self, text: str, *, metadata: Mapping[str, Any], **_: Any) -> float:
        wanted = metadata.get(self._column)
        if not isinstance(wanted, list):
            raise constraints.ConstraintError(
                f"the prompt's metadata has no list {self._column!r}: see constraints_column"
            )
        return constraints.score(wanted, text)

    def _by_ifeval(self, text: str, *, metadata: Mapping[str, Any], **_: Any) -> float:
        marks = followed(metadata, text, self._mode)
        return sum(marks) / len(marks)


def load_function(path: str) -> Score:
    """The callable behind ``module:function``; modules in the working directory are found too.

    Raises :class:`LabelerError` where there is none.
    """
    module_name, _, name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, so that it hides nothing that is installed
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise LabelerError(
            f"verifier function {path!r}: importing {module_name} failed "
            f"({type(error).__name__}: {error}); write module:function, with the module installed "
            "or in the working directory"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise LabelerError(
            f"verifier function {path!r}: {module_name} has no function {name!r}; "
            "define it there, or correct the name"
        )
    return function  # type: ignore[no-any-return]
