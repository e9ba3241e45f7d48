"""What is sent beside the prompt: left out, handed on, kept secret, and part of the cache's key."""

import logging

import pytest

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.config import ConfigError, load_config
from prefloop.pipeline.engines.openai.ledger import ledger_at
from tests.helpers.engine_models import make_tokenizer
from tests.helpers.served import ask, question
from tests.helpers.servers import faulty_server, good, status

SECRET = "4f7c-very-secret-value-0815"
BASE = {
    "prompts": {"train": {"path": "embedded:prompts"}},
    "label": {"labelers": [{"type": "verifier"}]},
}


def sent(server):
    return [body for _, _, body in server.requests]


def test_null_is_not_sent():
    with faulty_server(good()) as server:
        ask(server.url, question(temperature=None, top_p=None, top_k=None))
    [body] = sent(server)
    assert not {"temperature", "top_p", "top_k"} & body.keys()
    assert body["seed"] == 1


@pytest.mark.parametrize(
    ("asked", "settings", "told"),
    [
        ({"temperature": 1.0}, {"vllm_extensions": True}, -1),
        ({"temperature": 1.0, "top_k": 7}, {"vllm_extensions": True}, 7),
        ({"temperature": 1.0, "top_k": None}, {"vllm_extensions": True}, None),
        ({"temperature": 0.0}, {"vllm_extensions": True}, None),
        ({"temperature": 1.0}, {}, None),
        ({"temperature": 1.0}, {"vllm_extensions": True, "extra_body": {"top_k": 9}}, 9),
    ],
)
def test_vllm_is_told_that_the_whole_vocabulary_is_meant(asked, settings, told):
    """Its model's generation_config.json would cut it off otherwise, as Qwen's does."""
    with faulty_server(good()) as server:
        ask(server.url, question(**asked), **settings)
    [body] = sent(server)
    assert body.get("top_k") == told


PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


@pytest.mark.parametrize(
    ("asked", "settings", "told"),
    [
        ({"temperature": 0.0}, {"vllm_extensions": True}, PENALTIES),
        ({"temperature": 0.7}, {"vllm_extensions": True}, {**PENALTIES, "min_p": 0.0}),
        ({"temperature": None}, {"vllm_extensions": True}, {**PENALTIES, "min_p": 0.0}),
        (
            {"temperature": 0.7},
            {
                "vllm_extensions": True,
                "extra_body": {"repetition_penalty": 1.1, "min_p": 0.05},
            },
            {**PENALTIES, "repetition_penalty": 1.1, "min_p": 0.05},
        ),
        ({"temperature": 0.7}, {}, {}),
    ],
)
def test_vllm_is_told_that_no_penalties_are_meant(asked, settings, told):
    """Its model's generation_config.json would set some otherwise, as Qwen2.5's does: a judge at
    temperature 0 would be another than with a local engine."""
    with faulty_server(good()) as server:
        ask(server.url, question(**asked), **settings)
    [body] = sent(server)
    assert {name: body[name] for name in (*PENALTIES, "min_p") if name in body} == told


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    ("written", "text", "reason", "known"),
    [
        ("a fox", "a fox", "length", True),
        ("a fox\n\nUser:", "a fox", "stop", True),  # the stop string is left in the answer
        ("a fox\n\nUser: and", "a fox", "stop", False),  # and here the server went on
        ("\n\nUser:", "", "stop", True),
        ("a\n\nUse", "a", "stop", False),
    ],
)
def test_stop_strings_are_cut_off_whatever_the_server_does(n, written, text, reason, known):
    logprobs = {"content": [{"token": written, "logprob": -1.5, "top_logprobs": []}]}
    with faulty_server(good(written, finish_reason="length", logprobs=logprobs)) as server:
        seeds = tuple(range(n))
        [answers] = ask(server.url, question(stop=("\n\nUser:", "\n\n"), seeds=seeds))
    for answer in answers:
        assert (answer.text, answer.finish_reason) == (text, reason)
        assert answer.logprob == (-1.5 if known else None)


@pytest.mark.parametrize("where", ["sample", "pool"])
def test_a_stop_string_that_is_before_every_answer_is_refused(where):
    sample = {"stop": ["x", ""]}
    if where == "pool":
        sample = {"pool": [{"name": "other", "model": "embedded:policy", **sample}]}
    with pytest.raises(ConfigError, match="stop"):
        load_config({**BASE, "sample": sample})


