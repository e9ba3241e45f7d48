"""Requests go out as jobs and come back as answers, whatever the server makes of them."""

import json

import pytest

from prefloop.data.protocol import EngineFailed, RequestRejected
from prefloop.pipeline.engines.openai.batch.job_folder import open_jobs
from tests.helpers.served import ask, question
from tests.pipeline.engines.openai.batch.batch_server import (
    batch_server,
    completed,
    cut,
    done_but_cut,
    ended_early,
    failed,
    half,
    hello,
    line_of,
    status,
)

QUICK = {"gather_s": 0.05, "poll_s": 0.01, "max_poll_s": 0.02}
PRICES = {"price_per_million_prompt_tokens": 1e6, "price_per_million_completion_tokens": 1e6}


def words(first, last):
    return [question(f"word {at}", max_tokens=5) for at in range(first, last)]


def ask_in_jobs(server, requests, folder, batch=(), **config):
    return ask(
        server.url, *requests, folder=folder / "e", mode="batch",
        batch=QUICK | dict(batch), **config,
    )  # fmt: skip


def texts(outcomes):
    return [one if isinstance(one, Exception) else one[0].text for one in outcomes]


def said(first, last):
    return [f"to word {at}" for at in range(first, last)]


def spent(folder):
    settled = [json.loads(line) for line in (folder / "e.spent.jsonl").read_text().splitlines()]
    tokens = sum(one["tokens"] for one in settled if "settle" in one)
    return tokens, sum(one["cost"] for one in settled if "settle" in one)


def test_all_requests_go_out_in_one_job_at_half_the_price(tmp_path):
    with batch_server() as server:
        outcomes = ask_in_jobs(server, words(0, 20), tmp_path, **PRICES)
        assert texts(outcomes) == said(0, 20)
        assert [len(asked) for asked in server.asked] == [20]
        assert server.live == []
    assert [one[0].cost for one in outcomes] == [7.5] * 20
    assert spent(tmp_path) == (20 * 15, 20 * 7.5)
    assert open_jobs(tmp_path) == ()


def test_answers_of_jobs_are_kept_and_cost_the_same_when_they_are_read_again(tmp_path):
    with batch_server() as server:
        ask_in_jobs(server, words(0, 3), tmp_path, **PRICES)
        again = ask_in_jobs(server, words(0, 3), tmp_path, **PRICES)
        live = ask(server.url, *words(0, 4), folder=tmp_path / "e", **PRICES)
        assert len(server.jobs) == len(server.live) == 1
    assert [one[0].cost for one in again] == [7.5] * 3
    assert [one[0].cost for one in live] == [7.5] * 3 + [15]


def test_jobs_are_as_large_as_they_may_be(tmp_path):
    with batch_server() as server:
        ask_in_jobs(server, words(0, 7), tmp_path, {"max_requests": 3})
        assert [len(asked) for asked in server.asked] == [3, 3, 1]
    with batch_server() as server:
        assert texts(ask_in_jobs(server, words(0, 7), tmp_path / "b", {"max_megabytes": 0.0006}))
        sizes = [len(server.files[job.row["input_file_id"]]) for job in server.jobs.values()]
        assert len(sizes) > 2
        assert max(sizes) <= 600


def test_a_request_that_is_made_twice_goes_out_once(tmp_path):
    with batch_server() as server:
        assert texts(ask_in_jobs(server, words(0, 2) * 3, tmp_path)) == said(0, 2) * 3
        assert [len(asked) for asked in server.asked] == [2]


@pytest.mark.parametrize(
    ("change", "garbage"),
    [
        pytest.param(lambda lines: lines[::-1], "", id="in another order"),
        pytest.param(lambda lines: [*lines, lines[1]], "", id="a line twice"),
        pytest.param(
            lambda lines: [*lines, line_of("of-nobody", *hello({"messages": [{"content": "x"}]}))],
            "1 lines are of requests that it did not have", id="a line of another job",
        ),
        pytest.param(lambda lines: [b"\n", *lines, b"not a line\n"], "1 lines are garbage",
                     id="a line that is none"),
        pytest.param(lambda lines: [line_of(lines[2]["custom_id"], 500, {"error": {}}), *lines],
                     "", id="a failure beside the answer"),
    ],
)  # fmt: skip
def test_each_line_finds_its_request(tmp_path, caplog, change, garbage):
    with batch_server(completed(change)) as server:
        assert texts(ask_in_jobs(server, words(0, 5), tmp_path)) == said(0, 5)
        assert len(server.jobs) == 1
    assert garbage in caplog.text
    assert bool(garbage) == bool(caplog.text)


