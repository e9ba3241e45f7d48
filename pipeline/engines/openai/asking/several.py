"""Whether servers give several answers to one request, as far as it was seen."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prefloop.data.protocol import Request, RequestRejected
from prefloop.pipeline.engines.openai.parameters import ParameterRefused

logger = logging.getLogger(__name__)

_REFUSED = 3
"""Requests for several answers that fail while each alone is answered, in a row, before none is
sent any more."""

Honoured = Literal["unknown", "honoured", "ignored", "refused"]


class TogetherRefused(RequestRejected):
    """An endpoint, ``at``, refused a request for several answers."""

    def __init__(self, at: str, refusal: RequestRejected) -> None:
        super().__init__(refusal.reason, refusal.detail)
        self.at = at
        self.names_n = isinstance(refusal, ParameterRefused) and "n" in refusal.fields


@dataclass
class _Seen:
    """What was seen of one endpoint; ``most`` is how many are asked of it, ``failed`` how many
    requests it refused in a row."""

    most: int
    honoured: Honoured = "unknown"
    most_came: int = 0
    failed: int = 0


class SeveralAnswers:
    """How many answers are asked for in one request, and what became of that at each endpoint."""

    def __init__(self, most: int, endpoints: Sequence[str], engine: str) -> None:
        """``most`` is what the config allows; ``endpoints`` are the servers' names, ``engine`` the
        section of the config."""
        self._most = most
        self._seen = {name: _Seen(most) for name in endpoints}
        self._remedy = f"set {engine}.n_per_request: 1"

    @property
    def honoured(self) -> Honoured:
        """What became of it at the endpoint that does best."""
        found = {one.honoured for one in self._seen.values()}
        best: tuple[Honoured, ...] = ("honoured", "unknown", "ignored", "refused")
        return next(one for one in best if one in found)

    @property
    def most_came(self) -> int:
        """The most answers that came with one request."""
        return max(one.most_came for one in self._seen.values())

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

    def may_ask(self, n: int, at: str | None = None) -> bool:
        """Whether ``n`` answers are asked for in one request, at an endpoint, or anywhere."""
        asked = self._seen.values() if at is None else [self._seen[at]]
        return any(n <= one.most for one in asked)

    def came(self, number: int, n: int, at: str) -> None:
        """Of ``n`` answers that were asked for came ``number`` from an endpoint, at least one."""
        seen = self._seen[at]
        seen.failed = 0
        seen.most_came = max(seen.most_came, number)
        if number > 1:
            seen.honoured = "honoured"
        elif seen.honoured == "unknown":
            seen.honoured, seen.most = "ignored", 1
            logger.warning(
                "%s gave one answer to a request for %d: each is asked for alone from now on (%s)",
                at,
                n,
                self._remedy,
            )

    def refused(self, refusal: RequestRejected, n: int) -> None:
        """A request for ``n`` answers was refused, and one for a single one of them was not. One
        that failed at each of several endpoints counts for all."""
        if isinstance(refusal, TogetherRefused):
            self._refused(refusal.at, refusal, n, names_n=refusal.names_n)
        else:
            for name in self._seen:
                self._refused(name, refusal, n)

    def _refused(
        self, name: str, refusal: RequestRejected, n: int, *, names_n: bool = False
    ) -> None:
        seen = self._seen[name]
        # A server that gave as many refuses these for the prompt's sake.
        if n > seen.most or seen.most_came >= n:
            return
        seen.failed += 1
        if not names_n and (seen.honoured != "unknown" or seen.failed < _REFUSED):
            return
        seen.most = n - 1 if names_n else 1
        if seen.honoured == "unknown":
            seen.honoured = "refused"
        logger.warning(
            "%s refuses requests for %d answers (%s): each is asked for alone from now on (%s)",
            name,
            n,
            refusal.detail or refusal.reason,
            self._remedy if n == 2 else f"{self._remedy}, or fewer than {n}",
        )


def number_of(answers: Sequence[object | None]) -> int:
    """How many came."""
    return sum(answer is not None for answer in answers)
