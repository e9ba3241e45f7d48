"""What answers took, in tokens and money: as the server says, or as it is counted here."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from prefloop.data.conversations.answer_edges import end_tokens
from prefloop.data.conversations.chat import render_tokens
from prefloop.data.conversations.conversation import characters_of
from prefloop.data.protocol import Completion, Request, RequestRejected
from prefloop.pipeline.engines.answer_reader import AnswerReader, ReadAnswer, cut_at_stop
from prefloop.pipeline.engines.openai.asking.question import ServerQuestion
from prefloop.pipeline.engines.openai.ledger import Amount
from prefloop.pipeline.engines.openai.reply_reader import Reply, TokenUsage
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.engines.weights import configured_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_LARGEST_UNLISTED = 0.06
"""Share of the choices' probability that one which the server did not list may have, and count as
none."""


class AnswerCounts:
    """Counts and prices by the settings of one engine. Each thing that is amiss is said once."""

    def __init__(
        self, config: OpenAIEngine, tokenizer: PreTrainedTokenizerBase | None, address: str
    ) -> None:
        """``address`` is what the server is called in messages."""
        self._config = config
        self._tokenizer = tokenizer
        self._reader = _reader(config, tokenizer)
        self._address = address
        self._warned: set[str] = set()

    def most(self, question: ServerQuestion) -> Amount:
        """The most that a question can take."""
        return self.price(question.prompt_tokens, question.n * question.max_tokens)

    def price(self, prompt_tokens: int, completion_tokens: int) -> Amount:
        """What so many tokens are, and cost."""
        cost = (
            prompt_tokens * self._config.price_per_million_prompt_tokens
            + completion_tokens * self._config.price_per_million_completion_tokens
        ) / 1e6
        return Amount(prompt_tokens + completion_tokens, cost)

    def taken(
        self, question: ServerQuestion, replies: Sequence[Reply | None], usage: TokenUsage | None
    ) -> Amount:
        """What a request is charged that brought ``replies``; what the server does not count, at
        most a little too much. ``usage`` is wanted where these are several."""
        came = [reply for reply in replies if reply is not None]
        prompt = came[0].prompt_tokens or question.prompt_tokens
        if usage is not None and usage.completion_tokens is not None:  # what lacks was paid as well
            return self.price(prompt, usage.completion_tokens)
        return self.price(prompt, sum(self._completion_tokens(one, question) for one in came))

    def count(self, text: str) -> int:
        """How many tokens ``text`` has, or about as many."""
        if self._tokenizer is not None:
            return len(self._tokenizer.encode(text, add_special_tokens=False))
        return -(-len(text) // 4)

    def completion(
        self, request: Request, reply: Reply, prompt: Sequence[int] | None
    ) -> Completion:
        """The answer to ``request`` that ``reply`` is, with what it took."""
        choices = None
        if request.choices is not None and (seen := reply.first_logprobs) is not None:
            choices = _of_choices(request.choices, seen, reply.unlisted)
        prompt_tokens, completion_tokens = reply.prompt_tokens, reply.completion_tokens
        if prompt_tokens is None or completion_tokens is None:
            self._warn_once(
                "does not say how many tokens an answer took: they are counted here, "
                f"{self._how}, and budgets and costs are no more exact than that"
            )
        elif reply.tokens_are_shared:
            self._warn_once(
                "says what several answers of one request took together, and not each of them: "
                f"the sum is right, and each has the part that its length has, counted {self._how}"
            )
        if prompt_tokens is None:
            prompt_tokens = max(self._count_prompt(request, prompt), 1)
        if completion_tokens is None:
            completion_tokens = self.count(f"{reply.reasoning or ''}{reply.text}")
        prompt_tokens = _part(prompt_tokens, *reply.prompt_part)
        reply = _cut(reply, request.sampling.stop)
        return Completion(
            text=reply.text,
            token_ids=reply.token_ids,
            finish_reason=reply.finish_reason,
            logprob=reply.logprob,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            choice_logprobs=choices,
            cost=self.price(prompt_tokens, completion_tokens).cost * reply.price_share,
            reasoning=reply.reasoning,
            reasoning_tokens=_thought_tokens(reply, completion_tokens),
            raw_text=reply.raw_text,
            ids_differ=self._differ(request, reply),
        )

    def _differ(self, request: Request, reply: Reply) -> bool:
        """Whether the tokens of ``reply`` are other ones than its text has; taken to be so where no
        tokenizer is known."""
        if not reply.token_ids or request.choices is not None:  # a judge's are not kept
            return False
        if self._reader is None:
            return True
        return self._reader.differs(reply.token_ids, ReadAnswer(reply.text), request)

    @property
    def _how(self) -> str:
        return "by the tokenizer" if self._tokenizer else "at four characters a token"

    def _completion_tokens(self, reply: Reply, question: ServerQuestion) -> int:
        if reply.completion_tokens is not None:
            return reply.completion_tokens
        return min(self.count(f"{reply.reasoning or ''}{reply.text}"), question.max_tokens)

    def _count_prompt(self, request: Request, prompt: Sequence[int] | None) -> int:
        if prompt is not None:
            return len(prompt)
        if self._tokenizer is not None and self._tokenizer.chat_template:
            try:
                return len(render_tokens(self._tokenizer, request.messages))
            except RequestRejected:  # the server's own template took it
                pass
        return self.count(characters_of(request.messages))

    def _warn_once(self, what: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("%s %s", self._address, what)


def _reader(config: OpenAIEngine, tokenizer: PreTrainedTokenizerBase | None) -> AnswerReader | None:
    """Of a server that tells the tokens of its answers, where its tokenizer is known."""
    if tokenizer is None or config.tokenizer is None or not config.vllm_extensions:
        return None
    ends = end_tokens(tokenizer, configured_ends(config.tokenizer, None))
    return AnswerReader(tokenizer, ends)


def _of_choices(
    choices: Sequence[str], seen: Mapping[str, float], unlisted: float
) -> dict[str, float]:
    """The log-probability of each choice: minus infinity for one that was not listed, and not a
    number where it may count among those that were.

    It has ``unlisted`` at most, or what a token has that it begins with: one that the tokenizer
    knows in pieces is never listed whole.
    """
    words = {choice: choice.strip() for choice in choices}
    found = {choice: seen.get(word, -math.inf) for choice, word in words.items()}
    listed = math.fsum(map(math.exp, found.values()))
    if not listed or -math.inf not in found.values():
        return found
    for choice, word in words.items():
        if found[choice] != -math.inf:
            continue
        begun = (p for token, p in seen.items() if token and word.startswith(token))
        most = max(unlisted, math.fsum(map(math.exp, begun)))
        if most > _LARGEST_UNLISTED * (listed + most):
            found[choice] = math.nan
    return found


def _cut(reply: Reply, stop: Sequence[str]) -> Reply:
    """``reply`` up to the first of the ``stop`` strings: some servers leave that in the answer, or
    do not stop at it. What these wrote further is no part of the answer, so that the
    log-probability and tokens of all of it are none of the answer's."""
    text = cut_at_stop(reply.text, stop)
    if text == reply.text:
        return reply
    stopped = replace(reply, text=text, finish_reason="stop")
    went_on = reply.text[len(text) :] not in stop
    return replace(stopped, token_ids=(), logprob=None) if went_on else stopped


def _part(total: int, number: int, of: int) -> int:
    """The part ``number`` of ``total`` in ``of`` parts, which differ by 1 at most and add up."""
    return total * (number + 1) // of - total * number // of


def _thought_tokens(reply: Reply, completion_tokens: int) -> int:
    """The thought's share of an answer's tokens; by its share of the characters where nobody
    counted it."""
    if reply.reasoning_tokens is not None:
        return min(reply.reasoning_tokens, completion_tokens)
    if reply.reasoning is None:
        return 0
    if not reply.text:
        return completion_tokens
    characters = len(reply.reasoning) + len(reply.text)
    return round(completion_tokens * len(reply.reasoning) / characters)
