"""A tokenizer as it is: opened, asked for the tokens of a text, and for one to pad with."""

from __future__ import annotations

import copy
import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
_WORD, LINE = "a", "\n"
_WORDS = "a b, and two more"


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


def encode_behind(
    tokenizer: PreTrainedTokenizerBase, text: str, *, split_special_tokens: bool = False
) -> list[int]:
    """Ids of ``text`` that goes on behind other text: without the space that some tokenizers (of
    the SentencePiece kind) put before the first word of all that they are given."""
    how = {"add_special_tokens": False, "split_special_tokens": split_special_tokens}
    if text and leads_with_space(tokenizer):
        head = list(tokenizer(LINE, **how)["input_ids"])
        ids = list(tokenizer(LINE + text, **how)["input_ids"])
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
    return goes_on(tokenizer, LINE)


def goes_on(tokenizer: PreTrainedTokenizerBase, header: str) -> bool:
    """Whether a word is other tokens behind ``header`` than by itself."""
    alone, head, both = (
        tokenizer.encode(text, add_special_tokens=False) for text in (_WORD, header, header + _WORD)
    )
    return bool(both[: len(head)] == head and both[len(head) :] != alone)


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
