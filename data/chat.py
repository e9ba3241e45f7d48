"""From a conversation to token ids: one BOS, and no control tokens out of untrusted content.

Engines are given token ids, never a rendered string, because a string is tokenised again by
whoever receives it, and gets a second BOS there (vLLM #9519 and many copies of that bug).
"""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from prefloop.data.conversation import template_turn, tools_in
from prefloop.data.protocol import EngineFailed, Message, RequestRejected
from prefloop.data.reasoning import is_mark, opened_by, split_thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

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
_ANSWER = "\ufdd0"  # a noncharacter: stands for the answer while we look at the template
_WORD, _LINE = "a", "\n"
_WORDS = "a b, and two more"
_DAY = datetime(2024, 7, 26)  # templates write it, and no hour or place
"""What chat templates that write today's date are told it is: a policy is trained behind the very
prompt that it was sampled with, also after midnight. Llama's write this one where they know no
date."""
_BEGIN = 24
"""Characters of a turn by which it is found in what a template wrote."""
LEFT_OUT = "left_out_by_template"
"""Why a conversation is refused of which the template does not write every turn."""
_SWITCHES = ("enable_thinking", "thinking")
"""What chat templates call the variable that switches thoughts off."""
_CLOSINGS = ("</think>", "</thinking>", "[/THINK]")
_FIRST_NONCHARACTER = 0xFDD0  # Unicode noncharacters: never assigned, so never in a vocabulary


def open_tokenizer(model: str, **how: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of ``model`` (a folder or hub name), ``how`` being arguments of transformers'
    ``from_pretrained``.

    Where the class that transformers takes for it loses spaces, which the tokenizer's own file
    keeps (Llama's class cuts words otherwise than the byte-level tokenizers that some models name
    it for), it is read from that file. Raises what transformers raises.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model, **how)
    if _keeps_spaces(tokenizer):
        return tokenizer
    try:
        as_written = PreTrainedTokenizerFast.from_pretrained(model, **how)
    except (OSError, ValueError, KeyError, TypeError):
        return tokenizer
    if not _keeps_spaces(as_written):
        return tokenizer
    logger.warning(
        "the tokenizer of %s is read from its tokenizer.json: as %s, which its "
        "tokenizer_config.json names, this version of transformers loses the spaces between words",
        model,
        type(tokenizer).__name__,
    )
    found: PreTrainedTokenizerBase = as_written
    return found


def _keeps_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer.encode(_WORDS, add_special_tokens=False)
    return str(tokenizer.decode(ids)).strip() == _WORDS


def break_control_tokens(text: str) -> str:
    """``text`` with other brackets around what chat templates write as control tokens: still to be
    read, but no token.

    For who renders or reads the text without the tokenizer's own list, by which
    :func:`render_tokens` cuts: a server that is sent messages encodes the rendered text whole, and
    a judge may take such a string for the end of what it is to judge.
    """
    changed = _SQUARE.sub("⟦\\1⟧", _ANGLED.sub("‹\\1›", text))
    return changed if changed == text else break_control_tokens(changed)


