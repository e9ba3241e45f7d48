"""One request that always fails costs itself; a server that fails at all of them stops the run."""

import pytest

from prefloop.data.protocol import EngineFailed, RequestRejected
from prefloop.pipeline.engines.openai.openai_wire import PROBE
from tests.helpers.served import ask, asked, question
from tests.helpers.servers import by_prompt, close, faulty_server, good, hang, raw, says, status

MISSING = says({"id": "x", "choices": [{"index": 0, "finish_reason": "length"}]})
POISONS = [status(500, "boom"), status(503), raw("<html>"), MISSING, close, says({"error": "x"})]
HELLO = PROBE[0]["content"]


def poisoned(reply, *others):
    return by_prompt(lambda text: reply if text.startswith("poison") else good())


@pytest.mark.parametrize("poison", POISONS)
def test_a_poison_request_costs_itself(poison):
    requests = [question(text) for text in ("a", "b", "poison", "c", "d")]
    with faulty_server(poisoned(poison)) as server:
        outcomes = ask(server.url, *requests)
        assert asked(server).count("poison") == 3  # 2 tries, and one when the server was known good
    assert isinstance(outcomes[2], RequestRejected)
    assert outcomes[2].reason in ("failed_at_server", "unparsable_answer")
    assert all(outcomes[i][0].text == "hello" for i in (0, 1, 3, 4))


@pytest.mark.parametrize("poison", POISONS)
def test_a_poison_request_alone_costs_itself_too(poison):
    """As at a resume, where all others are answered already."""
    with faulty_server(poisoned(poison)) as server:
        (rejected,) = ask(server.url, question("poison"))
    assert isinstance(rejected, RequestRejected)


def test_a_request_that_takes_too_long_costs_itself():
    with faulty_server(poisoned(hang(1))) as server:
        poison, other = ask(server.url, question("poison"), question("a"), timeout_s=0.3)
    assert isinstance(poison, RequestRejected)
    assert "no complete answer within 0.3 s" in poison.detail
    assert other[0].text == "hello"


def test_an_outage_rejects_nobody():
    answers = iter([good(), good(), good()])
    down = by_prompt(lambda text: next(answers, status(500, "down")))
    with faulty_server(down) as server:
        outcomes = ask(server.url, *(question(str(i)) for i in range(20)), max_concurrency=1)
    assert [isinstance(each, EngineFailed) for each in outcomes] == [False] * 3 + [True] * 17
    assert "status 500: down, after 2 tries" in str(outcomes[3])


def test_a_server_that_comes_back_answers_after_all():
    fails = iter([status(500)] * 3)
    with faulty_server(by_prompt(lambda text: next(fails, good()))) as server:
        (answers,) = ask(server.url, question())
    assert answers[0].text == "hello"


def test_a_server_that_says_hello_only_stops_the_run_with_the_commonest_reason():
    def reply(text):
        if text == HELLO:
            return good()
        return status(500, "odd one" if text == "1" else "no template for system turns")

    requests = [question(str(i)) for i in range(40)]
    with faulty_server(by_prompt(reply)) as server:
        outcomes = ask(server.url, *requests, max_concurrency=1, max_retries=0)
    stopped = [each for each in outcomes if isinstance(each, EngineFailed)]
    assert "8 in a row: status 500: no template for system turns" in str(stopped[0])


def test_a_crowd_is_nobody_s_fault():
    """Too many requests are never the fault of one, so none is given up for them."""
    with faulty_server(poisoned(status(429, "slow down"))) as server:
        poison, other = ask(server.url, question("poison"), question("a"))
    assert isinstance(poison, EngineFailed)
    assert other[0].text == "hello"


def test_one_seed_of_a_request_that_fails_takes_the_request_and_no_other():
    def reply(handler):
        return (status(500) if handler.body["seed"] == 2 else good())(handler)

    with faulty_server(reply) as server:
        several, one = ask(server.url, question("a", seeds=(1, 2, 3)), question("b", seeds=(4,)))
    assert isinstance(several, RequestRejected)
    assert one[0].text == "hello"
