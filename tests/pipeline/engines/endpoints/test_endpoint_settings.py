"""What may be said of endpoints, and what holds for each."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from prefloop.data.strict import fingerprint
from prefloop.pipeline.engines.settings import OpenAIEngine

A, B = "http://a:8000/v1", "https://b.example/v1"


def test_what_an_endpoint_leaves_out_is_the_engine_s() -> None:
    engine = OpenAIEngine(
        endpoints=[
            {"base_url": A},
            {
                "base_url": B, "api_key_env": "B_KEY", "max_concurrency": 3,
                "requests_per_minute": 60, "extra_headers": {"X-A": "2"},
            },
        ],
        api_key_env="ALL_KEY", max_concurrency=7, tokens_per_minute=100,
        extra_headers={"x-a": "1", "x-b": "1"},
    )  # fmt: skip
    first, second = engine.servers
    assert (first.api_key_env, second.api_key_env) == ("ALL_KEY", "B_KEY")
    assert (first.max_concurrency, second.max_concurrency, engine.concurrency) == (7, 3, 10)
    assert (first.requests_per_minute, second.requests_per_minute) == (None, 60)
    assert (first.tokens_per_minute, second.tokens_per_minute) == (100, 100)
    assert first.extra_headers == {"x-a": "1", "x-b": "1"}
    assert second.extra_headers == {"x-b": "1", "X-A": "2"}
    assert engine.addresses == (A, B)


def test_one_address_is_one_server_as_ever() -> None:
    engine = OpenAIEngine(base_url=A)
    [server] = engine.servers
    assert (server.base_url, server.max_concurrency, server.api_key_env) == (
        A,
        32,
        "OPENAI_API_KEY",
    )
    assert OpenAIEngine(base_url=A, vllm_extensions=True).concurrency == 256
    assert "endpoints" not in fingerprint(engine)


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"base_url": A, "endpoints": [{"base_url": B}]}, "base_url stands beside endpoints"),
        ({"endpoints": [{"base_url": A}, {"base_url": A + "/"}]}, "twice"),
        ({"endpoints": [{"base_url": "http://me:pw@host/v1"}]}, "password"),
        ({"endpoints": [{"base_url": A, "api_key_env": "sk-abcdefgh12345678"}]}, "name of an env"),
        ({"endpoints": [{"base_url": A, "extra_headers": {"api-key": "x"}}]}, "may hold a key"),
        ({"endpoints": [{"base_url": A, "max_cost": 3}]}, "max_cost"),
        ({"endpoints": [{"base_url": A, "max_concurrency": 0}]}, "max_concurrency"),
    ],
)
def test_what_cannot_be_is_refused_without_showing_a_key(engine: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said) as refused:
        OpenAIEngine(**engine)
    assert "sk-abcdefgh" not in "".join(str(error["msg"]) for error in refused.value.errors())


def test_one_address_with_two_keys_is_two_endpoints() -> None:
    several = [{"base_url": A, "api_key_env": name} for name in ("FIRST_KEY", "SECOND_KEY")]
    assert OpenAIEngine(endpoints=several).concurrency == 64