def render_tokens(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of ``messages`` under the chat template, ready for the assistant's turn.

    ``template_kwargs``: variables for the template, such as ``enable_thinking``.
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
    turns, tools = [template_turn(message) for message in messages], tools_in(messages)
    _require_tools(tokenizer, turns, tools)
    cut = _unused_character(json.dumps([turns, tools], ensure_ascii=False))
    try:
        text = tokenizer.apply_chat_template(
            _cut_everywhere(tokenizer, turns, cut),
            tools=_cut_everywhere(tokenizer, tools, cut),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **{"strftime_now": _DAY.strftime, **(template_kwargs or {})},
        )
    except Exception as error:  # templates raise jinja2's errors and whatever their code meets
        raise RequestRejected("unrenderable_chat", f"{type(error).__name__}: {error}") from error
    _require_turns(tokenizer, turns, str(text).replace(cut, ""))
    if add_generation_prompt:
        _say_missing_header(tokenizer)
    first, *others = str(text).split(cut)
    ids = list(tokenizer.encode(first, add_special_tokens=False))
    for piece in others:
        ids += encode_behind(tokenizer, piece)
    ids = _with_one_bos(tokenizer, ids)
    return ids if add_generation_prompt else _as_encoder_input(tokenizer, ids)


def encode_behind(
    tokenizer: PreTrainedTokenizerBase, text: str, *, split_special_tokens: bool = False
) -> list[int]:
    """Ids of ``text`` that goes on behind other text: without the space that some tokenizers (of
    the SentencePiece kind) put before the first word of all that they are given."""
    how = {"add_special_tokens": False, "split_special_tokens": split_special_tokens}
    if text and leads_with_space(tokenizer):
        head = list(tokenizer(_LINE, **how)["input_ids"])
        ids = list(tokenizer(_LINE + text, **how)["input_ids"])
        if ids[: len(head)] == head:
            return ids[len(head) :]
    return list(tokenizer(text, **how)["input_ids"])


@lru_cache(maxsize=16)
def plain_text_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A ``tokenizer`` of their own for those who encode by ``split_special_tokens=True``.

    transformers keeps that argument in the tokenizer until the next call says otherwise: while one
    thread encodes an answer by it, a prompt that another thread renders has its control tokens cut
    into letters, and nothing tells.
    """
    return copy.deepcopy(tokenizer) if getattr(tokenizer, "is_fast", False) else tokenizer


@lru_cache(maxsize=16)
def leads_with_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether ``tokenizer`` puts a space before the first word of all that it is given."""
    return _goes_on(tokenizer, _LINE)


def continues_prompt(
    tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any] | None = None
) -> bool:
    """Whether the first word of an answer has no such space, as it would have in a text of its own:
    it stands at the beginning of a line, or right behind a token of the template."""
    if not leads_with_space(tokenizer):
        return False
    header = _generation_prompt(tokenizer, template_kwargs or {}) or ""
    written = (_LINE, *map(str, tokenizer.added_tokens_decoder.values()))
    if not header.endswith(written):
        return False  # behind other text a word has its space
    return _goes_on(tokenizer, header)


def _goes_on(tokenizer: PreTrainedTokenizerBase, header: str) -> bool:
    """Whether a word is other tokens behind ``header`` than by itself."""
    alone, head, both = (
        tokenizer.encode(text, add_special_tokens=False) for text in (_WORD, header, header + _WORD)
    )
    return bool(both[: len(head)] == head and both[len(head) :] != alone)


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


def thought_opening(
    tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any] | None = None
) -> str:
    """The mark (and what follows it) with which the template's prompt for an answer opens a
    thought, so that what the model writes begins within it; empty where it opens none."""
    return opened_by(_generation_prompt(tokenizer, template_kwargs or {}) or "")


