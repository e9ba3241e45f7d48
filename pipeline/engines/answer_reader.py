"""From generated tokens to a thought and an answer, for engines that hold the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefloop.data.conversations.answer_edges import thought_opening, turn_end, without_end
from prefloop.data.conversations.reasoning import Thought, is_mark, split_thought
from prefloop.data.protocol import Request
from prefloop.training.inputs.tokens import AnswerEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """What generated tokens say. ``thought_ids`` are those in front of the answer's first word;
    ``unfinished``: the thought never ended, and there is no answer."""

    text: str
    reasoning: str | None = None
    raw_text: str | None = None
    thought_ids: tuple[int, ...] = ()
    unfinished: bool = False

    @property
    def has_verdict(self) -> bool:
        """Whether there is an answer behind a thought."""
        return self.reasoning is not None and bool(self.text.strip())


class AnswerReader:
    """Reads the answers of one tokenizer's model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int]) -> None:
        """``end_ids``: the tokens that end an answer."""
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        # Special tokens are left out of a text; those around a thought have to be seen.
        self._marks = {
            int(number): str(token)
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special and is_mark(str(token))
        }
        self.silent_ids = tuple(
            int(number)
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special and int(number) not in self._marks
        )
        """The tokens that say nothing in a text."""
        self._openings: dict[str, str] = {}
        self._encoders: dict[str, AnswerEncoder] = {}

    def differs(self, ids: Sequence[int], said: ReadAnswer, request: Request) -> bool:
        """Whether what ``ids`` said, encoded anew, is other tokens: a text can be cut into tokens
        in several ways, end with another end token, or have lost a stop string."""
        end = turn_end(self._tokenizer)
        if end is None or said.reasoning is not None:
            return True
        key = _key(template_kwargs(request))
        if key not in self._encoders:
            variables = template_kwargs(request)
            self._encoders[key] = AnswerEncoder(self._tokenizer, end, variables)
        [again] = self._encoders[key]([said.text])
        whole = bool(ids) and ids[-1] in self._end_ids
        return tuple(ids) != tuple((again if whole else again[:-1]).tolist())

    def opening(self, template_kwargs: Mapping[str, Any]) -> str:
        """What the template's prompt opened a thought with; empty where it opened none."""
        key = _key(template_kwargs)
        if key not in self._openings:
            self._openings[key] = thought_opening(self._tokenizer, template_kwargs)
        return self._openings[key]

    def read(
        self, ids: Sequence[int], request: Request, *, thought_over: bool = False
    ) -> ReadAnswer:
        """What the tokens ``ids``, generated for ``request``, say. ``thought_over``: they were
        generated behind a thought."""
        kept = without_end(ids, self._end_ids)
        opening = "" if thought_over else self.opening(template_kwargs(request))
        text = self._decode(kept)
        thought = split_thought(text, bool(opening))
        answer = cut_at_stop(thought.answer, request.sampling.stop)
        if thought.reasoning is None:
            return ReadAnswer(answer)
        led = text if not opening or text.lstrip().startswith(opening.strip()) else opening + text
        return ReadAnswer(
            text=answer,
            reasoning=thought.reasoning,
            raw_text=led,
            thought_ids=tuple(ids[: self._thought_length(ids, kept, thought)]),
            unfinished=not thought.closed,
        )

    def _thought_length(self, ids: Sequence[int], kept: Sequence[int], thought: Thought) -> int:
        """How many tokens stand before the answer's first word."""
        if not thought.closed:
            return len(ids)
        if not thought.answer.strip():
            return len(kept)
        low, high = 1, len(kept)  # something of the answer is within ids[:high]
        while low < high:
            middle = (low + high) // 2
            if len(self._decode(kept[:middle])) > thought.begins:
                high = middle
            else:
                low = middle + 1
        return low - 1

    def _decode(self, ids: Sequence[int]) -> str:
        if self._marks.keys().isdisjoint(ids):
            return self._plain(ids)
        pieces: list[str] = []
        start = 0
        for place, number in enumerate(ids):
            if number in self._marks:
                pieces += (self._plain(ids[start:place]), self._marks[number])
                start = place + 1
        return "".join([*pieces, self._plain(ids[start:])])

    def _plain(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if len(ids) else ""


def _key(template_kwargs: Mapping[str, Any]) -> str:
    return json.dumps(template_kwargs, sort_keys=True, default=repr)


def template_kwargs(request: Request) -> dict[str, Any]:
    """The variables that ``request`` gives the chat template: templates of models with efforts
    take these as ``reasoning_effort``."""
    effort = request.reasoning_effort
    return {**({} if effort is None else {"reasoning_effort": effort}),
            **request.chat_template_kwargs}  # fmt: skip


def longest(request: Request) -> int:
    """Tokens that an answer to ``request`` may have, its thought included."""
    return request.sampling.max_tokens + (request.thought_tokens or 0)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the first of the ``stop`` strings in it."""
    return text[: min((i for s in stop if (i := text.find(s)) >= 0), default=len(text))]
