"""Proxies of the environment: who goes through them, and who does not."""

import pytest

from prefloop.data.protocol import EngineFailed
from tests.helpers.served import ask, question
from tests.helpers.servers import faulty_server, good
from tests.pipeline.engines.openai.batch.batch_server import batch_server

MODEL = "http://model.invalid/v1"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("spared", ["", "other.invalid, el.invalid"])
def test_requests_go_through_the_proxy(monkeypatch, name, spared):
    with faulty_server(good("by proxy")) as proxy:
        monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("NO_PROXY", spared)
        ((answer,),) = ask(MODEL, question())
        assert [path for _, path, _ in proxy.requests] == [f"{MODEL}/chat/completions"]
    assert answer.text == "by proxy"


@pytest.mark.parametrize("spared", ["model.invalid", ".invalid", "a.b, invalid", "*"])
def test_spared_hosts_are_asked_directly(monkeypatch, spared):
    with faulty_server(good()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("NO_PROXY", spared)
        (failed,) = ask(MODEL, question(), max_retries=0)
        assert not proxy.requests
    assert isinstance(failed, EngineFailed)
    assert "no connection" in str(failed)


def test_a_proxy_of_other_addresses_is_none_of_ours(monkeypatch):
    with faulty_server(good()) as proxy, faulty_server(good("direct")) as server:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.removesuffix("/v1"))
        ((answer,),) = ask(server.url, question())
        assert not proxy.requests
    assert answer.text == "direct"


def test_a_proxy_that_is_none_is_one_line(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "ftp://proxy.invalid")
    with pytest.raises(EngineFailed, match=r"no client for .* can be made"):
        ask(MODEL, question())


def test_files_of_jobs_go_through_the_proxy_too(monkeypatch, tmp_path):
    batch = {"gather_s": 0.05, "poll_s": 0.01}
    with batch_server() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
        ((answer,),) = ask(MODEL, question(), folder=tmp_path / "e", mode="batch", batch=batch)
        assert [len(asked) for asked in proxy.asked] == [1]
    assert answer.text == "to a fox"
