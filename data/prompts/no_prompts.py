"""Why a run has no prompt at all, in the words of the rows that could not be used."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from prefloop.data.config import PromptsConfig, PromptSource
from prefloop.data.embedded import resolve_embedded
from prefloop.data.prompts.load import PromptTables
from prefloop.data.sources.opening import looks_like

OVERLAP = "overlap:"
"""Beginning of the reason of prompts that training must not see."""


def why_no_prompt(tables: PromptTables, config: PromptsConfig) -> str:
    """The commonest reason with its first row, and what the file looks like; empty if neither is
    known. It continues a sentence."""
    overlap = _all_overlap(tables, config)
    if overlap:
        return f"; {overlap}"
    source = next(iter(config.train_sources.values()))
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


def _all_overlap(tables: PromptTables, config: PromptsConfig) -> str | None:
    """What to say where the prompts overlap with those held out, or with an evaluation set, and
    nothing else is wrong with them."""
    reasons = {one for one in tables.dropped["reason"].to_pylist() if one.startswith(OVERLAP)}
    others = set(tables.dropped["reason"].to_pylist()) - reasons - {"exact_duplicate"}
    if len(tables.quarantine) or not reasons or others - {"near_duplicate"}:
        return None
    names = sorted(reason.removeprefix(OVERLAP) for reason in reasons)
    if names != ["heldout"]:
        listed = " and ".join(f"prompts.exclude_overlap.{name}" for name in names)
        listed = listed.replace("prompts.exclude_overlap.heldout", "the held-out prompts")
        return (
            f"every prompt repeats or contains one of {listed}, which training must not see: name "
            "other prompts in prompts.train, or leave that set out"
        )
    if config.heldout is None:
        return (
            "every prompt repeats or contains one that is held out (prompts.heldout_share): name a "
            "file of other prompts in prompts.heldout, or raise prompts.overlap_threshold"
        )
    same = any(_file(one) == _file(config.heldout) for one in config.train_sources.values())
    where = (
        f"prompts.train and prompts.heldout are the same ({config.heldout.path})"
        if same
        else f"prompts.heldout ({config.heldout.path}) has the prompts of prompts.train"
    )
    return (
        f"every prompt overlaps with a held-out one, as {where}: name other prompts in "
        "prompts.heldout, or leave it out, and prompts.heldout_share of prompts.train is held out"
    )


def _file(source: PromptSource) -> tuple[str, str, str | None]:
    return source.path, source.split, source.config_name
