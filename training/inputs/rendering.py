"""How a policy is trained on its own answers: behind the prompt that it was asked with, and on what
it sampled."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.schemas import CANDIDATE
from prefloop.data.shards import read_shard
from prefloop.training.inputs.tokens import TokenIds


@dataclass(frozen=True)
class Rendering:
    """What besides texts and tokenizer decides the token ids of a training.

    ``template_kwargs``: variables of the chat template, those that the policy was sampled with.
    ``sampled``: shards of candidates; an answer that is one of theirs is trained on as it was
    sampled: with its thought's very tokens, since a text can be encoded in several ways, and
    without an end where it was cut off.
    """

    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    sampled: tuple[Path, ...] = ()

    def sampled_ids(self, wanted: Collection[str]) -> SampledIds:
        """What is known of the candidates whose ids are ``wanted``. Reads all shards."""
        found: dict[str, tuple[str, TokenIds | None]] = {}
        for file in self.sampled if wanted else ():
            found.update(_as_sampled(file, wanted))
        return SampledIds(found)


@dataclass(frozen=True)
class SampledIds:
    """Answers of candidates as they were sampled, where that is known: the text, and its tokens, or
    null for an answer that was cut off and is encoded as it stands."""

    by_candidate: Mapping[str, tuple[str, TokenIds | None]] = field(default_factory=dict)

    def replace(
        self, encoded: Iterable[TokenIds], rows: Sequence[Mapping[str, Any]], side: str
    ) -> list[TokenIds]:
        """``encoded`` answers (those of ``side`` in ``rows``, an end token behind each) as they
        were sampled, where their text is still the one that was: with the sampled tokens, and
        without an end that a cut answer never wrote."""
        out = []
        for ids, row in zip(encoded, rows, strict=True):
            known = self.by_candidate.get(row[f"{side}_id"] or "")
            if known is None or known[0] != row[side]:
                out.append(ids)
            else:
                out.append(ids[:-1] if known[1] is None else known[1])
        return out


def _as_sampled(file: Path, wanted: Collection[str]) -> dict[str, tuple[str, TokenIds | None]]:
    """Of the candidates in ``file`` that are ``wanted``, those that thought, and cut ones."""
    columns = ["candidate_id", "text", "finish_reason", "raw_text", "token_ids"]
    table = read_shard(file, CANDIDATE, columns)
    is_wanted = pc.is_in(table["candidate_id"], value_set=pa.array(sorted(wanted), pa.string()))
    thought = pc.and_(pc.is_valid(table["raw_text"]), pc.is_valid(table["token_ids"]))
    cut = pc.equal(table["finish_reason"], "length")
    found: dict[str, tuple[str, TokenIds | None]] = {}
    for row in table.filter(pc.and_(is_wanted, pc.or_(thought, cut))).to_pylist():
        if row["raw_text"] is not None and row["token_ids"] is not None:
            ids = np.asarray(row["token_ids"], dtype=np.int32)
            found[row["candidate_id"]] = (row["raw_text"], ids)
        else:
            found[row["candidate_id"]] = (row["text"], None)
    return found
