"""A refused parameter ends the run with the key to set; a refused prompt costs itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from prefloop.data.protocol import EverythingRefused, RequestRejected
from prefloop.pipeline.engines.openai.openai_server import OpenAIServer
from prefloop.pipeline.engines.openai.parameters import Place
from prefloop.pipeline.engines.settings import OpenAIEngine
from tests.helpers.served import ask, question
from tests.helpers.servers import FaultyServer, Handler, Reply, faulty_server, good, says

TOP = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.5}]
VERDICT = good("A", logprobs={"content": [{"token": "A", "logprob": -0.1, "top_logprobs": TOP}]})
SCHEMA = {"type": "object", "properties": {"verdict": {"enum": ["A", "B"]}}}
JUDGE = Place("engines.e", ("label.labelers.judge",))
SAMPLE = Place("engines.e", ("sample",))
BOTH = Place("engines.e", ("sample", "label.labelers.judge"))


def has(*fields: str) -> Callable[[dict[str, Any]], bool]:
    return lambda body: any(field in body for field in fields)


def refusing(refuses: Callable[[dict[str, Any]], bool], refusal: Reply) -> Reply:
    """A server that gives ``refusal`` to what it ``refuses``, and answers all else."""

    def reply(handler: Handler) -> None:
        (refusal if refuses(handler.body) else VERDICT)(handler)

    return reply


def openai(message: str, param: str | None, code: str | None, status: int = 400) -> Reply:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return says({"error": error}, status)


TOKENS = ("Unsupported parameter: 'max_tokens' is not supported with this model. Use "
          "'max_completion_tokens' instead.")  # fmt: skip
ONLY_DEFAULT = ("Unsupported value: 'temperature' does not support 0 with this model. Only the "
                "default (1) value is supported.")  # fmt: skip
LITELLM = (
    "litellm.UnsupportedParamsError: anthropic does not support parameters: ['logprobs', "
    "'top_logprobs'], for model=claude. To drop these, set `litellm.drop_params=True`"
)
GOOGLE = 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'
CASES = {
    "openai max_tokens": (
        has("max_tokens"), openai(TOKENS, "max_tokens", "unsupported_parameter"), JUDGE,
        "max_tokens", "engines.e.max_tokens_field: max_completion_tokens",
    ),
    "azure max_tokens": (
        has("max_tokens"),
        says({"error": {"code": "BadRequest", "message": TOKENS, "param": None}}, 400), SAMPLE,
        "max_tokens", "engines.e.max_tokens_field: max_completion_tokens",
    ),
    "an older server": (
        has("max_completion_tokens"),
        says({"detail": [{"loc": ["body", "max_completion_tokens"],
                          "msg": "Extra inputs are not permitted"}]}, 422), JUDGE,
        "max_completion_tokens", "engines.e.max_tokens_field: max_tokens",
    ),
    "openai temperature": (
        has("temperature"), openai(ONLY_DEFAULT, "temperature", "unsupported_value"), JUDGE,
        "temperature", "label.labelers.judge.temperature: null",
    ),
    "temperature of two": (
        has("temperature"), openai(ONLY_DEFAULT, None, None), BOTH,
        "temperature", "engines.e.leave_out: [temperature]",
    ),
    "anthropic top_p": (
        lambda body: has("top_p")(body) and has("temperature")(body),
        says({"type": "error", "error": {
            "type": "invalid_request_error",
            "message": "`temperature` and `top_p` cannot both be specified for this model. Please "
            "use only one."}}, 400), SAMPLE,
        "top_p", "sample.top_p: null",
    ),
    "anthropic extra": (
        has("seed"),
        says({"type": "error", "error": {"type": "invalid_request_error",
                                         "message": "seed: Extra inputs are not permitted"}}, 400),
        JUDGE, "seed", "engines.e.leave_out: [seed]",
    ),
    "azure logprobs": (
        has("logprobs", "top_logprobs"),
        says({"error": {"message": "Unrecognized request argument supplied: logprobs"}}, 400),
        JUDGE,
        "logprobs", "engines.e.logprobs: false, and label.labelers.judge.judge: a judge that",
    ),
    "litellm logprobs": (
        has("logprobs", "top_logprobs"), openai(LITELLM, None, "400"), JUDGE,
        "logprobs", "engines.e.logprobs: false",
    ),
    "litellm, as its own fault": (
        has("logprobs", "top_logprobs"), openai(LITELLM, None, "500", 500), JUDGE,
        "logprobs", "engines.e.logprobs: false",
    ),
    "vllm top_logprobs": (
        lambda body: body.get("top_logprobs", 0) > 5,
        says({"object": "error", "message": "Requested sample logprobs of 20, which is greater "
              "than max allowed: 5", "type": "BadRequestError", "param": None, "code": 400}, 400),
        JUDGE, "top_logprobs", "engines.e.top_logprobs: 5",
    ),
    "tgi top_logprobs": (
        lambda body: body.get("top_logprobs", 0) > 5,
        says({"error": "Input validation error: `top_logprobs` must be between 0 and 5",
              "error_type": "validation"}, 422),
        JUDGE, "top_logprobs", "engines.e.top_logprobs: 5",
    ),
    "tgi temperature": (
        lambda body: body.get("temperature") == 0,
        says({"error": "Input validation error: `temperature` must be strictly positive",
              "error_type": "validation"}, 422),
        JUDGE, "temperature", "label.labelers.judge.temperature: null",
    ),
    "llama.cpp": (
        has("logprobs", "top_logprobs"),
        says({"error": {"code": 500, "message": "Unsupported param: logprobs",
                        "type": "server_error"}}, 500), JUDGE,
        "logprobs", "engines.e.logprobs: false",
    ),
    "mistral seed": (
        has("seed"),
        says({"object": "error", "message": {"detail": [
            {"type": "extra_forbidden", "loc": ["body", "seed"],
             "msg": "Extra inputs are not permitted", "input": 7}]},
            "type": "invalid_request_error", "param": None, "code": None}, 422),
        JUDGE, "seed", "engines.e.leave_out: [seed]",
    ),
    "google seed": (
        has("seed"),
        says([{"error": {"code": 400, "message": GOOGLE, "status": "INVALID_ARGUMENT"}}], 400),
        SAMPLE, "seed", "engines.e.leave_out: [seed]",
    ),
    "groq": (
        has("logprobs", "top_logprobs"),
        openai("`logprobs` is not supported with this model", "logprobs", None), JUDGE,
        "logprobs", "engines.e.logprobs: false",
    ),
    "xai": (
        has("logprobs", "top_logprobs"),
        says({"code": "Client specified an invalid argument",
              "error": "Argument not supported on this model: logprobs"}, 400), JUDGE,
        "logprobs", "engines.e.logprobs: false",
    ),
    "deepseek": (
        lambda body: body.get("max_tokens", 0) > 12,
        says({"error": {"message": "Invalid max_tokens value, the valid range of max_tokens is "
                        "at most 12", "type": "invalid_request_error", "param": None}}, 400),
        SAMPLE, "max_tokens", "sample.max_tokens: a smaller number",
    ),
    "schema": (
        has("response_format"),
        openai("Invalid parameter: 'response_format' of type 'json_schema' is not supported with "
               "this model.", None, None), JUDGE,
        "response_format", "label.labelers.judge.judge: a judge that answers in text",
    ),
    "effort": (
        has("reasoning_effort"),
        openai("Unrecognized request argument supplied: reasoning_effort", None, None), SAMPLE,
        "reasoning_effort", "engines.e.reasoning_effort: null, and sample.reasoning_effort: null",
    ),
    "template": (
        has("chat_template_kwargs"),
        says({"detail": [{"loc": ["body", "chat_template_kwargs"],
                          "msg": "Extra inputs are not permitted"}]}, 422), SAMPLE,
        "chat_template_kwargs", "engines.e.chat_template_kwargs: {}",
    ),
    "further": (
        has("service_tier"),
        openai("Unknown parameter: 'service_tier'.", "service_tier", "unknown_parameter"), SAMPLE,
        "service_tier", "take service_tier out of engines.e.extra_body",
    ),
}  # fmt: skip


def asked_of(server: FaultyServer, place: Place, *requests: Any, **settings: Any) -> list[Any]:
    config = OpenAIEngine(
        base_url=server.url, max_retries=1, max_backoff_s=0.02, max_concurrency=1, **settings
    )

    async def go() -> list[Any]:
        engine = OpenAIServer(config, "m", place=place)
        try:
            return await asyncio.gather(
                *(engine.generate(each) for each in requests), return_exceptions=True
            )
        finally:
            await engine.aclose()

    return asyncio.run(go())


def a_judge_s(text: str, **more: Any) -> Any:
    return question(text, choices=("A", "B"), temperature=0.0, max_tokens=40, **more)


@pytest.mark.parametrize("case", CASES)
def test_it_ends_the_run_at_once_and_names_the_key(case: str) -> None:
    refuses, refusal, place, field, remedy = CASES[case]
    settings: dict[str, Any] = {}
    more: dict[str, Any] = {}
    if case == "an older server":
        settings = {"max_tokens_field": "max_completion_tokens"}
    elif case == "further":
        settings = {"extra_body": {"service_tier": "flex"}}
    elif case == "schema":
        more = {"json_schema": SCHEMA}
    elif case == "effort":
        settings = {"reasoning_effort": "low"}
    elif case == "template":
        settings = {"chat_template_kwargs": {"enable_thinking": False}}
    requests = [a_judge_s(text, **more) for text in ("one", "two", "three")]
    with faulty_server(refusing(refuses, refusal)) as server:
        outcomes = asked_of(server, place, *requests, **settings)
    for stopped in outcomes:
        assert isinstance(stopped, EverythingRefused)
        assert f"refuses the field '{field}'" in str(stopped)
        assert remedy in str(stopped)
        assert "\n" not in str(stopped)
    # The first, and the same without it; what comes later is not asked without it again. A limit
    # that is too high is tried with another prompt, too.
    assert len(server.requests) == (5 if case == "deepseek" else 4)
    assert server.requests[-3][2]["messages"][0]["content"] == "one"


def test_all_that_is_refused_is_said_at_once() -> None:
    def reply(handler: Handler) -> None:
        refused = {"max_tokens": TOKENS, "temperature": ONLY_DEFAULT,
                   "logprobs": "'logprobs' is not supported with this model"}  # fmt: skip
        for field, message in refused.items():
            if field in handler.body:
                openai(message, field, None)(handler)
                return
        good("A")(handler)

    with faulty_server(reply) as server:
        [stopped] = asked_of(server, JUDGE, a_judge_s("one"))
    said = str(stopped)
    assert "the fields 'max_tokens', 'temperature', 'logprobs'" in said
    for key in ("max_tokens_field", "judge.temperature: null", "engines.e.logprobs: false"):
        assert key in said


def test_it_is_told_too_where_others_were_answered() -> None:
    def reply(handler: Handler) -> None:
        refuses = "response_format" in handler.body
        (CASES["schema"][1] if refuses else VERDICT)(handler)

    with faulty_server(reply) as server:
        answered, stopped = asked_of(
            server, JUDGE, a_judge_s("one"), a_judge_s("two", json_schema=SCHEMA)
        )
    assert answered[0].text == "A"
    assert isinstance(stopped, EverythingRefused)


@pytest.mark.parametrize(
    "message",
    [
        "Invalid input: the text speaks of 'temperature' and of the seed, which is not allowed",
        "Unsupported parameter: 'temperature'",
    ],
)
def test_a_prompt_whose_refusal_names_a_parameter_costs_itself(message: str) -> None:
    def reply(handler: Handler) -> None:
        bad = handler.body["messages"][-1]["content"] == "bad"
        (openai(message, None, None) if bad else VERDICT)(handler)

    with faulty_server(reply) as server:
        first, bad, last = asked_of(server, JUDGE, *map(a_judge_s, ("first", "bad", "last")))
    assert isinstance(bad, RequestRejected)
    assert bad.reason == "refused_by_server"
    assert first[0].text == last[0].text == "A"


def test_a_limit_that_is_too_high_for_one_prompt_is_that_prompt_s() -> None:
    message = "max_tokens is too large: with a prompt of 3000 tokens it must be at most 20"

    def reply(handler: Handler) -> None:
        long = handler.body["messages"][-1]["content"] == "long"
        refuses = long and handler.body["max_tokens"] > 20
        (openai(message, "max_tokens", None) if refuses else VERDICT)(handler)

    with faulty_server(reply) as server:
        rejected, answered = asked_of(server, SAMPLE, a_judge_s("long"), a_judge_s("short"))
    assert isinstance(rejected, RequestRejected)
    assert answered[0].text == "A"


def test_a_refused_message_is_the_prompt_s() -> None:
    refusal = openai("Invalid type for 'messages[0].content': must be text", "messages[0]", None)
    with faulty_server(refusal) as server:
        [rejected] = ask(server.url, question())
    assert isinstance(rejected, RequestRejected)
    assert len(server.requests) == 1


def test_asking_without_it_is_paid_from_the_budget(tmp_path: Any) -> None:
    refuses, refusal, *_ = CASES["mistral seed"]
    with faulty_server(refusing(refuses, refusal)) as server:
        ask(server.url, question(max_tokens=5), folder=tmp_path / "e")
        [stopped] = ask(
            server.url, question(max_tokens=5), folder=tmp_path / "e", max_total_tokens=16
        )
    assert "budget reached: 15 of max_total_tokens 16 used" in str(stopped)
