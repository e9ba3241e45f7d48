"""Several questions in one request, where their bodies are shared (``batches``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.data.protocol import EngineFailed, RequestRejected
from prefloop.pipeline.engines.endpoints.endpoint import EndpointTurn
from prefloop.pipeline.engines.endpoints.servers import Servers
from prefloop.pipeline.engines.openai.asking.answer_counts import AnswerCounts
from prefloop.pipeline.engines.openai.asking.one_try import OneTry
from prefloop.pipeline.engines.openai.asking.outcomes import Outcomes, ServerAnswer
from prefloop.pipeline.engines.openai.asking.question import ServerQuestion
from prefloop.pipeline.engines.openai.batches import put_together, taken_apart
from prefloop.pipeline.engines.openai.budget import Budget, Charge
from prefloop.pipeline.engines.openai.connections.response import Response, TransportError
from prefloop.pipeline.engines.openai.ledger import Amount
from prefloop.pipeline.engines.openai.openai_errors import TransientError
from prefloop.pipeline.engines.openai.reply_reader import GarbledResponseError
from prefloop.pipeline.engines.openai.server_words import strict_json
from prefloop.pipeline.engines.openai.transport import written

logger = logging.getLogger(__name__)

_FAILED = 3
"""Requests of several prompts that fail, in a row, before each is asked alone."""


class AskedTogether:
    """Asks so for one engine, as long as its servers take it."""

    def __init__(
        self,
        servers: Servers,
        one_try: OneTry,
        outcomes: Outcomes,
        counts: AnswerCounts,
        budget: Budget,
    ) -> None:
        self._servers = servers
        self._one_try = one_try
        self._outcomes = outcomes
        self._counts = counts
        self._budget = budget
        self.is_on = True
        """Whether several are put into one request."""
        self._failed = 0

    async def ask(self, questions: Sequence[ServerQuestion]) -> list[ServerAnswer | None]:
        """The answers, by one request; null for each that has to be asked alone: there, whatever is
        wrong is found out."""
        nothing: list[ServerAnswer | None] = [None] * len(questions)
        most = sum((self._counts.most(one) for one in questions), Amount())
        try:
            found = await self._one_try.in_turn(
                lambda turn: self._at(turn, questions), most, count=len(questions)
            )
        except (TransientError, RequestRejected, EngineFailed):
            return nothing
        self._failed = 0 if found and any(found) else self._failed + 1
        if found is None or self._failed == _FAILED:
            self.is_on = False
            logger.info("%s: prompts are asked alone from now on", self._servers.address)
        return found or nothing

    async def _at(
        self, turn: EndpointTurn, questions: Sequence[ServerQuestion]
    ) -> list[ServerAnswer | None] | None:
        """Null for each that is no answer; null altogether where the server does not take prompts
        together, or does not say which answer is whose."""
        prices = [self._counts.most(one) for one in questions]
        async with self._budget.reserved(sum(prices, Amount())) as charge:
            charge.spent = charge.most
            try:
                response = await turn.post(
                    "/completions", put_together([one.body for one in questions])
                )
            except TransportError as error:
                charge.spent = charge.most if error.was_sent else Amount()
                raise TransientError(str(error), was_sent=error.was_sent) from None
            except EngineFailed:
                charge.spent = Amount()
                raise
            if not 200 <= response.status < 300:
                charge.spent = Amount()
                if self._servers.pool is not None:  # which has to know why
                    said = turn.endpoint.said(response)
                    self._outcomes.complain(turn, questions[0], response.status, said, response)
                return [None] * len(questions)
            try:
                bodies = taken_apart(
                    strict_json(response.body), [one.body["prompt"] for one in questions]
                )
            except ValueError:
                bodies = None
            if bodies is None:
                return None
            found, charge.spent = [], Amount()
            for question, body, price in zip(questions, bodies, prices, strict=True):
                own = Charge(price)
                found.append(self._taken(turn, question, body, own))
                charge.spent += own.spent
            return found

    def _taken(
        self, turn: EndpointTurn, question: ServerQuestion, body: Mapping[str, Any], charge: Charge
    ) -> ServerAnswer | None:
        try:
            answer = self._outcomes.read(turn, question, Response(200, {}, written(body)), charge)
        except (GarbledResponseError, RequestRejected, TransientError, EngineFailed):
            return None
        return answer if answer.is_whole(question) else None
