"""How many requests a server is given at once: more while it bears them, fewer once it does not.

As TCP does it. The limit begins low and doubles with every round of answers; where the server
refuses a request for its load (429), or answers three times as slowly as it did, the limit is cut,
and grows slowly near the number at which that happened. Numbers alone: the time is passed in.
"""

from __future__ import annotations

START = 4.0
"""Requests at once before anything is known of a server."""
_CUT, _SLOWER = 0.85, 0.9
_NEAR, _PAST = 0.9, 1.1
_SLOW_GROWTH = 20.0
_STEADY, _OVERLOADED = 2.0, 3.0
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 30.0
_WINDOW_S = 60.0
_WEIGHT = 0.1
_FEW = 8
"""Answers before an average says anything: they differ in length."""


class Limit:
    """The limit of one server, and what is known of its latency."""

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self.value = min(START, self._most)
        self.latency: float | None = None
        """Seconds until an answer, on average of the last ones."""
        self._answers = 0
        self._least = self._least_before = float("inf")
        self._window_began: float | None = None
        self._ceiling: float | None = None
        self._cut_at = float("-inf")
        self._refusals = 0

    def has_room(self, under_way: int) -> bool:
        """Whether one more than ``under_way`` requests may be sent."""
        return under_way < int(self.value)

    def answered(self, now: float, sent: float, under_way: int, *, count: int = 1) -> None:
        """An answer came to what was ``sent`` then, with ``under_way`` requests, it among them.

        ``count``: how many of them it was."""
        self._refusals = 0
        least = self._noted(now, now - sent)
        slower = 0.0 if self.latency is None else self.latency / least
        if slower > _OVERLOADED:
            if sent >= self._cut_at and self.value > START:
                self._cut(max(START, _SLOWER * self.value), self.value, now)
        elif slower < _STEADY and under_way >= int(self.value):
            self._grow(count)

    def refused(self, now: float, sent: float, under_way: int) -> float:
        """A request that was ``sent`` then was refused for the server's load; for how many seconds
        nothing is to be sent. Of many that are refused together, one counts."""
        if sent < self._cut_at:
            return 0.0
        known = max(1.0, min(self.value, under_way))
        self._cut(max(1.0, _CUT * known), known, now)
        self._refusals += 1
        return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._refusals - 1, 30))

    def restart(self) -> None:
        """The server was gone: what comes back begins low, and has other latencies."""
        self.value = min(self.value, START)
        self._answers, self.latency = 0, None
        self._least = self._least_before = float("inf")

    def _cut(self, value: float, ceiling: float, now: float) -> None:
        self.value, self._ceiling, self._cut_at = value, ceiling, now

    def _grow(self, count: int) -> None:
        ceiling = self._ceiling
        if ceiling is not None and self.value > _PAST * ceiling:
            ceiling = self._ceiling = None  # it bears more than it did
        if ceiling is None or self.value < ceiling / 2:
            grown = self.value + count
        elif self.value < _NEAR * ceiling:
            grown = min(self.value + count / self.value, _NEAR * ceiling)
        else:
            grown = self.value + count / (_SLOW_GROWTH * self.value)
        self.value = min(grown, self._most)

    def _noted(self, now: float, latency: float) -> float:
        """The least average of the last minutes, ``latency`` taken into account."""
        if self.latency is None:
            self.latency = latency
        else:
            self.latency += _WEIGHT * (latency - self.latency)
        self._answers += 1
        if self._window_began is None or now - self._window_began > _WINDOW_S:
            self._window_began, self._least_before = now, self._least
            self._least = float("inf")
        if self._answers >= _FEW:
            self._least = min(self._least, self.latency)
        return max(min(self._least, self._least_before, self.latency), 1e-9)
