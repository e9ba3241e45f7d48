"""The HTTP engine against a real HTTP server that misbehaves."""

import asyncio
import json
import time
from dataclasses import replace

import pytest
from pydantic import ValidationError

from prefloop.data.protocol import EngineFailed, Request, RequestRejected, Sampling
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.engines.openai.openai_wire import PROBE
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.engines.weights import load_tokenizer
from tests.helpers.engine_models import make_tokenizer
from tests.helpers.servers import close, faulty_server, good, hang, raw, status, trickle

KEY = "sk-secret-0123456789"
SCHEMA = {"type": "object", "properties": {"verdict": {"enum": ["A", "B"]}}}


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def request(text="a fox", seeds=(1,), choices=None, json_schema=None, **sampling):
    chat = ({"role": "user", "content": text},)
    return Request(text, chat, Sampling(**sampling), seeds, choices, json_schema)


def complete(url, *requests, model="m", **config):
    """Outcomes of ``requests`` sent at once through a fresh engine, with short backoffs."""
    settings = {"max_backoff_s": 0.05, "timeout_s": 5, "max_retries": 3, **config}

    async def go():
        engine = await build_engine(OpenAIEngine(base_url=url, **settings), model)
        try:
            return await asyncio.gather(
                *(engine.generate(r) for r in requests), return_exceptions=True
            )
        finally:
            await engine.aclose()
            await engine.aclose()

    return asyncio.run(go())


def asked(server):
    """The requests of a run that came, without those that see whether the server answers at all."""
    probe = [dict(message) for message in PROBE]
    return [one for one in server.requests if one[2].get("messages") != probe]


@pytest.mark.parametrize(
    "fault",
    [
        status(500),
        status(502),
        status(503),
        status(504),
        status(429),
        raw("<html>gateway</html>"),
        raw(""),
        raw('{"choices": []}'),
        raw('{"choices": [{"finish_reason": "stop"}]}'),
        raw("null"),
        close,
        hang(2),
        trickle(2),
    ],
)
def test_passing_faults_are_retried(fault):
    with faulty_server(fault, fault, good("hello")) as server:
        (answers,) = complete(server.url, request(), timeout_s=0.4)
    assert answers[0].text == "hello"
    assert answers[0].finish_reason == "stop"
    assert (answers[0].prompt_tokens, answers[0].completion_tokens) == (10, 5)
    assert len(server.requests) == 3


def test_retry_after_is_obeyed():
    with faulty_server(status(429, retry_after="0.4"), good()) as server:
        (answers,) = complete(server.url, request())
    assert answers[0].text == "hello"
    assert server.requests[1][0] - server.requests[0][0] >= 0.4


@pytest.mark.parametrize(
    ("fault", "said"), [(status(500, "boom"), "status 500: boom"), (raw("x"), "garbage")]
)
def test_lasting_faults_end_in_one_clear_line(fault, said):
    with faulty_server(fault) as server:
        (error,) = complete(server.url, request())
    assert isinstance(error, EngineFailed)
    assert said in str(error)
    assert server.url in str(error)
    assert "after 4 tries" in str(error)
    assert "\n" not in str(error)
    assert len(asked(server)) == 4


def test_no_server_at_all():
    (error,) = complete("http://127.0.0.1:9/v1", request(), max_retries=1)
    assert isinstance(error, EngineFailed)
    assert "no connection" in str(error)
    assert "base_url" in str(error)


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_key_names_the_variable_and_never_the_key(code, caplog, capfd):
    caplog.set_level(0)
    with faulty_server(status(code, f"Incorrect API key provided: {KEY}")) as server:
        (error,) = complete(server.url, request())
    assert isinstance(error, EngineFailed)
    assert "OPENAI_API_KEY" in str(error)
    assert len(server.requests) == 1
    assert error.__cause__ is None
    assert error.__suppress_context__
    logged = caplog.text + "".join(capfd.readouterr())
    assert KEY not in str(error) + repr(error) + logged


def test_the_key_is_blotted_out_of_what_servers_say():
    with faulty_server(status(500, f"bad header Bearer {KEY}")) as server:
        (error,) = complete(server.url, request(), max_retries=0)
    assert "bad header" in str(error)
    assert KEY not in str(error)


