"""Workers of a cluster on a run whose directory is on an object store: they share no folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import prefloop
from prefloop.data.errors import PrefloopError
from prefloop.data.storage.objects import Objects
from prefloop.pipeline.executors.attempts_board import Board
from prefloop.pipeline.remote.door import local_path
from prefloop.pipeline.run import spans
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.deciding import deciding_jobs
from tests.helpers.paths import ROOT
from tests.helpers.runs import run_small, small_config
from tests.helpers.servers import Handler, faulty_server
from tests.pipeline.executors.ray_cluster import QUIET, kill, ray_cluster, workers
from tests.pipeline.executors.test_ray import (
    BLOCK,
    PROMPTS,
    Script,
    asked,
    config,
    expected,
    is_judged,
    no_worker_is_left,
    prompts,
    repeated,
    scripted,
    shards,
)

__all__ = ["expected", "prompts"]  # fixtures


def test_a_board_counts_tries_and_keeps_the_last_reason() -> None:
    board = Board()
    assert [board.begin_try(3), board.begin_try(3), board.begin_try(4)] == [1, 2, 1]
    board.say(3, 1, "no memory")
    assert (board.count(3), board.count(5), board.reason(3), board.reason(4)) == (
        2, 0, "no memory", "",
    )  # fmt: skip
    board.end()
    assert board.is_over()
    assert board.begin_try(3) == 0


@pytest.fixture
def cluster(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Its nodes have working copies of their own, as other machines have."""
    assert bucket
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nodes"))
    with ray_cluster() as running:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "driver"))
        yield running


def of_driver(address: str) -> RunDir:
    return RunDir(local_path(address))


