"""A key goes to its server in one header, and nowhere else."""

import base64
import json
import traceback

import pytest
from pydantic import ValidationError

from prefloop.data.protocol import EngineFailed, RequestRejected
from prefloop.pipeline.config import ConfigError, dump_config, load_config
from prefloop.pipeline.engines.openai.api_key import ApiKey, read_key
from prefloop.pipeline.engines.settings import OpenAIEngine
from tests.helpers.served import ask, question
from tests.helpers.servers import faulty_server, good, says, status

KEY = "sk-proj-0aB1cD2eF3gH4iJ5kL6m"


def parts(text):
    """The longest stretch of the key that stands in ``text``."""
    sizes = range(len(KEY), 0, -1)
    return next((n for n in sizes for at in range(len(KEY) - n + 1) if KEY[at : at + n] in text), 0)


@pytest.mark.parametrize("value", [KEY + "\n", f"  {KEY}\t", f"\r\n{KEY}\r\n"])
def test_white_space_around_a_key_is_taken_off(monkeypatch, value):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with faulty_server(good()) as server:
        (answers,) = ask(server.url, question())
    assert answers[0].text == "hello"
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize("value", [f"{KEY}\n{KEY}", f"Bearer {KEY}", f"{KEY}\u2026", f"a\x1b{KEY}"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(monkeypatch, value):
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(EngineFailed, match="MY_KEY") as caught:
        ask("http://127.0.0.1:9/v1", question(), api_key_env="MY_KEY")
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert parts(shown) < 6


ECHOES = [
    f"bad key {KEY}", f"bad key {KEY!r}", f"Bearer%20{KEY}", f"the key {KEY[5:]} is unknown",
    f"Incorrect key: {KEY[:8]}***{KEY[-4:]}", f"Incorrect key: {KEY[:3]}...{KEY[-4:]}",
    KEY.upper(),
    json.dumps({"sent": {"authorization": f"Bearer {KEY}"}}),
]  # fmt: skip


@pytest.mark.parametrize("code", [200, 400, 401, 402, 403, 404, 429, 500])
def test_no_server_gets_a_key_into_a_message(monkeypatch, code, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(0)
    for echo in ECHOES:
        for reply in (says({"error": {"message": echo}}, code), lambda h, e=echo: h.send(code, e)):
            with faulty_server(reply) as server:
                (error,) = ask(server.url, question(), max_retries=0)
            assert isinstance(error, EngineFailed | RequestRejected)
            shown = str(error) + repr(error) + "".join(traceback.format_exception(error))
            assert parts(shown + caplog.text) < 6, echo
            assert KEY[-4:] not in str(error), echo


def test_an_answer_that_quotes_the_key_is_kept_without_it(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with faulty_server(good(f"you sent Bearer {KEY}")) as server:
        for _ in range(2):
            (answers,) = ask(server.url, question(), folder=tmp_path / "c")
            assert answers[0].text == "you sent Bearer ***"
    assert len(server.requests) == 1
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


def test_words_that_are_no_key_stay(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert read_key("OPENAI_API_KEY").blot("none of these... were *** found") == (
        "none of these... were *** found"
    )
    assert ApiKey(KEY).blot("wait... xxxx of 1*** km") == "wait... xxxx of 1*** km"
    assert KEY not in repr(ApiKey(KEY))


NO_VARIABLES = [
    KEY, "sk_live_abcdefghijkl", "AIzaSyA1234567890abcdefghijklmnop", "gsk_abcdEFGH1234",
    "a1b2c3d4e5f60718293a4b5c6d7e8f90", "Bearer x", "MY KEY", "", "hf_abcDEF",
    "ghp_16C7e42F292c6912E7710c838347Ae",
    base64.b64encode(b"user:password").decode(), "eyJhbGciOiJIUzI1NiJ9",
]  # fmt: skip


@pytest.mark.parametrize("value", NO_VARIABLES)
def test_a_key_in_place_of_its_variable_is_refused_and_not_shown(value):
    with pytest.raises(ConfigError, match="api_key_env: must be the name") as caught:
        load_config({"engines": {"e": {"type": "openai", "api_key_env": value}}})
    assert not value or value not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "K", "key", "PF_CASE_KEY", "my_key_2", "SK_KEY"]
)
def test_names_of_variables_are_taken(name):
    assert OpenAIEngine(api_key_env=name).api_key_env == name


def test_a_strange_variable_that_is_set_is_taken(monkeypatch):
    monkeypatch.setenv("sk_live_abcdefghijkl", "x")
    assert OpenAIEngine(api_key_env="sk_live_abcdefghijkl")


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{KEY}@host/v1", f"http://{KEY}@host/v1", f"http://host/v1?api_key={KEY}",
        f"https://host/v1#{KEY}", f"https://host/{KEY}/v1", f"http://host/v1?{KEY}",
    ],
)  # fmt: skip
def test_a_key_in_an_address_is_refused_and_not_shown(url):
    with pytest.raises(ConfigError, match="base_url: must not hold") as caught:
        load_config({"engines": {"e": {"type": "openai", "base_url": url}}})
    assert parts("".join(traceback.format_exception(caught.value))) < 6


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1", "http://127.0.0.1:99999/", "http://127.0.0.1:0/v1", "http://x y/", "host/v1",
        "ftp://host/v1", "http://", "http:///v1", "", "http://host:port/v1", "http://ho\x00st/v1",
        "http://h\u00f6st/v1", "file:///etc/passwd", "http://host\\v1", "javascript:alert(1)",
    ],
)  # fmt: skip
def test_addresses_that_are_none_are_refused(url):
    with pytest.raises(ValidationError, match="base_url"):
        OpenAIEngine(base_url=url)


