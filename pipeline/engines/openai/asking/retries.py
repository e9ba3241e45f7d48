"""A request is tried until it is answered, or until it is known why it will not be."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

from prefloop.data.protocol import EngineFailed, RequestRejected
from prefloop.pipeline.engines.openai.asking.faults import LOOK_AT_SERVER, Faults, after
from prefloop.pipeline.engines.openai.asking.one_try import OneTry
from prefloop.pipeline.engines.openai.asking.outcomes import ServerAnswer
from prefloop.pipeline.engines.openai.asking.question import ServerQuestion
from prefloop.pipeline.engines.openai.openai_errors import TransientError
from prefloop.pipeline.engines.settings import OpenAIEngine

_FIRST_BACKOFF_S = 0.5
_FIRST_AGAIN = 3
"""Times that a request over several endpoints goes first again after a try that failed."""
_MOST_REFUSALS = 28
"""Times that a request is refused for the load of several endpoints that answer others, before it
is taken to be one that they do not want."""


class Retries:
    """Of one engine."""

    def __init__(self, config: OpenAIEngine, one_try: OneTry, faults: Faults, address: str) -> None:
        """``address`` is what the server is called in messages."""
        self._config = config
        self._one_try = one_try
        self._faults = faults
        self._address = address

    async def until_answered(self, question: ServerQuestion) -> ServerAnswer:
        """The answer to ``question``, in the end. Raises ``RequestRejected`` and
        ``EngineFailed``."""
        failed: list[float] = []
        try:
            if self._config.endpoints:
                return await self._try_in_turns(question)
            while True:
                try:
                    return await self._one_try.do(question)
                except TransientError as error:
                    failed.append(time.monotonic())
                    if len(failed) > self._config.max_retries:
                        return await self._try_a_last_time(question, error, failed)
                    wait = self._wait(error, len(failed))
                await asyncio.sleep(wait)
        except RequestRejected as rejected:
            failure = await self._faults.refused(question, rejected)
        raise failure from None

    async def _try_in_turns(self, question: ServerQuestion) -> ServerAnswer:
        """The same over several endpoints, each of which the pool gives the rest it needs. That one
        is busy or gone is no fault of the request; that all are, the pool says."""
        began, refused, failed = time.monotonic(), 0, list[float]()
        while True:
            try:
                # One that is refused time and again must not be in the way of the others.
                first = 0 < refused + len(failed) <= _FIRST_AGAIN
                return await self._one_try.do(question, again=first)
            except TransientError as error:
                now, is_busy = time.monotonic(), error.is_busy or error.status == 503
                if not error.was_sent:
                    continue
                if is_busy:
                    refused += 1
                    if refused > _MOST_REFUSALS and now - began > self._config.timeout_s:
                        detail = f"{error}, after {refused} tries, while others are answered"
                        raise RequestRejected(error.reason, detail) from None
                    continue
                failed.append(now)
                if len(failed) <= self._config.max_retries:
                    continue
                if await self._faults.answers_others(question, failed[-2:][0], now):
                    try:
                        return await self._one_try.do(question, again=True)
                    except TransientError as last:
                        if last.was_sent and not last.is_busy and last.status != 503:
                            raise self._faults.hopeless(question, last, len(failed)) from None
                failed.clear()

    async def _try_a_last_time(
        self, question: ServerQuestion, error: TransientError, failed: Sequence[float]
    ) -> ServerAnswer:
        """What comes of a request that no try helped: an answer after all, where the server is
        back; its rejection, where the server answers others; or the run's end."""
        stop = EngineFailed(f"{self._address}: {error}, {after(len(failed))}", LOOK_AT_SERVER)
        if error.is_busy or not await self._faults.answers_others(
            question, failed[-2:][0], failed[-1]
        ):
            raise stop from None
        try:
            return await self._one_try.do(question)
        except TransientError as last:
            if last.is_busy:
                raise stop from None
            error = last
        raise self._faults.hopeless(question, error, len(failed)) from None

    def _wait(self, error: TransientError, tries: int) -> float:
        """Exponential backoff with jitter, and never less than the server asks for."""
        longest = self._config.max_backoff_s
        backoff = random.uniform(0.0, min(longest, _FIRST_BACKOFF_S * 2.0 ** min(tries - 1, 60)))
        # A server that asks for hours is not obeyed: the retries run out and the run can resume.
        return max(backoff, min(error.retry_after or 0.0, 10 * longest))