def test_unknown_model_and_spent_quota_stop_the_run():
    with faulty_server(status(404, "no such model")) as server:
        (error,) = complete(server.url, request(), model="gone")
    assert isinstance(error, EngineFailed)
    assert "'gone'" in str(error)
    with faulty_server(status(429, "quota", "insufficient_quota")) as server:
        (error,) = complete(server.url, request())
    assert isinstance(error, EngineFailed)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (status(400, "too long", "context_length_exceeded"), "context_overflow"),
        (status(400, "maximum context length is 8 tokens"), "context_overflow"),
        (status(413, "large"), "context_overflow"),
        (status(400, "bad words"), "refused_by_server"),
        (status(422, "unprocessable"), "refused_by_server"),
        (good(finish_reason="content_filter"), "refused_by_server"),
    ],
)
def test_what_concerns_one_request_rejects_one_request(fault, reason):
    with faulty_server(fault, good()) as server:
        rejected, answers = complete(server.url, request("a"), request("b"), max_concurrency=1)
    assert isinstance(rejected, RequestRejected)
    assert rejected.reason == reason
    assert answers[0].text == "hello"


def test_each_seed_is_a_request_and_concurrency_is_bounded():
    with faulty_server(good(seconds=0.05)) as server:
        answers = complete(
            server.url, *(request(str(i), seeds=(7, 8, 9)) for i in range(8)), max_concurrency=5
        )
    assert [len(a) for a in answers] == [3] * 8
    assert sorted(body["seed"] for _, _, body in server.requests) == [7] * 8 + [8] * 8 + [9] * 8
    assert 3 <= server.most <= 5


def test_what_is_sent():
    sent = request(
        json_schema=SCHEMA, choices=("A", "B"), temperature=0.5, max_tokens=7, stop=("x",)
    )
    with faulty_server(good()) as server:
        complete(server.url, sent)
    assert server.requests[0][1] == "/v1/chat/completions"
    body = server.requests[0][2]
    schema = body.pop("response_format")["json_schema"]
    assert schema["schema"] == SCHEMA
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "a fox"}],
        "seed": 1,
        "temperature": 0.5,
        "top_p": 1.0,
        "max_tokens": 7,
        "stop": ["x"],
        "logprobs": True,
        "top_logprobs": 20,
    }


def test_logprobs_and_choices_are_read():
    content = [
        {
            "token": "A",
            "logprob": -0.5,
            "top_logprobs": [
                {"token": "A", "logprob": -0.5},
                {"token": " A", "logprob": -1.5},
                {"token": "x", "logprob": -3},
            ],
        },
        {"token": "!", "logprob": -1.0, "top_logprobs": []},
    ]
    with faulty_server(good("A!", logprobs={"content": content})) as server:
        (answers,) = complete(server.url, request(choices=("A", "B")))
    assert answers[0].logprob == -1.5
    assert answers[0].choice_logprobs["A"] == pytest.approx(-0.18673, abs=1e-5)
    assert answers[0].choice_logprobs["B"] == float("-inf")


