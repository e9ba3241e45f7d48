"""A run whose directory is on an object store: killed, taken up elsewhere, read by all commands."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import prefloop
from prefloop.data.errors import PrefloopError
from prefloop.data.storage.lease import Lease, LeaseTaken
from prefloop.data.storage.objects import Objects
from prefloop.pipeline.remote.door import local_path
from prefloop.pipeline.run.run_dir import RunDir
from tests.helpers.paths import ROOT
from tests.helpers.runs import VERIFIER, small_config
from tests.helpers.servers import Handler, faulty_server, good

PROMPTS = [f"Say {number} in one word, whatever it is." for number in range(24)]


def answers(handler: Handler) -> None:
    """A policy that answers by the prompt and by the seed."""
    number = handler.body["messages"][-1]["content"].split()[1]
    seed = int(handler.body.get("seed") or 0)
    good(f"{number} " + "word " * (seed % 5 + 1))(handler)


def config_of(url: str, folder: Path) -> dict[str, Any]:
    rows = folder / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in PROMPTS))
    return {
        "seed": 5,
        "block_size": 4,
        "blocks_in_flight": 1,
        "policy": "served",
        "engines": {"server": {"type": "openai", "base_url": url, "max_concurrency": 4}},
        "prompts": {
            "train": {"path": str(rows)},
            "heldout_share": 0.0,
            "near_duplicates": {"enabled": False},
        },
        "sample": {"engine": "server", "n": 3, "max_tokens": 20},
        "label": {"labelers": [{"type": "verifier", "function": "tests.helpers.functions:longer"}]},
        "filter": {"filters": [{"type": "identical"}]},
    }


def started(config: Path, address: str, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "prefloop", "run", str(config), "--run-dir", address]
    return subprocess.Popen(
        [*command, "--no-check"], cwd=ROOT, text=True, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )  # fmt: skip


def dataset_of(root: Path) -> dict[str, bytes]:
    folder = root / "dataset" / "data"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_on_another_machine(any_bucket: str, tmp_path: Path) -> None:
    """Byte for byte, and what was committed before the kill is not asked for again."""
    address = f"{any_bucket}/teams/run"
    with faulty_server(answers) as server:
        raw = config_of(server.url, tmp_path)
        unkilled = prefloop.run(raw, run_dir=tmp_path / "local", check=False)
        asked = len(server.requests)
        expected = dataset_of(unkilled.path)
        server.requests.clear()

        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(raw))
        first = started(file, address, tmp_path / "one")
        third = "round-000/candidate/part-00002.parquet"
        while not Objects(address).find(third):
            assert first.poll() is None, first.communicate()
        first.send_signal(signal.SIGKILL)
        first.wait()
        done = len(Objects(address).list("round-000/candidate"))
        before = len(server.requests)

        second = started(file, address, tmp_path / "two")
        said, wrong = second.communicate()
        assert second.returncode == 0, wrong
        again = len(server.requests) - before
        assert again <= asked * (6 - done) / 6

    assert f"{address}/dataset" in said
    assert dataset_of(local_path(address)) == expected
    names = [one.name for one in Objects(address).walk()]
    assert not [one for one in names if one.startswith("lock/") and "staged" in one]
    assert "lock/changes.json" not in names


@pytest.mark.slow
def test_one_run_is_worked_on_by_one_process(bucket: str, tmp_path: Path) -> None:
    address = f"{bucket}/run"
    lease = Lease(Objects(address))
    lease.take()
    with faulty_server(answers) as server:
        raw = config_of(server.url, tmp_path)
        with pytest.raises(LeaseTaken, match=f"{address} is in use by process {os.getpid()}"):
            prefloop.run(raw, run_dir=address, check=False)
        assert not server.requests
        lease.release()
        prefloop.run(raw, run_dir=address, check=False)
        assert server.requests


@pytest.mark.slow
def test_every_command_takes_the_address(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{bucket}/run"
    with faulty_server(answers) as server:
        raw = config_of(server.url, tmp_path)
        run = prefloop.run(raw, run_dir=address, check=False)
        rows = run.load_dataset("train").to_list()

        def elsewhere(name: str) -> None:
            """From here on, on a machine that has nothing."""
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

        elsewhere("status")
        assert "24" in str(prefloop.status(address))
        assert prefloop.status(address).run_dir == address
        assert prefloop.plan(raw, run_dir=address).as_dict()["total"]["requests"] == 72
        whole = len(rows) + len(run.load_dataset("test"))
        assert prefloop.audit(address).rows == whole
        assert prefloop.audit(f"{address}/dataset").rows == len(rows)
        assert prefloop.agreement(address)
        assert prefloop.view(address, html=tmp_path / "pairs.html").stat().st_size > 1000
        exported = prefloop.export(address, to="openai", out=tmp_path / "exported")
        assert exported.as_dict()
        assert prefloop.queue(address, tmp_path / "queue.csv", n=3) == 3
        before = len(server.requests)
        again = prefloop.run(raw, run_dir=address, check=False)
        assert again.load_dataset("train").to_list() == rows
        assert len(server.requests) == before

        elsewhere("by the address")
        assert prefloop.Run(Path(address)).load_dataset("train").to_list() == rows
        assert address in str(prefloop.Run(Path(address)))

        elsewhere("report")
        Objects(address).delete("report.html")
        prefloop.report(address)
        assert Objects(address).find("report.html")

        elsewhere("relabel")
        other = {"type": "verifier", "name": "again", "function": "tests.helpers.functions:longer"}
        prefloop.relabel(address, {"labelers": [other]}, name="again")
        elsewhere("relabelled")
        folder = local_path(address) / "relabels" / "again"
        assert RunDir(folder).round(0).votes.rows() > 0
        assert prefloop.status(f"{address}/relabels/again")


@pytest.mark.slow
def test_policies_and_people_go_by_the_address_too(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{bucket}/run"
    raw = small_config(
        label={"labelers": [VERIFIER]}, train={"method": "dpo", "batch_size": 8}
    ).model_dump(mode="json")
    prefloop.run(raw, run_dir=address, check=False)

    def elsewhere(name: str) -> Path:
        """From here on, on a machine that has nothing; a folder there."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return tmp_path / f"{name}-out"

    compared = prefloop.compare(
        f"{address}:0", "embedded:policy", raw, out=elsewhere("compare"), kl=False
    ).as_dict()
    assert compared["policy"] == f"{address}:0"
    assert compared["figures"]
    for wrong in (f"{address}:7", f"{address}/nothing"):
        with pytest.raises(PrefloopError) as problem:
            prefloop.compare(wrong, "embedded:policy", raw, out=elsewhere("compare"))
        assert wrong in str(problem.value)
        assert str(tmp_path) not in str(problem.value)
    options = {"base": "embedded:policy", "config": {"batch_size": 8}}
    for data in (address, f"{address}/dataset"):
        trained = prefloop.train(data, method="dpo", out=elsewhere("train") / data[-3:], **options)
        assert trained.as_dict()["examples"] > 0
    again = prefloop.train(
        address,
        method="dpo",
        out=elsewhere("base"),
        **(options | {"base": f"{address}/round-000/policy"}),
    )
    assert again.as_dict()["examples"] > 0
    elsewhere("publish")
    sent = prefloop.publish(address, "org/name", license="mit", dry_run=True)
    assert sent.as_dict()["files"]
    with pytest.raises(PrefloopError, match=f"{address} keeps no policy"):
        prefloop.publish(address, "org/name", license="mit", policy=True, dry_run=True)
    table = elsewhere("queue").with_suffix(".csv")
    assert prefloop.queue(address, table, n=4) == 4
    labels = tmp_path / "labels.csv"
    found = pd.read_csv(table, dtype=str)
    found.assign(verdict="1").to_csv(labels, index=False)
    elsewhere("calibrate")
    prefloop.calibrate(address, labels)


@pytest.mark.slow
def test_datasets_reads_it_from_the_store(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # it counts stores to the hub
    address = f"{bucket}/run"
    with faulty_server(answers) as server:
        run = prefloop.run(config_of(server.url, tmp_path), run_dir=address, check=False)
    options = {
        "key": os.environ["AWS_ACCESS_KEY_ID"],
        "secret": os.environ["AWS_SECRET_ACCESS_KEY"],
        "client_kwargs": {
            "endpoint_url": os.environ["AWS_ENDPOINT_URL"], "region_name": "us-east-1",
        },
    }  # fmt: skip
    files = {split: f"{address}/dataset/data/{split}-*.parquet" for split in ("train", "test")}
    for given in (options, None):  # told, or found in the environment
        found = datasets.load_dataset(
            "parquet", data_files=files, storage_options=given,
            cache_dir=str(tmp_path / str(bool(given))),
        )  # fmt: skip
        for split in files:
            assert found[split].to_list() == run.load_dataset(split).to_list()


def test_where_nothing_is_that_is_said(bucket: str) -> None:
    with pytest.raises(PrefloopError, match=f"{bucket}/nothing: nothing is there: check the addr"):
        prefloop.status(f"{bucket}/nothing")
