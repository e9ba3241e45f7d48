"""Whether servers give log-probabilities for verdicts, as far as it was seen.

Until the first came, answers to questions that want them are asked for one at a time: without them
each is paid in vain.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from prefloop.data.protocol import EverythingRefused
from prefloop.pipeline.engines.openai.asking.outcomes import ServerAnswer
from prefloop.pipeline.engines.openai.asking.question import ServerQuestion
from prefloop.pipeline.engines.openai.openai_errors import TransientError
from prefloop.pipeline.engines.openai.parameters import Place
from prefloop.pipeline.engines.openai.reply_reader import Reply
from prefloop.pipeline.engines.openai.transport import ServerFailed

_LOOKS = 4
"""Empty answers, which tell nothing, before the others are no longer held up."""


class VerdictLogprobs:
    """Of one engine's servers."""

    def __init__(self, address: str, place: Place) -> None:
        """``address`` is what the server is called in messages, ``place`` where the config says
        so."""
        self._address = address
        self._place = place
        self._came = False
        self._looks = 0
        self._missing: EverythingRefused | None = None
        self.until_sure = asyncio.Lock()
        """Held while one is asked for in whose light the others are."""

    def is_unsure_of(self, question: ServerQuestion) -> bool:
        """Whether ``question`` wants them, and it is not known that they come."""
        return question.wants_choices and not self._came and self._looks < _LOOKS

    def see(self, reply: Reply) -> None:
        """Take note of an answer."""
        self._came |= reply.first_logprobs is not None

    async def asked_for(
        self, question: ServerQuestion, ask: Callable[[], Awaitable[ServerAnswer]]
    ) -> ServerAnswer:
        """What ``ask`` gives for ``question``; asked twice where they lack, as one answer without
        them may be a single one.

        Raises ``EverythingRefused`` where a second one lacks them as well: every further one would
        be paid in vain."""
        if not question.wants_choices:
            return await ask()
        if self._missing is not None:
            raise self._missing
        answer = await ask()
        if _lacks(answer.reply) and not self._came:
            answer = await ask()
            if _lacks(answer.reply):
                self._missing = EverythingRefused(
                    f"{self._address} gives no log-probabilities for the verdicts, in 2 answers of "
                    "2",
                    f"set {self._place.other_judge('JSON or text')}, or take a server that honours "
                    "logprobs and top_logprobs",
                )
                raise self._missing
        self._looks += 1
        self.see(answer.reply)
        return answer


class LogprobsByEndpoint:
    """Which of several endpoints gives them: where others do, one that does not is left, and what
    it answered is asked for elsewhere."""

    def __init__(self) -> None:
        self._giving: set[str] = set()
        self._lacking: Counter[str] = Counter()

    def see(self, name: str, question: ServerQuestion, answer: ServerAnswer) -> None:
        """Take note of an answer of the endpoint ``name``.

        Raises ``TransientError`` where others gave them, and ``ServerFailed`` the second time that
        it gave none, if it never did."""
        if not question.wants_choices or name in self._giving:
            return
        if answer.reply.first_logprobs is not None:
            self._giving.add(name)
        if not _lacks(answer.reply):
            return
        self._lacking[name] += 1
        problem = f"{name} gives no log-probabilities for the verdicts"
        if self._lacking[name] > 1:
            remedy = (
                "take the endpoint out, or one that honours logprobs, or a judge that answers in "
                "JSON or text"
            )
            raise ServerFailed(f"{problem}, in 2 answers of 2", remedy)
        if self._giving:
            raise TransientError(problem, reason="unparsable_answer")


def _lacks(reply: Reply) -> bool:
    """Whether an answer came, and not its log-probabilities."""
    return not reply.has_choices and bool(reply.text.strip())
