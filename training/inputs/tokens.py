"""The token ids that training and scoring see: the sampled prompt, the answer, one end token.

Invariant: what a policy is trained and scored on is what it sampled. The prompt's ids come from
``prefloop.data.conversations.chat.render_tokens``, as they do in sampling (one BOS, no control
tokens out of content); the answer is encoded apart from them, as it was generated, and ends with
exactly one end token. TRL's own tokenisation of conversational rows renders prompt and answer
together instead, and then trains on what the template writes behind the end token and on control
tokens found in content.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefloop.data.conversations.answer_edges import continues_prompt, thought_opening, turn_end
from prefloop.data.conversations.chat import render_tokens
from prefloop.data.conversations.control_tokens import cut_at_template_tokens
from prefloop.data.conversations.reasoning import closing_of, is_mark, split_thought
from prefloop.data.conversations.tokenizing import (
    beyond_embedding,
    encode_behind,
    plain_text_tokenizer,
)
from prefloop.data.protocol import Message, RequestRejected
from prefloop.training.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenIds = NDArray[np.int32]
"""Token ids of one sequence [length]."""

OVERLONG = "context_overflow"
"""Why a row is dropped that has more tokens than asked for."""


class RenderedPrompts:
    """Conversations as token ids; each is rendered once, however many rows share it."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._template_kwargs = template_kwargs
        self._seen: dict[str, TokenIds | RequestRejected] = {}

    def __call__(self, messages: Sequence[Message]) -> TokenIds:
        """``prompt_ids``. Raises ``RequestRejected`` where the chat template refuses it."""
        key = repr(messages)
        if key not in self._seen:
            try:
                self._seen[key] = prompt_ids(self._tokenizer, messages, self._template_kwargs)
            except RequestRejected as refused:
                self._seen[key] = refused
        found = self._seen[key]
        if isinstance(found, RequestRejected):
            raise found
        return found


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that ends an answer: the chat template's, else the tokenizer's EOS.

    Raises ``TrainingError`` where there is neither.
    """
    end = turn_end(tokenizer)
    if end is None:
        raise TrainingError(
            f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token: set "
            "eos_token in its tokenizer_config.json"
        )
    return end


def check_embedding(embeddings: int | None, model: Path, columns: Iterable[TokenIds]) -> None:
    """Raise ``TrainingError`` where an id of ``columns`` is beyond the ``embeddings`` of
    ``model``."""
    highest = max((int(np.max(ids)) for ids in columns if len(ids)), default=0)
    if embeddings is not None and highest >= embeddings:
        raise TrainingError(f"{model}: {beyond_embedding(highest, embeddings)}")


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    template_kwargs: Mapping[str, Any] | None = None,
) -> TokenIds:
    """Ids of a conversation up to the assistant's turn, as sampling saw them."""
    ids = render_tokens(tokenizer, messages, template_kwargs=template_kwargs)
    return np.asarray(ids, dtype=np.int32)


def answer_ids(
    tokenizer: PreTrainedTokenizerBase,
    answers: Iterable[str],
    end: int,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[TokenIds]:
    """Ids of each answer, ``end`` behind it; see ``AnswerEncoder``."""
    return AnswerEncoder(tokenizer, end, template_kwargs)(answers)


class AnswerEncoder:
    """Encodes answers as they stand behind a prompt. Control tokens spelt out in one stay plain
    text, and its first word has the space that some tokenizers put before a text only where the
    template's prompt leaves it one.

    An answer may begin with a thought. Where the chat template's prompt opens one, that mark is
    left out, as it was when the answer was sampled; and an answer without a thought first closes
    the one that the prompt opened.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        end: int,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = plain_text_tokenizer(tokenizer)
        self._end = end
        self._opening = thought_opening(tokenizer, template_kwargs)
        self._marks = _special_marks(tokenizer)
        self._continues = continues_prompt(tokenizer, template_kwargs)

    def __call__(self, answers: Iterable[str]) -> list[TokenIds]:
        """Ids of each answer, the end token behind it."""
        texts = [_behind_prompt(text, self._opening) for text in answers]
        if not texts:
            return []
        if any(mark in text for text in texts for mark in self._marks):
            found = [self._with_marks(text) for text in texts]
        elif self._continues or any(len(self._pieces(text)) > 1 for text in texts):
            found = [self._plain(text, behind=self._continues) for text in texts]
        else:
            # split_special_tokens: an answer that spells out the end token must not end there.
            found = self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True)[
                "input_ids"
            ]
        return [np.asarray([*ids, self._end], dtype=np.int32) for ids in found]

    def _with_marks(self, text: str) -> list[int]:
        """Ids of a text whose thought has special tokens around it; elsewhere such a token is plain
        text."""
        begins = split_thought(text, bool(self._opening)).begins
        pattern = "(" + "|".join(map(re.escape, sorted(self._marks, key=len))) + ")"
        found: list[int] = []
        for place, piece in enumerate([*re.split(pattern, text[:begins]), "", text[begins:]]):
            if piece in self._marks and place % 2:
                found.append(self._marks[piece])
            else:
                found += self._plain(piece, behind=bool(found) or self._continues)
        return found

    def _plain(self, text: str, *, behind: bool) -> list[int]:
        found: list[int] = []
        how = {"add_special_tokens": False, "split_special_tokens": True}
        for number, piece in enumerate(self._pieces(text) if text else ()):
            if behind or number:
                found += encode_behind(self._tokenizer, piece, split_special_tokens=True)
            else:
                found += self._tokenizer(piece, **how)["input_ids"]
        return found

    def _pieces(self, text: str) -> list[str]:
        return cut_at_template_tokens(self._tokenizer, text)


def _behind_prompt(text: str, opening: str) -> str:
    if not opening:
        return text
    begun = text.lstrip()
    if begun.startswith(opening):
        return begun.removeprefix(opening)
    if begun.startswith(opening.strip()):
        return begun.removeprefix(opening.strip()).removeprefix(opening[len(opening.rstrip()) :])
    return text if split_thought(text, opened=True).closed else closing_of(opening) + text


def _special_marks(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The special tokens that stand around thoughts."""
    return {
        str(token): int(number)
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special and is_mark(str(token))
    }
