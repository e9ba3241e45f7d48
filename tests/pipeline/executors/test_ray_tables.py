"""Pairs are decided, and the dataset's files made, by workers of a cluster as in one process,
whatever of the cluster is killed meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
import yaml

from benchmarks.scale import make_up
from prefloop.data.schemas import VOTE
from prefloop.data.shards import read_json_object
from prefloop.pipeline.config import RunConfig, validate_config
from prefloop.pipeline.executors.block_task import ExecutorFailed
from prefloop.pipeline.executors.local import LocalExecutor
from prefloop.pipeline.run import spans
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.dataset import volumes
from prefloop.pipeline.stages.deciding import deciding_jobs
from prefloop.pipeline.stages.filter import filter_round
from prefloop.pipeline.stages.write import write_round
from prefloop.pipeline.work import executor_of
from tests.helpers.paths import ROOT
from tests.pipeline.executors.ray_cluster import (
    QUIET,
    add_node,
    kill,
    ray_cluster,
    tries_of_stages,
    until,
    workers,
)
from tests.pipeline.executors.test_ray import no_worker_is_left, shards

# By a thread: Ray may hang where no signal of Python's is heard.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900, method="thread")]

PROMPTS = 16
"""Of a block."""
BLOCKS = 160
SPAN = 2
"""Blocks of a span."""
VOLUME = 2
"""Spans of a volume."""
NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster() as running:
        yield running


def config(cluster: Any = None, **changes: Any) -> RunConfig:
    """Three labelers and people in a jury that is fitted, and a balance of the round; on
    ``cluster``, or here where there is none."""
    raw: dict[str, Any] = {
        "prompts": {"train": {"path": "made-up.jsonl"}},
        "sample": {"system_prompt": "Be brief."},
        "label": {
            "labelers": [{"type": "verifier", "name": name} for name in NAMES],
            "jury": {"rule": "dawid_skene"},
            "people": "jury",
        },
        "filter": {
            "strategy": {"type": "best_vs_worst"},
            "filters": [
                {"type": "length_ratio", "max": 4.0},
                {"type": "length_balance", "max_share_longer": 0.5},
            ],
        },
    }
    if cluster is not None:
        raw["executor"] = {"type": "ray", "address": cluster.address}
    return validate_config(raw | changes, "test")


def labelled(root: Path, blocks: int = BLOCKS) -> RunDir:
    """A round with votes of three labelers, who differ, and on some blocks of a person."""
    run = RunDir(root)
    make_up(run, blocks * PROMPTS * 4, block=PROMPTS)
    votes = run.round(0).votes
    for index in votes.indices():
        rows = votes.read(index).to_pylist()
        names = [*NAMES, *(["human:ann"] if index % 7 == 3 else [])]
        found = [said_by(name, row) for name in names for row in rows]
        votes.replace(index, pa.Table.from_pylist(found, VOTE))
    return run


def said_by(name: str, row: dict[str, Any]) -> dict[str, Any]:
    drawn = hashlib.sha256(f"{name} {row['pair_id']}".encode()).digest()[0]
    if drawn < 60 and name != "one":
        a = row["preference"] == "b"
        row = row | {"preference": "a" if a else "b", "p_a": float(a)}
    return row | {"labeler": name}


async def filter_and_write(config: RunConfig, run: RunDir) -> None:
    """Both stages on small spans. On a cluster this process decides and makes nothing."""
    with ExitStack() as patched:
        patched.enter_context(patch.object(spans, "_PROMPTS", SPAN * PROMPTS))
        patched.enter_context(patch.object(volumes, "SPANS", VOLUME))
        if config.executor.type == "ray":
            for name in ("decide_blocks", "apply_balance", "count_votes"):
                patched.enter_context(patch.object(deciding_jobs, name, None))
            for name in ("triples_of", "unpaired_of", "EveryAnswerFiles"):
                patched.enter_context(patch.object(volumes, name, None))
        models = Models(config, cache=run.cache)
        executor = executor_of(config, run, models)
        context = replace(RunContext.of(config, run).round(0), executor=executor)
        try:
            with run.lock():
                await filter_round(context, config.label, config.filter)
                await write_round(context, test_share=0.2, unpaired=True)
        finally:
            await executor.aclose()
            await models.release()


def all_of(run: RunDir) -> dict[str, Any]:
    """Every shard and file of the dataset, and what is said of them."""
    folder = run.round(0)
    assert not [*run.root.rglob(".dataset")]
    assert not folder.unbalanced.folder.exists()
    assert not (run.root / "attempts").exists()
    said = {path.name: read_json_object(path, "") for path in (folder.jury, folder.written)}
    return shards(run) | said


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All of a run in this process."""
    run = labelled(tmp_path_factory.mktemp("expected"))
    asyncio.run(filter_and_write(config(), run))
    found = all_of(run)
    kinds = {name.rpartition("/")[0] for name in found}
    assert kinds >= {"round-000/decision", "round-000/triple", "dataset/data", "dataset/unpaired",
                     "dataset/candidates", "dataset/votes"}  # fmt: skip
    assert len(run.round(0).decisions.paths()) == BLOCKS // SPAN
    assert {*found["jury.json"]["confusions"]} == {*NAMES, "human:ann"}
    reasons = run.round(0).decisions.table(["reason"])["reason"].unique().to_pylist()
    assert "length_balance" in reasons
    return found


