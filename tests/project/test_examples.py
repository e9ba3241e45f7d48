"""The configs in examples/ are valid, their prompts can be read, and `prefloop plan` takes them, as
far as that goes without their weights, servers and datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import prefloop
from prefloop.data.prompts.load import load_prompts
from prefloop.pipeline.config import load_config
from tests.helpers.paths import ROOT
from tests.project.hub_rows import (
    ALPACA,
    TOPICS,
    TULU,
    ULTRAFEEDBACK_BINARIZED,
    Rows,
    question,
)

OWN = [{"prompt": question(topic)} for topic in TOPICS]
RUBRICS = [
    {
        **row,
        "criteria": [
            {"text": f"Speaks of {topic}.", "weight": 2.0},
            {"text": "Is brief.", "weight": -1.0},
        ],
    }
    for row, topic in zip(OWN, TOPICS, strict=True)
]

ROWS: dict[str, Rows | None] = {
    "alpaca-references": ALPACA,
    "cloud-judge": OWN,
    "delta-pairs": TULU,
    "demo": None,  # embedded
    "filters": OWN,
    "online-dpo": None,
    "qwen3-0.6b": ULTRAFEEDBACK_BINARIZED,
    "relabel": ULTRAFEEDBACK_BINARIZED,
    "rubric": RUBRICS,
    "thinking-judge-24gb": ULTRAFEEDBACK_BINARIZED,
}
"""For each example rows in the layout of the dataset that it names."""
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.yaml"))


def test_each_has_rows() -> None:
    assert set(EXAMPLES) == ROWS.keys()


def small(name: str, folder: Path) -> dict[str, Any]:
    """Keys to set so that the example reads a few rows that lie here, and no hub is asked."""
    rows = ROWS[name]
    if rows is None:
        return {}
    source = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows)), source)
    half = folder / "heldout.jsonl"
    other = json.dumps(rows[0]).replace(TOPICS[0], "clocks")
    half.write_text(other + "\n", encoding="utf-8")
    raw = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text(encoding="utf-8"))
    given = "sample.from" if "from" in raw.get("sample", {}) else "prompts.train"
    keys: dict[str, Any] = {f"{given}.path": str(source), "policy": "embedded:policy"}
    if "heldout" in raw["prompts"]:
        keys["prompts.heldout.path"] = str(half)
    for member in raw["sample"].get("pool", ()):
        keys[f"sample.pool.{member['name']}.model"] = "embedded:policy"
    return keys


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_is_valid_and_its_prompts_are_read(name: str, tmp_path: Path) -> None:
    config = load_config(ROOT / "examples" / f"{name}.yaml", small(name, tmp_path))
    tables = load_prompts(config.prompts, seed=config.seed)
    rows = ROWS[name]
    assert len(tables.quarantine) == 0
    assert len(tables.train) > (0 if rows is None else len(rows) - 2)
    assert config.run_dir.startswith("runs/")


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_can_be_planned(name: str, tmp_path: Path) -> None:
    planned = prefloop.plan(
        ROOT / "examples" / f"{name}.yaml",
        run_dir=tmp_path / "run",
        overrides=small(name, tmp_path),
    )
    text = str(planned)
    assert "sample" in text
    assert "label" in text
    assert not (tmp_path / "run").exists()
