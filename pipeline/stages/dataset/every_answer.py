"""Every answer and every vote of a round as tables that stand alone: the configs ``candidates`` and
``votes`` of a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import Bools, as_arrow, as_texts
from prefloop.data.schemas import CANDIDATE, MESSAGES, VOTE
from prefloop.labelers.people import is_human
from prefloop.pipeline.run.run_dir import RoundDir
from prefloop.pipeline.stages.dataset.layout import (
    CANDIDATES_FOLDER,
    VOTES_FOLDER,
    DatasetPart,
    PartFiles,
)
from prefloop.pipeline.stages.dataset.span_tables import SpanTables, only

_BYTES = 32 << 20
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


def candidates_of(tables: SpanTables, of_prompts: Bools) -> pa.Table:
    """The answers in some blocks to some of the prompts that ``tables`` show: EVERY_CANDIDATE."""
    prompts = tables.rows_shown(tables.candidates["prompt_id"])
    rows = of_prompts[prompts]
    columns = _columns(only(tables.candidates, rows)) | _columns(only(tables.scores, rows))
    columns["prompt"] = tables.shown["prompt"].take(as_arrow(prompts[rows]))
    return pa.table([columns[name] for name in EVERY_CANDIDATE.names], EVERY_CANDIDATE)


def votes_of(
    tables: SpanTables, of_prompts: Bools, people: Mapping[str, str] | None = None
) -> Iterator[pa.Table]:
    """The votes in some blocks on answers to some of the prompts that ``tables`` show (EVERY_VOTE),
    as many at once as do not fill the memory with their answers, each of which is in many;
    ``people`` are called by other names (see :func:`pseudonyms`)."""
    prompts = tables.rows_shown(tables.votes["prompt_id"])
    some = of_prompts[prompts]
    votes, prompts = only(tables.votes, some), prompts[some]
    texts = tables.candidates["text"]
    a, b = (rows[some] for rows in tables.rows_voted)
    mean = texts.nbytes // max(len(texts), 1)
    at_once = max(_BYTES // (2 * mean + 1), 1)
    for begin in range(0, len(votes), at_once):
        rows, now = votes.slice(begin, at_once), slice(begin, begin + at_once)
        columns = _columns(rows) | {
            "prompt": tables.shown["prompt"].take(as_arrow(prompts[now])),
            "answer_a": texts.take(as_arrow(a[now])),
            "answer_b": texts.take(as_arrow(b[now])),
        }
        if people:
            columns["labeler"] = renamed(rows["labeler"], people)
        yield pa.table([columns[name] for name in EVERY_VOTE.names], EVERY_VOTE)


class EveryAnswerFiles:
    """The files of a dataset with every answer and every vote of a round, written as they come."""

    def __init__(self, part: DatasetPart, people: Mapping[str, str] | None = None) -> None:
        self._part, self._people = part, people
        self._candidates = PartFiles(part, CANDIDATES_FOLDER, EVERY_CANDIDATE)
        self._votes = PartFiles(part, VOTES_FOLDER, EVERY_VOTE)

    def add(self, tables: SpanTables) -> None:
        """Write what is in some blocks. Raises ``StorageError``."""
        for split, prompts in self._part.splits(tables.prompt_ids).items():
            if not prompts.any():
                continue
            self._candidates.add({split: candidates_of(tables, prompts)})
            for votes in votes_of(tables, prompts, self._people):
                self._votes.add({split: votes})

    def close(self) -> dict[Path, int]:
        """Write what is left, and say what rows each file has. Raises ``StorageError``."""
        return self._candidates.close() | self._votes.close()


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
    return pa.chunked_array([as_texts(names).take(encoded.indices)])


def _columns(rows: pa.Table) -> dict[str, pa.ChunkedArray | pa.Array]:
    return {name: rows[name] for name in rows.column_names}
