"""Why a run has no prompt at all, in the words of the rows that could not be used."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from prefloop.data.config import PromptSource
from prefloop.data.embedded import resolve_embedded
from prefloop.data.prompts.load import PromptTables
from prefloop.data.sources.opening import looks_like


def why_no_prompt(tables: PromptTables, source: PromptSource) -> str:
    """The commonest reason with its first row, and what the file looks like; empty if neither is
    known. It continues a sentence."""
    parts = []
    apart, name = tables.quarantine, "quarantined"
    if len(tables.dropped) > len(apart):
        apart, name = tables.dropped, "dropped"
    if len(apart):
        [(reason, count)] = Counter(apart["reason"].to_pylist()).most_common(1)
        first = next(row for row in apart.to_pylist() if row["reason"] == reason)
        field = f", field {first['field']!r}" if first.get("field") else ""
        parts.append(
            f"most often {name} as {reason} ({count:,} rows), first {first['source']}, "
            f"row {first['row']}{field}: {first['detail']}"
        )
    path = Path(resolve_embedded(source.path)).expanduser()
    by_line = source.format in ("auto", "jsonl") and path.suffix not in (".parquet", ".pq", ".csv")
    if path.is_file() and (by_line or not tables.read):
        parts.append(looks_like(path))
    return "".join(f"; {part}" for part in parts if part)