def other(line):
    return line_of(line["custom_id"], *hello({"messages": [{"content": "something else"}]}))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda lines: lines[:2] + lines[3:], id="missing"),
        pytest.param(lambda lines: [*lines, other(lines[2])], id="two that differ"),
        pytest.param(lambda lines: [*lines[:2], *lines[3:], b'{"custom_id": "4f'], id="cut off"),
        pytest.param(lambda lines: [*lines[:2], line_of(lines[2]["custom_id"], 429, {"error": {
            "message": "rate limit"}}), *lines[3:]], id="status 429"),
        pytest.param(lambda lines: [*lines[:2], line_of(lines[2]["custom_id"], 0, None),
                                    *lines[3:]], id="status 0"),
        pytest.param(lambda lines: [*lines[:2], line_of(lines[2]["custom_id"], 200, {"choices": 1}),
                                    *lines[3:]], id="garbage in the body"),
        pytest.param(lambda lines: [*lines[:2], {"custom_id": lines[2]["custom_id"]}, *lines[3:]],
                     id="neither answer nor error"),
        pytest.param(lambda lines: [*lines[:2], {**lines[2], "response": None, "error": {
            "code": "server_error", "message": "oh"}}, *lines[3:]], id="an error without response"),
    ],
)  # fmt: skip
def test_what_has_no_answer_for_sure_is_asked_again(tmp_path, caplog, change):
    with batch_server(completed(change), completed()) as server:
        assert texts(ask_in_jobs(server, words(0, 5), tmp_path)) == said(0, 5)
        assert server.asked[1:] == [["word 2"]]
    assert "1 of 5 requests have no answer" in caplog.text


def test_a_request_that_fails_in_every_job_is_rejected_as_it_is_live(tmp_path):
    def answer(body):
        return (500, {"error": {"message": "oh"}}) if "word 1" in str(body) else hello(body)

    with batch_server(answer=answer) as server:
        outcomes = texts(ask_in_jobs(server, words(0, 3), tmp_path))
        assert [len(asked) for asked in server.asked] == [3, 1, 1]
    assert outcomes[::2] == ["to word 0", "to word 2"]
    assert isinstance(outcomes[1], RequestRejected)
    assert outcomes[1].reason == "failed_at_server"


def test_a_refused_line_is_that_requests_error_alone(tmp_path):
    def answer(body):
        refused = (400, {"error": {"message": "maximum context length is 8 tokens"}})
        return refused if "word 1" in str(body) else hello(body)

    with batch_server(answer=answer) as server:
        outcomes = texts(ask_in_jobs(server, words(0, 3), tmp_path))
        assert len(server.jobs) == 1
    assert outcomes[::2] == ["to word 0", "to word 2"]
    assert outcomes[1].reason == "context_overflow"


def test_a_refused_parameter_ends_the_run_with_the_key_to_set(tmp_path):
    def answer(body):
        if "seed" in body:
            return 400, {"error": {"message": "Unsupported parameter: 'seed'", "param": "seed"}}
        return hello(body)

    with batch_server(answer=answer) as server:
        outcomes = ask_in_jobs(server, words(0, 3), tmp_path)
    assert all("leave_out: [seed]" in str(one) for one in outcomes)


@pytest.mark.parametrize("code", ["batch_expired", None])
def test_what_a_job_did_not_come_to_in_time_is_put_into_another(tmp_path, code):
    with batch_server(ended_early("expired", 2, code), completed()) as server:
        assert texts(ask_in_jobs(server, words(0, 5), tmp_path, **PRICES)) == said(0, 5)
        assert server.asked[1:] == [["word 2", "word 3", "word 4"]]
    assert spent(tmp_path) == (5 * 15, 5 * 7.5)  # what was not done is not charged


