"""The rows of a run's dataset, made of some blocks: triples and single answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import as_arrow, as_numpy, as_text, as_texts, places_in
from prefloop.data.schemas import MESSAGES, TRIPLE, UNPAIRED
from prefloop.labelers.decisions.blank_texts import are_blank
from prefloop.labelers.decisions.candidate_scores import candidate_scores
from prefloop.pipeline.run.context import RoundContext
from prefloop.pipeline.stages.dataset.span_tables import SpanTables, only
from prefloop.pipeline.stages.rendering import TEXT_COLUMNS, answer_texts

_CANDIDATE_COLUMNS = [
    "candidate_id", *TEXT_COLUMNS, "reasoning_tokens", "policy", "policy_revision",
]  # fmt: skip


def triples_of(context: RoundContext, tables: SpanTables) -> pa.Table:
    """The kept decisions with their texts, one block after the other: schema TRIPLE."""
    is_kept = as_numpy(tables.decisions["kept"])
    kept = only(tables.decisions, is_kept)
    candidates = tables.candidates.select(_CANDIDATE_COLUMNS)
    sides = {
        side: candidates.take(as_arrow(rows[is_kept]))
        for side, rows in zip(("chosen", "rejected"), tables.rows_decided, strict=True)
    }
    prompts = tables.prompts(kept["prompt_id"])
    columns: dict[str, Any] = {
        name: kept[name] for name in TRIPLE.names if name in kept.column_names
    }
    columns |= {name: prompts[name] for name in prompts.column_names}
    for side, rows in sides.items():
        columns[side] = _assistant_turn(answer_texts(rows, with_thoughts=context.keeps_thoughts))
        columns |= {f"{side}_{one}": rows[one] for one in ("reasoning", "reasoning_tokens")}
    columns["policy"] = _policy_name(sides["chosen"])
    columns["rejected_policy"] = _policy_name(sides["rejected"])
    return pa.table([columns[name] for name in TRIPLE.names], schema=TRIPLE)


def unpaired_of(context: RoundContext, tables: SpanTables) -> pa.Table:
    """The candidates that win more, or less, often than not, block by block in the order of their
    ids: UNPAIRED.

    One that wins half of the time has no label and is left out, and so is one without text.
    """
    scores = candidate_scores(tables.decisions)
    scores = only(scores, as_numpy(scores["score"]) != 0.5)
    candidates = tables.candidates.select(["prompt_id", "tokens", "round", *_CANDIDATE_COLUMNS])
    [rows] = places_in(candidates["candidate_id"], scores["candidate_id"])
    says_something = ~are_blank(candidates["text"])[rows]
    scores, rows = only(scores, says_something), rows[says_something]
    by_block = np.argsort(tables.blocks_of_candidates[rows], kind="stable")
    scores, found = scores.take(as_arrow(by_block)), candidates.take(as_arrow(rows[by_block]))
    prompts = tables.prompts(found["prompt_id"])
    columns_of: dict[str, Any] = {name: found[name] for name in ("prompt_id", "tokens", "round")}
    columns_of |= {name: scores[name] for name in ("candidate_id", "score", "pairs")}
    columns_of |= {name: prompts[name] for name in prompts.column_names}
    columns_of |= {
        "completion": _assistant_turn(answer_texts(found, with_thoughts=context.keeps_thoughts)),
        "label": as_arrow(as_numpy(scores["score"]) > 0.5),
        "policy": _policy_name(found),
        "reasoning": found["reasoning"],
        "reasoning_tokens": found["reasoning_tokens"],
    }
    return pa.table([columns_of[name] for name in UNPAIRED.names], schema=UNPAIRED)


def _assistant_turn(texts: pa.ChunkedArray) -> pa.Array:
    content = texts.combine_chunks()
    role = as_texts(["assistant"]).take(as_arrow(np.zeros(len(content), dtype=np.int8)))
    turns = pa.StructArray.from_arrays([role, content], fields=list(MESSAGES.value_type))
    return pa.ListArray.from_arrays(as_arrow(np.arange(len(content) + 1, dtype=np.int32)), turns)


def _policy_name(candidates: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(
        candidates["policy"], candidates["policy_revision"], as_text("@")
    )