def test_completions_send_token_ids(tmp_path):
    make_tokenizer(tmp_path)

    def reply(handler):
        body = {
            "choices": [{"text": "hi", "finish_reason": "length", "token_ids": [5, 6]}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        }
        handler.send(200, json.dumps(body))

    with faulty_server(reply) as server:
        (answers,) = complete(
            server.url, request(), api="completions", tokenizer=str(tmp_path), vllm_extensions=True
        )
    _, path, body = server.requests[0]
    assert path == "/v1/completions"
    assert body["prompt"][0] == 1  # one BOS
    assert body["prompt"].count(1) == 1
    assert answers[0].token_ids == (5, 6)


@pytest.mark.parametrize(("known", "expected"), [(True, [False, True]), (False, [True, True])])
def test_tokens_that_a_text_does_not_say_are_told(tmp_path, known, expected):
    """As of the engines here: training and KL take the tokens that were sampled."""
    make_tokenizer(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    text = "the fox"
    whole = tokenizer.encode(text, add_special_tokens=False)
    letters = [n for one in text for n in tokenizer.encode(one, add_special_tokens=False)]
    assert letters != whole
    found = []
    for ids in (whole, letters):

        def reply(handler, ids=ids):
            answer = {"text": text, "finish_reason": "length", "token_ids": ids}
            usage = {"prompt_tokens": 3, "completion_tokens": len(ids)}
            handler.send(200, json.dumps({"choices": [answer], "usage": usage}))

        with faulty_server(reply) as server:
            (answers,) = complete(
                server.url,
                request(),
                api="completions" if known else "chat",
                tokenizer=str(tmp_path) if known else None,
                vllm_extensions=True,
            )
        found.append(answers[0].ids_differ)
    assert found == expected


def test_what_the_server_cannot_do_is_said_before_anything_is_sent():
    with faulty_server(good()) as server:
        top_k, verdict = complete(
            server.url, request(top_k=5), request(choices=("A",)), logprobs=False
        )
    assert "top_k" in str(top_k)
    assert "logprobs" in str(verdict)
    assert server.requests == []


def test_rate_limit_per_minute():
    with faulty_server(good()) as server:
        complete(server.url, *(request(str(i)) for i in range(5)), requests_per_minute=600)
    times = [t for t, _, _ in server.requests]
    assert times[-1] - times[0] >= 0.35  # five requests at ten a second


def test_a_token_budget_is_never_passed():
    with faulty_server(good(seconds=0.02)) as server:
        outcomes = complete(
            server.url, *(request(str(i), max_tokens=8) for i in range(20)), max_total_tokens=100
        )
    stopped = [o for o in outcomes if isinstance(o, EngineFailed)]
    answered = [o for o in outcomes if not isinstance(o, EngineFailed)]
    # 15 tokens each, 16 reserved: the sixth request still fits, the seventh does not.
    assert len(answered) == 6
    assert len(stopped) == 14
    assert all("budget reached" in str(error) for error in stopped)
    assert len(server.requests) == 6


def test_a_money_budget_and_costs():
    prices = {"price_per_million_prompt_tokens": 2.0, "price_per_million_completion_tokens": 8.0}
    with faulty_server(good()) as server:
        first, second = complete(
            server.url,
            request("a", max_tokens=5),
            request("b", max_tokens=5),
            max_cost=1e-4,
            max_concurrency=1,
            **prices,
        )
    assert first[0].cost == pytest.approx(10 * 2e-6 + 5 * 8e-6)
    assert isinstance(second, EngineFailed)
    with pytest.raises(ValidationError, match="max_cost needs"):
        OpenAIEngine(max_cost=1.0)


def test_cache_answers_what_was_answered_whatever_the_transport(tmp_path):
    cache = {"cache_dir": tmp_path / "cache", "price_per_million_prompt_tokens": 1.0}
    with faulty_server(good("first")) as server:
        (before,) = complete(server.url, request(seeds=(1, 2)), **cache)
    with faulty_server(good("second")) as server:
        again, other_seed, other_sampling = complete(
            server.url,
            request(seeds=(1, 2)),
            request(seeds=(3,)),
            request(temperature=0.1),
            **cache,
            timeout_s=9,
            max_retries=0,
            max_concurrency=2,
        )
        (other_model,) = complete(server.url, request(), model="n", **cache)
    assert again == before  # cost included: a resumed run's rows are the same rows
    assert [a[0].text for a in (other_seed, other_sampling, other_model)] == ["second"] * 3
    assert len(server.requests) == 3


def test_failures_are_not_cached(tmp_path):
    with faulty_server(*[status(500)] * 3, good()) as server:
        (error,) = complete(server.url, request(), cache_dir=tmp_path, max_retries=0)
        (answers,) = complete(server.url, request(), cache_dir=tmp_path, max_retries=0)
    assert isinstance(error, EngineFailed)
    assert answers[0].text == "hello"


def test_a_policy_cannot_be_loaded_over_plain_http(tmp_path):
    async def go():
        engine = await build_engine(OpenAIEngine(), "m")
        with pytest.raises(EngineFailed, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            await engine.load_policy(str(tmp_path))
        await engine.aclose()

    asyncio.run(go())


def test_config_refuses_passwords_and_unknown_keys():
    with pytest.raises(ValidationError, match="password"):
        OpenAIEngine(base_url="http://me:pw@host/v1")
    with pytest.raises(ValidationError, match="api_key"):
        OpenAIEngine(api_key="x")
    with pytest.raises(ValidationError, match="tokenizer"):
        OpenAIEngine(api="completions")


def test_a_waiting_engine_leaves_the_event_loop_free():
    async def go(url):
        engine = await build_engine(OpenAIEngine(base_url=url), "m")
        answer = asyncio.ensure_future(engine.generate(replace(request(), seeds=(1, 2, 3))))
        start, ticks = time.monotonic(), 0
        while not answer.done():
            await asyncio.sleep(0.01)
            ticks += 1
        await engine.aclose()
        return ticks, time.monotonic() - start

    with faulty_server(good(seconds=0.3)) as server:
        ticks, seconds = asyncio.run(go(server.url))
    assert ticks > 5
    assert seconds < 0.8
