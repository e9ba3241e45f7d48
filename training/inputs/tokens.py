"""The token ids that training and scoring see: the sampled prompt, the answer, one end token.

Invariant: what a policy is trained and scored on is what it sampled. The prompt's ids come from
``prefloop.data.chat.render_tokens``, as they do in sampling (one BOS, no control tokens out of
content); the answer is encoded on its own, as it was generated, and ends with exactly one end
token. TRL's own tokenisation of conversational rows renders prompt and answer together instead, and
then trains on what the template writes behind the end token and on control tokens found in content.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prefloop.data.chat import render_tokens
from prefloop.data.protocol import Message
from prefloop.training.errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenIds = NDArray[np.int32]
"""Token ids of one sequence [length]."""

_ANSWER = "\ufdd0"  # a noncharacter: stands for the answer while we look at the template


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that ends an answer.

    That is the special token the chat template writes behind an assistant's turn (Gemma's is not
    its EOS), else the tokenizer's EOS. Raises ``TrainingError`` where there is neither.
    """
    conversation = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    text = str(tokenizer.apply_chat_template(conversation, tokenize=False))
    behind = tokenizer.encode(text.rpartition(_ANSWER)[2].lstrip(), add_special_tokens=False)
    added = tokenizer.added_tokens_decoder
    if behind and behind[0] in added and added[behind[0]].special:
        return int(behind[0])
    if tokenizer.eos_token_id is None:
        raise TrainingError(
            f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token: set "
            "eos_token in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> TokenIds:
    """Ids of a conversation up to the assistant's turn, as sampling saw them."""
    return np.asarray(render_tokens(tokenizer, messages), dtype=np.int32)


def answer_ids(
    tokenizer: PreTrainedTokenizerBase, answers: Iterable[str], end: int
) -> list[TokenIds]:
    """Ids of each answer, ``end`` behind it. Control tokens spelt out in it stay plain text."""
    texts = list(answers)
    if not texts:
        return []
    # split_special_tokens: an answer that spells out the end token must not end there.
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [np.asarray([*ids, end], dtype=np.int32) for ids in encoded]
