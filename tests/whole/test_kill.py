"""kill -9 at twenty random moments of a run: what is resumed ends as what was never killed.

One run is killed over and over, at moments drawn by a fixed seed from the time an unkilled run
takes, and each time resumed by the same command. Children are forked from a server that has the
libraries loaded, so that the kills fall into the run and not into imports.
"""

import json
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from prefloop.data.hashing import folder_revision
from prefloop.pipeline.run.run_dir import EVALUATION, RunDir
from tests.helpers.processes.forked import forked
from tests.helpers.runs import dataset_rows

KILLS = 20

CONFIG = {
    "seed": 7,
    "rounds": 2,
    "block_size": 8,
    "policy": "embedded:policy",
    "engines": {"default": {"type": "transformers", "threads": 1}},
    "prompts": {
        "train": {"path": "embedded:prompts", "limit": 48},
        "heldout": {"path": "embedded:heldout", "limit": 8},
    },
    "sample": {"n": 3, "max_tokens": 32},
    "label": {
        "labelers": [
            {
                "type": "judge", "name": "judge", "judge": "pairwise_short",
                "model": "embedded:judge",
            },
            {"type": "verifier", "name": "verifier"},
        ]
    },
    "filter": {
        "strategy": {"type": "best_vs_worst"},
        "filters": [
            {"type": "identical"},
            {"type": "margin", "min": 0.1},
            {"type": "length_balance", "max_share_longer": 0.55},
        ],
    },
    "train": {"learning_rate": 1e-4, "batch_size": 4},
}  # fmt: skip


def run_whole(config: str, directory: str) -> None:
    """In the child: one whole `prefloop run`."""
    import sys

    from prefloop.pipeline.commands.app import main

    sys.argv = ["prefloop", "run", config, "--run-dir", directory]
    main()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_twenty_times_ends_with_the_same_dataset(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))

    def child(directory: Path) -> BaseProcess:
        return forked(run_whole, str(config), str(directory))

    calm = tmp_path / "calm"
    first = child(calm)  # starts the fork server, which loads the libraries
    first.join()
    assert first.exitcode == 0
    expected = dataset_rows(RunDir(calm))
    assert sum(map(len, expected.values())) > 20
    began = time.monotonic()
    second = child(tmp_path / "timed")
    second.join()
    whole = time.monotonic() - began
    assert dataset_rows(RunDir(tmp_path / "timed")) == expected, "two unkilled runs differ"

    killed = tmp_path / "killed"
    moments = random.Random(20261120)
    kills = 0
    # Each kill comes after a small random part of the run's time, so that they spread over it.
    while kills < KILLS:
        process = child(killed)
        process.join(timeout=0.3 + moments.random() * whole * 0.25)
        if process.exitcode is not None:
            assert process.exitcode == 0
            killed = tmp_path / f"killed-{kills}"  # it got through: kill another run
            continue
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    last = child(killed)
    last.join()
    assert last.exitcode == 0
    for directory in {killed, *tmp_path.glob("killed*")}:
        assert dataset_rows(RunDir(directory)) == expected
        for index in range(CONFIG["rounds"]):  # also after kills in training and in evaluation
            mine, theirs = (RunDir(one).round(index) for one in (directory, calm))
            assert folder_revision(mine.policy) == folder_revision(theirs.policy)
            assert mine.metrics.read(EVALUATION) == theirs.metrics.read(EVALUATION)
        leftovers = [path for path in directory.rglob("*tmp*") if path.is_file()]
        for path in leftovers:  # of a killed writer; never read as a shard
            assert not path.name.startswith("part-")
        votes = [
            (row["pair_id"], row["labeler"], row["order"])
            for path in sorted((directory / "round-000" / "vote").glob("part-*.parquet"))
            for row in pq.read_table(path, columns=["pair_id", "labeler", "order"]).to_pylist()
        ]
        assert len(votes) == len(set(votes)), "a vote stands there twice"
    status = json.loads((killed / "prompts.json").read_text())
    assert (
        status["read"]
        == status["kept"] + status["heldout"] + status["dropped"] + status["quarantined"]
    )
