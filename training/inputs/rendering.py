"""How a policy is trained on its own answers: behind the prompt that it was asked with, and on what
it sampled."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.schemas import CANDIDATE
from prefloop.data.shards import read_shard
from prefloop.training.inputs.tokens import TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rendering:
    """What besides texts and tokenizer decides the token ids of a training.

    ``template_kwargs``: variables of the chat template, those that the policy was sampled with.
    ``sampled``: shards of candidates; an answer that is one of theirs is trained on as it was
    sampled: with its very tokens where these are kept, since a text can be encoded in several ways,
    and without an end where it was cut off.
    """

    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    sampled: tuple[Path, ...] = ()

    def sampled_ids(
        self, wanted: Collection[str], tokenizer: PreTrainedTokenizerBase
    ) -> SampledIds:
        """What is known of the candidates whose ids are ``wanted``. Reads all shards."""
        found: dict[str, SampledAnswer] = {}
        for file in self.sampled if wanted else ():
            found.update(_as_sampled(file, wanted))
        return SampledIds(found, tokenizer)


@dataclass(frozen=True)
class SampledAnswer:
    """An answer as it was sampled. ``ids`` are null where the text says them; ``cut``: it was cut
    off, so it has no end."""

    text: str
    ids: TokenIds | None
    cut: bool


@dataclass(frozen=True)
class SampledIds:
    """Answers of candidates as they were sampled, where that is not what their text is encoded as
    with an end behind it."""

    by_candidate: Mapping[str, SampledAnswer]
    tokenizer: PreTrainedTokenizerBase

    def replace(
        self, encoded: Iterable[TokenIds], rows: Sequence[Mapping[str, Any]], side: str
    ) -> list[TokenIds]:
        """``encoded`` answers (those of ``side`` in ``rows``, an end token behind each) as they
        were sampled, where their text is still the one that was: with the sampled tokens, and
        without an end that a cut answer never wrote."""
        out = []
        for ids, row in zip(encoded, rows, strict=True):
            said, whole = self.as_sampled(row[f"{side}_id"], row[side])
            if not isinstance(said, str):
                out.append(said)
            else:
                out.append(ids if whole else ids[:-1])
        return out

    def as_sampled(self, candidate_id: str | None, text: str) -> tuple[str | TokenIds, bool]:
        """The answer ``text`` of a candidate as it was sampled, its tokens where it does not say
        them, and whether it has an end."""
        known = self.by_candidate.get(candidate_id or "")
        if known is None or known.text != text:
            return text, True
        if known.ids is not None and self._says(known.ids, text):
            return known.ids, not known.cut
        return text, not known.cut

    def _says(self, ids: TokenIds, text: str) -> bool:
        """Whether ``ids`` say ``text`` to this tokenizer: those of a model of other tokens do not,
        nor do those that a stop string was cut from."""
        # The end token need not be a special one.
        read = (self.tokenizer.decode(part, skip_special_tokens=True)
                for part in (ids.tolist(), ids[:-1].tolist()))  # fmt: skip
        return any(self._is_end_of(str(said), text) for said in read)

    def _is_end_of(self, said: str, text: str) -> bool:
        """Whether ``text`` is ``said``, but for a mark in front that the template wrote, and for
        marks around thoughts where they are special tokens."""
        if said == text:
            return True
        body, whole = (self._without_special_tokens(one) for one in (said, text))
        return bool(body) and whole.endswith(body)

    def _without_special_tokens(self, text: str) -> str:
        """``text`` without white space, either."""
        for token in self.tokenizer.added_tokens_decoder.values():
            if token.special:
                text = text.replace(str(token), "")
        return "".join(text.split())


def _as_sampled(file: Path, wanted: Collection[str]) -> dict[str, SampledAnswer]:
    """Of the candidates in ``file`` that are ``wanted``, those whose tokens are kept, and cut
    ones."""
    columns = ["candidate_id", "text", "finish_reason", "raw_text", "token_ids"]
    table = read_shard(file, CANDIDATE, columns)
    is_wanted = pc.is_in(table["candidate_id"], value_set=pa.array(sorted(wanted), pa.string()))
    known = pc.or_(pc.is_valid(table["token_ids"]), pc.equal(table["finish_reason"], "length"))
    found: dict[str, SampledAnswer] = {}
    for row in table.filter(pc.and_(is_wanted, known)).to_pylist():
        ids = row["token_ids"]
        found[row["candidate_id"]] = SampledAnswer(
            text=row["text"] if row["raw_text"] is None else row["raw_text"],
            ids=None if ids is None else np.asarray(ids, dtype=np.int32),
            cut=row["finish_reason"] == "length",
        )
    return found