def thinking_off(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """The variables with which the chat template asks for an answer without a thought; null where
    it has no such switch."""
    as_it_is = _generation_prompt(tokenizer, {})
    for switch in _SWITCHES:
        other = _generation_prompt(tokenizer, {switch: False})
        on = _generation_prompt(tokenizer, {switch: True})
        if other is not None and other != on and not opened_by(other):
            return {switch: False}
    return {} if as_it_is is not None and as_it_is.rstrip().endswith(_CLOSINGS) else None


def _generation_prompt(
    tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]
) -> str | None:
    """The end of a rendered prompt, from the user's last turn on; null where there is none."""
    try:
        text = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": _ANSWER}],
                tokenize=False,
                add_generation_prompt=True,
                **template_kwargs,
            )
        )
    except Exception:  # noqa: BLE001  # templates raise whatever their code meets
        return None
    return text.rpartition(_ANSWER)[2]


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the token that ends an assistant's turn; null where there is none.

    That is the token of its own that the chat template writes behind the turn (Gemma's is not its
    EOS; a base model's EOS is often another; some are not marked as special), else the tokenizer's
    EOS.
    """
    conversation = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(conversation, tokenize=False))
    except Exception:  # noqa: BLE001  # templates raise whatever their code meets
        text = ""
    behind = tokenizer.encode(text.rpartition(_ANSWER)[2].lstrip(), add_special_tokens=False)
    added = tokenizer.added_tokens_decoder
    if _ANSWER in text and behind and behind[0] in added:
        token = added[behind[0]]
        if token.special or break_control_tokens(str(token)) != str(token):
            return int(behind[0])
    eos = tokenizer.eos_token_id
    return None if eos is None else int(eos)


def end_tokens(
    tokenizer: PreTrainedTokenizerBase, configured: int | Sequence[int] | None
) -> list[int]:
    """Ids of all tokens that an answer ends with: the template's, the tokenizer's, and those that
    the model's generation config names (``configured``)."""
    several = configured if isinstance(configured, Sequence) else [configured]
    ends = {turn_end(tokenizer), tokenizer.eos_token_id, *several}
    return sorted(int(end) for end in ends if end is not None)


def without_end(ids: Sequence[int], ends: Sequence[int]) -> Sequence[int]:
    """``ids`` of an answer without the token that ended it, which need not be a special one."""
    return ids[:-1] if ids and ids[-1] in ends else ids


def padding_id(
    tokenizer: PreTrainedTokenizerBase, *, but: int | None = None, below: int | None = None
) -> int | None:
    """Id of a token to pad with, also for a tokenizer that names none: padding is masked, so any
    special one will do. ``but`` is not taken, nor what is not ``below`` (the model's embeddings).
    Null where there is none."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    for token in (*known, tokenizer.bos_token_id):
        if token is not None and token != but and (below is None or token < below):
            return int(token)
    return None


def beyond_embedding(token: int, embeddings: int) -> str:
    """What to say of a tokenizer that has more tokens than its model."""
    return (
        f"token id {token} of its tokenizer is beyond the model, which has {embeddings} "
        f"embeddings (ids 0 to {embeddings - 1}): resize them (resize_token_embeddings of "
        "transformers) and save the model again, or take the tokenizer that belongs to it"
    )


def _require_tools(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping[str, Any]], tools: Any
) -> None:
    """Raise ``RequestRejected`` where the template would leave tools or their calls out without a
    word."""
    template = str(tokenizer.chat_template)
    wanted = ("tools", tools), ("tool_calls", any("tool_calls" in turn for turn in turns))
    for name, given in wanted:
        if given and name not in template:
            raise RequestRejected(
                "no_tools",
                f"the chat template of {tokenizer.name_or_path} writes no {name}: take a model "
                "that calls tools, or unset columns.tools",
            )


def _require_turns(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping[str, Any]], text: str
) -> None:
    """Raise ``RequestRejected`` where the template left out what somebody said, but for earlier
    thoughts: the model would answer something else than what was asked."""
    for number, turn in enumerate(turns, 1):
        said = turn.get("content")
        spoken = ("system", "user") if turn.get("tool_calls") else ("system", "user", "assistant")
        if turn["role"] not in spoken or not isinstance(said, str):
            continue
        if turn["role"] == "assistant":
            said = split_thought(said, opened=None).answer
        begin = said.strip()[:_BEGIN]
        if begin not in text and _squeezed(begin) not in _squeezed(text):
            raise RequestRejected(
                LEFT_OUT,
                f"the chat template of {tokenizer.name_or_path} leaves out turn {number}, the "
                f"{turn['role']}'s: put its text into the last one, or take another template",
            )


def _squeezed(text: str) -> str:
    """``text`` without letter case and white space, which templates may change."""
    return "".join(text.split()).casefold()


@lru_cache(maxsize=16)
def _say_missing_header(tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn of a template that begins an assistant's turn with marks, and whose prompts for an
    answer do not end with them."""
    asked, answered = {"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}

    def rendered(turns: list[dict[str, str]], begun: bool) -> str:
        return str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=begun)
        )

    try:
        prompt, without = rendered([asked], True), rendered([asked], False)
        whole = rendered([asked, answered], False).partition(_ANSWER)[0]
    except Exception:  # noqa: BLE001  # templates raise whatever their code meets
        return
    header = whole.removeprefix(prompt)
    if prompt != without or header == whole or not header.strip():
        return
    if split_thought(header + _ANSWER).answer == header + _ANSWER:
        logger.warning(
            "the chat template of %s writes %r before an answer, and not at the end of a prompt "
            "for one: it ignores add_generation_prompt, so the model is not told to answer: mend "
            "the template",
            tokenizer.name_or_path,
            header,
        )


def _cut_everywhere(tokenizer: PreTrainedTokenizerBase, value: Any, cut: str) -> Any:
    """``value`` with each text in it as :func:`_cut_control_strings` gives it; keys stay."""
    if isinstance(value, str):
        return _cut_control_strings(tokenizer, value, cut)
    if isinstance(value, Mapping):
        said = value.get("content")
        thought = _leading_thought(said) if value.get("role") == "assistant" else ""
        found = {
            key: item if key == "role" else _cut_everywhere(tokenizer, item, cut)
            for key, item in value.items()
        }
        if thought and isinstance(said, str):
            found["content"] = thought + _cut_control_strings(tokenizer, said[len(thought) :], cut)
        return found
    if isinstance(value, list):
        return [_cut_everywhere(tokenizer, item, cut) for item in value]
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
