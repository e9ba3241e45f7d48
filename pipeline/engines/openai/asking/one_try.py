"""One try of a request: at the server whose turn it is, within rates and budget."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiolimiter import AsyncLimiter

from prefloop.data.protocol import EngineFailed, RequestRejected
from prefloop.pipeline.engines.endpoints.endpoint import Endpoint, EndpointTurn, TurnNotTaken
from prefloop.pipeline.engines.endpoints.servers import Servers
from prefloop.pipeline.engines.openai.asking.answer_counts import AnswerCounts
from prefloop.pipeline.engines.openai.asking.outcomes import Outcomes, ServerAnswer
from prefloop.pipeline.engines.openai.asking.question import ServerQuestion
from prefloop.pipeline.engines.openai.asking.several import SeveralAnswers, TogetherRefused
from prefloop.pipeline.engines.openai.asking.verdict_logprobs import LogprobsByEndpoint
from prefloop.pipeline.engines.openai.budget import Budget
from prefloop.pipeline.engines.openai.connections.response import TransportError
from prefloop.pipeline.engines.openai.ledger import Amount
from prefloop.pipeline.engines.openai.openai_errors import TransientError
from prefloop.pipeline.engines.openai.reply_reader import GarbledResponseError
from prefloop.pipeline.engines.settings import OpenAIEngine

T = TypeVar("T")


class OneTry:
    """Tries the questions of one engine."""

    def __init__(
        self,
        config: OpenAIEngine,
        servers: Servers,
        outcomes: Outcomes,
        counts: AnswerCounts,
        budget: Budget,
        several: SeveralAnswers,
    ) -> None:
        self._servers = servers
        self._outcomes = outcomes
        self._counts = counts
        self._budget = budget
        self._several = several
        self._logprobs = LogprobsByEndpoint()
        self._path = "/chat/completions" if config.api == "chat" else "/completions"
        # A bucket holds what it fills with in a short time: no burst at a run's start.
        rpm, tpm = config.requests_per_minute, config.tokens_per_minute
        self._request_rate = None if rpm is None else AsyncLimiter(1, 60 / rpm)
        self._token_rate = None if tpm is None else AsyncLimiter(tpm / 6, 10)

    async def do(self, question: ServerQuestion, *, again: bool = False) -> ServerAnswer:
        """Ask; ``again``: it had a turn before.

        Raises ``TransientError`` for what is worth another try, ``RequestRejected``,
        ``EngineFailed``, and ``TurnNotTaken`` where several answers are not asked of the server
        whose turn it is."""
        most = self._counts.most(question)
        ask = self._at if question.n == 1 else self._several_at
        return await self.in_turn(
            lambda turn: ask(turn, question), most, count=question.n, again=again
        )

    async def in_turn(
        self,
        ask: Callable[[EndpointTurn], Awaitable[T]],
        most: Amount,
        *,
        count: int,
        again: bool = False,
    ) -> T:
        """What ``ask`` gives at the endpoint whose turn it is. ``most`` is what it may take, and
        ``count`` the answers that are wanted of it."""
        servers = self._servers
        if servers.pool is None:
            await self._keep_rates(most)
            return await ask(servers.only)
        await servers.agree()
        return await servers.pool.do(ask, most.tokens, count=count, again=again)

    async def problem_at(self, endpoint: Endpoint, probe: ServerQuestion) -> Exception | None:
        """What is wrong with one endpoint; null where it answers ``probe``."""
        try:
            await self._at(EndpointTurn(endpoint), probe)
        except (TransientError, RequestRejected, EngineFailed) as error:
            return error
        return None

    async def _several_at(self, turn: EndpointTurn, question: ServerQuestion) -> ServerAnswer:
        name = turn.endpoint.name
        if not self._several.may_ask(question.n, name):
            raise TurnNotTaken
        try:
            return await self._at(turn, question)
        except RequestRejected as refusal:
            raise TogetherRefused(name, refusal) from None

    async def _at(self, turn: EndpointTurn, question: ServerQuestion) -> ServerAnswer:
        async with self._budget.reserved(self._counts.most(question)) as charge:
            charge.spent = charge.most  # whatever ends the wait: the server may have answered
            try:
                response = await turn.post(self._path, question.body)
            except TransportError as error:
                charge.spent = charge.most if error.was_sent else Amount()
                failure: Exception = TransientError(str(error), was_sent=error.was_sent)
            except EngineFailed:
                charge.spent = Amount()
                raise
            else:
                try:
                    answer = self._outcomes.read(turn, question, response, charge)
                    if self._servers.pool is not None:
                        self._logprobs.see(turn.endpoint.name, question, answer)
                    return answer
                except GarbledResponseError as error:
                    said = turn.endpoint.key.blot(str(error))
                    failure = TransientError(said, reason="unparsable_answer")
            # Raised within the budget's block: what was charged is kept whatever comes.
            raise failure from None

    async def _keep_rates(self, most: Amount) -> None:
        if self._request_rate is not None:
            await self._request_rate.acquire()
        if self._token_rate is not None:
            await self._token_rate.acquire(min(most.tokens, self._token_rate.max_rate))