def test_a_job_that_people_cancel_ends_the_run_and_its_answers_stay(tmp_path):
    with batch_server(ended_early("cancelled", 2, "batch_cancelled"), completed()) as server:
        outcomes = ask_in_jobs(server, words(0, 5), tmp_path)
        assert any("was cancelled there, with 3 of 5 requests" in str(one) for one in outcomes)
        assert len(server.jobs) == 1
        assert texts(ask_in_jobs(server, words(0, 5), tmp_path)) == said(0, 5)
        assert server.asked[1:] == [["word 2", "word 3", "word 4"]]


def test_lines_that_validation_refuses_are_left_out_and_the_others_sent_again(tmp_path):
    fault = {"code": "invalid_value", "message": "content is blocked", "line": 2}
    with batch_server(failed(fault), completed()) as server:
        outcomes = texts(ask_in_jobs(server, words(0, 4), tmp_path))
        assert server.asked[1:] == [["word 0", "word 2", "word 3"]]
    assert isinstance(outcomes[1], RequestRejected)
    assert "content is blocked" in str(outcomes[1])
    assert outcomes[2:] == said(2, 4)


def test_lines_that_validation_fails_at_are_not_sent_for_ever(tmp_path):
    fault = {"code": "server_error", "message": "oh", "line": 1}
    with batch_server(failed(fault), failed(fault), failed(fault), completed()) as server:
        outcomes = texts(ask_in_jobs(server, words(0, 3), tmp_path))
        assert [len(asked) for asked in server.asked] == [3, 3, 3, 2]
    assert isinstance(outcomes[0], RequestRejected)
    assert outcomes[1:] == said(1, 3)


def test_a_job_that_is_refused_as_a_whole_ends_the_run(tmp_path):
    fault = {"code": "model_not_found", "message": "the model m does not exist", "line": None}
    with batch_server(failed(fault)) as server:
        outcomes = ask_in_jobs(server, words(0, 4), tmp_path)
        assert len(server.jobs) == 1
    assert all(isinstance(one, EngineFailed) for one in outcomes)
    assert "has no model 'm'" in str(outcomes[0])
    assert spent(tmp_path) == (0, 0)


def test_a_server_with_too_much_waiting_gets_smaller_jobs_one_at_a_time(tmp_path, caplog):
    full = failed({"code": "token_limit_exceeded", "message": "Enqueued token limit reached"})
    with batch_server(full, full, completed()) as server:
        assert texts(ask_in_jobs(server, words(0, 8), tmp_path)) == said(0, 8)
        assert [len(asked) for asked in server.asked] == [8, 4, 2, 4, 2]
    assert "jobs are sent one at a time" in caplog.text


def test_a_server_that_never_has_room_ends_the_run(tmp_path):
    full = failed({"code": "token_limit_exceeded", "message": "Enqueued token limit reached"})
    with batch_server(full) as server:
        [outcome] = ask_in_jobs(server, words(0, 1), tmp_path)
    assert "no room for a job of one request" in str(outcome)


@pytest.mark.parametrize("call", ["POST /files", "POST /batches", "GET /batches/", "GET /files/"])
@pytest.mark.parametrize(
    "fault", [status(429), status(500), status(503), cut], ids=["429", "500", "503", "cut off"]
)
def test_each_call_is_tried_again(tmp_path, call, fault):
    with batch_server() as server:
        server.faults[call] = [fault, fault]
        assert texts(ask_in_jobs(server, words(0, 3), tmp_path, max_retries=2)) == said(0, 3)
        assert len(server.jobs) == 1


def test_a_job_that_was_begun_while_the_answer_was_lost_is_found(tmp_path):
    for keeps_metadata in (True, False):
        with batch_server() as server:
            ask_in_jobs(server, words(100, 101), tmp_path)
            ask_in_jobs(server, words(200, 201), tmp_path)
            server.keeps_metadata = keeps_metadata  # else it is known by its file
            server.faults["POST /batches"] = [done_but_cut]
            folder = tmp_path / str(keeps_metadata)
            assert texts(ask_in_jobs(server, words(0, 3), folder)) == said(0, 3)
            assert server.asked[-1] == ["word 0", "word 1", "word 2"]
            assert server.calls.count("POST /batches") == len(server.jobs)


