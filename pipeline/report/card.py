"""The dataset card: what the hub shows, and how every column came about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined

from prefloop.data.shards import atomic_write_text
from prefloop.data.storage.dataset_folder import configs_yaml
from prefloop.labelers.config import LabelerConfig
from prefloop.labelers.decisions.lengths import LENGTH_COLUMNS, compared_lengths
from prefloop.pipeline.config import RunConfig, SampleConfig
from prefloop.pipeline.report.formats import percent
from prefloop.pipeline.run.final_split import final_figures
from prefloop.pipeline.run.fresh import card_is_fresh
from prefloop.pipeline.run.promotion import keeping
from prefloop.pipeline.run.round_jury import with_labels_of
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.dataset.layout import (
    CANDIDATES_FOLDER,
    SPLITS,
    TRIPLES_FOLDER,
    UNPAIRED_FOLDER,
    VOTES_FOLDER,
    files_in,
)
from prefloop.pipeline.stages.write import has_every_answer, rows_written

_SIZES = [
    (1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
]  # fmt: skip


@dataclass(frozen=True)
class Publication:
    """What the card of a dataset on the hub says beyond that of the local folder."""

    repo: str
    folder: Path
    """Of the files as they are published."""
    configs: Mapping[str, Mapping[str, str]]
    """Splits and globs of their files, by config."""
    licence: str
    languages: tuple[str, ...]


def write_card(config: RunConfig, run: RunDir) -> None:
    """Write ``dataset/README.md`` from the decisions and triples on disk, where these changed.

    A folder without rows gets none, as nothing can open it.
    """
    if not _globs(run, TRIPLES_FOLDER) and not _globs(run, UNPAIRED_FOLDER):
        run.card.unlink(missing_ok=True)
        return
    if card_is_fresh(run):
        return
    atomic_write_text(run.card, card_text(config, run))


def card_text(config: RunConfig, run: RunDir, published: Publication | None = None) -> str:
    """The card of the run's dataset: of the local folder, or as it is published."""
    rounds = [_round_figures(run, index) for index in range(len(run.rounds()))]
    rounds = [figures for figures in rounds if figures["written"]]
    rows = Counter[str]()
    for figures in rounds:
        rows.update(figures["written"])
    total = sum(rows.values())
    # A card is Markdown with YAML, not HTML: autoescaping would garble it, and no model output
    # goes into it.
    environment = Environment(
        loader=PackageLoader("prefloop.pipeline"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701
        trim_blocks=True,
        lstrip_blocks=True,
    )
    local = {
        "default": _globs(run, TRIPLES_FOLDER),
        "unpaired": _globs(run, UNPAIRED_FOLDER),
    }
    # Of a run that an older version began they are there when all its rounds have them.
    if all(has_every_answer(folder) for folder in run.rounds() if rows_written(folder)):
        local["candidates"] = _globs(run, CANDIDATES_FOLDER)
        local["votes"] = _globs(run, VOTES_FOLDER)
    configs = published.configs if published else local
    return environment.get_template("card.md.jinja").render(
        configs=configs_yaml(published.folder if published else run.dataset, configs),
        splits=list(local["default"]),
        unpaired=list(local["unpaired"]),
        size=next((name for limit, name in _SIZES if total < limit), "n>10M"),
        rows=rows,
        total=total,
        rounds=rounds,
        config=config,
        labelers=[one.model_dump() for one in _labelers(config, run).values()],
        filters=[rule.model_dump() for rule in config.filter.filters],
        strategy=config.filter.strategy.model_dump(),
        has_tools=_has_tools(run),
        final=final_figures(run, keeping(run).folder) if config.train else None,
        published=published,
        shown={name for name, files in configs.items() if files},
        name=plain_name,
        drawn_at=_drawn_at,
        percent=percent,
    )


def _drawn_at(sample: SampleConfig) -> str:
    """How answers are drawn; what is null is up to the server."""
    known = {
        "temperature": sample.temperature,
        "top-p": sample.top_p,
        "top-k": sample.top_k or None,
    }
    said = [f"{name} {value}" for name, value in known.items() if value is not None]
    return ", ".join(said) or "the server's own settings"


def _labelers(config: RunConfig, run: RunDir) -> dict[str, LabelerConfig]:
    """Those that labelled a round, or are to label the next, by name."""
    configs = [with_labels_of(config, folder) for folder in run.rounds()]
    return {one.name: one for each in (*configs, config) for one in each.label.labelers}


def plain_name(path: str) -> str:
    """The last part of a path on this machine; a hub name, or one that is embedded, as it is."""
    if Path(path).expanduser().is_absolute() or path.startswith(".") or path.count("/") > 1:
        return Path(path).name
    return path


def _globs(run: RunDir, folder: str) -> dict[str, str]:
    """The splits that have files in ``folder`` of the dataset, and what these are called."""
    splits = [split for split in SPLITS if files_in(run.dataset, folder, split)]
    return {split: f"{folder}/{split}-*.parquet" for split in splits}


def _round_figures(run: RunDir, index: int) -> dict[str, Any]:
    folder = run.round(index)
    reasons: Counter[str] = Counter()
    margins, agreements, longer, unequal, kept = [], [], 0, 0, 0
    columns = ["kept", "reason", "margin", "agreement", *LENGTH_COLUMNS]
    for decisions in folder.decisions.batches(columns):
        dropped = decisions.filter(pc.invert(decisions["kept"]))
        reasons.update(dropped["reason"].to_pylist())
        good = decisions.filter(decisions["kept"])
        kept += len(good)
        margins.append(good["margin"].to_numpy())
        agreements.append(good["agreement"].to_numpy())
        chosen, rejected = compared_lengths(good)
        more = chosen - rejected
        longer += int((more > 0).sum())
        unequal += int((more != 0).sum())
    return {
        "index": index,
        "written": rows_written(folder),
        "prompts": folder.prompts.rows(),
        "candidates": folder.candidates.rows(),
        "pairs": kept + sum(reasons.values()),
        "kept": kept,
        "dropped": sorted(reasons.items()),
        "margin": _mean(margins),
        "agreement": _mean(agreements),
        "longer": longer / unequal if unequal else None,
    }


def _mean(parts: list[np.ndarray]) -> float | None:
    values = np.concatenate(parts) if parts else np.empty(0)
    return float(values.mean()) if len(values) else None


def _has_tools(run: RunDir) -> bool:
    """Whether the dataset has the columns for tools."""
    files = [file for split in SPLITS for file in files_in(run.dataset, TRIPLES_FOLDER, split)]
    return any("tools" in pq.read_schema(path).names for path in files[:1])
