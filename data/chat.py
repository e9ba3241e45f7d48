"""From a conversation to token ids: one BOS, and no control tokens out of untrusted content.

Engines are given token ids, never a rendered string, because a string is tokenised again by
whoever receives it, and gets a second BOS there (vLLM #9519 and many copies of that bug).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from prefloop.data.protocol import EngineFailed, Message, RequestRejected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIRST_NONCHARACTER = 0xFDD0  # Unicode noncharacters: never assigned, so never in a vocabulary


def render_tokens(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Token ids of ``messages`` under the chat template, ready for the assistant's turn.

    Without ``add_generation_prompt`` they are a finished conversation, as a reward model reads
    it; an encoder's ``[CLS]`` and ``[SEP]`` are added around it where the template has none.
    Exactly one BOS leads where the template or the tokenizer gives one. A string in a message's
    content that looks like a control token (``<s>``, ``<|im_end|>``) is encoded as the text it
    is. Raises ``EngineFailed`` for a tokenizer without a usable chat template and
    ``RequestRejected`` for a conversation that the template refuses.
    """
    if not tokenizer.chat_template:
        raise EngineFailed(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template",
            "use an instruction-tuned model, or put a chat_template.jinja into the model folder",
        )
    contents = "".join(message["content"] for message in messages)
    cut = _unused_character(contents)
    try:
        text = tokenizer.apply_chat_template(
            [
                {
                    "role": message["role"],
                    "content": _cut_control_strings(tokenizer, message["content"], cut),
                }
                for message in messages
            ],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except Exception as error:  # templates raise jinja2's errors and whatever their code meets
        raise RequestRejected("unrenderable_chat", f"{type(error).__name__}: {error}") from error
    ids: list[int] = []
    for piece in str(text).split(cut):
        ids += tokenizer.encode(piece, add_special_tokens=False)
    ids = _with_one_bos(tokenizer, ids)
    return ids if add_generation_prompt else _as_encoder_input(tokenizer, ids)


def verdict_token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """The tokens that say ``text`` as the first thing of an answer, with or without a space.

    Raises ``EngineFailed`` if no single token does.
    """
    found = set()
    for before in ("", " ", "\n"):
        head = tokenizer.encode(before, add_special_tokens=False)
        ids = tokenizer.encode(before + text, add_special_tokens=False)
        if len(ids) == 1 or (len(ids) == len(head) + 1 and ids[: len(head)] == head):
            found.add(ids[-1])
    said = tuple(sorted(i for i in found if str(tokenizer.decode([i])).strip() == text.strip()))
    if not said:
        raise EngineFailed(
            f"the verdict {text!r} is not one token of {tokenizer.name_or_path}",
            "choose verdicts of one token, such as A and B, or a judge with a JSON verdict",
        )
    return said


def _unused_character(text: str) -> str:
    return next(chr(c) for c in range(_FIRST_NONCHARACTER, 0x10FFFF) if chr(c) not in text)


def _cut_control_strings(tokenizer: PreTrainedTokenizerBase, content: str, cut: str) -> str:
    """``content`` with ``cut`` behind the first character of each control string.

    Cutting leaves the text as it is; only the tokenizer no longer sees the string in one piece.
    Overlapping control strings are cut each, hence the search from every position.
    """
    pattern = _control_pattern(tokenizer)
    if pattern is None:
        return content
    starts = [match.start() + 1 for match in pattern.finditer(content)]
    edges = [0, *starts, len(content)]
    return cut.join(content[a:b] for a, b in pairwise(edges))


@lru_cache(maxsize=16)
def _control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Matches (with zero width) where a special token, or a token the template writes, begins."""
    template = str(tokenizer.chat_template)
    control = {
        str(token)
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (str(token).strip() and str(token) in template)
    }
    control.discard("")
    if not control:
        return None
    return re.compile("(?=" + "|".join(map(re.escape, sorted(control))) + ")")


def _with_one_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    if ids[:2] == [bos, bos]:
        raise EngineFailed(
            f"the chat template of {tokenizer.name_or_path} writes two BOS tokens",
            "remove one of them from the template",
        )
    if ids[:1] != [bos] and _adds_bos(tokenizer):
        return [bos, *ids]
    return ids


def _as_encoder_input(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """``ids`` between the tokens that the tokenizer puts around a text: BERT reads at ``[CLS]``."""
    if tokenizer.cls_token_id is None:
        return ids
    around = tokenizer.encode("a")
    if around[0] == tokenizer.cls_token_id != ids[0]:
        ids = [tokenizer.cls_token_id, *ids]
    if around[-1] == tokenizer.sep_token_id != ids[-1]:
        ids = [*ids, tokenizer.sep_token_id]
    return ids


@lru_cache(maxsize=16)
def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(tokenizer.encode("a")[0] == tokenizer.bos_token_id)