def test_half_a_file_is_fetched_again(tmp_path):
    with batch_server() as server:
        server.faults["GET /files/"] = [half]
        assert texts(ask_in_jobs(server, words(0, 6), tmp_path)) == said(0, 6)
        assert len(server.jobs) == 1


def test_files_that_come_after_the_job_is_over_are_waited_for(tmp_path):
    with batch_server() as server:
        job_ends = server.endings[0]

        def ends(_, job):
            job.row["status"] = "completed"
            server.faults["GET /batches/"] = [then]

        def then(_):
            for job in server.jobs.values():
                job_ends(server, job)
            return False

        server.endings = [ends]
        assert texts(ask_in_jobs(server, words(0, 3), tmp_path)) == said(0, 3)
        assert len(server.jobs) == 1


def test_a_server_without_batches_is_one_line(tmp_path):
    with batch_server() as server:
        server.faults["POST /files"] = [status(404)] * 5
        outcomes = ask_in_jobs(server, words(0, 3), tmp_path)
    assert all(isinstance(one, EngineFailed) for one in outcomes)
    assert "may have no batch API" in str(outcomes[0])
    assert "mode: live" in str(outcomes[0])
    assert not list((tmp_path / "e.jobs").glob("*/job.json"))


def test_a_job_that_is_not_begun_is_not_open(tmp_path):
    with batch_server() as server:
        server.faults["POST /batches"] = [status(400, "this model has no batches")]
        outcomes = ask_in_jobs(server, words(0, 3), tmp_path)
    assert "refuses a job (POST /batches) (status 400: this model has no" in str(outcomes[0])
    assert open_jobs(tmp_path) == ()
    assert not list((tmp_path / "e.jobs").glob("*/job.json"))


def test_a_key_that_is_refused_is_one_line(tmp_path):
    with batch_server() as server:
        server.faults["POST /files"] = [status(401, "bad key")]
        outcomes = ask_in_jobs(server, words(0, 3), tmp_path)
    assert "refuses the key" in str(outcomes[0])


def test_a_budget_cuts_jobs_and_goes_on_with_what_is_left(tmp_path):
    """The most that a request may take is more than it takes."""
    asked = [question(f"word {at}", max_tokens=25) for at in range(12)]
    with batch_server() as server:
        outcomes = ask_in_jobs(server, asked, tmp_path, max_cost=60, **PRICES)
        assert len(server.live) == 1  # measures what a request takes, at the full price
        assert len(server.jobs) > 1
        done = sum(len(asked) for asked in server.asked)
    assert spent(tmp_path)[1] == 15 + 7.5 * done <= 60
    stopped = [one for one in outcomes if isinstance(one, EngineFailed)]
    assert len(stopped) == 12 - 1 - done > 0
    assert "of max_cost 60.0 spent" in str(stopped[0])


def test_token_judges_make_sure_at_one_request_that_log_probabilities_come(tmp_path):
    def answer(body):
        found = hello(body)[1]
        top = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.3}]
        token = {"token": "A", "logprob": -0.1, "top_logprobs": top}
        found["choices"][0] |= {"message": {"content": "A"}, "logprobs": {"content": [token]}}
        return 200, found

    asked = [question(f"word {at}", max_tokens=1, choices=("A", "B")) for at in range(5)]
    with batch_server(answer=answer) as server:
        outcomes = ask_in_jobs(server, asked, tmp_path)
        assert (len(server.live), [len(one) for one in server.asked]) == (1, [4])
    assert all(one[0].choice_logprobs == {"A": -0.1, "B": -2.3} for one in outcomes)
    with batch_server() as server:  # gives none
        outcomes = ask_in_jobs(server, asked, tmp_path / "b")
        assert server.jobs == {}
    assert all("gives no log-probabilities" in str(one) for one in outcomes)
