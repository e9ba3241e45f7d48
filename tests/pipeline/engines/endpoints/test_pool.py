"""Several real servers behind one engine, each of which misbehaves in its own way."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from contextlib import ExitStack

import pytest

from prefloop.data.protocol import EngineFailed, RequestRejected
from prefloop.pipeline.engines.openai.ledger import ledger_at
from prefloop.pipeline.engines.openai.openai_server import OpenAIServer
from prefloop.pipeline.engines.settings import OpenAIEngine
from tests.helpers.served import ask_endpoints, question
from tests.helpers.servers import (
    by_prompt,
    capped,
    close,
    faulty_server,
    free_port,
    good,
    hang,
    now_and_then,
    raw,
    status,
)

EACH = 15  # tokens that an answer of ``good`` takes
KEY, OTHER_KEY = "sk-first-0123456789abcdef", "sk-other-fedcba9876543210"


def questions(number, first=0):
    return [question(str(at), max_tokens=5) for at in range(first, first + number)]


def prompts(bodies):
    return Counter(body["messages"][-1]["content"] for body in bodies)


def nowhere():
    return f"http://127.0.0.1:{free_port()}/v1"


def test_capped_slow_dead_reborn_and_stormy_servers_at_once(caplog):
    caplog.set_level(logging.INFO)
    reborn, died, number = {}, threading.Event(), 300
    ways = good(seconds=0.002)

    def mortal(handler):
        close(handler)
        died.set()

    with ExitStack() as servers:

        def bear(port):
            died.wait(60)
            first.shutdown()
            first.server_close()
            reborn["server"] = servers.enter_context(faulty_server(ways, port=port))

        capped_one = servers.enter_context(faulty_server(capped(3, good(seconds=0.01))))
        slow = servers.enter_context(faulty_server(good(seconds=0.2)))
        stormy = servers.enter_context(
            faulty_server(now_and_then(ways, status(429), every=60, long=25))
        )
        first = servers.enter_context(faulty_server(*[ways] * 10, mortal))
        birth = threading.Thread(target=bear, args=(first.server_port,))
        birth.start()
        urls = [one.url for one in (capped_one, slow, stormy, first)]
        outcomes = ask_endpoints(
            [*urls, nowhere()], *questions(number), max_retries=6, timeout_s=60
        )
        birth.join()
        answered = [capped_one, slow, stormy, first, reborn["server"]]
    assert [answers[0].text for answers in outcomes] == ["hello"] * number
    paid = sum((prompts(one.answered) for one in answered), Counter())
    assert paid == {str(at): 1 for at in range(number)}
    assert all(one.answered for one in answered[:4])


def test_a_server_that_comes_back_is_asked_again(caplog):
    caplog.set_level(logging.INFO)
    port = free_port()

    async def go(other, servers):
        config = OpenAIEngine(
            endpoints=[{"base_url": f"http://127.0.0.1:{port}/v1"}, {"base_url": other.url}],
            timeout_s=30,
        )
        engine = OpenAIServer(config, "m")
        try:
            await asyncio.gather(*(engine.generate(one) for one in questions(20)))
            born = servers.enter_context(faulty_server(good(), port=port))
            asked = 0
            while not born.answered:
                await engine.generate(question(f"again {asked}", max_tokens=5))
                asked += 1
        finally:
            await engine.aclose()

    with faulty_server(good()) as other, ExitStack() as servers:
        asyncio.run(go(other, servers))
    said = caplog.text
    assert said.count(f"http://127.0.0.1:{port}/v1 does not answer, and is left for now") == 1
    assert f"http://127.0.0.1:{port}/v1 answers again" in said


def test_retry_after_closes_one_endpoint_alone():
    with faulty_server(status(429, retry_after="600")) as closed, faulty_server(good()) as other:
        outcomes = ask_endpoints([closed.url, other.url], *questions(40), max_backoff_s=60)
        assert all(answers[0].text == "hello" for answers in outcomes)
        # Those alone that were under way when it said so.
        assert 1 <= len(closed.requests) <= 4


def test_a_capped_server_is_not_asked_for_more_for_long():
    with faulty_server(capped(5, good(seconds=0.01))) as server:
        outcomes = ask_endpoints([{"base_url": server.url, "max_concurrency": 64}],
                                 *questions(400))  # fmt: skip
        assert all(answers[0].text == "hello" for answers in outcomes)
        refused = len(server.requests) - len(server.answered)
    assert len(server.answered) == 400
    assert refused < 120


def test_a_bad_key_or_a_missing_model_leaves_one_endpoint_out(monkeypatch, caplog):
    monkeypatch.setenv("OTHER_KEY", OTHER_KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for code in (401, 403, 404, 402):
        caplog.clear()
        with (
            faulty_server(status(code, f"no: {OTHER_KEY} nor {KEY}")) as bad,
            faulty_server(good()) as other,
        ):
            endpoints = [{"base_url": bad.url, "api_key_env": "OTHER_KEY"}, other.url]
            outcomes = ask_endpoints(endpoints, *questions(30))
            assert all(answers[0].text == "hello" for answers in outcomes)
            assert len(bad.requests) <= 4
            assert bad.keys[0] == f"Bearer {OTHER_KEY}"
            assert set(other.keys) == {f"Bearer {KEY}"}
        assert caplog.text.count("an endpoint is left out from now on") == 1
        assert bad.url in caplog.text
        assert KEY not in caplog.text
        assert OTHER_KEY not in caplog.text


def test_that_all_are_left_out_is_one_line():
    with faulty_server(status(401)) as one, faulty_server(status(404)) as other:
        outcomes = ask_endpoints([one.url, other.url], *questions(6))
    for error in outcomes:
        assert isinstance(error, EngineFailed)
        assert one.url in str(error)
        assert other.url in str(error)
        assert "\n" not in str(error)


def test_the_engine_fails_once_none_has_answered_for_long():
    with faulty_server(status(500, "broken")) as one, faulty_server(status(429, "full")) as other:
        urls = [one.url, other.url, nowhere()]
        outcomes = ask_endpoints(urls, *questions(8), timeout_s=0.3, max_retries=2)
    assert all(isinstance(error, EngineFailed) for error in outcomes)
    told = str(outcomes[0])
    assert "no endpoint has answered for" in told
    assert all(url in told for url in urls)
    assert "broken" in told
    assert "full" in told


def test_a_request_that_no_server_bears_is_rejected_and_the_others_answered():
    def reply(text):
        return status(500, "boom") if text == "poison" else good()

    wanted = [*questions(30), question("poison"), *questions(30, 30)]
    with faulty_server(by_prompt(reply)) as one, faulty_server(by_prompt(reply)) as other:
        outcomes = ask_endpoints([one.url, other.url], *wanted, max_retries=4)
    assert isinstance(outcomes[30], RequestRejected)
    assert outcomes[30].reason == "failed_at_server"
    assert all(answers[0].text == "hello" for answers in outcomes[:30] + outcomes[31:])


def test_a_request_that_is_always_too_much_does_not_go_round_for_ever():
    def reply(text):
        return status(429, "request too large") if text == "large" else good(seconds=0.02)

    async def go(urls):
        config = OpenAIEngine(
            endpoints=[{"base_url": url} for url in urls], timeout_s=2, max_backoff_s=0.01,
            max_retries=2,
        )  # fmt: skip
        engine = OpenAIServer(config, "m")
        large = asyncio.create_task(engine.generate(question("large")))
        asked = 0
        try:
            while not large.done():
                await engine.generate(question(str(asked), max_tokens=5))
                asked += 1
            return large.exception()
        finally:
            await engine.aclose()

    with faulty_server(by_prompt(reply)) as one, faulty_server(by_prompt(reply)) as other:
        error = asyncio.run(go([one.url, other.url]))
    assert isinstance(error, RequestRejected)
    assert "request too large" in error.detail


@pytest.mark.parametrize(
    ("fault", "timeout_s"),
    [(close, 30), (raw("<html>"), 30), (status(502), 30), (hang(30), 2)],
    ids=["closes", "garbage", "ill", "hangs"],
)
def test_a_server_that_fails_at_all_is_left(fault, timeout_s):
    with faulty_server(fault) as bad, faulty_server(good()) as other:
        outcomes = ask_endpoints([bad.url, other.url], *questions(60), timeout_s=timeout_s)
        assert all(answers[0].text == "hello" for answers in outcomes)
        assert len(bad.requests) < 20


def test_each_endpoint_has_limits_of_its_own():
    with faulty_server(good(seconds=0.01)) as narrow, faulty_server(good(seconds=0.01)) as wide:
        endpoints = [{"base_url": narrow.url, "max_concurrency": 2}, {"base_url": wide.url}]
        ask_endpoints(endpoints, *questions(200), max_concurrency=16)
        assert narrow.most <= 2
        assert 2 < wide.most <= 16
        narrow.requests.clear()
        wide.requests.clear()
        endpoints = [{"base_url": narrow.url, "requests_per_minute": 6}, {"base_url": wide.url}]
        ask_endpoints(endpoints, *questions(60))
        assert len(narrow.requests) <= 2
        assert len(wide.requests) >= 58


def test_a_budget_holds_over_all_endpoints_and_over_starts(tmp_path):
    with faulty_server(good()) as one, faulty_server(good()) as other:
        for start in range(4):
            outcomes = ask_endpoints(
                [one.url, other.url] if start % 2 else [one.url], *questions(9, 9 * start),
                folder=tmp_path / "e", max_total_tokens=200,
            )  # fmt: skip
        sent = len(one.requests) + len(other.requests)
        assert 180 <= sent * EACH <= 200
        assert other.requests
    assert "of max_total_tokens 200 used" in str(outcomes[-1])
    assert ledger_at(tmp_path / "e.spent.jsonl").settled.tokens == sent * EACH


def test_kept_answers_are_found_whatever_the_endpoints(tmp_path):
    with faulty_server(good("first")) as one:
        before = ask_endpoints([one.url], *questions(3), folder=tmp_path / "e")
    with faulty_server(good("second")) as one, faulty_server(good("third")) as other:
        again = ask_endpoints([one.url, other.url], *questions(3), folder=tmp_path / "e")
        assert not one.requests
        assert not other.requests
    assert again == before


def test_a_cancelled_request_gives_its_turn_back():
    async def go(url):
        config = OpenAIEngine(endpoints=[{"base_url": url, "max_concurrency": 1}], timeout_s=30)
        engine = OpenAIServer(config, "m")
        tasks = [asyncio.create_task(engine.generate(one)) for one in questions(6)]
        try:
            await tasks[0]
            for task in tasks[1:5]:
                task.cancel()
            return await tasks[5]
        finally:
            await asyncio.gather(*tasks, return_exceptions=True)
            await engine.aclose()

    with faulty_server(good()) as server:
        assert asyncio.run(go(server.url))[0].text == "hello"


def test_endpoints_that_list_other_models_are_left_out(caplog):
    with (
        faulty_server(good()) as one,
        faulty_server(good()) as other,
        faulty_server(good()) as mute,
    ):
        one.models = [{"id": "m", "root": "org/model", "max_model_len": 100}]
        other.models = [{"id": "n"}]
        outcomes = ask_endpoints([one.url, other.url, mute.url], *questions(20))
        assert all(answers[0].text == "hello" for answers in outcomes)
        assert not other.requests
        assert one.requests
        assert mute.requests
        assert len(one.looks) == len(other.looks) == len(mute.looks) == 1
    assert f"{other.url}: it lists 'n', and not 'm'" in caplog.text


def with_logprobs(text="A", **more):
    top = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.5}]
    step = {"token": "A", "logprob": -0.1, "top_logprobs": top}
    return good(text, logprobs={"content": [step]}, **more)


def test_an_endpoint_without_log_probabilities_is_left_where_others_have_them(caplog):
    requests = [question(str(at), choices=("A", "B"), max_tokens=5) for at in range(40)]
    with faulty_server(with_logprobs(seconds=0.01)) as one, faulty_server(good("A")) as other:
        outcomes = ask_endpoints([one.url, other.url], *requests, max_retries=3)
        assert len(other.requests) <= 8  # those that were under way
    assert all(each[0].choice_logprobs == {"A": -0.1, "B": -2.5} for each in outcomes)
    [left] = [text for text in caplog.messages if "left out" in text]
    assert f"{other.url} gives no log-probabilities for the verdicts, in 2 answers of 2" in left


def test_where_no_endpoint_has_them_the_run_ends_at_once():
    requests = [question(str(at), choices=("A", "B"), max_tokens=5) for at in range(40)]
    with faulty_server(good("A")) as one, faulty_server(good("A")) as other:
        outcomes = ask_endpoints([one.url, other.url], *requests, max_retries=3)
        assert len(one.requests) + len(other.requests) <= 4
    assert all(isinstance(each, EngineFailed) for each in outcomes)
    assert all("gives no log-probabilities" in str(each) for each in outcomes)


def test_one_answer_without_them_is_asked_for_again():
    replies = by_prompt(lambda text: next(bare, usual) if text == "3" else usual)
    usual, bare = with_logprobs(), iter([good("A")])
    requests = [question(str(at), choices=("A", "B"), max_tokens=5) for at in range(12)]
    with faulty_server(replies) as one, faulty_server(usual) as other:
        outcomes = ask_endpoints([one.url, other.url], *requests, max_retries=3)
    lacking = [at for at, each in enumerate(outcomes) if each[0].choice_logprobs is None]
    assert lacking in ([], [3])  # that answer's own, where its server gives them otherwise
