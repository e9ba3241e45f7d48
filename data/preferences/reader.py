"""A preference dataset, batch by batch: pairs in one schema, bad rows with their reasons."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import Bools
from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences.columns import regular_rows
from prefloop.data.preferences.layouts import (
    Layout,
    PreferenceColumns,
    find_layout,
    why_no_pairs,
)
from prefloop.data.preferences.pair_rows import PairRow, label_text, parse_pair
from prefloop.data.preferences.ratings import as_number
from prefloop.data.quarantine import BadRow, quarantine_table
from prefloop.data.schemas import MESSAGES, QUARANTINE
from prefloop.data.sources.files import SourceRow, check_names, read_rows
from prefloop.data.sources.rows import RawRow, bad
from prefloop.data.utf8 import listed, shown

PREFERENCE = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),  # 1-based row (line) in its source
        pa.field("source", pa.string(), nullable=False),  # file or dataset it was read from
        pa.field("prompt", MESSAGES, nullable=False),  # ends with the user's turn
        pa.field("chosen", pa.string(), nullable=False),  # the assistant's answer, not blank
        pa.field("rejected", pa.string(), nullable=False),
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
_LABELS_TO_JUDGE = {"0", "1"}


@dataclass(frozen=True)
class PreferenceBatch:
    """Rows read one after the other: each is in ``pairs`` or in ``bad``, in its order."""

    pairs: pa.Table
    """Schema :data:`PREFERENCE`."""
    bad: pa.Table
    """Schema ``prefloop.data.schemas.QUARANTINE``, stage ``audit``, round 0."""
    disputed: Bools
    """Of each pair: whether the row has scores, and chosen has the lower one."""

    @property
    def rows(self) -> int:
        """Rows read."""
        return len(self.pairs) + len(self.bad)


def read_preferences(
    source: PromptSource,
    *,
    columns: PreferenceColumns | None = None,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[PreferenceBatch]:
    """The pairs of ``source``, in batches of at most ``batch_rows`` rows, and its bad rows.

    ``source.path`` is a file, a glob, a ``datasets`` folder or hub name, or a run directory (all
    splits of its dataset); ``source.columns`` is not used. The layout is told by the names of the
    columns (``prefloop.data.preferences.layouts``) unless ``columns`` says it. Bad rows are listed
    with a reason (``prefloop.data.preferences.pair_rows``, ``prefloop.data.sources.files``) and
    never stop the reading.

    Raises ``InputError`` with one line for a source that cannot be read, that has no known
    layout, or whose labels are 0 and 1 only (which may mean first and second, or tie and first).
    """
    files = _parquet_files(source)
    labels = _Labels()
    if files:
        batches = _of_files(files, source.limit, columns, batch_rows, labels)
    else:
        batches = _of_rows(read_rows(source), source.path, columns, batch_rows, labels)
    yield from batches
    labels.check(source.path)


@dataclass
class _Labels:
    """The labels seen where nobody said what they mean."""

    seen: set[str] = field(default_factory=set)
    name: str = ""

    def look(self, raw: RawRow, layout: Layout) -> None:
        if layout.named or layout.kind != "labelled":
            return
        for self.name in layout.label:
            text = label_text(raw.fields.get(self.name))
            if text is not None:
                self.seen.add(text)

    def check(self, path: str) -> None:
        """Raise ``InputError`` for labels that can be understood in two ways."""
        if self.seen == _LABELS_TO_JUDGE:
            raise InputError(
                f"{path}: field {self.name!r} is 0 or 1 in all rows, which may mean second and "
                "first, first and second, or tie and first: say which with --labels a=1,b=0 (or "
                "a=0,b=1, or a=1,b=2,tie=0)"
            )


def _parquet_files(source: PromptSource) -> list[Path]:
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
        return sorted(folder.glob(f"{source.split}-*.parquet"))
    if path.is_file():
        return [path] if path.suffix in _PARQUET or source.format == "parquet" else []
    if glob.has_magic(str(path)):
        names = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path.glob: relative only)
        matches = sorted(Path(name) for name in names if Path(name).is_file())
        if source.format == "parquet" or all(match.suffix in _PARQUET for match in matches):
            return matches
    return []


def _of_files(
    files: Iterable[Path],
    limit: int | None,
    columns: PreferenceColumns | None,
    batch_rows: int,
    labels: _Labels,
) -> Iterator[PreferenceBatch]:
    for file in files:
        for batch in _of_file(file, limit, columns, batch_rows, labels):
            yield batch
            if limit is not None:
                limit -= batch.rows
        if limit == 0:
            return


def _of_file(
    file: Path,
    limit: int | None,
    columns: PreferenceColumns | None,
    batch_rows: int,
    labels: _Labels,
) -> Iterator[PreferenceBatch]:
    """A Parquet file column by column, and row by row from where that is impossible."""
    import pyarrow.parquet as pq

    done = 0
    name = shown(str(file))
    try:
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as handle:
            check_names(handle.schema_arrow, name)
            layout = find_layout(handle.schema_arrow.names, columns)
            if layout is None:
                raise _no_layout(name, handle.schema_arrow.names)
            rows = _rows_at_once(handle.metadata, batch_rows)
            for batch in handle.iter_batches(batch_size=rows, columns=layout.columns):
                if limit is not None:
                    batch = batch.slice(0, limit - done)
                if not batch.num_rows:
                    break
                batch.validate(full=True)
                yield _read_batch(batch, name, done, layout, labels)
                done += batch.num_rows
        return
    except (OSError, pa.ArrowException):
        pass  # the reader of single rows tells which row or what of the file is at fault
    rest = read_rows(PromptSource(path=glob.escape(str(file)), format="parquet", limit=limit))
    yield from _of_rows(islice(rest, done, None), name, columns, batch_rows, labels)


def _rows_at_once(metadata: Any, most: int) -> int:
    size = sum(
        metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)
    )
    return max(1, min(most, int(_BATCH_BYTES * metadata.num_rows // max(size, 1))))


def _read_batch(
    batch: pa.RecordBatch, source: str, before: int, layout: Layout, labels: _Labels
) -> PreferenceBatch:
    """``batch`` begins behind row ``before`` of ``source``."""
    numbers = np.arange(before + 1, before + 1 + batch.num_rows)
    fast = regular_rows(batch, layout)
    if fast is None:
        return _parse(_raw_rows(batch, numbers, source), layout, labels)
    pairs = pa.table(
        [
            pa.array(numbers[fast.regular]),
            pa.repeat(source, len(fast.chosen)),
            fast.prompt,
            fast.chosen,
            fast.rejected,
        ],
        schema=PREFERENCE,
    )
    disputed = _disputed(batch, layout)
    if fast.regular.all():
        return PreferenceBatch(pairs, QUARANTINE.empty_table(), disputed[fast.regular])
    others = np.flatnonzero(~fast.regular)
    parsed = _parse(
        _raw_rows(batch.take(pa.array(others)), numbers[others], source), layout, labels
    )
    if len(parsed.pairs):
        pairs = pa.concat_tables([pairs, parsed.pairs]).sort_by("row")
    return PreferenceBatch(pairs, parsed.bad, disputed[pairs["row"].to_numpy() - before - 1])


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


def _parse(rows: Iterable[RawRow], layout: Layout, labels: _Labels) -> PreferenceBatch:
    found = []
    for raw in rows:
        labels.look(raw, layout)
        found.append(_parsed(raw, layout))
    return _batch(found)


def _parsed(raw: RawRow, layout: Layout) -> tuple[PairRow | BadRow, bool]:
    """The pair, and whether its scores dispute it."""
    scores = (raw.fields.get(name) for name in layout.scores or ())
    return parse_pair(raw, layout), layout.scores is not None and _is_lower(*scores)


def _of_rows(
    rows: Iterator[SourceRow],
    name: str,
    columns: PreferenceColumns | None,
    batch_rows: int,
    labels: _Labels,
) -> Iterator[PreferenceBatch]:
    layouts: dict[tuple[str, ...], Layout | None] = {}
    read, known, seen = 0, False, dict[str, None]()
    while chunk := list(islice(rows, batch_rows)):
        found: list[tuple[PairRow | BadRow, bool]] = []
        for row in chunk:
            if isinstance(row, BadRow):
                found.append((row, False))
                continue
            read += 1
            keys = tuple(row.fields)
            if keys not in layouts:
                layouts[keys] = find_layout(keys, columns)
                seen |= dict.fromkeys(keys)
            layout = layouts[keys]
            if layout is None:
                found.append((_without_layout(row), False))
                continue
            known = True
            labels.look(row, layout)
            found.append(_parsed(row, layout))
        if not known and read >= _ROWS_TO_JUDGE_COLUMNS:
            break
        yield _batch(found)
    if read and not known:
        raise _no_layout(name, list(seen))


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


def _batch(rows: Iterable[tuple[PairRow | BadRow, bool]]) -> PreferenceBatch:
    pairs: list[PairRow] = []
    bad_rows: list[BadRow] = []
    disputed: list[bool] = []
    for row, is_disputed in rows:
        if isinstance(row, BadRow):
            bad_rows.append(row)
        else:
            pairs.append(row)
            disputed.append(is_disputed)
    return PreferenceBatch(
        pa.Table.from_pylist(pairs, PREFERENCE),
        quarantine_table("audit", bad_rows),
        np.array(disputed, dtype=bool),
    )
