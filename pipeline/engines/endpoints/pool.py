"""Which server is asked next. Requests wait in the order in which they came, and each goes to the
free server that is likely to answer it first.

A server that is busy is given fewer requests at once, and none for a while; one that is gone is
left, and asked again by one request after 1, 2, 4 .. 30 seconds; one that refuses the key or has no
such model is left for good. The engine fails when none is left, or none answers for long.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from prefloop.data.protocol import EngineFailed, RequestRejected
from prefloop.pipeline.engines.endpoints.endpoint import Endpoint, EndpointTurn, TurnNotTaken
from prefloop.pipeline.engines.endpoints.limit import Limit
from prefloop.pipeline.engines.endpoints.pace import Pace
from prefloop.pipeline.engines.openai.openai_errors import TransientError
from prefloop.pipeline.engines.openai.transport import ServerFailed
from prefloop.pipeline.engines.settings import OpenAIEngine

logger = logging.getLogger(__name__)

_BUSY = frozenset([425, 429, 503, 529])
_FAILURES = 3
"""Tries that fail, in a row, before a server is left."""
_FIRST_AWAY_S, _LONGEST_AWAY_S = 1.0, 30.0

T = TypeVar("T")


@dataclass(eq=False)
class _Member:
    """An endpoint, and what is known of it."""

    endpoint: Endpoint
    limit: Limit
    pace: Pace
    under_way: int = 0
    not_before: float = 0.0
    """Until then it is closed: it said so, or is given a moment."""
    failures: int = 0
    """Tries in a row that failed."""
    away_s: float = 0.0
    """How long it is left this time; 0 for one that is there."""
    probe: EndpointTurn | None = None
    """The one request that sees whether a server that was left is back."""
    failed_at: float = 0.0
    left_at: float = 0.0
    unanswered: int = 0
    """Tries in a row that got no answer, whatever the reason."""
    problem: str = ""
    """What the last of them said."""
    out: EngineFailed | None = None
    """Why it is left for good."""
    mending: asyncio.Lock = field(default_factory=asyncio.Lock)
    mended_at: float | None = None
    """When it was put right, with no answer yet since."""
    answered: bool = False

    def free_at(self, now: float, tokens: int) -> float:
        """When it can take a request, as far as that is a matter of time."""
        return max(self.not_before, self.pace.ready_at(now, tokens))

    def has_room(self) -> bool:
        """Whether another request may be under way there, as far as that is a matter of number."""
        if self.away_s:
            return self.probe is None
        return self.limit.has_room(self.under_way)

    def let_go(self, turn: EndpointTurn, count: int) -> None:
        """A turn is over."""
        self.under_way -= count
        if self.probe is turn:
            self.probe = None


@dataclass(eq=False)
class _Wanted:
    """A turn that is waited for: of a request of ``tokens``, or of ``count`` in one."""

    tokens: int
    count: int
    turn: asyncio.Future[EndpointTurn] = field(init=False)


class Pool:
    """The endpoints of one engine. Use it from one event loop."""

    def __init__(
        self,
        config: OpenAIEngine,
        endpoints: Sequence[Endpoint],
        *,
        name: str,
        mend: Callable[[Endpoint], Awaitable[bool]],
    ) -> None:
        """``name`` is the engine's, for messages. ``mend`` is asked, where an endpoint refuses what
        others answer, whether it put that right."""
        self._config = config
        self._name = name
        self._mend = mend
        self._members = {
            endpoint: _Member(
                endpoint,
                Limit(endpoint.settings.max_concurrency or 1),
                Pace(endpoint.settings.requests_per_minute, endpoint.settings.tokens_per_minute),
            )
            for endpoint in endpoints
        }
        self._waiting: deque[_Wanted] = deque()
        self._alarm: asyncio.TimerHandle | None = None
        self._silent_since: float | None = None

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Those that are not left for good."""
        return tuple(endpoint for endpoint, one in self._members.items() if one.out is None)

    def left_out(self, endpoint: Endpoint) -> EngineFailed | None:
        """Why ``endpoint`` is left for good; null where it is not."""
        return self._members[endpoint].out

    def has_answered(self, endpoint: Endpoint) -> bool:
        """Whether ``endpoint`` answered a request, so that its key and model are right."""
        return self._members[endpoint].answered

    async def do(
        self,
        ask: Callable[[EndpointTurn], Awaitable[T]],
        tokens: int,
        *,
        count: int = 1,
        again: bool = False,
    ) -> T:
        """What ``ask`` gives at the endpoint whose turn it is; where that cannot be used at all, at
        another. ``again``: it was asked before, and goes first.

        Raises what ``ask`` does, and ``EngineFailed`` where no endpoint can be used or answers.
        """
        while True:
            turn = await self._turn(tokens, count, again=again)
            member = self._members[turn.endpoint]
            try:
                try:
                    found = await ask(turn)
                except ServerFailed as error:
                    await self._refused(member, turn, error)
                except TransientError as error:
                    self._failed(member, turn, error)
                    raise
                except RequestRejected:
                    self._is_there(member)
                    raise
                except TurnNotTaken:
                    member.pace.give_back(time.monotonic(), tokens)
                    raise
                else:
                    self._is_there(member)
                    member.answered = True
                    member.limit.answered(turn.came, turn.sent, member.under_way, count=count)
                    return found
            finally:
                member.let_go(turn, count)
                self._hand_out()
            again = True

    def leave(self, endpoint: Endpoint, error: EngineFailed) -> None:
        """Ask ``endpoint`` no more. Raises ``EngineFailed`` if it was the last."""
        member = self._members[endpoint]
        if member.out is None:
            member.out = error
            if self.endpoints:
                logger.warning("%s: an endpoint is left out from now on: %s", self._name, error)
        if not self.endpoints:
            reasons = [one.out for one in self._members.values() if one.out is not None]
            failed = EngineFailed("; ".join(one.problem for one in reasons), reasons[-1].remedy)
            self._end(failed)
            raise failed from None

    def close(self) -> None:
        """Wake nobody any more."""
        if self._alarm is not None:
            self._alarm.cancel()

    async def _turn(self, tokens: int, count: int, *, again: bool) -> EndpointTurn:
        if not self.endpoints:
            self.leave(*next((e, m.out) for e, m in self._members.items() if m.out))
        wanted = _Wanted(tokens, count)
        if again or not self._waiting:
            turn = self._best(wanted)
            if turn is not None:
                return turn
        wanted.turn = asyncio.get_running_loop().create_future()
        if again:
            self._waiting.appendleft(wanted)
        else:
            self._waiting.append(wanted)
        self._wake_later()
        try:
            return await wanted.turn
        except asyncio.CancelledError:
            given = wanted.turn
            if given.done() and not given.cancelled() and given.exception() is None:
                self._members[given.result().endpoint].let_go(given.result(), count)
            elif wanted in self._waiting:
                self._waiting.remove(wanted)
            self._hand_out()
            raise

    def _best(self, wanted: _Wanted) -> EndpointTurn | None:
        """A turn at the free endpoint that is likely to answer first; null where none is free."""
        now = time.monotonic()
        best: tuple[int, float, _Member] | None = None
        known = [one.limit.latency for one in self._members.values() if one.limit.latency]
        usual = min(known, default=1.0)
        for member in self._members.values():
            if member.out is not None or not member.has_room():
                continue
            if member.free_at(now, wanted.tokens) > now:
                continue
            latency = member.limit.latency or usual
            score = latency * (member.under_way + 1) / member.limit.value
            # One that just failed comes last, one that was left and may be back, first.
            failed = member.failures > 0 and now - member.failed_at < _FIRST_AWAY_S
            order = -1 if member.away_s else int(failed)
            if best is None or (order, score) < best[:2]:
                best = (order, score, member)
        if best is None:
            return None
        member = best[2]
        member.under_way += wanted.count
        member.pace.take(now, wanted.tokens)
        turn = EndpointTurn(member.endpoint)
        if member.away_s:
            member.probe = turn
        return turn

    def _hand_out(self) -> None:
        """Give turns to those who wait, as long as there are any."""
        while self._waiting:
            wanted = self._waiting[0]
            turn = None if wanted.turn.done() else self._best(wanted)
            if turn is None and not wanted.turn.done():
                self._wake_later()
                return
            self._waiting.popleft()
            if turn is not None:
                wanted.turn.set_result(turn)

    def _wake_later(self) -> None:
        """Hand out again once an endpoint is free that is closed now, or may be asked again."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        now, tokens = time.monotonic(), self._waiting[0].tokens
        times = [
            one.free_at(now, tokens)
            for one in self._members.values()
            if one.out is None and one.has_room()
        ]
        if times:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(max(0.0, min(times) - now), self._hand_out)

    def _is_there(self, member: _Member) -> None:
        if member.away_s:
            logger.info("%s: %s answers again", self._name, member.endpoint.name)
        member.failures = member.unanswered = 0
        member.away_s = 0.0
        member.mended_at = None
        self._silent_since = None

    def _failed(self, member: _Member, turn: EndpointTurn, error: TransientError) -> None:
        """Note a try that may succeed another time. Raises ``EngineFailed`` where none does."""
        now = time.monotonic()
        member.unanswered += 1
        member.problem = str(error)
        if error.status in _BUSY:
            self._was_busy(member, turn, error, now)
        elif not member.away_s or turn.sent >= member.left_at:
            member.failures += 1
            member.failed_at = now
            if member.failures >= _FAILURES:
                self._left(member, now)
        self._end_if_silent(now)

    def _was_busy(
        self, member: _Member, turn: EndpointTurn, error: TransientError, now: float
    ) -> None:
        member.failures, member.away_s = 0, 0.0
        pause = member.limit.refused(now, turn.sent, member.under_way) * random.uniform(0.5, 1.0)
        if error.retry_after is not None:
            # One that asks for hours is asked sooner: the run may be stopped, and resume.
            pause = max(pause, min(error.retry_after, 10 * self._config.max_backoff_s))
        member.not_before = max(member.not_before, now + pause)

    def _left(self, member: _Member, now: float) -> None:
        if not member.away_s:
            logger.warning(
                "%s: %s does not answer, and is left for now: %s",
                self._name,
                member.endpoint.name,
                member.problem,
            )
        member.away_s = min(2 * member.away_s or _FIRST_AWAY_S, _LONGEST_AWAY_S)
        member.left_at, member.mended_at = now, None
        member.not_before = max(member.not_before, now + member.away_s)
        member.limit.restart()

    async def _refused(self, member: _Member, turn: EndpointTurn, error: ServerFailed) -> None:
        """Leave an endpoint for good, unless what is amiss can be put right."""
        async with member.mending:
            mended = member.mended_at
            if mended is not None and turn.sent < mended:
                return
            if mended is None and await self._mend(member.endpoint):
                member.mended_at = time.monotonic()
                return
        self.leave(member.endpoint, error)

    def _end_if_silent(self, now: float) -> None:
        if self._silent_since is None:
            self._silent_since = now
            return
        asked = [one for one in self._members.values() if one.out is None]
        is_long = now - self._silent_since > self._config.timeout_s
        if (
            not asked
            or not is_long
            or any(one.unanswered <= self._config.max_retries for one in asked)
        ):
            return
        said = "; ".join(f"{one.endpoint.name}: {one.problem}" for one in asked)
        out = [one.out.problem for one in self._members.values() if one.out is not None]
        failed = EngineFailed(
            f"no endpoint has answered for {now - self._silent_since:.0f} s: "
            + "; ".join([said, *out]),
            "check the servers and their logs; the same command resumes",
        )
        self._silent_since = None
        self._end(failed)
        raise failed from None

    def _end(self, failed: EngineFailed) -> None:
        """Let all who wait know."""
        waiting, self._waiting = self._waiting, deque()
        for wanted in waiting:
            if not wanted.turn.done():
                wanted.turn.set_exception(failed)
