"""A server's own words reach the message, whatever dialect they are said in."""

import pytest

from prefloop.data.protocol import EngineFailed, RequestRejected
from prefloop.pipeline.engines.openai.openai_errors import retry_after
from prefloop.pipeline.engines.openai.server_words import said_in
from tests.helpers.served import ask, asked, question
from tests.helpers.servers import faulty_server, good, says

PAGE = "<!DOCTYPE html><html><head><title>502</title><style>p {x}</style></head><p>the proxy is ill"
DIALECTS = [
    ({"error": {"message": "the words", "type": "x", "code": None}}, "the words"),
    ({"error": "the words"}, "the words"),
    ({"detail": "the words"}, "the words"),
    (
        {"detail": [{"loc": ["body", "messages", 0], "msg": "the words"}]},
        "body.messages.0: the words",
    ),
    ({"message": "the words"}, "the words"),
    ({"object": "error", "message": "the words", "code": 40303}, "the words"),
    ([{"error": {"code": 7, "message": "the words", "status": "X"}}], "the words"),
    ({"error": {"message": "filtered", "innererror": {"message": "the words"}}}, "the words"),
    ({"errors": [{"message": "the words"}]}, "the words"),
    ({"title": "Bad", "detail": "the words"}, "the words"),
    ({"Message": "the words"}, "the words"),
    ({"strange": "the words"}, "the words"),
]


@pytest.mark.parametrize("code", [200, 400, 500])
@pytest.mark.parametrize(("body", "words"), DIALECTS, ids=str)
def test_the_words_are_in_the_message(code, body, words):
    reply = says(body, code)
    with faulty_server(reply) as server:
        (error,) = ask(server.url, question(), max_retries=0)
    if code == 200 and "strange" in body:
        assert "an object of strange" in str(error)
    else:
        assert words in str(error)
    assert "KeyError" not in str(error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("upstream connect error", "upstream connect error"),
        (PAGE, "502 the proxy is ill"),
        ("a\x1b[31m\nb\u202e", "a\\x1b[31m b\\u202e"),
        ("long " * 1000, "…"),
        ("", "no reason given"),
    ],
)
def test_plain_text_and_pages_are_one_short_line(text, words):
    with faulty_server(lambda handler: handler.send(400, text)) as server:
        (error,) = ask(server.url, question(), max_retries=0)
    assert isinstance(error, RequestRejected)
    assert words in error.detail
    assert "\n" not in error.detail
    assert len(error.detail) < 330


def error(code, message="no", **more):
    return says({"error": {"message": message, "code": code, **more}})


@pytest.mark.parametrize(
    ("reply", "says_also"),
    [
        (error(402, "Insufficient credits"), "Insufficient credits"),
        (error("insufficient_quota"), "quota"),
        (error("402"), "top it up"),
        (says({"error": {"message": "Insufficient Balance"}}, 400), "Insufficient Balance"),
        (error("invalid_api_key", "who are you"), "OPENAI_API_KEY"),
        (error(401, "who are you"), "who are you"),
        (says({"detail": "no such route"}, 404), "no such route"),
        (error("model_not_found", "The model `m` does not exist"), "does not exist"),
        (says({"error": {"message": "Model m not found"}}, 400), "check model"),
        (says({"detail": "Method Not Allowed"}, 405), "base_url"),
    ],
)
def test_what_concerns_the_whole_run_stops_it_at_once(reply, says_also):
    with faulty_server(reply) as server:
        (stopped,) = ask(server.url, question(), max_retries=3)
    assert isinstance(stopped, EngineFailed)
    assert says_also in str(stopped)
    assert len(server.requests) == 1


def test_a_code_in_a_body_counts_as_that_status():
    with faulty_server(error(429, "slow down"), error(503), good()) as server:
        (answers,) = ask(server.url, question(), max_retries=3)
    assert answers[0].text == "hello"
    with faulty_server(error(400, "prompt is too long")) as server:
        (rejected,) = ask(server.url, question())
    assert (rejected.reason, len(server.requests)) == ("context_overflow", 1)


def test_a_server_that_refuses_everything_is_told_after_a_few():
    requests = [question(str(i)) for i in range(40)]
    with faulty_server(says({"error": "bad request, bad words"}, 400)) as server:
        outcomes = ask(server.url, *requests, max_concurrency=1)
    stopped = [each for each in outcomes if isinstance(each, EngineFailed)]
    assert "refuses every request: status 400: bad request, bad words" in str(stopped[0])
    assert all(isinstance(each, RequestRejected) for each in outcomes[:7])


def test_a_403_for_one_prompt_is_that_prompt_s():
    with faulty_server(good(), says({"error": "no access"}, 403), good()) as server:
        outcomes = ask(server.url, *map(question, "abc"), max_concurrency=1)
        assert len(asked(server)) == 3
    assert isinstance(outcomes[1], RequestRejected)
    assert outcomes[2][0].text == "hello"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1.5", 1.5), ("-5", 0.0), ("nan", None), ("inf", None), ("", None), ("soon", None),
        ("Mon, 01 Jan 99999 00:00:00 GMT", None), ("Mon, 01 Jan 2001 00:00:00 GMT", 0.0),
        ("Mon, 01 Jan 2024 00:00:00 +999999999999999999", None),
        ("Thu, 31 Feb 2024 25:61:61 GMT", None), ("9" * 400, None),
    ],
)  # fmt: skip
def test_times_that_do_not_exist_are_no_times(value, seconds):
    assert retry_after({"retry-after": value}) == seconds


def test_words_of_deep_and_wide_bodies_are_found_in_no_time():
    assert said_in(b"[" * 100_000).words
    assert said_in(b"<" * 3_000_000).words
    assert said_in(b'{"error": ' * 300 + b"1" + b"}" * 300).words