@pytest.mark.parametrize("url", ["http://no.such.host.invalid/v1", "http://-/v1", "http://1.2.3/v1",
                                 "http://a..b/v1", f"http://{'a' * 80}.x/v1"])  # fmt: skip
def test_hosts_that_are_none_are_one_line(url):
    (error,) = ask(url, question(), max_retries=0, timeout_s=2)
    assert isinstance(error, EngineFailed)
    assert "\n" not in str(error)


def test_settings_do_not_hold_a_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    config = load_config(
        {
            "engines": {"e": {"type": "openai"}},
            "sample": {"engine": "e"},
            "prompts": {"train": {"path": "p.jsonl"}},
            "label": {
                "labelers": [
                    {"type": "judge", "name": "j", "judge": "pairwise", "model": "m", "engine": "e"}
                ]
            },
        }
    )
    assert parts(dump_config(config) + repr(config)) < 6


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_takes_neither_key_nor_prompt_to_another_host(monkeypatch, code):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with faulty_server(good()) as other:
        location = f"{other.url}/chat/completions?token={KEY}"
        with faulty_server(lambda handler: handler.send(code, "", location=location)) as server:
            (error,) = ask(server.url, question())
    assert isinstance(error, EngineFailed)
    assert f"redirects to {other.url}/chat/completions (status {code})" in str(error)
    assert other.requests == []
    assert len(server.requests) == 1
    assert parts(str(error)) < 6


def test_a_redirect_on_the_same_server_is_followed_and_a_circle_ends():
    moved = lambda handler: handler.send(307, "", location="/v2/chat/completions")  # noqa: E731
    with faulty_server(moved, good()) as server:
        (answers,) = ask(server.url, question())
    assert answers[0].text == "hello"
    assert [path.split("/")[1] for _, path, _ in server.requests] == ["v1", "v2"]
    with faulty_server(moved) as server:
        (error,) = ask(server.url, question())
    assert "redirects in a circle" in str(error)


def test_a_lasting_error_keeps_the_key_out_of_its_context(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with faulty_server(status(500, f"sent {KEY}")) as server:
        (error,) = ask(server.url, question())
    assert parts("".join(traceback.format_exception(error))) < 6
    context = error
    while context is not None:
        assert parts(str(context) + repr(context)) < 6
        context = context.__context__
