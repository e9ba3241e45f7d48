"""The rows of a run's dataset, made of a block: triples and single answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.conversation import as_sampled, plain, turns_text
from prefloop.data.schemas import MESSAGES, TRIPLE, UNPAIRED
from prefloop.data.utf8 import BLANK
from prefloop.labelers.decisions.candidate_scores import candidate_scores
from prefloop.pipeline.run.context import RoundContext
from prefloop.pipeline.stages.rendering import TEXT_COLUMNS, answer_texts

_DECISION_COLUMNS = [
    "prompt_id", "round", "chosen_id", "rejected_id", "p_chosen", "score_chosen", "score_rejected",
    "margin", "agreement", "chosen_tokens", "rejected_tokens", "labelers", "kept",
]  # fmt: skip
_PROMPT_COLUMNS = ["prompt_id", "messages", "turns", "tools"]
_CANDIDATE_COLUMNS = [
    "candidate_id", *TEXT_COLUMNS, "reasoning_tokens", "policy", "policy_revision",
]  # fmt: skip


def triples_of_block(context: RoundContext, index: int) -> pa.Table:
    """The kept decisions of block ``index`` with their texts: schema TRIPLE."""
    folder = context.folder
    decisions = folder.decisions.read(index, _DECISION_COLUMNS)
    kept = decisions.filter(decisions["kept"])
    candidates = folder.candidates.read(index, _CANDIDATE_COLUMNS)
    prompts = folder.prompts.read(index, _PROMPT_COLUMNS)
    chosen = _rows_of(kept["chosen_id"], candidates["candidate_id"], candidates)
    rejected = _rows_of(kept["rejected_id"], candidates["candidate_id"], candidates)
    prompt = _rows_of(kept["prompt_id"], prompts["prompt_id"], prompts)
    columns: dict[str, Any] = {
        name: kept[name] for name in TRIPLE.names if name in kept.column_names
    }
    columns |= {
        **shown_prompts(prompt, context.system_prompt),
        "chosen": _assistant_turn(answer_texts(chosen, with_thoughts=context.keeps_thoughts)),
        "rejected": _assistant_turn(answer_texts(rejected, with_thoughts=context.keeps_thoughts)),
        "policy": _policy_name(chosen),
        "rejected_policy": _policy_name(rejected),
    }
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        columns |= {f"{name}_{one}": side[one] for one in ("reasoning", "reasoning_tokens")}
    return pa.table([columns[name] for name in TRIPLE.names], schema=TRIPLE)


def unpaired_of_block(context: RoundContext, index: int) -> pa.Table:
    """The candidates of block ``index`` that win more, or less, often than not: UNPAIRED.

    One that wins half of the time has no label and is left out, and so is one without text.
    """
    folder = context.folder
    columns = ["chosen_id", "rejected_id", "p_chosen", "reason"]
    scores = candidate_scores(folder.decisions.read(index, columns))
    scores = scores.filter(pc.not_equal(scores["score"], 0.5))
    wanted = ["prompt_id", "tokens", "round", *_CANDIDATE_COLUMNS]
    candidates = folder.candidates.read(index, wanted)
    empty = candidates["candidate_id"].filter(pc.match_substring_regex(candidates["text"], BLANK))
    scores = scores.filter(
        pc.invert(pc.is_in(scores["candidate_id"], value_set=empty.combine_chunks()))
    )
    prompts = folder.prompts.read(index, _PROMPT_COLUMNS)
    found = _rows_of(scores["candidate_id"], candidates["candidate_id"], candidates)
    prompt = _rows_of(found["prompt_id"], prompts["prompt_id"], prompts)
    columns_of: dict[str, Any] = {name: found[name] for name in ("prompt_id", "tokens", "round")}
    columns_of |= {name: scores[name] for name in ("candidate_id", "score", "pairs")}
    columns_of |= {
        **shown_prompts(prompt, context.system_prompt),
        "completion": _assistant_turn(answer_texts(found, with_thoughts=context.keeps_thoughts)),
        "label": pc.greater(scores["score"], 0.5),
        "policy": _policy_name(found),
        "reasoning": found["reasoning"],
        "reasoning_tokens": found["reasoning_tokens"],
    }
    return pa.table([columns_of[name] for name in UNPAIRED.names], schema=UNPAIRED)


def shown_prompts(prompts: pa.Table, system_prompt: str | None) -> dict[str, Any]:
    """The prompts as the policy was shown them: the columns ``prompt``, ``prompt_turns`` and
    ``tools``."""
    turns, tools = prompts["turns"], prompts["tools"]
    if not system_prompt:
        return {"prompt": prompts["messages"], "prompt_turns": turns, "tools": tools}
    shown = [as_sampled(row, system_prompt) for row in prompts.to_pylist()]
    return {
        "prompt": pa.array(list(map(plain, shown)), MESSAGES),
        "prompt_turns": pa.array(list(map(turns_text, shown)), pa.string()),
        "tools": tools,
    }


def _rows_of(ids: pa.ChunkedArray, keys: pa.ChunkedArray, table: pa.Table) -> pa.Table:
    return table.take(pc.index_in(ids, value_set=keys.combine_chunks()))


def _assistant_turn(texts: pa.ChunkedArray) -> pa.Array:
    content = texts.combine_chunks()
    role = pa.array(["assistant"]).take(pa.array(np.zeros(len(content), dtype=np.int8)))
    turns = pa.StructArray.from_arrays([role, content], fields=list(MESSAGES.value_type))
    return pa.ListArray.from_arrays(pa.array(np.arange(len(content) + 1, dtype=np.int32)), turns)


def _policy_name(candidates: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(candidates["policy"], candidates["policy_revision"], "@")
