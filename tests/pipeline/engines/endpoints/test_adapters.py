"""A new policy is loaded into every endpoint, and into one that was started anew."""

from __future__ import annotations

import asyncio
import json

import pytest

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.engines.openai.openai_server import OpenAIServer
from prefloop.pipeline.engines.settings import OpenAIEngine
from tests.helpers.served import question
from tests.helpers.servers import close, faulty_server, free_port, good, status


class Vllm:
    """A server that answers for the models that it has, and loads others on demand."""

    def __init__(self, *, loads=True):
        self.names = {"m"}
        self.loads = loads

    def __call__(self, handler):
        model = handler.body.get("model")
        if handler.path.endswith("/load_lora_adapter"):
            if not self.loads:
                status(400, "LoRA is not enabled")(handler)
                return
            self.names.add(handler.body["lora_name"])
            handler.send(201, json.dumps("Success"))
        elif model in self.names:
            good(model)(handler)
        else:
            status(404, f"The model {model} does not exist")(handler)


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    return str(tmp_path)


def opened(*urls):
    return OpenAIServer(
        OpenAIEngine(
            endpoints=[{"base_url": url} for url in urls],
            vllm_extensions=True, timeout_s=30, max_backoff_s=0.02, max_retries=2,
        ),
        "m",
    )  # fmt: skip


def loaded(server):
    return [body["lora_name"] for _, path, body in server.requests if "load_lora" in path]


async def answers_of(engine, number):
    found = await asyncio.gather(*(engine.generate(question(str(at))) for at in range(number)))
    return {answers[0].text for answers in found}


def run(go, *urls):
    async def whole():
        engine = opened(*urls)
        try:
            return await go(engine)
        finally:
            await engine.aclose()

    return asyncio.run(whole())


def test_a_policy_is_loaded_everywhere_and_each_is_asked(adapter):
    async def go(engine):
        before = await answers_of(engine, 8)
        await engine.load_policy(adapter)
        return before, await answers_of(engine, 8)

    with faulty_server(Vllm()) as one, faulty_server(Vllm()) as other:
        before, after = run(go, one.url, other.url)
        [name] = set(loaded(one) + loaded(other))
        assert len(loaded(one)) == len(loaded(other)) == 1
        for server in (one, other):
            first = [body["model"] for _, path, body in server.requests if "chat" in path]
            assert name in first
    assert before == {"m"}
    assert after == {name}


def test_one_that_does_not_load_it_is_left_out_and_all_of_them_end_the_run(adapter, caplog):
    async def go(engine):
        await engine.load_policy(adapter)
        return await answers_of(engine, 8)

    with faulty_server(Vllm()) as one, faulty_server(Vllm(loads=False)) as other:
        [name] = run(go, one.url, other.url)
        assert name.startswith("policy-")
    assert (
        f"{other.url}: it does not load {adapter}: status 400: LoRA is not enabled" in caplog.text
    )
    with faulty_server(Vllm(loads=False)) as one, faulty_server(status(500, "ill")) as other:
        with pytest.raises(EngineFailed, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING") as failed:
            run(go, one.url, other.url)
        assert one.url in str(failed.value)
        assert "ill" in str(failed.value)


def test_one_that_says_it_loaded_and_has_not_is_left_out(adapter, caplog):
    """As of several servers behind one address one loads it, and another is asked."""

    def forgetful(handler):
        (good if "load_lora" in handler.path else status)(404)(handler)

    async def go(engine):
        await engine.load_policy(adapter)
        return await answers_of(engine, 8)

    with faulty_server(Vllm()) as one, faulty_server(forgetful) as other:
        [name] = run(go, one.url, other.url)
        assert name.startswith("policy-")
    assert "left out" in caplog.text
    assert f"{other.url} has no model '{name}'" in caplog.text


def test_one_that_was_started_anew_is_given_the_policy_again(adapter):
    anew = Vllm()

    async def go(engine):
        await engine.load_policy(adapter)
        anew.names = {"m"}
        return await answers_of(engine, 12)

    with faulty_server(Vllm()) as one, faulty_server(anew) as other:
        [name] = run(go, one.url, other.url)
        assert loaded(other) == [name, name]
        assert any(body["model"] == name for body in other.answered if "model" in body)


def test_one_that_is_gone_meanwhile_is_given_it_when_it_is_back(adapter):
    port = free_port()

    async def go(engine):
        await engine.load_policy(adapter)
        back = Vllm()
        with faulty_server(back, port=port) as born:
            asked = set()
            while not any("chat" in path for _, path, _ in born.requests):
                asked |= await answers_of(engine, 6)
            asked |= await answers_of(engine, 6)
            return asked, loaded(born)

    with faulty_server(Vllm()) as one:
        asked, names = run(go, one.url, f"http://127.0.0.1:{port}/v1")
    assert list(asked) == names[:1]
    assert len(names) == 1


def test_a_server_that_hangs_up_at_loading_is_one_that_is_gone(adapter, caplog):
    async def go(engine):
        await engine.load_policy(adapter)
        return await answers_of(engine, 4)

    with faulty_server(Vllm()) as one, faulty_server(close) as other:
        [name] = run(go, one.url, other.url)
    assert name.startswith("policy-")
    assert "left out" not in caplog.text
