"""What stands before an answer and behind it: how a template's prompt for one ends, what its first
tokens may be, and those that end it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefloop.data.conversations.control_tokens import break_control_tokens
from prefloop.data.conversations.reasoning import opened_by
from prefloop.data.conversations.tokenizing import LINE, goes_on, leads_with_space
from prefloop.data.protocol import EngineFailed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
ANSWER = "\ufdd0"  # a noncharacter: stands for the answer while we look at the template
_SWITCHES = ("enable_thinking", "thinking")
"""What chat templates call the variable that switches thoughts off."""
_CLOSINGS = ("</think>", "</thinking>", "[/THINK]")


def continues_prompt(
    tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any] | None = None
) -> bool:
    """Whether the first word of an answer has no such space, as it would have in a text of its own:
    it stands at the beginning of a line, or right behind a token of the template."""
    if not leads_with_space(tokenizer):
        return False
    header = generation_prompt(tokenizer, template_kwargs or {}) or ""
    written = (LINE, *map(str, tokenizer.added_tokens_decoder.values()))
    if not header.endswith(written):
        return False  # behind other text a word has its space
    return goes_on(tokenizer, header)


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
    return opened_by(generation_prompt(tokenizer, template_kwargs or {}) or "")


def thinking_off(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """The variables with which the chat template asks for an answer without a thought; null where
    it has no such switch."""
    as_it_is = generation_prompt(tokenizer, {})
    for switch in _SWITCHES:
        other = generation_prompt(tokenizer, {switch: False})
        on = generation_prompt(tokenizer, {switch: True})
        if other is not None and other != on and not opened_by(other):
            return {switch: False}
    return {} if as_it_is is not None and as_it_is.rstrip().endswith(_CLOSINGS) else None


def generation_prompt(
    tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]
) -> str | None:
    """The end of a rendered prompt, from the user's last turn on; null where there is none."""
    try:
        text = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": ANSWER}],
                tokenize=False,
                add_generation_prompt=True,
                **template_kwargs,
            )
        )
    except Exception:  # noqa: BLE001  # templates raise whatever their code meets
        return None
    return text.rpartition(ANSWER)[2]


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the token that ends an assistant's turn; null where there is none.

    That is the token of its own that the chat template writes behind the turn (Gemma's is not its
    EOS; a base model's EOS is often another; some are not marked as special), else the tokenizer's
    EOS.
    """
    conversation = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(conversation, tokenize=False))
    except Exception:  # noqa: BLE001  # templates raise whatever their code meets
        text = ""
    behind = tokenizer.encode(text.rpartition(ANSWER)[2].lstrip(), add_special_tokens=False)
    added = tokenizer.added_tokens_decoder
    if ANSWER in text and behind and behind[0] in added:
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
