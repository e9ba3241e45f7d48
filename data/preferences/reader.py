"""A preference dataset, batch by batch: pairs in one schema, bad rows with their reasons."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import Bools, Ints
from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences.answer_sets import AnswerSet
from prefloop.data.preferences.columns import OF_TOOLS, regular_rows
from prefloop.data.preferences.gathered import Gathered, Gatherer
from prefloop.data.preferences.labels import SeenLabels
from prefloop.data.preferences.layouts import (
    GATHERED,
    Layout,
    PreferenceColumns,
    find_layout,
    label_columns,
    why_no_pairs,
)
from prefloop.data.preferences.pair_rows import PairRow, answers_left_out, parse_pair
from prefloop.data.preferences.ratings import as_number, mean_ratings
from prefloop.data.preferences.row_layouts import RowLayouts, lacks
from prefloop.data.preferences.unread_columns import UnreadColumns
from prefloop.data.quarantine import BadRow, quarantine_table
from prefloop.data.schemas import MESSAGES
from prefloop.data.sources.class_names import batch_by_names, names_in_schema
from prefloop.data.sources.files import SourceRow, check_names, read_rows
from prefloop.data.sources.partitions import columns_in_path
from prefloop.data.sources.rows import RawRow, bad
from prefloop.data.sources.shard_names import require_all_shards
from prefloop.data.utf8 import listed, shown

PREFERENCE = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),  # 1-based row (line) in its source
        pa.field("source", pa.string(), nullable=False),  # file or dataset it was read from
        pa.field("prompt", MESSAGES, nullable=False),  # ends with the user's turn
        pa.field("chosen", pa.string(), nullable=False),  # the assistant's answer, not blank
        pa.field("rejected", pa.string(), nullable=False),
        # JSON: the prompt's turns as chat templates take them, where they are more than that
        pa.field("prompt_turns", pa.string()),
        pa.field("tools", pa.string()),  # JSON: what may be called
    ]
)
"""One comparison: which of two answers to a prompt is preferred."""

BATCH_ROWS = 8_192
_BATCH_BYTES = 32 << 20
"""About so much of a Parquet file is decoded at once, whatever the length of its rows."""
_ROWS_TO_JUDGE_COLUMNS = 10_000
"""So many rows without a known layout, and the mapping is taken to be wrong."""
_PARQUET = (".parquet", ".pq")
_SAVED = ("dataset_dict.json", "state.json")


@dataclass(frozen=True)
class PreferenceBatch:
    """Rows read one after the other: each is in ``pairs`` or in ``bad``, in its order.

    Where the answers to a prompt are spread over rows, those behind the first are in neither, and a
    row that is a whole tree may give several pairs.
    """

    pairs: pa.Table
    """Schema :data:`PREFERENCE`."""
    bad: pa.Table
    """Schema ``prefloop.data.schemas.QUARANTINE``, stage ``audit``, round 0."""
    disputed: Bools
    """Of each pair: whether the row has scores, and chosen has the lower one."""
    rows: int
    """Rows read."""
    left_out: Ints
    """Of each pair: answers to its prompt that came with it and are not in it."""


@dataclass(frozen=True)
class _Reading:
    """What is known of a source while it is read."""

    columns: PreferenceColumns | None
    batch_rows: int
    layouts: RowLayouts
    labels: SeenLabels = field(default_factory=SeenLabels)
    gatherer: Gatherer = field(default_factory=Gatherer)
    unread: UnreadColumns | None = None

    def look(self, raw: RawRow, layout: Layout) -> None:
        """Take a row in where columns that are not read are looked at."""
        if self.unread is not None:
            self.unread.look(raw, layout)


_Found = tuple[PairRow | BadRow, bool, int]
"""A pair, whether its scores dispute it, and the answers that are left out; or a bad row."""


def read_preferences(
    source: PromptSource,
    *,
    columns: PreferenceColumns | None = None,
    batch_rows: int = BATCH_ROWS,
    unread: UnreadColumns | None = None,
) -> Iterator[PreferenceBatch]:
    """The pairs of ``source``, in batches of at most ``batch_rows`` rows, and its bad rows.

    ``source.path`` is a file, a glob, a ``datasets`` folder or hub name, or a run directory (all
    splits of its dataset); ``source.columns`` is not used. The layout is told by the names of the
    columns (``prefloop.data.preferences.layouts``) unless ``columns`` says it. ``unread`` is told
    of columns that are a part of the prompt by their names, and are not read. Bad rows are listed
    with a reason (``prefloop.data.preferences.pair_rows``, ``prefloop.data.sources.files``) and
    never stop the reading.

    Raises ``InputError`` with one line for a source that cannot be read, that has no known
    layout, or whose labels are 0 and 1 only (which may mean first and second, or tie and first).
    """
    files = files_alone(source)
    reading = _Reading(columns, batch_rows, RowLayouts(columns), unread=unread)
    if files:
        yield from _of_files(files, source.limit, reading)
    else:
        yield from _of_rows(read_rows(source, classes=label_columns(columns)), source.path, reading)
    found = [_of_set(one) for one in reading.gatherer.all()]
    for start in range(0, len(found), batch_rows):
        yield _batch(found[start : start + batch_rows], rows=0)
    reading.labels.check(source.path)


def parquet_files(source: PromptSource) -> list[Path]:
    """The Parquet files that ``source`` is, all splits of a run's dataset; none if it is else."""
    path = Path(source.path).expanduser()
    if source.format not in ("auto", "parquet"):
        return []
    if path.is_dir():
        if (path / "config.yaml").is_file() and (path / "dataset").is_dir():
            found = sorted((path / "dataset" / "data").glob("*.parquet"))
            if not found:
                raise InputError(f"{path}: the run has no dataset yet: let `prefloop run` end")
            return found
        if source.format == "parquet" or any((path / name).is_file() for name in _SAVED):
            return []
        folder = path / "data" if (path / "data").is_dir() else path
        found = sorted(folder.glob(f"{source.split}-*.parquet"))
        require_all_shards(found, path)
        return found
    if path.is_file():
        return [path] if path.suffix in _PARQUET or source.format == "parquet" else []
    if glob.has_magic(str(path)):
        names = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path.glob: relative only)
        matches = sorted(Path(name) for name in names if Path(name).is_file())
        if source.format == "parquet" or all(match.suffix in _PARQUET for match in matches):
            return matches
    return []


