"""Every answer and every vote of a round as tables that stand alone: the configs ``candidates`` and
``votes`` of a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.schemas import CANDIDATE, MESSAGES, VOTE
from prefloop.labelers.decisions.candidate_scores import candidate_scores
from prefloop.labelers.people import is_human
from prefloop.pipeline.run.run_dir import RoundDir
from prefloop.pipeline.stages.dataset.row_tables import shown_prompts

EVERY_CANDIDATE = pa.schema(
    [
        pa.field("prompt", MESSAGES, nullable=False),
        *CANDIDATE,
        # mean probability that the jury prefers it over its decided pairs, and how many those are;
        # null where it is in none
        pa.field("score", pa.float64()),
        pa.field("pairs", pa.int32()),
    ]
)
EVERY_VOTE = pa.schema(
    [
        pa.field("prompt", MESSAGES, nullable=False),
        pa.field("answer_a", pa.string(), nullable=False),
        pa.field("answer_b", pa.string(), nullable=False),
        *VOTE,
    ]
)


def candidate_tables(folder: RoundDir, system_prompt: str | None) -> Iterator[pa.Table]:
    """The round's answers (EVERY_CANDIDATE), block by block."""
    for index in folder.candidates.indices():
        rows = folder.candidates.read(index)
        decided = ["chosen_id", "rejected_id", "p_chosen", "reason"]
        has_decisions = folder.decisions.exists(index)
        scores = candidate_scores(folder.decisions.read(index, decided)) if has_decisions else None
        columns = _columns(rows) | {"prompt": _prompts(folder, index, rows, system_prompt)}
        for name in ("score", "pairs"):
            kind = EVERY_CANDIDATE.field(name).type
            columns[name] = (
                pa.nulls(len(rows), kind)
                if scores is None
                else _looked_up(rows["candidate_id"], scores["candidate_id"], scores[name])
            )
        yield pa.table([columns[name] for name in EVERY_CANDIDATE.names], EVERY_CANDIDATE)


def vote_tables(
    folder: RoundDir, system_prompt: str | None, people: Mapping[str, str] | None = None
) -> Iterator[pa.Table]:
    """The round's votes (EVERY_VOTE), block by block; ``people`` are called by other names (see
    :func:`pseudonyms`)."""
    for index in folder.votes.indices():
        rows = folder.votes.read(index)
        answers = folder.candidates.read(index, ["candidate_id", "text"])
        columns = _columns(rows) | {"prompt": _prompts(folder, index, rows, system_prompt)}
        for side in ("a", "b"):
            columns[f"answer_{side}"] = _looked_up(
                rows[f"{side}_id"], answers["candidate_id"], answers["text"]
            )
        if people:
            columns["labeler"] = renamed(rows["labeler"], people)
        yield pa.table([columns[name] for name in EVERY_VOTE.names], EVERY_VOTE)


def pseudonyms(rounds: list[RoundDir]) -> dict[str, str]:
    """``human:1`` and so on for the people who voted, in the order of their names."""
    names: set[str] = set()
    for folder in rounds:
        for votes in folder.votes.iter(["labeler"]):
            names |= {name for name in pc.unique(votes["labeler"]).to_pylist() if is_human(name)}
    return {name: f"human:{number}" for number, name in enumerate(sorted(names), start=1)}


def renamed(labelers: pa.ChunkedArray, people: Mapping[str, str]) -> pa.ChunkedArray:
    """Names of labelers with ``people`` called by their other names."""
    encoded = labelers.combine_chunks().dictionary_encode()
    names = [people.get(name, name) for name in encoded.dictionary.to_pylist()]
    return pa.chunked_array([pa.array(names, pa.string()).take(encoded.indices)])


def _columns(rows: pa.Table) -> dict[str, pa.ChunkedArray | pa.Array]:
    return {name: rows[name] for name in rows.column_names}


def _prompts(
    folder: RoundDir, index: int, rows: pa.Table, system_prompt: str | None
) -> pa.ChunkedArray | pa.Array:
    """Of each row, the prompt as the policy was shown it."""
    prompts = folder.prompts.read(index, ["prompt_id", "messages", "turns", "tools"])
    shown = shown_prompts(prompts, system_prompt)["prompt"]
    return _looked_up(rows["prompt_id"], prompts["prompt_id"], shown)


def _looked_up(
    ids: pa.ChunkedArray, keys: pa.ChunkedArray, values: pa.ChunkedArray | pa.Array
) -> pa.ChunkedArray | pa.Array:
    return values.take(pc.index_in(ids, value_set=keys.combine_chunks()))
