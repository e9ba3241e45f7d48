"""Requests and tokens a minute of one server: when the next request may be sent.

A bucket holds what it fills with in a short time, so that there is no burst at a run's start.
Numbers alone: the time is passed in.
"""

from __future__ import annotations

_TOKENS_HELD_S = 10.0


class Pace:
    """The rates of one server. What is not limited is free at once."""

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._between = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._rate = tokens_per_minute / 60.0 if tokens_per_minute else 0.0
        self._next = float("-inf")
        self._level, self._level_at = 0.0, 0.0

    def ready_at(self, now: float, tokens: int) -> float:
        """When a request of ``tokens`` may be sent; in the past, or now, if at once."""
        ready = self._next
        if self._rate:
            capacity = self._rate * _TOKENS_HELD_S
            over = self._level_now(now) + min(tokens, capacity) - capacity
            # What lacks a millionth is there: a wait for it would be a wait for nothing.
            ready = max(ready, now + over / self._rate if over > 1e-6 * capacity else now)
        return ready

    def take(self, now: float, tokens: int) -> None:
        """A request of ``tokens`` is sent."""
        self._next = max(now, self._next) + self._between
        if self._rate:
            capacity = self._rate * _TOKENS_HELD_S
            self._level = self._level_now(now) + min(tokens, capacity)
            self._level_at = now

    def give_back(self, now: float, tokens: int) -> None:
        """It was not sent after all."""
        self._next -= self._between
        if self._rate:
            capacity = self._rate * _TOKENS_HELD_S
            self._level = max(0.0, self._level_now(now) - min(tokens, capacity))
            self._level_at = now

    def _level_now(self, now: float) -> float:
        return max(0.0, self._level - self._rate * (now - self._level_at))
