"""Every answer and every vote of a run as tables that stand alone: the configs ``candidates`` and
``votes`` of a published dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefloop.data.schemas import CANDIDATE, MESSAGES, VOTE
from prefloop.labelers.decisions.candidate_scores import candidate_scores
from prefloop.labelers.people import is_human
from prefloop.pipeline.run.run_dir import RoundDir
from prefloop.pipeline.stages.write import ROW_GROUP_ROWS, SPLITS, shown_prompts, split_of

CANDIDATES_FOLDER, VOTES_FOLDER = "candidates", "votes"

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


@dataclass(frozen=True)
class Splitting:
    """How a run's rows are told apart: as its triples were."""

    seed: int
    test_share: float
    system_prompt: str | None


def pseudonyms(rounds: list[RoundDir]) -> dict[str, str]:
    """``human:1`` and so on for the people who voted, in the order of their names."""
    names: set[str] = set()
    for folder in rounds:
        for votes in folder.votes.iter(["labeler"]):
            names |= {name for name in pc.unique(votes["labeler"]).to_pylist() if is_human(name)}
    return {name: f"human:{number}" for number, name in enumerate(sorted(names), start=1)}


def write_candidates(folder: RoundDir, out: Path, splitting: Splitting) -> None:
    """Write the round's answers into ``out``, a file a split."""

    def blocks() -> Iterator[pa.Table]:
        for index in folder.candidates.indices():
            rows = folder.candidates.read(index)
            decided = ["chosen_id", "rejected_id", "p_chosen", "reason"]
            has_decisions = folder.decisions.exists(index)
            scores = (
                candidate_scores(folder.decisions.read(index, decided)) if has_decisions else None
            )
            columns = _columns(rows) | {"prompt": _prompts(folder, index, rows, splitting)}
            for name in ("score", "pairs"):
                kind = EVERY_CANDIDATE.field(name).type
                columns[name] = (
                    pa.nulls(len(rows), kind)
                    if scores is None
                    else _looked_up(rows["candidate_id"], scores["candidate_id"], scores[name])
                )
            yield pa.table([columns[name] for name in EVERY_CANDIDATE.names], EVERY_CANDIDATE)

    _write_splits(blocks, folder, out / CANDIDATES_FOLDER, splitting)


def write_votes(
    folder: RoundDir, out: Path, splitting: Splitting, people: Mapping[str, str]
) -> None:
    """Write the round's votes into ``out``, a file a split; ``people`` are called by other names
    (see :func:`pseudonyms`)."""

    def blocks() -> Iterator[pa.Table]:
        for index in folder.votes.indices():
            rows = folder.votes.read(index)
            answers = folder.candidates.read(index, ["candidate_id", "text"])
            columns = _columns(rows) | {"prompt": _prompts(folder, index, rows, splitting)}
            for side in ("a", "b"):
                columns[f"answer_{side}"] = _looked_up(
                    rows[f"{side}_id"], answers["candidate_id"], answers["text"]
                )
            columns["labeler"] = renamed(rows["labeler"], people)
            yield pa.table([columns[name] for name in EVERY_VOTE.names], EVERY_VOTE)

    _write_splits(blocks, folder, out / VOTES_FOLDER, splitting)


def renamed(labelers: pa.ChunkedArray, people: Mapping[str, str]) -> pa.ChunkedArray:
    """Names of labelers with ``people`` called by their other names."""
    encoded = labelers.combine_chunks().dictionary_encode()
    names = [people.get(name, name) for name in encoded.dictionary.to_pylist()]
    return pa.chunked_array([pa.array(names, pa.string()).take(encoded.indices)])


def _columns(rows: pa.Table) -> dict[str, pa.ChunkedArray | pa.Array]:
    return {name: rows[name] for name in rows.column_names}


def _prompts(
    folder: RoundDir, index: int, rows: pa.Table, splitting: Splitting
) -> pa.ChunkedArray | pa.Array:
    """Of each row, the prompt as the policy was shown it."""
    prompts = folder.prompts.read(index, ["prompt_id", "messages", "turns", "tools"])
    shown = shown_prompts(prompts, splitting.system_prompt)["prompt"]
    return _looked_up(rows["prompt_id"], prompts["prompt_id"], shown)


def _looked_up(
    ids: pa.ChunkedArray, keys: pa.ChunkedArray, values: pa.ChunkedArray | pa.Array
) -> pa.ChunkedArray | pa.Array:
    return values.take(pc.index_in(ids, value_set=keys.combine_chunks()))


def _write_splits(
    blocks: Callable[[], Iterator[pa.Table]], folder: RoundDir, out: Path, splitting: Splitting
) -> None:
    """Write tables into a file a split, one after the other: no round has to fit into memory."""
    out.mkdir(parents=True, exist_ok=True)
    writers: dict[str, pq.ParquetWriter] = {}
    with ExitStack() as stack:
        for table in blocks():
            prompts = table["prompt_id"].to_pylist()
            split_by_id = {
                one: split_of(one, seed=splitting.seed, test_share=splitting.test_share)
                for one in set(prompts)
            }
            splits = np.array([split_by_id[one] for one in prompts], dtype="U5")
            for split in SPLITS:
                rows = table.filter(pa.array(splits == split))
                if not len(rows):
                    continue
                if split not in writers:
                    path = out / f"{split}-round-{folder.index:03d}-00000.parquet"
                    writer = pq.ParquetWriter(path, table.schema, compression="zstd")
                    writers[split] = stack.enter_context(writer)
                writers[split].write_table(rows, row_group_size=ROW_GROUP_ROWS)
