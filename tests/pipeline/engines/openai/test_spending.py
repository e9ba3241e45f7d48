"""Budgets hold over resumes, kills, models and openers, and count whatever was billed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.config import validate_config
from prefloop.pipeline.engines.openai.budget import Budget
from prefloop.pipeline.engines.openai.ledger import Amount, ledger_at
from prefloop.pipeline.engines.openai.openai_server import OpenAIServer
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.run.models import Models
from tests.helpers.paths import ROOT
from tests.helpers.served import ask, question
from tests.helpers.servers import faulty_server, good, raw, says, status

EACH = 15  # tokens that an answer of ``good`` takes


def requests(first, last):
    return [question(str(i), max_tokens=5) for i in range(first, last)]


@pytest.mark.parametrize("keeps_answers", [True, False])
def test_a_budget_holds_over_starts(tmp_path, keeps_answers):
    with faulty_server(good()) as server:
        for start in range(4):
            outcomes = ask(
                server.url, *requests(9 * start, 9 * start + 9), folder=tmp_path / "e",
                max_total_tokens=200, cache=keeps_answers,
            )  # fmt: skip
        assert len(server.requests) * EACH <= 200
    assert isinstance(outcomes[-1], EngineFailed)
    assert "of max_total_tokens 200 used" in str(outcomes[-1])


def test_money_counts_over_starts_and_a_raised_limit_goes_on(tmp_path):
    prices = {"price_per_million_prompt_tokens": 1e6, "price_per_million_completion_tokens": 1e6}
    with faulty_server(good()) as server:
        for limit, sent in [(40.0, 2), (40.0, 2), (100.0, 6)]:
            ask(server.url, *requests(0, 9), folder=tmp_path / "e", max_cost=limit, **prices)
            assert len(server.requests) == sent


def test_what_was_spent_without_a_limit_counts_when_there_is_one(tmp_path):
    with faulty_server(good()) as server:
        ask(server.url, *requests(0, 4), folder=tmp_path / "e")
        outcomes = ask(server.url, *requests(4, 9), folder=tmp_path / "e", max_total_tokens=60)
    assert all(isinstance(each, EngineFailed) for each in outcomes)


def test_all_models_and_openers_of_an_engine_share_its_budget(tmp_path):
    async def go(url):
        config = OpenAIEngine(base_url=url, max_total_tokens=100)
        engines = [OpenAIServer(config, m, cache=tmp_path / "e") for m in ("m", "n", "m")]
        try:
            return await asyncio.gather(
                *(e.generate(r) for e in engines for r in requests(0, 6)), return_exceptions=True
            )
        finally:
            for engine in engines:
                await engine.aclose()

    with faulty_server(good(seconds=0.05)) as server:
        outcomes = asyncio.run(go(server.url))
        assert len(server.requests) * EACH <= 100
    # All of it: an opener waits for what the others have set aside.
    assert sum(not isinstance(each, EngineFailed) for each in outcomes) == 6


def test_engines_opened_again_or_without_their_cache_go_on_with_what_was_spent(tmp_path):
    """As ``Models`` opens them: after room was made for training, for a judge, for the check."""

    async def go(url):
        engine = {"type": "openai", "base_url": url, "max_total_tokens": 100}
        judge = {"type": "judge", "engine": "e", "model": "j", "judge": "pairwise_short"}
        config = validate_config(
            {
                "engines": {"default": engine, "e": engine}, "policy": "m",
                "prompts": {"train": {"path": "embedded:prompts"}},
                "sample": {"engine": "e"}, "label": {"labelers": [judge]},
            },
            "test",
        )  # fmt: skip
        models, outcomes = Models(config, cache=tmp_path / "cache"), []
        for start, model in [(0, "policy"), (2, "j"), (4, "policy"), (6, "j")]:
            opened = await models.engine("e", model)
            anew = await models.without_cache("e", model)
            asked = [(opened, start), (anew, start), (opened, start + 1)]
            outcomes += await asyncio.gather(
                *(each.generate(requests(n, n + 1)[0]) for each, n in asked),
                return_exceptions=True,
            )
            await anew.aclose()
            await models.release()
        return outcomes

    with faulty_server(good()) as server:
        outcomes = asyncio.run(go(server.url))
        assert len(server.requests) * EACH <= 100
    assert sum(not isinstance(each, EngineFailed) for each in outcomes) == 6
    assert ledger_at(tmp_path / "cache" / "e.spent.jsonl").settled == Amount(90)


def test_a_request_that_was_under_way_without_a_limit_counts_when_there_is_one(tmp_path):
    path = tmp_path / "spent.jsonl"

    async def killed():
        budget = Budget(None, None, ledger_at(path))
        async with budget.reserved(Amount(40)):
            return path.read_text()

    at_the_kill = asyncio.run(killed())
    path.write_text(at_the_kill)
    assert Budget(100, None, ledger_at(path)).spent == Amount(40)


def test_thoughts_that_only_the_total_counts_are_paid_too(tmp_path):
    choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
    hidden = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 75}
    seen = {"message": {"content": "yes", "reasoning": "long " * 40}, "finish_reason": "stop"}
    with faulty_server(says({"choices": [choice], "usage": hidden}),
                       says({"choices": [seen]})) as server:  # fmt: skip
        [answer] = ask(server.url, question("a", max_tokens=90), folder=tmp_path / "e")
        ask(server.url, question("b", max_tokens=90), folder=tmp_path / "f")
    assert (answer[0].completion_tokens, answer[0].reasoning_tokens) == (65, 60)
    assert ledger_at(tmp_path / "e.spent.jsonl").settled.tokens == 75
    assert ledger_at(tmp_path / "f.spent.jsonl").settled.tokens >= 50


USED = {"usage": {"prompt_tokens": 10, "completion_tokens": 5}}
BILLED = [
    says({"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]} | USED),
    says({"choices": [{"message": {"content": 7}, "finish_reason": "stop"}]} | USED),
    says({"choices": [{"finish_reason": "stop"}]} | USED),
    says({"error": {"message": "odd"}} | USED),
    says({"error": {"message": "withheld"}} | USED, 400),
    says({"error": {"message": "ill"}} | USED, 500),
]


@pytest.mark.parametrize("reply", BILLED)
def test_refused_and_unreadable_answers_that_were_billed_count(tmp_path, reply):
    with faulty_server(reply) as server:
        ask(server.url, *requests(0, 20), folder=tmp_path / "e", max_total_tokens=100)
        assert len(server.requests) * EACH <= 100
        assert len(server.requests) >= 4


def test_an_answer_that_was_cut_off_counts_with_the_most_and_a_refusal_with_nothing(tmp_path):
    for reply, spent in [
        (raw('{"choices": [{"message"'), 2 * (8 + 5)), (status(500), 0), (status(400), 0),
    ]:  # fmt: skip
        with faulty_server(reply) as server:
            folder = tmp_path / str(spent) / "e"
            ask(server.url, question("1", max_tokens=5), folder=folder, max_total_tokens=500,
                max_retries=1)  # fmt: skip
        assert ledger_at(folder.with_name("e.spent.jsonl")).settled.tokens >= spent
        assert bool(ledger_at(folder.with_name("e.spent.jsonl")).settled.tokens) == bool(spent)


RUN = """
import sys
from pathlib import Path
from tests.helpers.served import ask, question
url, folder, first = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
ask(url, *(question(str(i), max_tokens=5) for i in range(first, first + 50)),
    folder=folder, max_total_tokens=300, max_concurrency=4)
