"""How a policy that thinks is trained: on the prompt that it was asked with, and on the tokens that
it sampled."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefloop.training.inputs.tokens import TokenIds


@dataclass(frozen=True)
class Rendering:
    """What besides texts and tokenizer decides the token ids of a training.

    ``template_kwargs``: variables of the chat template, those that the policy was sampled with.
    ``sampled``: shards of candidates; an answer that is one of theirs is trained on as the tokens
    that were sampled, since a text can be encoded in several ways.
    """

    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    sampled: tuple[Path, ...] = ()

    def sampled_ids(self, wanted: Collection[str]) -> SampledIds:
        """The tokens of the candidates whose ids are ``wanted``."""
        found: dict[str, tuple[str, TokenIds]] = {}
        for file in self.sampled if wanted else ():
            found.update(_thinking_candidates(file, wanted))
        return SampledIds(found)


@dataclass(frozen=True)
class SampledIds:
    """Answers of candidates as they were sampled, where they are known."""

    by_candidate: Mapping[str, tuple[str, TokenIds]] = field(default_factory=dict)

    def replace(
        self, encoded: Iterable[TokenIds], rows: Sequence[Mapping[str, Any]], side: str
    ) -> list[TokenIds]:
        """``encoded`` answers (those of ``side`` in ``rows``), with the sampled tokens in place of
        those whose text is still the one that was sampled."""
        out = []
        for ids, row in zip(encoded, rows, strict=True):
            text, tokens = self.by_candidate.get(row[f"{side}_id"] or "", (None, ids))
            out.append(tokens if text == row[side] else ids)
        return out


def _thinking_candidates(file: Path, wanted: Collection[str]) -> dict[str, tuple[str, TokenIds]]:
    columns = ["candidate_id", "raw_text", "token_ids"]
    if not set(columns) <= set(pq.read_schema(file).names):
        return {}
    table = pq.read_table(file, columns=columns)
    is_wanted = pc.is_in(table["candidate_id"], value_set=pa.array(sorted(wanted), pa.string()))
    table = table.filter(
        pc.and_(is_wanted, pc.and_(pc.is_valid(table["raw_text"]), pc.is_valid(table["token_ids"])))
    )
    return {
        row["candidate_id"]: (row["raw_text"], np.asarray(row["token_ids"], dtype=np.int32))
        for row in table.to_pylist()
    }