def files_alone(source: PromptSource) -> list[Path]:
    """The Parquet files that ``source`` is, where all columns stand in them; none if it is else, or
    if the names of folders hold columns too."""
    files, path = parquet_files(source), Path(source.path).expanduser()
    return [] if any(columns_in_path(file, path) for file in files) else files


def _of_files(
    files: Iterable[Path], limit: int | None, reading: _Reading
) -> Iterator[PreferenceBatch]:
    for file in files:
        for batch in _of_file(file, limit, reading):
            yield batch
            if limit is not None:
                limit -= batch.rows
        if limit == 0:
            return


def _of_file(file: Path, limit: int | None, reading: _Reading) -> Iterator[PreferenceBatch]:
    """A Parquet file column by column, and row by row from where that is impossible."""
    import pyarrow.parquet as pq

    done = 0
    name = shown(str(file))
    try:
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as handle:
            check_names(handle.schema_arrow, name)
            names = handle.schema_arrow.names
            layout = find_layout(names, reading.columns)
            if layout is None:
                raise _no_layout(name, names)
            rows = _rows_at_once(handle.metadata, reading.batch_rows)
            more = reading.unread.watched(names, layout) if reading.unread else []
            columns = [one for one in names if one in (*layout.columns, *OF_TOOLS, *more)]
            classes = names_in_schema(handle.schema_arrow, label_columns(reading.columns))
            while layout.kind not in GATHERED:
                narrow = len(columns) < len(names)
                for batch in _behind(handle.iter_batches(batch_size=rows, columns=columns), done):
                    if limit is not None:
                        batch = batch.slice(0, limit - done)
                    if not batch.num_rows:
                        return
                    batch.validate(full=True)
                    batch = batch_by_names(batch, classes)
                    found = _read_batch(batch, name, done, layout, reading, narrow)
                    if found is None:  # a row that may be read by columns not yet looked at
                        break
                    _look(batch, name, done, layout, reading)
                    yield found
                    done += batch.num_rows
                else:
                    return
                columns = names
    except (OSError, pa.ArrowException):
        pass  # the reader of single rows tells which row or what of the file is at fault
    source = PromptSource(path=glob.escape(str(file)), format="parquet", limit=limit)
    rest = read_rows(source, classes=label_columns(reading.columns))
    yield from _of_rows(islice(rest, done, None), name, reading)


