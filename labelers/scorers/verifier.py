"""The verifier: a function scores each answer on its own, and the higher score wins."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from prefloop.data.utf8 import escaped
from prefloop.labelers.base import Answer, LabelerError, Pair, Preference, Vote, vote_on
from prefloop.labelers.config import ShippedCheck, VerifierLabeler
from prefloop.labelers.scorers import constraints
from prefloop.labelers.scorers.check_types import ConstraintError
from prefloop.labelers.scorers.function_pool import Call, FunctionPool, GivenUp
from prefloop.labelers.scorers.ifeval.following import followed
from prefloop.labelers.scorers.score_votes import Scored, unscored
from prefloop.labelers.scorers.shipped.cage import CageError, Limits, run_caged
from prefloop.labelers.scorers.shipped.outcomes import UNPARSED, WRONG, worded

_SHIPPED: dict[ShippedCheck, str] = {
    "math": "prefloop.labelers.scorers.shipped.math_answer:score",
    "choice": "prefloop.labelers.scorers.shipped.choice_answer:score",
    "exact": "prefloop.labelers.scorers.shipped.exact_answer:score",
    "json_schema": "prefloop.labelers.scorers.shipped.json_answer:score",
    "unit_tests": "prefloop.labelers.scorers.shipped.unit_tests:score",
    "refusal": "prefloop.labelers.scorers.shipped.no_refusal:score",
    "pii": "prefloop.labelers.scorers.shipped.no_personal_data:score",
}
_ROUNDING = 1e-9
"""Scores such as 0.75 - 0.5 and 0.25 are to count as equal differences."""


class Verifier:
    """Votes by the scores of a function, or of the constraints that came with the prompt.

    An answer that cannot be scored (the function raised, took too long, ended its process, or gave
    no finite number; the prompt has no constraints) makes the votes on its pairs invalid, with the
    reason in ``completion``.
    """

    def __init__(self, config: VerifierLabeler) -> None:
        """Raises ``LabelerError`` where ``config.function`` cannot be imported, or ``config.check``
        lacks what it needs here."""
        self.name = config.name
        self._min_gap = config.min_gap
        self._column = config.constraints_column
        self._is_ifeval, self._mode = config.constraints == "ifeval", config.mode
        self._check, self._unparsed, self._options = config.check, config.unparsed, _options(config)
        _require(config)
        function = config.function or (config.check and _SHIPPED[config.check])
        self._pool = (
            FunctionPool(function, processes=config.processes, timeout_s=config.timeout_s)
            if function
            else None
        )
        # Blocks are labelled at the same time; patterns are searched for one at a time.
        self._one_at_a_time = threading.Lock()

    async def label(self, pairs: Sequence[Pair], *, block: str) -> list[Vote]:  # noqa: ARG002
        """One vote (order ``none``) for each pair. Each answer is scored once, however many pairs
        it is in. Scoring runs in a thread, so that engines are not kept waiting; where this is
        cancelled, no call of the function is left."""
        given_up = threading.Event()
        try:
            return await asyncio.to_thread(self._label, pairs, given_up)
        finally:
            given_up.set()

    def _label(self, pairs: Sequence[Pair], given_up: threading.Event) -> list[Vote]:
        asked: dict[str, tuple[Pair, Answer]] = {}
        for pair in pairs:
            for answer in (pair.a, pair.b):
                asked.setdefault(answer.candidate_id, (pair, answer))
        try:
            found = self._scores([self._call(*one) for one in asked.values()], given_up)
        except GivenUp:
            return []
        scores = dict(zip(asked, map(self._read, found), strict=True))
        return [
            self._vote(pair, scores[pair.a.candidate_id], scores[pair.b.candidate_id])
            for pair in pairs
        ]

    def _scores(self, calls: Sequence[Call], given_up: threading.Event) -> list[Scored]:
        if self._pool:
            return self._pool.results(calls, given_up)
        found = []
        with self._one_at_a_time:
            for text, details in calls:
                if given_up.is_set():
                    raise GivenUp
                found.append(self._by_constraints(text, details["metadata"]))
        return found

    def _read(self, score: Scored) -> Scored:
        if self._check and score == UNPARSED and self._unparsed == "invalid":
            return f"the answer {worded(UNPARSED, self._check)}"
        return _finite(score)

    def _by_constraints(self, text: str, metadata: Any) -> Scored:
        wanted = metadata.get(self._column)
        try:
            if self._is_ifeval:
                marks = followed(metadata, text, self._mode)
                return sum(marks) / len(marks)
            if not isinstance(wanted, list):
                raise ConstraintError(
                    f"the prompt's metadata has no list {self._column!r}: see constraints_column"
                )
            return constraints.score(wanted, text)
        except Exception as error:  # noqa: BLE001 - constraints are data of others
            return escaped(f"{type(error).__name__}: {error}")

    def _vote(self, pair: Pair, of_a: Scored, of_b: Scored) -> Vote:
        if isinstance(of_a, str) or isinstance(of_b, str):
            return unscored(pair, self.name, of_a, of_b)
        said = None
        if self._check:
            said = f"a: {worded(of_a, self._check)}, b: {worded(of_b, self._check)}"
            if self._unparsed == "wrong":
                of_a, of_b = max(of_a, WRONG), max(of_b, WRONG)
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
            completion=said,
        )

    def _call(self, pair: Pair, answer: Answer) -> Call:
        details = {
            "messages": tuple(map(dict, pair.messages)),
            "reference": pair.reference,
            "metadata": dict(pair.metadata),
        }
        if self._check:
            details["options"] = self._options
        return answer.text, details


def _require(config: VerifierLabeler) -> None:
    """Raise ``LabelerError`` for a check that could score no answer on this machine."""
    if config.check == "math" and find_spec("math_verify") is None:
        raise LabelerError(
            f"labeler {config.name!r}: check math needs math-verify: pip install 'prefloop[math]'"
        )
    if config.check == "unit_tests":
        try:
            tried = run_caged("x = 1", Limits(config.test_seconds, config.test_memory_mb), ["x"])
        except CageError as error:
            raise LabelerError(f"labeler {config.name!r}: {error}") from None
        if not tried.passed:
            raise LabelerError(
                f"labeler {config.name!r}: not even `x = 1` runs within test_seconds "
                f"{config.test_seconds:g} and test_memory_mb {config.test_memory_mb}: raise them"
            )


def _options(config: VerifierLabeler) -> dict[str, Any]:
    """What a shipped verifier is told besides the prompt."""
    return {
        "gold": config.gold,
        "choices": config.choices,
        "within": config.within,
        "seconds": config.test_seconds,
        "memory_mb": config.test_memory_mb,
    }


def _finite(score: Scored) -> Scored:
    if isinstance(score, str) or math.isfinite(score):
        return score
    return f"the score is {score}, not a finite number"
