"""Whether a server gives several answers to one request, as far as it was seen."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Literal

from prefloop.data.protocol import Request, RequestRejected
from prefloop.pipeline.engines.openai.parameters import ParameterRefused

logger = logging.getLogger(__name__)

_REFUSED = 3
"""Requests for several answers that fail while each alone is answered, in a row, before none is
sent any more."""

Honoured = Literal["unknown", "honoured", "ignored", "refused"]


class SeveralAnswers:
    """How many answers are asked for in one request. ``honoured`` says what became of that."""

    def __init__(self, most: int, address: str, engine: str) -> None:
        """``most`` is what the config allows; ``address`` what the server is called in messages,
        ``engine`` the section of the config."""
        self.honoured: Honoured = "unknown"
        self.most_came = 0
        """The most answers that came with one request."""
        self._most = most
        self._limit = most
        self._address = address
        self._remedy = f"set {engine}.n_per_request: 1"
        self._failed = 0

    def groups(self, request: Request) -> list[tuple[int, ...]]:
        """The seeds of ``request``, in their order, by what goes into one request: as few as can
        be, of the same size but for 1."""
        seeds, few = request.seeds, self._most
        # All answers at temperature 0 are the same, and some servers refuse to give it twice; of a
        # verdict, the first of its answers tells whether log-probabilities come at all.
        if few == 1 or request.sampling.temperature == 0 or request.choices is not None:
            return [(seed,) for seed in seeds]
        number = -(-len(seeds) // few)
        bounds = [len(seeds) * at // number for at in range(number + 1)]
        return [seeds[low:high] for low, high in itertools.pairwise(bounds)]

    def may_ask(self, n: int) -> bool:
        """Whether ``n`` answers are asked for in one request."""
        return n <= self._limit

    def came(self, number: int, n: int) -> None:
        """Of ``n`` answers that were asked for came ``number``, at least one."""
        self._failed = 0
        self.most_came = max(self.most_came, number)
        if number > 1:
            self.honoured = "honoured"
        elif self.honoured == "unknown":
            self.honoured, self._limit = "ignored", 1
            logger.warning(
                "%s gave one answer to a request for %d: each is asked for alone from now on (%s)",
                self._address,
                n,
                self._remedy,
            )

    def refused(self, refusal: RequestRejected, n: int) -> None:
        """A request for ``n`` answers was refused, and one for a single one of them was not."""
        # A server that gave as many refuses these for the prompt's sake.
        if not self.may_ask(n) or self.most_came >= n:
            return
        is_named = isinstance(refusal, ParameterRefused) and "n" in refusal.fields
        self._failed += 1
        if not is_named and (self.honoured != "unknown" or self._failed < _REFUSED):
            return
        self._limit = n - 1 if is_named else 1
        if self.honoured == "unknown":
            self.honoured = "refused"
        logger.warning(
            "%s refuses requests for %d answers (%s): each is asked for alone from now on (%s)",
            self._address,
            n,
            refusal.detail or refusal.reason,
            self._remedy if n == 2 else f"{self._remedy}, or fewer than {n}",
        )


def number_of(answers: Sequence[object | None]) -> int:
    """How many came."""
    return sum(answer is not None for answer in answers)
