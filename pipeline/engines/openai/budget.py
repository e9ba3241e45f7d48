"""Hard limits on tokens and money: reserved before a request is sent, settled after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.engines.openai.ledger import Amount, Ledger
from prefloop.pipeline.engines.openai.together import Together

_REMEDY = "nothing is lost: raise the limit and run the same command to go on"
_LOOK_AGAIN_S = 0.05
_LOOK_AGAIN_FOR_JOBS_S = 0.5


class Charge:
    """What a request under way will be charged; set as it becomes known."""

    def __init__(self, most: Amount) -> None:
        self.most = most
        self.spent = Amount()


@dataclass(slots=True)
class _Reserved:
    """Asks for a reservation; its ``key`` is filled in."""

    most: Amount
    key: str = ""


@dataclass(frozen=True, slots=True)
class _Settled:
    """Says what a reservation came to."""

    key: str
    spent: Amount


class Budget:
    """Keeps what is spent plus what is under way within the limits, by a ledger that outlives the
    process and that all models of an engine share."""

    def __init__(self, max_tokens: int | None, max_cost: float | None, ledger: Ledger) -> None:
        self._max_tokens = max_tokens
        self._max_cost = max_cost
        self._ledger = ledger
        self._noting = Together(self._note_all)

    @property
    def spent(self) -> Amount:
        """What was spent up to now; requests of killed runs count with the most they can cost."""
        return self._ledger.settled + self._ledger.lost

    @asynccontextmanager
    async def reserved(self, most: Amount) -> AsyncIterator[Charge]:
        """Set ``most`` aside while a request is under way, and keep what it is charged in the end.

        Waits for requests in flight to turn out cheaper than reserved. Raises ``EngineFailed`` when
        the limit is reached and nothing in flight can change that.
        """
        if self._max_tokens is None and self._max_cost is None:
            # Kept all the same: it counts where a limit is set later.
            key, charge = await self._noted(most), Charge(most)
            try:
                yield charge
            except BaseException:
                self._settle_ended(key, charge)
                raise
            await self._noting.do(_Settled(key, charge.spent), whatever=True)
            return
        key, charge = await self._reserve(most)
        try:
            await asyncio.to_thread(self._ledger.sync)
            yield charge
        except BaseException:
            self._settle_ended(key, charge)
            raise
        self._ledger.settle({key: charge.spent})
        await asyncio.to_thread(self._ledger.sync)

    @property
    def is_unsure(self) -> bool:
        """Whether there is a limit, and it is known of no request what it takes."""
        is_limited = self._max_tokens is not None or self._max_cost is not None
        return is_limited and not self._ledger.is_measured

    def _settle_ended(self, key: str, charge: Charge) -> None:
        """Keep the charge of a request that brought no answer: why it did not is what is told.
        Where the ledger cannot be written, its reservation counts, as that of a killed run does."""
        with suppress(EngineFailed):
            self._ledger.settle({key: charge.spent})

    async def set_aside(self, key: str, each: Sequence[Amount]) -> int:
        """Set aside, under ``key``, what the requests of a job may take ``each``: of as many of
        them, the first ones, as the limits have room for. How many these are.

        Waits where there is none for the first, as long as what is under way may turn out cheaper.
        Raises ``EngineFailed`` when the limit is reached.
        """
        while True:
            with self._ledger.exclusive():
                surplus = self._ledger.surplus
                most, fitting = Amount(), 0
                before = self._ledger.settled + self._ledger.reserved
                for one in each:
                    more = most + one + surplus
                    if self._is_beyond(before + more):
                        break
                    most, fitting = more, fitting + 1
                if fitting:
                    self._ledger.reserve_job(key, most, fitting)
                    return fitting
                if self._ledger.under_way == 0:
                    limit = self._exceeded_by(each[0] + surplus)
                    raise EngineFailed(f"budget reached: {limit}", _REMEDY)
            await asyncio.sleep(_LOOK_AGAIN_FOR_JOBS_S)

    def take_over(self, key: str) -> None:
        """Let what an earlier process set aside for a job be settled by this one."""
        with self._ledger.exclusive():
            self._ledger.take_over(key)

    def settle(self, key: str, spent: Amount) -> None:
        """Put what a job took in the place of what was set aside for it, once."""
        with self._ledger.exclusive():
            if not self._ledger.take_over(key):
                return
            self._ledger.settle({key: spent})
        self._ledger.sync()

    def let_go(self, keys: Sequence[str]) -> None:
        """Leave what is set aside for jobs to a process that takes them over."""
        self._ledger.let_go(keys)

    def close(self) -> None:
        """Write down what is not yet."""
        self._noting.flush()

    async def _noted(self, most: Amount) -> str:
        """A reservation without a limit, together with those of other requests."""
        reserved = _Reserved(most)
        try:
            await self._noting.do(reserved)
        except asyncio.CancelledError:
            if reserved.key:  # written, and nobody is left to settle it
                self._ledger.settle({reserved.key: Amount()})
            raise
        return reserved.key

    def _note_all(self, asked: Sequence[_Reserved | _Settled]) -> list[None]:
        settled = {one.key: one.spent for one in asked if isinstance(one, _Settled)}
        reserved = [one for one in asked if isinstance(one, _Reserved)]
        with self._ledger.exclusive():
            if settled:
                self._ledger.settle(settled)
            for one, key in zip(
                reserved, self._ledger.reserve(*(one.most for one in reserved)), strict=True
            ):
                one.key = key
        return [None] * len(asked)

    async def _reserve(self, estimated: Amount) -> tuple[str, Charge]:
        while True:
            with self._ledger.exclusive():
                most = estimated + self._ledger.surplus
                # Until it is known what a request takes, one goes at a time: estimates may be low.
                if self._ledger.is_measured or self._ledger.under_way == 0:
                    if not (limit := self._exceeded_by(most)):
                        [key] = self._ledger.reserve(most)
                        return key, Charge(most)
                    if self._ledger.under_way == 0:
                        raise EngineFailed(f"budget reached: {limit}", _REMEDY)
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _is_beyond(self, total: Amount) -> bool:
        tokens, cost = self._max_tokens, self._max_cost
        return (tokens is not None and total.tokens > tokens) or (
            cost is not None and total.cost > cost
        )

    def _exceeded_by(self, most: Amount) -> str:
        total = self._ledger.settled + self._ledger.reserved + most
        spent, lost = self.spent, self._ledger.lost
        if self._max_tokens is not None and total.tokens > self._max_tokens:
            said = f"{spent.tokens} of max_total_tokens {self._max_tokens} used"
            return said + _of_these(
                f"{lost.tokens}" if lost.tokens else "", f"{most.tokens} tokens"
            )
        if self._max_cost is not None and total.cost > self._max_cost:
            said = f"{spent.cost:.4f} of max_cost {self._max_cost} spent"
            return said + _of_these(f"{lost.cost:.4f}" if lost.cost else "", f"{most.cost:.4f}")
        return ""


def _of_these(lost: str, most: str) -> str:
    whose = "of a run that was killed, or of other processes at work"
    killed = f", {lost} of it by requests {whose}, counted in full" if lost else ""
    return f"{killed}; the next request may take {most}"