def test_further_fields_variables_and_effort_are_sent_and_the_request_s_win():
    settings = {
        "extra_body": {"provider": {"order": ["a"]}, "service_tier": "flex"},
        "chat_template_kwargs": {"enable_thinking": True, "tone": "dry"},
        "reasoning_effort": "high",
    }
    own = question("own", chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low")
    with faulty_server(good()) as server:
        ask(server.url, question("theirs"), own, max_concurrency=1, **settings)
    by_text = {body["messages"][0]["content"]: body for body in sent(server)}
    for body in by_text.values():
        assert body["provider"] == {"order": ["a"]}
        assert body["service_tier"] == "flex"
    theirs, own_body = by_text["theirs"], by_text["own"]
    assert theirs["chat_template_kwargs"] == {"enable_thinking": True, "tone": "dry"}
    assert theirs["reasoning_effort"] == "high"
    assert own_body["chat_template_kwargs"] == {"enable_thinking": False, "tone": "dry"}
    assert own_body["reasoning_effort"] == "low"


def test_a_completions_api_is_not_sent_what_the_template_was_rendered_with(tmp_path):
    make_tokenizer(tmp_path)
    with faulty_server(good()) as server:
        ask(
            server.url, question(reasoning_effort="low"), api="completions",
            tokenizer=str(tmp_path), chat_template_kwargs={"enable_thinking": False},
        )  # fmt: skip
    [body] = sent(server)
    assert not {"chat_template_kwargs", "reasoning_effort"} & body.keys()


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_limit_has_the_thought_in_it_and_so_has_the_budget(tmp_path, field):
    asking = question(max_tokens=5, thought_tokens=40)
    with faulty_server(good()) as server:
        [error] = ask(
            server.url, asking, folder=tmp_path / "e", max_total_tokens=50, max_tokens_field=field
        )
        assert isinstance(error, EngineFailed)
        assert not server.requests
        ask(server.url, asking, folder=tmp_path / "e", max_tokens_field=field)
    assert sent(server)[0][field] == 45


@pytest.mark.parametrize(
    "change",
    [
        {"extra_body": {"service_tier": "flex"}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "low"},
        {"extra_headers": {"x-region": "eu"}},
        {"leave_out": ("temperature",)},
    ],
    ids=str,
)
def test_what_changes_an_answer_is_in_the_cache_s_key(tmp_path, change):
    with faulty_server(good()) as server:
        for settings in ({}, change, change, {}):
            ask(server.url, question(), folder=tmp_path / "e", **settings)
        assert len(server.requests) == 2


def test_another_request_is_another_answer(tmp_path):
    asked = [
        question(),
        question(temperature=None),
        question(thought_tokens=7),
        question(reasoning_effort="low"),
        question(chat_template_kwargs={"a": 1}),
    ]
    with faulty_server(good()) as server:
        for request in [*asked, *asked]:
            ask(server.url, request, folder=tmp_path / "e")
        assert len(server.requests) == len(asked)


def test_a_field_that_is_sent_already_is_one_line():
    with faulty_server(good()) as server:
        [error] = ask(server.url, question(top_k=4), vllm_extensions=True, extra_body={"top_k": 9})
    assert "extra_body has 'top_k', which is sent already" in str(error)
    assert not server.requests


def test_headers_from_the_environment_are_sent_and_stand_nowhere_else(
    monkeypatch, tmp_path, caplog, capfd
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("DEPLOYMENT_KEY", SECRET)
    headers = {"api-key": "$DEPLOYMENT_KEY", "X-Title": "a run"}
    said = f"who is {SECRET}, or {SECRET[:9]}"
    seen = []

    def reply(handler):
        seen.append(dict(handler.headers))
        (status(400, said) if len(seen) == 1 else good(f"it is {SECRET}"))(handler)

    with faulty_server(reply) as server:
        refused, answered = ask(
            server.url, question("a"), question("b"), folder=tmp_path / "e",
            extra_headers=headers, max_concurrency=1,
        )  # fmt: skip
    assert {one["api-key"] for one in seen} == {SECRET}
    assert {one["x-title"] for one in seen} == {"a run"}
    told = repr(refused) + str(refused) + repr(answered) + caplog.text + "".join(capfd.readouterr())
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "who is ***" in told
    assert "it is ***" in told
    for hidden in (SECRET, SECRET[:9]):
        assert hidden not in told
        assert hidden.encode() not in files
    assert ledger_at(tmp_path / "e.spent.jsonl").settled.tokens == 15


def test_a_header_whose_variable_is_not_set_is_one_line(monkeypatch):
    monkeypatch.delenv("DEPLOYMENT_KEY", raising=False)
    with faulty_server(good()) as server, pytest.raises(EngineFailed, match="DEPLOYMENT_KEY"):
        ask(server.url, question(), extra_headers={"api-key": "$DEPLOYMENT_KEY"})
    monkeypatch.setenv("DEPLOYMENT_KEY", "a\nb")
    with pytest.raises(EngineFailed, match="DEPLOYMENT_KEY") as raised:
        ask("http://127.0.0.1:9/v1", question(), extra_headers={"api-key": "$DEPLOYMENT_KEY"})
    assert "a\nb" not in str(raised.value)


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"extra_body": {"seed": 1}}, "'seed' is set by prefloop"),
        ({"extra_body": {"n": 4}}, "'n' is set by prefloop"),
        ({"extra_body": {"api_key": SECRET}}, "must not hold a key"),
        ({"extra_body": {"a": [{"b": "sk-" + "x" * 30}]}}, "must not hold a key"),
        ({"extra_headers": {"Authorization": SECRET}}, "may hold a key"),
        ({"extra_headers": {"x-my-token": SECRET}}, "may hold a key"),
        ({"extra_headers": {"x-title": "sk-" + "x" * 30}}, "may hold a key"),
        ({"extra_headers": {"x-title": "Ab1" * 10}}, "may hold a key"),
        ({"extra_headers": {"api-key": "$not a name"}}, "must name an environment variable"),
        ({"extra_headers": {"api key": "$K"}}, "no HTTP header"),
        ({"extra_headers": {"x-a": "1", "X-A": "2"}}, "given twice"),
        ({"extra_headers": {"Host": "else.where"}}, "is set by prefloop"),
    ],
    ids=str,
)
def test_what_may_not_be_handed_on_is_refused_and_not_shown(engine, said):
    with pytest.raises(ConfigError, match=said) as raised:
        load_config({**BASE, "engines": {"default": {"type": "openai", **engine}}})
    for hidden in (SECRET, "x" * 30, "Ab1" * 10):
        assert hidden not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [("model", "is set by prefloop"), ("seed", "key of the engine itself"),
     ("load_format", "only safetensors")],
)  # fmt: skip
def test_arguments_of_vllm_that_are_ours_are_refused(name, said):
    engine = {"type": "vllm", "engine_args": {name: "x"}}
    with pytest.raises(ConfigError, match=said):
        load_config({**BASE, "engines": {"default": engine}})
