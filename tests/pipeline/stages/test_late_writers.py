"""Several workers on one block, at once or one of them late: the first stands, and votes are about
the candidates that are there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from prefloop.data.quarantine import BadRow, quarantine_table
from prefloop.pipeline.config import RunConfig, validate_config
from prefloop.pipeline.loop import take_up
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.run.status import DONE, collect_status
from prefloop.pipeline.stages.lost_rows import AnswerBlock
from prefloop.pipeline.stages.prompts import draw_prompts
from tests.helpers.paths import ROOT
from tests.helpers.runs import run_small
from tests.helpers.servers import Handler, Reply, faulty_server, good
from tests.helpers.synthetic_run import write_run

BLOCKS = 3
WORKER = """
import asyncio, sys
from functools import partial
from pathlib import Path
from prefloop.pipeline.config import load_config
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.label import label_round
from prefloop.pipeline.stages.sample import sample_round

async def work(run):
    config = load_config(run.config)
    models = Models(config, cache=run.cache)
    context = RunContext.of(config, run).round(0)
    await sample_round(context, config.sample, models, len(context.folder.prompts.indices()))
    await label_round(context, config.label, partial(models.labelers, config.label.labelers))
    await models.release()

asyncio.run(work(RunDir(Path(sys.argv[1]))))
"""
"""What samples and labels without the lock of the run, as a worker of many does."""


def config(url: str, folder: Path) -> RunConfig:
    (folder / "judge").mkdir()
    (folder / "judge/judge.yaml").write_text("kind: pairwise\nparser: text\nmax_tokens: 50\n")
    (folder / "judge/prompt.jinja").write_text(
        "JUDGE {{ request }}\n{{ answer_a }}\n{{ answer_b }}"
    )
    rows = [json.dumps({"prompt": f"Number {n} is asked about."}) for n in range(2 * BLOCKS)]
    (folder / "prompts.jsonl").write_text("\n".join(rows))
    judge = {"type": "judge", "name": "j", "model": "m", "orders": "one",
             "judge": str(folder / "judge")}  # fmt: skip
    raw = {
        "seed": 1, "policy": "m", "block_size": 2, "blocks_in_flight": 1,
        "engines": {"default": {"type": "openai", "base_url": url, "cache": False}},
        "prompts": {"train": {"path": str(folder / "prompts.jsonl")}, "heldout_share": 0,
                    "near_duplicates": {"enabled": False}},
        "sample": {"n": 2, "max_tokens": 8},
        "label": {"labelers": [judge]},
        "filter": {"filters": [], "strategy": {"type": "all"}},
        "write": {"test_share": 0},
    }  # fmt: skip
    return validate_config(raw, "test")


def begun(folder: Path, wanted: RunConfig) -> RunDir:
    """A run whose prompts are drawn."""
    run = RunDir(folder / "run")
    with run.lock():
        _, _, context = take_up(wanted, run)
        draw_prompts(context.round(0), per_round=None, per_leg=None, block_size=2)
    return run


def worker(run: RunDir) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WORKER, str(run.root)], cwd=ROOT)


def is_judge(handler: Handler) -> bool:
    return "JUDGE" in str(handler.body["messages"][-1]["content"])


def answering(before: Callable[[Handler], str]) -> Reply:
    """A server that never gives one answer twice; ``before`` it does, what it says leads it."""
    number = count()

    def reply(handler: Handler) -> None:
        led = before(handler)
        verdict = "The first. [[A]]" if led != "late" else "The second. [[B]]"
        good(verdict if is_judge(handler) else f"{led} {next(number)}")(handler)

    return reply


def check_agreement(run: RunDir) -> None:
    """Every vote is about two candidates of its block, and every pair of them has its votes."""
    folder = run.round(0)
    for block in range(BLOCKS):
        ids = set(folder.candidates.read(block)["candidate_id"].to_pylist())
        votes = folder.votes.read(block)
        assert set(votes["a_id"].to_pylist() + votes["b_id"].to_pylist()) == ids
    sampled = [note["block"] for note in run.notes() if note["stage"] == "sample"]
    assert sorted(sampled) == list(range(BLOCKS))
    status = collect_status(run)
    assert status.state == DONE
    assert status.rounds[0].quarantined == {}


@pytest.mark.parametrize("stage", ["sample", "label"])
def test_a_paused_worker_that_wakes_changes_nothing(tmp_path: Path, stage: str) -> None:
    paused: list[int] = []

    def pause(handler: Handler) -> str:
        if paused and is_judge(handler) == (stage == "label"):
            os.kill(paused.pop(), signal.SIGSTOP)
            return "late"
        return "in time"

    with faulty_server(answering(pause)) as server:
        wanted = config(server.url, tmp_path)
        run = begun(tmp_path, wanted)
        late = worker(run)
        paused.append(late.pid)
        os.waitpid(late.pid, os.WUNTRACED)
        run_small(run.root, wanted)
        folder = run.round(0)
        written = [shards.table() for shards in (folder.candidates, folder.votes)]
        os.kill(late.pid, signal.SIGCONT)
        assert late.wait() == 0
    assert [shards.table() for shards in (folder.candidates, folder.votes)] == written
    assert all(text.startswith("in time") for text in written[0]["text"].to_pylist())
    check_agreement(run)


def test_workers_at_the_same_time_give_votes_on_one_set_of_answers(tmp_path: Path) -> None:
    with faulty_server(answering(lambda handler: "answer")) as server:
        wanted = config(server.url, tmp_path)
        run = begun(tmp_path, wanted)
        assert [each.wait() for each in [worker(run), worker(run)]] == [0, 0]
        run_small(run.root, wanted)
    check_agreement(run)


@pytest.mark.parametrize("moment", ["before", "between"])
def test_prompts_that_failed_are_those_of_the_answers_that_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Of two that answer a block, each could not answer another prompt."""
    run = write_run(tmp_path / "run", rounds=1, blocks=1)
    folder = run.round(0)
    prompts, candidates = folder.prompts.read(0), folder.candidates.read(0)
    block = AnswerBlock(run.answers(0), folder.quarantine("evaluate-0"), 0, 0)
    ids = prompts["prompt_id"].to_pylist()

    def keep(failed: int) -> bool:
        row = BadRow("file", failed, None, "refused", f"by {failed}", "{}")
        answered = [one != ids[failed] for one in candidates["prompt_id"].to_pylist()]
        return block.keep(prompts, candidates.filter(answered), quarantine_table("sample", [row]))

    if moment == "before":
        assert keep(0)
        assert not keep(1)
        assert block.quarantine.table()["detail"].to_pylist() == ["by 0"]
        return
    replace = type(block.quarantine).replace

    def late(shards: object, index: int, table: object) -> None:
        monkeypatch.undo()
        assert keep(0)
        replace(shards, index, table)  # type: ignore[arg-type]

    monkeypatch.setattr(type(block.quarantine), "replace", late)
    assert not keep(1)
    [row] = block.quarantine.table().to_pylist()
    assert (row["reason"], json.loads(row["content"])["prompt_id"]) == ("reason_lost", ids[0])
