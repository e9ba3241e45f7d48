"""What a response is: an answer with what it took, or the failure that it means."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from prefloop.data.protocol import EngineFailed, RequestRejected
from prefloop.pipeline.engines.endpoints.endpoint import EndpointTurn
from prefloop.pipeline.engines.endpoints.pool import Pool
from prefloop.pipeline.engines.openai.api_key import ApiKey
from prefloop.pipeline.engines.openai.asking.answer_counts import AnswerCounts
from prefloop.pipeline.engines.openai.asking.choices import read_answers
from prefloop.pipeline.engines.openai.asking.event_stream import body_of_events, is_stream
from prefloop.pipeline.engines.openai.asking.question import ServerQuestion
from prefloop.pipeline.engines.openai.budget import Charge
from prefloop.pipeline.engines.openai.connections.response import Response
from prefloop.pipeline.engines.openai.health import Health
from prefloop.pipeline.engines.openai.ledger import Amount
from prefloop.pipeline.engines.openai.reply_reader import (
    GarbledResponseError,
    Reply,
    read_usage,
)
from prefloop.pipeline.engines.openai.server_words import (
    Said,
    is_error,
    load_body,
    one_line,
    said_by,
    strict_json,
)
from prefloop.pipeline.engines.openai.transport import written


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """``body``: an answer as the cache has it. ``replies``: what it says, null for each that lacks
    of several; there is one at least. ``came_from``: the endpoint, empty where it was kept."""

    body: str
    replies: tuple[Reply | None, ...]
    came_from: str = ""

    @property
    def reply(self) -> Reply:
        """The only one, or the first that came."""
        return self.replies[0] or next(reply for reply in self.replies if reply is not None)

    def is_whole(self, question: ServerQuestion) -> bool:
        """Whether the log-probabilities came that were asked for with it, if any were."""
        return self.reply.has_choices or not question.wants_choices


class Outcomes:
    """Reads the responses to one engine's questions."""

    def __init__(self, counts: AnswerCounts, health: Health, pool: Pool | None) -> None:
        """``pool``: of several endpoints, which knows of each whether it has answered."""
        self._counts = counts
        self._health = health
        self._pool = pool

    def read(
        self, turn: EndpointTurn, question: ServerQuestion, response: Response, charge: Charge
    ) -> ServerAnswer:
        """The answer in ``response``. Sets what it is charged, also where it is none.

        Raises ``GarbledResponseError``, ``RequestRejected`` and what :meth:`complain` raises."""
        charge.spent, endpoint = Amount(), turn.endpoint
        if response.status >= 300 or response.status < 200:
            self._charge_refusal(question, response, charge)
            self.complain(turn, question, response.status, endpoint.said(response), response)
        kept: str | None = None
        try:
            body, kept = _strictly(response.body)
        except ValueError as error:
            if response.body.lstrip()[:1] == b"{" or is_stream(response.body):  # cut off
                charge.spent = charge.most
            words = one_line(endpoint.said(response).words, 100) or "an empty body"
            raise GarbledResponseError(
                f"garbage instead of an answer: {words} ({one_line(str(error), 80)})"
            ) from None
        self._charge(question, body, charge)
        try:
            replies = read_answers(body, question, self._counts.count)
            kept = endpoint.key.strike(json.dumps(body) if kept is None else kept)
        except RecursionError:
            raise GarbledResponseError("garbage instead of an answer: nested too deeply") from None
        except GarbledResponseError:
            said = said_by(body)
            if is_error(body) and said.status is not None:
                self.complain(turn, question, said.status, endpoint.blotted(said), response)
            raise
        except RequestRejected as rejected:
            self._health.answered()
            raise RequestRejected(rejected.reason, endpoint.key.blot(rejected.detail)) from None
        if endpoint.key.strikes:
            replies = tuple(one and _struck(one, endpoint.key) for one in replies)
        usage = read_usage(body) if question.n > 1 else None
        charge.spent = self._counts.taken(question, replies, usage)
        return ServerAnswer(kept, replies, endpoint.name)

    def complain(
        self,
        turn: EndpointTurn,
        question: ServerQuestion,
        status: int,
        said: Said,
        response: Response,
    ) -> NoReturn:
        """Raise what an answer with an error's status means."""
        endpoint = turn.endpoint
        failure = endpoint.failures.classify(status, said, response.headers, question.body)
        if self._pool is None:
            is_known = self._health.ever_answered
        else:
            is_known = self._pool.has_answered(endpoint)
        if isinstance(failure, EngineFailed) and status == 403 and is_known:
            # The key is good, as others got through: some servers withhold single answers so.
            failure = RequestRejected("refused_by_server", f"status 403: {said.words}")
        raise failure from None

    def _charge(self, question: ServerQuestion, body: Any, charge: Charge) -> None:
        """Charge what a body says it took; one with choices that does not say, the most."""
        try:
            usage = read_usage(body)
        except GarbledResponseError:
            charge.spent = charge.most
            return
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        if prompt is not None or completion is not None:
            charge.spent = self._counts.price(prompt or question.prompt_tokens, completion or 0)
        elif isinstance(body, dict) and body.get("choices"):
            charge.spent = charge.most

    def _charge_refusal(self, question: ServerQuestion, response: Response, charge: Charge) -> None:
        """Charge what the body of an error says that it took; most say nothing, and took it."""
        try:
            body = load_body(response.body)
        except ValueError:
            return
        if isinstance(body, dict) and isinstance(body.get("usage"), dict):
            self._charge(question, body, charge)


def _strictly(data: bytes) -> tuple[Any, str | None]:
    """The JSON value in ``data``, and the same in ASCII, as the cache has it, where that is known
    already. A key stands in it as it is, without escapes. Raises ``ValueError``."""
    try:
        body = strict_json(data)
    except ValueError:
        return (body_of_events if is_stream(data) else load_body)(data), None
    kept = written(body)
    return body, kept.decode() if kept.isascii() else None


def _struck(reply: Reply, key: ApiKey) -> Reply:
    """``reply`` without the key in it."""
    return replace(
        reply,
        text=key.strike(reply.text),
        reasoning=reply.reasoning and key.strike(reply.reasoning),
        raw_text=reply.raw_text and key.strike(reply.raw_text),
    )
