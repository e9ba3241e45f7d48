"""From a conversation to token ids: one BOS, and no control tokens out of untrusted content.

Engines are given token ids, never a rendered string, because a string is tokenised again by
whoever receives it, and gets a second BOS there (vLLM #9519 and many copies of that bug).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from prefloop.data.conversations.answer_edges import ANSWER
from prefloop.data.conversations.control_tokens import cut_everywhere, unused_character
from prefloop.data.conversations.conversation import template_turn, tools_in
from prefloop.data.conversations.reasoning import split_thought
from prefloop.data.conversations.tokenizing import encode_behind
from prefloop.data.protocol import EngineFailed, Message, RequestRejected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
_DAY = datetime(2024, 7, 26)  # templates write it, and no hour or place
"""What chat templates that write today's date are told it is: a policy is trained behind the very
prompt that it was sampled with, also after midnight. Llama's write this one where they know no
date."""
_BEGIN = 24
"""Characters of a turn by which it is found in what a template wrote."""
LEFT_OUT = "left_out_by_template"
"""Why a conversation is refused of which the template does not write every turn."""


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
    cut = unused_character(json.dumps([turns, tools], ensure_ascii=False))
    try:
        text = tokenizer.apply_chat_template(
            cut_everywhere(tokenizer, turns, cut),
            tools=cut_everywhere(tokenizer, tools, cut),
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
    asked, answered = {"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}

    def rendered(turns: list[dict[str, str]], begun: bool) -> str:
        return str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=begun)
        )

    try:
        prompt, without = rendered([asked], True), rendered([asked], False)
        whole = rendered([asked, answered], False).partition(ANSWER)[0]
    except Exception:  # noqa: BLE001  # templates raise whatever their code meets
        return
    header = whole.removeprefix(prompt)
    if prompt != without or header == whole or not header.strip():
        return
    if split_thought(header + ANSWER).answer == header + ANSWER:
        logger.warning(
            "the chat template of %s writes %r before an answer, and not at the end of a prompt "
            "for one: it ignores add_generation_prompt, so the model is not told to answer: mend "
            "the template",
            tokenizer.name_or_path,
            header,
        )


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
