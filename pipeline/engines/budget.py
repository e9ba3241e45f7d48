"""Hard limits on tokens and money: reserved before a request is sent, settled after it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from prefloop.data.protocol import EngineFailed

_REMEDY = "nothing is lost: raise the limit and run the same command to go on"


@dataclass(frozen=True)
class Amount:
    """Tokens, and money in the currency of the prices."""

    tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.tokens + other.tokens, self.cost + other.cost)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.tokens - other.tokens, self.cost - other.cost)


class Budget:
    """Keeps what is spent plus what is under way within the limits. One per engine and process."""

    def __init__(self, max_tokens: int | None, max_cost: float | None) -> None:
        self._max_tokens = max_tokens
        self._max_cost = max_cost
        self._reserved = Amount()
        self._in_flight = 0
        self._settled = asyncio.Condition()
        self.spent = Amount()

    async def reserve(self, most: Amount) -> None:
        """Set aside ``most``, waiting for requests in flight to turn out cheaper than reserved.

        Raises ``EngineFailed`` when the limit is reached and nothing in flight can change that.
        """
        async with self._settled:
            while limit := self._exceeded_by(most):
                if self._in_flight == 0:
                    raise EngineFailed(f"budget reached: {limit}", _REMEDY)
                await self._settled.wait()
            self._reserved += most
            self._in_flight += 1

    async def settle(self, reserved: Amount, spent: Amount) -> None:
        """Replace a reservation by what the request really took."""
        async with self._settled:
            self._reserved -= reserved
            self._in_flight -= 1
            self.spent += spent
            self._settled.notify_all()

    def _exceeded_by(self, most: Amount) -> str:
        total = self.spent + self._reserved + most
        if self._max_tokens is not None and total.tokens > self._max_tokens:
            return f"{self.spent.tokens} of max_total_tokens {self._max_tokens} used"
        if self._max_cost is not None and total.cost > self._max_cost:
            return f"{self.spent.cost:.4f} of max_cost {self._max_cost} spent"
        return ""