"""


def test_a_killed_and_resumed_run_never_spends_more_than_was_allowed(tmp_path):
    with faulty_server(good(seconds=0.05)) as server:
        for start in range(6):
            arguments = [
                sys.executable,
                "-c",
                RUN,
                server.url,
                str(tmp_path / "e"),
                str(start * 50),
            ]
            before = len(server.requests)
            run = subprocess.Popen(
                arguments, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            while run.poll() is None and len(server.requests) < before + 3:
                time.sleep(0.005)
            if start < 5:
                run.send_signal(signal.SIGKILL)
            run.wait()
        assert len(server.requests) * EACH <= 300
    ledger = ledger_at(tmp_path / "e.spent.jsonl")
    assert len(server.requests) * EACH <= ledger.settled.tokens + ledger.lost.tokens <= 300
    assert ledger.lost.tokens > 0


def test_a_ledger_survives_torn_and_foreign_lines(tmp_path):
    path = tmp_path / "spent.jsonl"
    lines = [
        '{"reserve": "a", "tokens": 10, "cost": 1.0}', '{"settle": "a", "tokens": 4, "cost": 0.5}',
        "null", "[" * 5000, '{"settle": "b", "tokens": -4, "cost": 0.5}', "\x00\xff",
        '{"settle": "b", "tokens": 4, "cost": NaN}', '{"reserve": "c", "tokens": 7, "cost": 0.25}',
        '{"settle": "c", "tok',
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    ledger = ledger_at(path)
    assert (ledger.settled, ledger.lost) == (Amount(4, 0.5), Amount(7, 0.25))
    with ledger.exclusive():
        [key] = ledger.reserve(Amount(3, 0.0))
    ledger.settle({key: Amount(2, 0.0)})
    whole = path.read_text()
    del ledger
    again = ledger_at(path)
    assert (again.settled, again.lost) == (Amount(6, 0.5), Amount(7, 0.25))
    del again
    for cut in range(len(whole)):  # killed at any byte
        path.write_text(whole[:cut])
        ledger = ledger_at(path)
        with ledger.exclusive():
            [key] = ledger.reserve(Amount(1, 0.0))
            ledger.settle({key: Amount(1, 0.0)})
        before = (ledger.settled, ledger.lost)
        del ledger
        after = ledger_at(path)
        assert (after.settled, after.lost) == before
        del after


def test_a_ledger_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "e.spent.jsonl").mkdir()
    with faulty_server(good()) as server, pytest.raises(EngineFailed, match="ledger"):
        ask(server.url, question(), folder=tmp_path / "e", max_total_tokens=100)


def test_a_cancelled_request_counts_with_the_most(tmp_path):
    async def go():
        budget = Budget(100, None, ledger_at(tmp_path / "spent.jsonl"))

        async def wait():
            async with budget.reserved(Amount(40)) as charge:
                charge.spent = charge.most
                begun.set()
                await asyncio.sleep(60)

        begun = asyncio.Event()
        task = asyncio.ensure_future(wait())
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return budget.spent

    assert asyncio.run(go()) == Amount(40)
    assert [json.loads(line).get("tokens") for line in (tmp_path / "spent.jsonl").open()] == [
        40
    ] * 2


@pytest.mark.parametrize("limit", [None, 100])
def test_a_cancelled_request_says_nothing_of_a_ledger_that_cannot_be_written(tmp_path, limit):
    path = tmp_path / "spent.jsonl"

    async def go():
        budget = Budget(limit, None, ledger_at(path))

        async def wait():
            async with budget.reserved(Amount(40)) as charge:
                charge.spent = Amount(3)
                begun.set()
                await asyncio.sleep(60)

        begun = asyncio.Event()
        task = asyncio.ensure_future(wait())
        await begun.wait()
        path.unlink()
        path.mkdir()
        task.cancel()
        return await asyncio.gather(task, return_exceptions=True), budget.spent

    [ended], spent = asyncio.run(go())
    assert isinstance(ended, asyncio.CancelledError)
    assert spent == Amount(40)
