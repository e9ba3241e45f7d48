"""Whose fault is it that a request failed: its own, a parameter's, or the server's?

Told by how others fared (``Health``) and, where that does not tell, by asking once more: the same
without what is refused, or something harmless.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from prefloop.data.protocol import EverythingRefused, RequestRejected
from prefloop.pipeline.engines.openai.asking.question import Questioner, ServerQuestion
from prefloop.pipeline.engines.openai.health import MOST_IN_A_ROW, Health
from prefloop.pipeline.engines.openai.openai_errors import TransientError
from prefloop.pipeline.engines.openai.openai_wire import (
    PROBE,
    PROBE_TOKENS,
    probe_body,
    shortened,
)
from prefloop.pipeline.engines.openai.parameters import ParameterRefused, Place, mended

LOOK_AT_SERVER = (
    "check the server and its log, and that base_url is right; the same command resumes"
)
_PROBES = 2


class Faults:
    """Finds out for one engine. One question is looked into at a time."""

    def __init__(
        self,
        health: Health,
        questions: Questioner,
        try_once: Callable[[ServerQuestion], Awaitable[object]],
        *,
        place: Place,
        address: str,
        pause_s: float,
    ) -> None:
        """``try_once`` asks a server, and raises what is no answer; ``place`` is
        where the config says so, ``address`` what the server is called in messages and
        ``pause_s`` the time between two harmless requests."""
        self._health = health
        self._questions = questions
        self._try_once = try_once
        self._place = place
        self._address = address
        self._pause_s = pause_s
        self._probing = asyncio.Lock()
        self._refuses: EverythingRefused | None = None

    def hopeless(self, question: ServerQuestion, error: TransientError, tries: int) -> Exception:
        """What it means that no try helped a request while the server answers others."""
        if question.n > 1:  # each of its answers is asked for alone yet
            return RequestRejected(error.reason, f"{error}, {after(tries)}")
        in_a_row = self._health.failed(question.key, str(error))
        if in_a_row >= MOST_IN_A_ROW and not self._health.ever_answered:
            return EverythingRefused(
                f"{self._address} fails at every request but a harmless one, {in_a_row} in "
                f"a row: {self._health.commonest_reason}",
                LOOK_AT_SERVER,
            )
        return RequestRejected(
            error.reason, f"{error}, {after(tries)}, while the server answers others"
        )

    async def refused(self, question: ServerQuestion, rejected: RequestRejected) -> Exception:
        """What a refusal means: this request's, a parameter's that all have, or, after many, that
        the server refuses all."""
        if rejected.reason != "refused_by_server" or question.n > 1:
            return rejected
        if isinstance(rejected, ParameterRefused):
            if failure := await self._refusal_of_parameters(question, rejected):
                return failure
            rejected = RequestRejected(rejected.reason, rejected.detail)
        in_a_row = self._health.failed(question.key, rejected.detail)
        began = self._health.row_began
        if in_a_row % MOST_IN_A_ROW or await self.answers_others(question, began, began):
            return rejected
        return EverythingRefused(
            f"{self._address} refuses every request: {self._health.commonest_reason}",
            "change what the message names; the same command resumes",
        )

    async def _refusal_of_parameters(
        self, question: ServerQuestion, rejected: ParameterRefused
    ) -> EverythingRefused | None:
        """The end of the run, if the same request gets through without the parameters that the
        server names; null where it is the request's own refusal."""
        async with self._probing:
            if self._refuses is not None:
                return self._refuses
            body, remedies, names = question.body, [], []
            said = rejected
            while True:
                found = mended(body, said, self._place)
                if found is None or repr(found.field) in names:
                    return None
                if found.may_fit_others and not await self._is_refused_to_all(question, body):
                    return None
                body = found.body
                names.append(repr(found.field))
                remedies.append(found.remedy)
                probe = shortened(body)
                few = min(question.max_tokens, PROBE_TOKENS)
                try:
                    await self._try_once(replace(question, body=probe, max_tokens=few))
                except ParameterRefused as again:
                    said = again
                    continue
                except (RequestRejected, TransientError):
                    return None
                break
            self._health.alive()
            fields = f"field{'s' if len(names) > 1 else ''} {', '.join(names)}"
            self._refuses = EverythingRefused(
                f"{self._address} refuses the {fields} ({rejected.detail}), and answers "
                f"without {'them' if len(names) > 1 else 'it'}",
                "set " + "; ".join(dict.fromkeys(remedies)),
            )
            return self._refuses

    async def _is_refused_to_all(self, question: ServerQuestion, body: Mapping[str, Any]) -> bool:
        """Whether even the shortest prompt is refused with all else in ``body``."""
        harmless = dict(body) | self._harmless(body)
        try:
            await self._try_once(replace(question, body=harmless, prompt_tokens=32))
        except RequestRejected:
            return True
        except TransientError:
            return False
        return False

    def _harmless(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A short prompt, as the field that holds it."""
        if (ids := self._questions.probe_ids(body)) is None:
            return {"messages": [dict(message) for message in PROBE]}
        return {"prompt": ids}

    async def answers_others(self, question: ServerQuestion, since: float, last: float) -> bool:
        """Whether another request got through after ``since``; if none did, a harmless one is
        tried, unless one failed after ``last``."""
        async with self._probing:
            if self._health.answered_since(since):
                return True
            if self._health.probe_failed_since(last):
                return False
            for _ in range(_PROBES):
                if await self._is_probe_answered(question):
                    return True
                await asyncio.sleep(self._pause_s)
            self._health.probe_failed()
            return False

    async def _is_probe_answered(self, question: ServerQuestion) -> bool:
        asked = time.monotonic()
        body = probe_body(question.body, self._questions.probe_ids(question.body))
        few = min(question.max_tokens, PROBE_TOKENS)
        harmless = replace(question, body=body, max_tokens=few, prompt_tokens=32, n=1)
        try:
            await self._try_once(harmless)
        except (TransientError, RequestRejected):
            return self._health.answered_since(asked)  # a refusal to say hello is an answer
        self._health.alive()
        return True


def after(tries: int) -> str:
    """For messages."""
    return f"after {tries} {'try' if tries == 1 else 'tries'}"