def files_come(run: RunDir, pattern: str, count: int) -> bool:
    """Whether so many files come to be there by their pattern."""
    return until(lambda: len([*run.root.glob(pattern)]) >= count, 300)


class Killer(threading.Thread):
    """Does each of ``deeds`` once there are so many files by its pattern in the run."""

    def __init__(self, run: RunDir, deeds: list[tuple[str, int, Callable[[], None]]]) -> None:
        super().__init__()
        self.run_dir, self.deeds, self.done = run, deeds, 0

    def run(self) -> None:
        for pattern, count, do in self.deeds:
            if not files_come(self.run_dir, pattern, count):
                return
            do()
            self.done += 1


def test_killed_workers_and_nodes_leave_decisions_and_dataset_as_they_are(
    tmp_path: Path, expected: dict[str, Any], cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One while pairs are decided, a node while they are balanced, one while files are made."""
    tries = tries_of_stages(monkeypatch)
    run = labelled(tmp_path / "ray")

    def kill_node() -> None:
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    killer = Killer(
        run,
        [
            ("round-000/decision-unbalanced/part-*", 5, lambda: kill(workers()[0])),
            ("round-000/decision/part-*", 5, kill_node),
            ("round-000/.dataset/*/part-*", 1, lambda: kill(workers()[0])),
        ],
    )
    killer.start()
    asyncio.run(filter_and_write(config(cluster), run))
    killer.join()
    add_node(cluster)
    assert killer.done == 3
    assert all_of(run) == expected
    units = [BLOCKS // SPAN] * 3 + [BLOCKS // SPAN // VOLUME]
    assert [count >= least for count, least in zip(tries, units, strict=True)] == [True] * 4
    # Where a process dies it has a unit in work, and one of which nobody heard that it is done.
    assert sum(tries) <= sum(units) + 3 * 2
    assert no_worker_is_left()


DRIVING = """
import asyncio, sys
from pathlib import Path
import yaml
from prefloop.pipeline.config import validate_config
from prefloop.pipeline.run.run_dir import RunDir
from tests.pipeline.executors.test_ray_tables import filter_and_write
config = validate_config(yaml.safe_load(Path(sys.argv[1]).read_text()), "test")
asyncio.run(filter_and_write(config, RunDir(Path(sys.argv[2]))))
"""


def test_a_process_killed_in_each_pass_leaves_nothing_running_and_goes_on(
    tmp_path: Path, expected: dict[str, Any], cluster: Any
) -> None:
    run, file = labelled(tmp_path / "ray"), tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config(cluster).model_dump(mode="json")))
    there: list[int] = []
    for pattern, count in (
        ("round-000/decision-unbalanced/part-*", 5),
        ("round-000/decision/part-*", 5),
        ("round-000/.dataset/*/part-*", 1),
    ):
        with (tmp_path / "log").open("w") as log:
            driver = subprocess.Popen(
                [sys.executable, "-c", DRIVING, str(file), str(run.root)],
                cwd=ROOT, stdout=log, stderr=log, env=os.environ | QUIET,
            )  # fmt: skip
        found = files_come(run, pattern, count)
        os.kill(driver.pid, signal.SIGKILL)
        assert driver.wait(60) == -signal.SIGKILL, (tmp_path / "log").read_text()
        assert found, (tmp_path / "log").read_text()
        assert no_worker_is_left()
        there.append(len([*run.root.glob(pattern)]))
    assert there[0] < BLOCKS // SPAN
    assert there[1] < BLOCKS // SPAN
    assert there[2] < BLOCKS // SPAN // VOLUME
    made = {path: path.stat().st_mtime_ns for path in run.round(0).triples.paths()}
    asyncio.run(filter_and_write(config(cluster), run))
    assert all_of(run) == expected
    assert {path: path.stat().st_mtime_ns for path in made} == made, "nothing is made twice"
    assert no_worker_is_left()


def test_blocks_that_kill_their_workers_are_named_and_the_rest_is_kept(
    tmp_path: Path, cluster: Any
) -> None:
    """Answers so long that comparing them takes as long as it takes to kill who does."""
    filters = {"filters": [{"type": "near_duplicate_answers", "max_similarity": 0.01}]}
    runs = [labelled(tmp_path / name, blocks=8) for name in ("local", "ray")]
    for run in runs:
        candidates = run.round(0).candidates
        rows = candidates.read(5).to_pylist()
        for row in rows[:4]:
            row["text"] = " ".join([row["text"]] * (250_000 // len(row["text"])))
        candidates.replace(5, pa.Table.from_pylist(rows, candidates.schema))
    asyncio.run(filter_and_write(config(filter=filters), runs[0]))
    run = runs[1]
    stopped = threading.Event()

    def kill_who_tries() -> None:
        seen: set[Path] = set()
        while not stopped.wait(0.02):
            for path in run.root.glob("attempts/*/4/*"):
                # All workers are killed: another has done something by then that is to be kept.
                if path not in seen and run.round(0).decisions.indices():
                    seen.add(path)
                    for one in workers():
                        kill(one)

    killer = threading.Thread(target=kill_who_tries)
    killer.start()
    settings = {"type": "ray", "address": cluster.address, "attempts": 2}
    try:
        told = pytest.raises(ExecutorFailed, match="round 0 filter: blocks 4 to 5 ended 2 workers")
        with told as raised:
            asyncio.run(filter_and_write(config(filter=filters, executor=settings), run))
    finally:
        stopped.set()
        killer.join()
    assert "raise executor.cpus" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert no_worker_is_left()
    there = run.round(0).decisions.indices()
    assert there
    assert not {4, 5}.intersection(there)
    asyncio.run(filter_and_write(config(cluster, filter=filters), run))
    assert all_of(run) == all_of(runs[0])


def test_one_span_is_worked_on_where_it_is(tmp_path: Path, cluster: Any) -> None:
    """Workers would take longer to begin than it takes."""
    run = labelled(tmp_path / "ray", blocks=SPAN)
    opened = LocalExecutor.open
    with patch.object(LocalExecutor, "open", autospec=True, side_effect=opened) as here:
        asyncio.run(_only_filtered(config(cluster), run))
    assert here.call_count == 3  # votes are counted, pairs decided, decisions balanced
    assert run.round(0).decisions.indices() == [*range(SPAN)]


async def _only_filtered(config: RunConfig, run: RunDir) -> None:
    models = Models(config, cache=run.cache)
    executor = executor_of(config, run, models)
    context = replace(RunContext.of(config, run).round(0), executor=executor)
    await filter_round(context, config.label, config.filter)
    await executor.aclose()
    await models.release()
