"""Strings that look like control tokens, in texts that nobody vouches for: cut, or broken, so that
they are encoded as the text they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from prefloop.data.conversations.reasoning import is_mark, split_thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANGLED = re.compile(
    r"<([|\uff5c][^<>\n]{1,80}[|\uff5c]|[|\uff5c][a-z_]{1,40}|[a-z_]{1,40}[|\uff5c]"
    r"|/?(?:s|bos|eos|pad|unk|mask|cls|sep)"
    r"|/?(?:start|end)_of_(?:turn|image|text|role)"
    r"|<?/?SYS>?|extra_id_\d+|(?:reserved|unused|special)_?\d+)>",
    re.IGNORECASE,
)
_SQUARE = re.compile(
    r"\[(/?(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|PREFIX"
    r"|MIDDLE|SUFFIX|IMG|ARGS|CALL_ID|THINK|BOS|EOS|PAD|UNK|CLS|SEP|MASK|gMASK|sMASK))\]"
)
_FIRST_NONCHARACTER = 0xFDD0  # Unicode noncharacters: never assigned, so never in a vocabulary


def break_control_tokens(text: str) -> str:
    """``text`` with other brackets around what chat templates write as control tokens: still to be
    read, but no token.

    For who renders or reads the text without the tokenizer's own list, by which
    :func:`render_tokens` cuts: a server that is sent messages encodes the rendered text whole, and
    a judge may take such a string for the end of what it is to judge.
    """
    changed = _SQUARE.sub("⟦\\1⟧", _ANGLED.sub("‹\\1›", text))
    return changed if changed == text else break_control_tokens(changed)


def cut_everywhere(tokenizer: PreTrainedTokenizerBase, value: Any, cut: str) -> Any:
    """``value`` with each text in it as :func:`_cut_control_strings` gives it; keys stay."""
    if isinstance(value, str):
        return _cut_control_strings(tokenizer, value, cut)
    if isinstance(value, Mapping):
        said = value.get("content")
        thought = _leading_thought(said) if value.get("role") == "assistant" else ""
        found = {
            key: item if key == "role" else cut_everywhere(tokenizer, item, cut)
            for key, item in value.items()
        }
        if thought and isinstance(said, str):
            found["content"] = thought + _cut_control_strings(tokenizer, said[len(thought) :], cut)
        return found
    if isinstance(value, list):
        return [cut_everywhere(tokenizer, item, cut) for item in value]
    return value


def _leading_thought(said: Any) -> str:
    """What an assistant's turn thought before its answer, marks and all: templates look for these
    to leave out what was thought earlier. Empty where there is none, or where it holds another
    control string than the marks."""
    if not isinstance(said, str):
        return ""
    thought = split_thought(said, opened=None)
    head = said[: thought.begins] if thought.closed else ""
    reasoning = thought.reasoning or ""
    return head if break_control_tokens(reasoning) == reasoning else ""


def unused_character(text: str) -> str:
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


def cut_at_template_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """``text`` in pieces, so that no token that the chat template writes, and that is not marked as
    special, is in one of them. Marks around thoughts stay."""
    pattern = _template_pattern(tokenizer)
    if pattern is None:
        return [text]
    edges = [0, *(match.start() + 1 for match in pattern.finditer(text)), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@lru_cache(maxsize=16)
def _template_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    template = str(tokenizer.chat_template)
    plain = (str(token) for token in tokenizer.added_tokens_decoder.values() if not token.special)
    written = sorted(one for one in plain if one.strip() and one in template and not is_mark(one))
    return re.compile("(?=" + "|".join(map(re.escape, written)) + ")") if written else None


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