@pytest.mark.slow
@pytest.mark.timeout(900, method="thread")
def test_a_run_on_a_store_is_that_of_one_process(
    tmp_path: Path, bucket: str, prompts: Path, expected: dict[str, bytes], cluster: Any
) -> None:
    """A worker is killed while it samples; then a block ends all workers that try it."""
    address = f"{bucket}/run"
    first = Script(lambda body: "Number 09" in asked(body), lambda: kill(workers()[0]))
    poison = Script(
        lambda body: is_judged(body) and "Number 10" in asked(body),
        lambda: [kill(one) for one in workers()],
        times=9,
    )

    def reply(handler: Handler) -> None:
        first.before(handler.body)
        poison.before(handler.body)
        scripted(handler.body)(handler)

    settings = {"type": "ray", "address": cluster.address, "attempts": 2}
    with faulty_server(reply) as server:
        wanted = config(server.url, prompts, cluster, executor=settings)
        with pytest.raises(PrefloopError, match="round 0 label: block 2 ended 2 workers"):
            prefloop.run(wanted, run_dir=address, check=False)
        assert no_worker_is_left()
        candidates = of_driver(address).round(0).candidates.indices()
        assert candidates == [*range(PROMPTS // BLOCK)]
        sampled = [one for one in server.requests if not is_judged(one[2])]
        assert 0 < len(sampled) - len({str(one[2]) for one in sampled}) <= 2 * BLOCK * 2
    with faulty_server(lambda handler: scripted(handler.body)(handler)) as server:
        wanted = config(server.url, prompts, cluster)
        prefloop.run(wanted, run_dir=address, check=False)
        assert repeated(server) == 0
    assert shards(of_driver(address)) == expected
    stored = {one.name for one in Objects(address).walk() if one.name.endswith(".parquet")}
    assert stored == expected.keys()
    copies = [*(tmp_path / "nodes").rglob("round-000/candidate/part-*.parquet")]
    assert copies, "workers read what is on the store, in a copy of their own"
    assert not [*(tmp_path / "driver").rglob("attempts")]
    assert no_worker_is_left()


@pytest.mark.slow
@pytest.mark.timeout(900, method="thread")
def test_a_killed_process_leaves_no_worker_and_the_same_command_goes_on(
    tmp_path: Path, bucket: str, prompts: Path, expected: dict[str, bytes], cluster: Any
) -> None:
    driver: list[subprocess.Popen[bytes]] = []
    script = Script(
        lambda body: is_judged(body) and "Number 13" in asked(body),
        lambda: os.kill(driver[0].pid, signal.SIGKILL),
    )
    address, file = f"{bucket}/run", tmp_path / "config.yaml"
    with faulty_server(script) as server:
        wanted = config(server.url, prompts, cluster)
        file.write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
        command = [*(sys.executable, "-m", "prefloop", "run", str(file), "--no-check"),
                   *("--run-dir", address)]  # fmt: skip
        for ends_with in (-signal.SIGKILL, 0):
            with (tmp_path / "log").open("w") as log:
                driver.insert(0, subprocess.Popen(
                    command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | QUIET
                ))  # fmt: skip
            assert driver[0].wait(400) == ends_with, (tmp_path / "log").read_text()
            assert no_worker_is_left()
            votes = of_driver(address).round(0).votes.indices()
            assert (len(votes) < PROMPTS // BLOCK) is bool(ends_with)
        # Two blocks of each of two workers, votes in both orders.
        assert 0 < repeated(server) <= 2 * 2 * BLOCK * 2
    assert shards(of_driver(address)) == expected


@pytest.mark.slow
@pytest.mark.timeout(900, method="thread")
def test_pairs_of_a_run_on_a_store_are_decided_by_workers(
    tmp_path: Path, bucket: str, prompts: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they decide comes back, and is balanced by them again."""
    monkeypatch.setattr(spans, "_PROMPTS", 2 * BLOCK)
    filters = {"filters": [{"type": "length_balance", "max_share_longer": 0.5}],
               "strategy": {"type": "all"}}  # fmt: skip
    with faulty_server(lambda handler: scripted(handler.body)(handler)) as server:
        wanted = config(server.url, prompts, filter=filters, sample={"n": 4, "max_tokens": 8})
        local = run_small(tmp_path / "local", wanted)
        for name in ("decide_blocks", "apply_balance"):
            monkeypatch.setattr(deciding_jobs, name, None)  # in this process
        wanted = config(
            server.url, prompts, cluster, filter=filters, sample={"n": 4, "max_tokens": 8}
        )
        prefloop.run(wanted, run_dir=f"{bucket}/run", check=False)
    found = of_driver(f"{bucket}/run")
    assert shards(found) == shards(local)
    assert len(found.round(0).decisions.paths()) == PROMPTS // BLOCK // 2
    stored = {one.name for one in Objects(f"{bucket}/run").walk()}
    assert {name for name in stored if name.endswith(".parquet")} == shards(local).keys()
    assert no_worker_is_left()


@pytest.mark.slow
@pytest.mark.timeout(900, method="thread")
def test_workers_have_the_policies_of_a_run_on_a_store(
    tmp_path: Path, bucket: str, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy is trained here, and answers and is read there."""
    changes: dict[str, Any] = {
        "label": {"labelers": [
            {"type": "verifier", "name": "v", "function": "tests.helpers.served:letters"}
        ]},
        "train": {"learning_rate": 1e-4, "batch_size": 4},
    }  # fmt: skip
    local = shards(run_small(tmp_path / "local", small_config(**changes)))
    monkeypatch.setattr("prefloop.pipeline.run.models.loaded_reader", None)
    monkeypatch.setattr("prefloop.pipeline.run.models.build_engine", None)
    on_ray = {"type": "ray", "address": cluster.address}
    address = f"{bucket}/run"
    prefloop.run(small_config(**changes, executor=on_ray), run_dir=address, check=False)
    found = shards(of_driver(address))
    assert [name for name in local if found.get(name) != local[name]] == []
    assert found.keys() == local.keys()
    assert os.environ["XDG_CACHE_HOME"] == str(tmp_path / "driver")
    assert [*(tmp_path / "nodes").rglob("round-000/policy/model.safetensors")]
    assert no_worker_is_left()
