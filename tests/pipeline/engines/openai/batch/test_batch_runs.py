"""Whole runs that ask in batch jobs: few jobs, the same dataset, and nothing lost on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

import prefloop
from prefloop.pipeline.config import ConfigError, validate_config
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.run.status import collect_status
from tests.helpers.paths import ROOT
from tests.helpers.runs import dataset_rows, run_small
from tests.pipeline.engines.openai.batch.batch_server import batch_server

QUICK = {"gather_s": 0.3, "poll_s": 0.02, "max_poll_s": 0.05}


def answer(body):
    """Answers that differ by seed, and verdicts for the one that is first in the alphabet."""
    asked = str(body["messages"][-1]["content"])
    text = f"Answer {body['seed'] % 1000} to {asked[:40]}"
    if "<answer_a>" in asked:
        first, second = (
            asked.split(f"<answer_{side}>")[-1].split(f"</answer_{side}>")[0] for side in "ab"
        )
        text = json.dumps({"rationale": "so", "verdict": "A" if first < second else "B"})
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}


def raw_config(url, root, mode, **sections):
    engine = {
        "type": "openai", "base_url": url, "mode": mode, "batch": QUICK, "max_backoff_s": 0.02,
        "price_per_million_prompt_tokens": 1.0, "price_per_million_completion_tokens": 1.0,
    }  # fmt: skip
    return {
        "run_dir": str(root), "policy": "m", "block_size": 2,
        "engines": {"default": engine},
        "prompts": {"train": {"path": "embedded:prompts", "limit": 12}, "heldout_share": 0},
        "sample": {"n": 2, "max_tokens": 16},
        "label": {"labelers": [{"type": "judge", "judge": "pairwise_rationale", "model": "j"}]},
        "filter": {"filters": [], "strategy": {"type": "all"}},
    } | sections  # fmt: skip


def config(*args, **sections):
    return validate_config(raw_config(*args, **sections), "test")


def test_a_stage_is_one_job_over_all_blocks_and_the_dataset_is_that_of_mode_live(tmp_path):
    with batch_server(answer=answer) as server:
        jobs = run_small(tmp_path / "jobs", config(server.url, tmp_path / "jobs", "batch"))
        assert [len(asked) for asked in server.asked] == [24, 24]
        assert server.live == []
        live = run_small(tmp_path / "live", config(server.url, tmp_path / "live", "live"))
        assert len(server.live) == 48
        found, wanted = dataset_rows(jobs), dataset_rows(live)
        assert sum(map(len, wanted.values())) == 12
        assert found == wanted
        costs = [collect_status(run).usage.cost for run in (jobs, live)]
        assert costs == [pytest.approx(24 * 15e-6), pytest.approx(48 * 15e-6)]
        # The mode is no part of what a run is: it goes on in the other one.
        run_small(jobs.root, config(server.url, tmp_path / "jobs", "live"))
        assert (len(server.jobs), len(server.live)) == (2, 48)


def test_no_more_prompts_are_worked_on_at_once_than_the_key_says(tmp_path):
    with batch_server(answer=answer) as server:
        bounded = config(server.url, tmp_path, "batch")
        raw = bounded.model_dump(mode="json", by_alias=True)
        raw["engines"]["default"]["batch"]["max_prompts"] = 4
        run_small(tmp_path / "run", validate_config(raw, "test"))
        assert all(len(asked) <= 8 for asked in server.asked)
        assert len(server.jobs) >= 6


def test_a_run_that_is_ended_leaves_its_job_and_the_same_command_takes_it_up(tmp_path):
    path, root = tmp_path / "prefloop.yaml", tmp_path / "run"
    with batch_server(answer=answer, looks=100_000) as server:
        path.write_text(yaml.safe_dump(raw_config(server.url, root, "batch")))
        command = [sys.executable, "-m", "prefloop", "run", "--no-check", str(path)]
        process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        at_work = threading.Event()

        def seen(handler):
            at_work.set()
            return False

        server.faults["GET /batches/"] = [lambda _: False, seen]
        assert at_work.wait(120)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "1 job of 24 requests, 1 of them done, goes on there" in said
        assert "job batch_0: in_progress, 1 of 24 requests done; asked again in" in said
        status = prefloop.status(root)
        assert "1 batch job open, 1 of 24 requests done when last asked" in str(status)
        server.looks = server.jobs["batch_0"].looks = 0
        run = run_small(root, config(server.url, root, "batch"))
        assert len(server.jobs) == 2
    assert collect_status(run).jobs == ()
    assert sum(map(len, dataset_rows(run).values())) == 12


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"executor": {"type": "ray"}}, "set executor.type: local, or mode: live"),
        ({"train": {"lora": {}}, "rounds": 2}, "which is for fixed models"),
        ({"train": {"online": True}, "evaluate": {"enabled": False}}, "at every step"),
    ],
)
def test_where_it_cannot_serve_it_is_refused(sections, said):
    with pytest.raises(ConfigError, match=said):
        config("http://127.0.0.1:1/v1", Path("run"), "batch", **sections)


def test_one_round_from_a_fixed_policy_may_ask_in_jobs():
    one = {"train": {}, "evaluate": {"enabled": False}}
    assert config("http://127.0.0.1:1/v1", Path("run"), "batch", **one).train


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cache": False}, "response cache: set cache: true"),
        ({"endpoints": [{"base_url": "http://a/v1"}], "base_url": None}, "sends its jobs to one"),
    ],
)
def test_what_an_engine_cannot_do_in_jobs_is_refused(settings, said):
    raw = raw_config("http://127.0.0.1:1/v1", Path("run"), "batch")
    raw["engines"]["default"] |= settings
    raw["engines"]["default"] = {
        k: v for k, v in raw["engines"]["default"].items() if v is not None
    }
    with pytest.raises(ConfigError, match=said):
        validate_config(raw, "test")


def test_a_check_asks_at_once_and_looks_whether_there_are_jobs(tmp_path):
    with batch_server(answer=answer) as server:
        found = prefloop.check(config(server.url, tmp_path / "a", "batch")).facts
        told = [one.says for one in found.lines if one.subject == "engines.default"]
        assert told == ["the server lists its batch jobs"]
        assert server.jobs == {}
        assert server.live
        server.faults["GET /batches"] = [lambda handler: handler.send(404, {}) or True]
        found = prefloop.check(config(server.url, tmp_path / "b", "batch")).facts
        assert any("has no batch API" in str(one) for one in found.failures)
        live = prefloop.check(config(server.url, tmp_path / "c", "live")).facts
        assert "batch" not in str(live.lines)


def test_a_plan_shows_both_prices_and_counts_the_one_that_is_set(tmp_path):
    plans = {
        mode: prefloop.plan(config("http://127.0.0.1:1/v1", tmp_path, mode))
        for mode in ("live", "batch")
    }
    [live], [batch] = (plan.facts.prices for plan in plans.values())
    assert (live.live, live.batch) == (batch.live, batch.batch)
    assert plans["live"].facts.cost == pytest.approx(live.live)
    assert plans["batch"].facts.cost == pytest.approx(live.live / 2)
    assert "in batch jobs as set (mode: batch)" in " ".join(str(plans["batch"]).split())
    assert "the server may take 24h" in " ".join(str(plans["batch"]).split())


def test_a_finished_run_has_no_open_jobs(tmp_path):
    assert collect_status(RunDir(tmp_path)).jobs == ()
