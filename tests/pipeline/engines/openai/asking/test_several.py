"""Several answers of one request: each at its place, at its price, and nothing of it twice."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from prefloop.data.embedded import resolve_embedded
from prefloop.data.protocol import Completion, EngineFailed, RequestRejected
from prefloop.pipeline.config import ConfigError, validate_config
from prefloop.pipeline.engines.openai.ledger import ledger_at
from tests.helpers.served import ask, ask_endpoints, question
from tests.helpers.servers import FaultyServer, faulty_server, hang, says, status
from tests.pipeline.engines.openai.asking.n_server import PROMPT, Several, text_of, tokens_of

PRICES = {"price_per_million_prompt_tokens": 1e6, "price_per_million_completion_tokens": 2e6}
SEEDS = (100, 200, 300, 400, 500)


def sent(server: FaultyServer) -> list[tuple[int, int]]:
    """Seed and number of answers of each request that came."""
    return [(body["seed"], body.get("n", 1)) for _, _, body in server.requests]


def texts(answers: list[Completion]) -> list[str]:
    return [answer.text for answer in answers]


def spent(folder: Path) -> Any:
    """What the engine in ``folder`` has spent."""
    return ledger_at(folder.with_name(f"{folder.name}.spent.jsonl")).settled


def drawn(*seeds: int) -> list[str]:
    return [text_of(seed) for seed in seeds]


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("order", [1, -1])
def test_one_request_brings_them_all_each_at_its_place(
    tmp_path: Path, api: str, order: int
) -> None:
    more = {"tokenizer": resolve_embedded("embedded:policy")} if api == "completions" else {}
    with faulty_server(Several(order=order)) as server:
        [answers] = ask(
            server.url, question(seeds=SEEDS), folder=tmp_path / "e", api=api, n_per_request=8,
            **PRICES, **more,
        )  # fmt: skip
    assert sent(server) == [(100, 5)]
    assert texts(answers) == drawn(100, 101, 102, 103, 104)
    assert [one.completion_tokens for one in answers] == [tokens_of(one.text) for one in answers]
    assert sum(one.prompt_tokens for one in answers) == PROMPT
    # What the rows cost is what was paid.
    paid = PROMPT + 2 * sum(one.completion_tokens for one in answers)
    assert sum(one.cost for one in answers) == pytest.approx(paid)
    assert spent(tmp_path / "e").cost == pytest.approx(paid)


def test_without_the_setting_each_is_a_request() -> None:
    with faulty_server(Several()) as server:
        [answers] = ask(server.url, question(seeds=SEEDS))
    assert sorted(sent(server)) == [(seed, 1) for seed in SEEDS]
    assert texts(answers) == drawn(*SEEDS)


def test_as_few_requests_as_can_be_of_nearly_the_same_size() -> None:
    with faulty_server(Several()) as server:
        [answers] = ask(server.url, question(seeds=SEEDS), n_per_request=4)
    assert sorted(sent(server)) == [(100, 2), (300, 3)]
    assert texts(answers) == drawn(100, 101, 300, 301, 302)


@pytest.mark.parametrize("more", [{"temperature": 0.0}, {"choices": ("A", "B")}])
def test_what_is_asked_one_by_one_whatever_is_set(more: dict[str, Any]) -> None:
    with faulty_server(Several()) as server:
        ask(server.url, question(seeds=(1, 2), **more), n_per_request=8)
    assert {number for _, number in sent(server)} == {1}


SPOILT = {
    "lacks": "lacks",
    "null": None,
    "empty": {},
    "no text": {"index": 1, "message": {"content": 7}, "finish_reason": "stop"},
    "an error": {"index": 1, "message": {"content": ""}, "finish_reason": "error"},
    "withheld": {"index": 1, "message": {"content": "I"}, "finish_reason": "content_filter"},
}


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
def test_what_lacks_is_asked_for_with_its_own_seed(tmp_path: Path, spoilt: Any) -> None:
    folder = tmp_path / "e"
    with faulty_server(Several(spoils={1: spoilt})) as server:
        for start in range(2):
            [answers] = ask(
                server.url, question(seeds=(100, 200, 300)), folder=folder, n_per_request=8,
                **PRICES,
            )  # fmt: skip
            assert texts(answers) == drawn(100, 200, 102), start
            assert sent(server) == [(100, 3), (200, 1)]  # and not again from the cache
    assert [one.prompt_tokens for one in answers] == [5, PROMPT, 5]
    assert [one.completion_tokens for one in answers] == [tokens_of(one.text) for one in answers]
    in_vain = tokens_of(text_of(101))  # paid as well, and in the ledger
    total = sum(one.completion_tokens + one.prompt_tokens for one in answers)
    assert spent(folder).tokens == total + in_vain


def test_where_none_can_be_read_it_is_tried_again_and_then_each_alone() -> None:
    garbage = says({"choices": [{}, {}]})
    with faulty_server(garbage, garbage, Several()) as server:
        [answers] = ask(server.url, question(seeds=(100, 200)), n_per_request=2, max_retries=1)
    assert texts(answers) == drawn(100, 101)  # the server was seen to be well in between
    assert sent(server)[:2] == [(100, 2)] * 2


def test_where_all_are_withheld_each_is_asked_alone() -> None:
    withheld = {"message": {"content": "I"}, "finish_reason": "content_filter"}
    server = Several(spoils={index: {"index": index, **withheld} for index in range(2)})
    with faulty_server(server) as running:
        [answers] = ask(running.url, question(seeds=(100, 200)), n_per_request=2)
    assert texts(answers) == drawn(100, 200)


def test_a_prompt_that_is_refused_is_refused() -> None:
    with faulty_server(status(400, "maximum context length is 10 tokens")) as server:
        [refused, other] = ask(
            server.url, question(seeds=(1, 2)), question("b", seeds=(3, 4)), n_per_request=2
        )
    assert isinstance(refused, RequestRejected)
    assert refused.reason == other.reason == "context_overflow"


def test_a_server_that_ignores_n_is_asked_one_by_one_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [question(str(number), seeds=(100, 200, 300)) for number in range(6)]
    with faulty_server(Several(honours=False)) as server:
        for _ in range(2):
            outcomes = ask(
                server.url, *requests, folder=tmp_path / "e", n_per_request=8, max_concurrency=3
            )
            assert [texts(one) for one in outcomes] == [drawn(100, 200, 300)] * 6
            assert len(server.requests) == 18  # of the first also the one answer counts
    assert [n for _, n in sent(server)].count(3) == 1
    [said] = [one.message for one in caplog.records if one.levelno >= logging.WARNING]
    assert "gave one answer to a request for 3" in said
    assert "set engines.NAME.n_per_request: 1" in said


@pytest.mark.parametrize(
    "server",
    [
        Several(refuses="Unsupported value: 'n' must be 1"),
        Several(refuses="Only one completion choice is allowed"),
        Several(refuses="tensor shapes do not fit", code=500),
    ],
    ids=["named", "unnamed", "crashes"],
)
def test_a_server_that_refuses_n_is_asked_one_by_one(
    server: Several, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [question(str(number), seeds=(100, 200)) for number in range(30)]
    with faulty_server(server) as running:
        outcomes = ask(running.url, *requests, n_per_request=2, max_concurrency=1)
    assert [texts(one) for one in outcomes] == [drawn(100, 200)] * 30
    together = {body["messages"][0]["content"] for _, _, body in running.requests if "n" in body}
    assert 1 <= len(together) < 30
    assert sum("refuses requests for 2 answers" in one.message for one in caplog.records) == 1


def test_a_server_that_takes_fewer_is_still_asked_for_these(
    caplog: pytest.LogCaptureFixture,
) -> None:
    few, many = question("few", seeds=(1, 2)), question("many", seeds=(10, 20, 30, 40))
    requests = [
        few,
        many,
        few,
        question("others", seeds=(50, 60, 70, 80)),
        question("x", seeds=(5, 6)),
    ]
    with faulty_server(Several(most=3)) as running:
        outcomes = ask(running.url, *requests, n_per_request=4, max_concurrency=1)
    assert texts(outcomes[1]) == drawn(10, 20, 30, 40)
    assert texts(outcomes[4]) == drawn(5, 6)
    assert 1 <= [n for _, n in sent(running)].count(4) <= 2
    assert "or fewer than 4" in caplog.text


def test_a_refusal_for_one_prompts_sake_is_no_rule() -> None:
    def picky(handler: Any) -> None:
        is_long = handler.body["messages"][0]["content"] == "long" and "n" in handler.body
        (status(400, "'n' answers must be at most 100 tokens") if is_long else Several())(handler)

    with faulty_server(picky) as server:
        outcomes = ask(
            server.url, *(question(text, seeds=(100, 200)) for text in ("a", "long", "b", "c")),
            n_per_request=2, max_concurrency=2,
        )  # fmt: skip
    assert [texts(one) for one in outcomes[::2]] == [drawn(100, 101)] * 2
    assert texts(outcomes[1]) == drawn(100, 200)
    assert texts(outcomes[3]) == drawn(100, 101)


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("tokens", ["token_ids", "logprobs", None])
def test_tokens_are_those_of_each_or_add_up_to_what_was_paid(
    tmp_path: Path, tokens: str | None, usage: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with faulty_server(Several(tokens=tokens, usage=usage)) as server:
        for _ in range(2):  # the second time from the cache
            [answers] = ask(
                server.url, question(seeds=SEEDS), folder=tmp_path / "e", n_per_request=5, **PRICES
            )
            counts = [one.completion_tokens for one in answers]
            if tokens == "token_ids" or (tokens and usage):
                assert counts == [tokens_of(one.text) for one in answers]
            elif usage:
                assert sum(counts) == sum(tokens_of(one.text) for one in answers)
                assert counts[3] == max(counts)  # the longest one has the largest part
                assert counts[3] > counts[4]
            if usage:
                assert sum(one.prompt_tokens for one in answers) == PROMPT
                assert sum(one.cost for one in answers) == pytest.approx(spent(tmp_path / "e").cost)
    assert len(server.requests) == 1
    assert ("what several answers of one request took together" in caplog.text) == (
        usage and tokens is None
    )
    assert ("does not say how many tokens" in caplog.text) == (not usage)


def test_hidden_thoughts_are_shared_out_too() -> None:
    def reply(handler: Any) -> None:
        body = Several(tokens=None).answer(handler.body, handler.body.get("n", 1))
        body["usage"]["completion_tokens"] += 80
        body["usage"]["completion_tokens_details"] = {"reasoning_tokens": 80}
        handler.send(200, json.dumps(body))

    with faulty_server(reply) as server:
        [answers] = ask(server.url, question(seeds=(4, 5)), n_per_request=2)
    assert [one.reasoning_tokens for one in answers] == [40, 40]
    assert sum(one.answer_tokens for one in answers) == tokens_of(text_of(4)) + tokens_of(
        text_of(5)
    )


@pytest.mark.parametrize(("total", "reason"), [(24, "length"), (23, "stop")])
def test_full_answers_of_a_server_that_does_not_say_why_they_ended(total: int, reason: str) -> None:
    choices = [{"index": index, "message": {"content": f"{index} more"}} for index in range(3)]
    usage = {"prompt_tokens": PROMPT, "completion_tokens": total}
    with faulty_server(says({"choices": choices, "usage": usage})) as server:
        [answers] = ask(server.url, question(seeds=(1, 2, 3), max_tokens=8), n_per_request=3)
    assert [one.finish_reason for one in answers] == [reason] * 3
    assert sum(one.completion_tokens for one in answers) == total


def test_without_token_ids_a_withheld_answer_has_its_part(tmp_path: Path) -> None:
    withheld = {"index": 1, "message": {"content": "seed"}, "finish_reason": "content_filter"}
    with faulty_server(Several(tokens="logprobs", spoils={1: withheld})) as server:
        [answers] = ask(
            server.url, question(seeds=(100, 200, 300)), folder=tmp_path / "e", n_per_request=3
        )
    rows = sum(one.completion_tokens + one.prompt_tokens for one in answers)
    assert rows < spent(tmp_path / "e").tokens < rows + tokens_of(text_of(101))


def test_budgets_set_all_answers_aside(tmp_path: Path) -> None:
    first = question("a", seeds=(1, 2, 3, 4), max_tokens=50)
    with faulty_server(Several()) as server:
        [outcome] = ask(
            server.url, first, folder=tmp_path / "a", n_per_request=4, max_total_tokens=150
        )
        assert isinstance(outcome, EngineFailed)
        assert "of max_total_tokens 150 used" in str(outcome)
        assert not server.requests
        [outcome] = ask(
            server.url, first, folder=tmp_path / "b", n_per_request=4, max_total_tokens=250
        )
        assert texts(outcome) == drawn(1, 2, 3, 4)


def test_busy_servers_lost_answers_and_rate_limits(tmp_path: Path) -> None:
    busy = status(429, "slow down", retry_after="0.01")
    with faulty_server(busy, status(500), hang(1.0), Several()) as server:
        [answers] = ask(
            server.url, question(seeds=(7, 8)), n_per_request=2, max_retries=4, timeout_s=0.5
        )
    assert texts(answers) == drawn(7, 8)
    assert sent(server) == [(7, 2)] * 4


def test_each_answer_counts_as_one_under_way() -> None:
    class Watching(Several):
        def __call__(self, handler: Any) -> None:
            hang(0.05)(handler)
            super().__call__(handler)

    requests = [question(str(number), seeds=(1, 2)) for number in range(8)]
    with faulty_server(Watching()) as server:
        ask(server.url, *requests, n_per_request=2, max_concurrency=4)
    assert len(server.requests) == 8
    assert server.most <= 2


def test_over_several_endpoints(tmp_path: Path) -> None:
    requests = [question(str(number), seeds=(100, 200, 300)) for number in range(12)]
    with faulty_server(Several()) as one, faulty_server(status(503)) as other:
        outcomes = ask_endpoints(
            [one.url, other.url], *requests, folder=tmp_path / "e", n_per_request=8, max_retries=3
        )
    assert [texts(each) for each in outcomes] == [drawn(100, 101, 102)] * 12
    assert sent(one) == [(100, 3)] * 12


@pytest.mark.parametrize(
    "odd",
    [Several(honours=False), Several(refuses="Unsupported value: 'n' must be 1")],
    ids=["ignores", "refuses"],
)
def test_what_one_endpoint_does_with_n_says_nothing_of_another(
    odd: Several, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [question(str(number), seeds=(100, 200, 300)) for number in range(40)]
    with faulty_server(Several()) as one, faulty_server(odd) as other:
        outcomes = ask_endpoints(
            [one.url, other.url], *requests, n_per_request=3, max_concurrency=6
        )
    found = [texts(each) for each in outcomes]
    assert all(each in (drawn(100, 101, 102), drawn(100, 200, 300)) for each in found)
    assert found.count(drawn(100, 101, 102)) >= 5
    # The one is asked for several to the end, the other no more than those that were under way.
    together = [n for _, n in sent(one)[len(sent(one)) // 2 :]]
    assert 3 in together
    assert 1 <= [n for _, n in sent(other)].count(3) <= 6
    assert {1} == {n for _, n in sent(other)[-5:]}
    [said] = [text for text in caplog.messages if "from now on" in text]
    assert said.startswith(other.url)


def test_nothing_is_asked_twice_where_one_endpoint_ignores_n() -> None:
    requests = [question(str(number), seeds=(1, 2)) for number in range(30)]
    with faulty_server(Several(honours=False)) as one, faulty_server(Several()) as other:
        ask_endpoints([one.url, other.url], *requests, n_per_request=2, max_concurrency=4)
        came = len(one.requests) + sum(1 + (n > 1) for _, n in sent(other))
    assert came in (60, 61)  # the first of the one endpoint asked for two, and got one


def test_what_was_answered_one_by_one_goes_on_so(tmp_path: Path) -> None:
    """Nothing is paid twice where the setting is put on for a run that was begun without."""
    asked, more = question(seeds=(100, 200)), question("more", seeds=(100, 200))
    with faulty_server(Several()) as server:
        ask(server.url, asked, folder=tmp_path / "e")
        both = ask(server.url, asked, more, folder=tmp_path / "e", n_per_request=2)
    assert [texts(one) for one in both] == [drawn(100, 200), drawn(100, 101)]
    assert len(server.requests) == 3


def test_a_key_is_in_no_answer_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    echo = {"index": 1, "message": {"content": "sk-very-secret-key"}, "finish_reason": "stop"}
    with faulty_server(Several(spoils={1: echo}, tokens=None)) as server:
        for _ in range(2):
            [answers] = ask(server.url, question(seeds=(1, 2)), folder=tmp_path, n_per_request=2)
            assert "secret" not in str(answers)
    assert len(server.requests) == 1
    assert b"very-secret" not in (tmp_path / "responses.sqlite").read_bytes()


def test_jobs_take_no_several() -> None:
    with pytest.raises(ConfigError, match="n_per_request: 1, or mode: live"):
        validate_config(
            {
                "run_dir": "x",
                "prompts": {"train": {"path": "embedded:prompts"}},
                "engines": {
                    "default": {"type": "openai", "mode": "batch", "n_per_request": 2},
                },
            },
            "test",
        )  # fmt: skip
