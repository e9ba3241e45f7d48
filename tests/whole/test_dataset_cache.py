"""load_dataset of a run gives that run's rows as they are now, whatever one cache has seen."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
from datasets import load_dataset

from prefloop.pipeline.redecide import redecide
from prefloop.pipeline.run.run_dir import RunDir
from tests.helpers.runs import VERIFIER, run_small, small_config


def loaded(run: RunDir, cache: Path) -> list[str]:
    dataset = load_dataset(str(run.dataset), cache_dir=str(cache))
    return sorted(row for split in dataset.values() for row in split["prompt_id"])


def held(run: RunDir) -> list[str]:
    files = (run.dataset / "data").glob("*.parquet")
    return sorted(row for file in files for row in pq.read_table(file)["prompt_id"].to_pylist())


def test_runs_in_folders_of_one_name_and_a_run_decided_again(tmp_path: Path) -> None:
    config = small_config(label={"labelers": [VERIFIER]})
    other = small_config(label={"labelers": [VERIFIER]}, seed=4, sample={"n": 4, "max_tokens": 40})
    runs = [run_small(tmp_path / "a" / "run", config), run_small(tmp_path / "b" / "run", other)]
    assert held(runs[0]) != held(runs[1])
    for run in runs:
        assert loaded(run, tmp_path / "cache") == held(run)
    before = held(runs[0])
    with runs[0].lock():
        redecide(
            small_config(
                label={"labelers": [VERIFIER]},
                filter={"filters": [{"type": "length", "min_tokens": 9}]},
            ),
            runs[0],
        )
    assert held(runs[0]) != before
    assert loaded(runs[0], tmp_path / "cache") == held(runs[0])
