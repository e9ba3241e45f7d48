"""Answers that were paid for once are taken from the response cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prefloop.data.protocol import RequestRejected
from prefloop.pipeline.engines.openai.asking.answer_counts import AnswerCounts
from prefloop.pipeline.engines.openai.asking.choices import read_answers
from prefloop.pipeline.engines.openai.asking.outcomes import ServerAnswer
from prefloop.pipeline.engines.openai.asking.question import ServerQuestion
from prefloop.pipeline.engines.openai.batch.price_mark import share_in
from prefloop.pipeline.engines.openai.reply_reader import GarbledResponseError
from prefloop.pipeline.engines.openai.response_cache import ResponseCache


class KeptAnswers:
    """The response cache of one engine, or none."""

    def __init__(self, folder: Path | None, counts: AnswerCounts) -> None:
        """``folder`` is the cache's; null where nothing is kept."""
        self._cache = None if folder is None else ResponseCache(folder)
        self._counts = counts
        self.asks_anew = False
        """Ask whatever was answered before; answers are kept all the same."""

    def get(self, question: ServerQuestion) -> ServerAnswer | None:
        """The answer from the cache, if there is one and it is a good one."""
        if self._cache is None or self.asks_anew:
            return None
        if (body := self._cache.get(question.key)) is None:
            return None
        try:
            replies = read_answers(body, question, self._counts.count)
        except (GarbledResponseError, RequestRejected, RecursionError):
            return None
        share = share_in(body)
        if share != 1:
            replies = tuple(one and replace(one, price_share=share) for one in replies)
        answer = ServerAnswer("", replies)
        return answer if answer.is_whole(question) else None

    def has_any(self, questions: Sequence[ServerQuestion]) -> bool:
        """Whether any was answered before: then these are asked one by one, now as then."""
        if self._cache is None or self.asks_anew:
            return False
        return self._cache.has_any([question.key for question in questions])

    async def keep(self, question: ServerQuestion, answer: ServerAnswer) -> None:
        """Keep a whole answer to ``question``."""
        if self._cache is not None and answer.is_whole(question):
            await self._cache.put(question.key, answer.body)

    def close(self) -> None:
        """Let go of the folder."""
        if self._cache is not None:
            self._cache.close()