def _behind(batches: Iterable[pa.RecordBatch], done: int) -> Iterator[pa.RecordBatch]:
    """``batches`` without their first ``done`` rows."""
    for batch in batches:
        if done < batch.num_rows:
            yield batch.slice(done)
        done = max(done - batch.num_rows, 0)


def _rows_at_once(metadata: Any, most: int) -> int:
    size = sum(
        metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)
    )
    return max(1, min(most, int(_BATCH_BYTES * metadata.num_rows // max(size, 1))))


def _read_batch(
    batch: pa.RecordBatch,
    source: str,
    before: int,
    layout: Layout,
    reading: _Reading,
    narrow: bool,
) -> PreferenceBatch | None:
    """``batch`` begins behind row ``before`` of ``source``. ``narrow``: the source has other
    columns; where a row lacks what those that were read should hold, the answer is null."""
    numbers = np.arange(before + 1, before + 1 + batch.num_rows)
    fast = regular_rows(batch, layout)
    taken = np.zeros(batch.num_rows, bool) if fast is None else fast.regular
    others = np.flatnonzero(~taken)
    rest = batch if fast is None else batch.take(pa.array(others))
    raw_rows = list(_raw_rows(rest, numbers[others], source))
    if narrow and any(lacks(raw.fields, layout) for raw in raw_rows):
        return None
    parsed = _parse(raw_rows, layout, reading)
    if fast is None:
        return parsed
    pairs = pa.table(
        [
            pa.array(numbers[fast.regular]),
            pa.repeat(source, len(fast.chosen)),
            fast.prompt,
            fast.chosen,
            fast.rejected,
            *(pa.nulls(len(fast.chosen), pa.string()) for _ in OF_TOOLS),
        ],
        schema=PREFERENCE,
    )
    if len(parsed.pairs):
        pairs = pa.concat_tables([pairs, parsed.pairs]).sort_by("row")
    places = pairs["row"].to_numpy() - before - 1
    left_out = _left_out(batch, layout)
    return PreferenceBatch(
        pairs, parsed.bad, _disputed(batch, layout)[places], batch.num_rows, left_out[places]
    )


def _look(
    batch: pa.RecordBatch, source: str, before: int, layout: Layout, reading: _Reading
) -> None:
    """Take in the columns of ``batch`` that are not read, where there are any."""
    if reading.unread and reading.unread.watched(batch.schema.names, layout):
        numbers = np.arange(before + 1, before + 1 + batch.num_rows)
        for raw in _raw_rows(batch, numbers, source):
            reading.look(raw, _own(raw, layout, reading))


def _left_out(batch: pa.RecordBatch, layout: Layout) -> Ints:
    """Answers of a list beside the pair of each row."""
    if layout.beside is None:
        return np.zeros(len(batch), np.int64)
    lengths = pc.fill_null(pc.list_value_length(batch.column(layout.beside.a)), 0)
    found: Ints = np.maximum(lengths.to_numpy(zero_copy_only=False).astype(np.int64) - 2, 0)
    return found


def _disputed(batch: pa.RecordBatch, layout: Layout) -> Bools:
    if layout.scores is None:
        return np.zeros(len(batch), dtype=bool)
    chosen, rejected = (batch.column(name) for name in layout.scores)
    if pa.types.is_floating(chosen.type) and pa.types.is_floating(rejected.type):
        lower = pc.and_(pc.less(chosen, rejected), pc.is_finite(pc.subtract(chosen, rejected)))
        return np.asarray(pc.fill_null(lower, False).to_numpy(zero_copy_only=False))
    columns = [column.to_pylist() for column in (chosen, rejected)]
    return np.array([_is_lower(*both) for both in zip(*columns, strict=True)], dtype=bool)


def _is_lower(chosen: Any, rejected: Any) -> bool:
    one, other = as_number(chosen), as_number(rejected)
    return one is not None and other is not None and one < other


def _raw_rows(batch: pa.RecordBatch, numbers: Any, source: str) -> Iterator[RawRow]:
    for number, fields in zip(numbers.tolist(), batch.to_pylist(), strict=True):
        yield RawRow(source, number, fields)


def _parse(rows: Sequence[RawRow], usual: Layout, reading: _Reading) -> PreferenceBatch:
    """Rows of a table whose columns have the layout ``usual``."""
    found = []
    for raw in rows:
        found += _parsed(raw, _own(raw, usual, reading), reading)
    return _batch(found, rows=len(rows))


def _own(raw: RawRow, usual: Layout, reading: _Reading) -> Layout:
    """The layout of a row of a table whose columns have the layout ``usual``."""
    return reading.layouts.of(raw.fields) or usual if lacks(raw.fields, usual) else usual


def _parsed(raw: RawRow, layout: Layout, reading: _Reading) -> list[_Found]:
    """The pair of a row; none where the answers to its prompt may be spread over others."""
    if layout.kind in GATHERED:
        reading.gatherer.add(raw, layout)
        return []
    layout.look(reading.labels, raw.fields)
    scores = (raw.fields.get(name) for name in layout.scores or ())
    disputed = layout.scores is not None and _is_lower(*scores)
    return [(parse_pair(raw, layout), disputed, answers_left_out(raw.fields, layout))]


def _of_set(found: Gathered) -> _Found:
    """The best answer of a set against the worst; one that is there several times has the mean of
    its ratings."""
    if isinstance(found, BadRow):
        return found, False, 0
    rated = [one for one in found.answers if one.rating is not None]
    ratings = [one.rating for one in rated if one.rating is not None]
    if len(found.answers) < 2:
        return _no_pair(found, "single_answer", "no other answer has this prompt"), False, 0
    if len(rated) < 2:
        detail = f"{len(rated)} of {len(found.answers)} answers have ratings, and a pair needs two"
        return _no_pair(found, "missing_rating", detail), False, 0
    texts = [one.text for one in rated]
    means = mean_ratings(texts, ratings)
    if len(means) > 1:
        rated, ratings = [rated[texts.index(text)] for text in means], list(means.values())
    if max(ratings) == min(ratings):
        detail = "neither answer is preferred: no pair to learn from"
        return _no_pair(found, "tie", detail), False, 0
    best, worst = (rated[ratings.index(end(ratings))] for end in (max, min))
    pair = {
        "row": best.row,
        "source": found.source,
        "prompt": found.prompt,
        "chosen": best.text,
        "rejected": worst.text,
        "prompt_turns": found.turns,
        "tools": found.tools,
    }
    return pair, False, len(found.answers) - 2


def _no_pair(found: AnswerSet, reason: str, detail: str) -> BadRow:
    content = {"prompt": found.prompt, "answers": [one.text for one in found.answers]}
    text = json.dumps(content, ensure_ascii=False)
    return BadRow(found.source, found.row, None, reason, detail, text)


def _of_rows(rows: Iterator[SourceRow], name: str, reading: _Reading) -> Iterator[PreferenceBatch]:
    layouts = reading.layouts
    read, known = 0, False
    while chunk := list(islice(rows, reading.batch_rows)):
        found: list[_Found] = []
        for row in chunk:
            if isinstance(row, BadRow):
                found.append((row, False, 0))
                continue
            read += 1
            layout = layouts.of(row.fields)
            if layout is None:
                found.append((_without_layout(row), False, 0))
                continue
            known = True
            reading.look(row, layout)
            found += _parsed(row, layout, reading)
        if not known and read >= _ROWS_TO_JUDGE_COLUMNS:
            break
        yield _batch(found, rows=len(chunk))
    if read and not known:
        raise _no_layout(name, layouts.seen)


def _without_layout(row: RawRow) -> BadRow:
    return bad(
        row,
        None,
        "missing_column",
        f"the row has only {listed(row.fields) or 'nothing'}: add chosen and "
        "rejected, or name the columns with --columns",
    )


def _no_layout(name: str, columns: Iterable[str]) -> InputError:
    columns = list(columns)
    known = why_no_pairs(columns)
    if known:
        return InputError(f"{name}: {known}; columns found: {listed(columns)}")
    return InputError(
        f"{name}: no row has a known layout; columns found: "
        f"{listed(columns) or 'none'}: name them, e.g. --columns "
        "prompt=NAME,chosen=NAME,rejected=NAME or --columns prompt=NAME,a=NAME,b=NAME,label=NAME"
    )


def _batch(found: Sequence[_Found], *, rows: int) -> PreferenceBatch:
    """``rows``: how many were read for it."""
    pairs = [(one, *more) for one, *more in found if not isinstance(one, BadRow)]
    return PreferenceBatch(
        pa.Table.from_pylist([pair for pair, _, _ in pairs], PREFERENCE),
        quarantine_table("audit", (one for one, _, _ in found if isinstance(one, BadRow))),
        np.array([disputed for _, disputed, _ in pairs], dtype=bool),
        rows,
        np.array([left_out for _, _, left_out in pairs], dtype=np.int64),
    )
