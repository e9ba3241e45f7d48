"""vLLM for real (its CPU build where there is no GPU): in process, and its OpenAI server.

Starting it takes half a minute, so the tests share one engine and one server.
"""

import asyncio
import importlib.util
import json
from dataclasses import replace

import pytest

from prefloop.data.protocol import EngineFailed, Request, RequestRejected, Sampling
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.engines.policy_check import PolicyMismatch, verify_policy
from prefloop.pipeline.engines.settings import OpenAIEngine, TransformersEngine, VllmEngine
from prefloop.pipeline.engines.weights import load_tokenizer
from prefloop.training.inputs.tokens import answer_ids, end_token
from tests.helpers.engine_models import make_adapter, make_model
from tests.helpers.servers import vllm_server

pytestmark = pytest.mark.vllm
needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vLLM is not installed (pip install 'prefloop[cpu]' or 'prefloop[vllm]')",
)
CHAT = ({"role": "user", "content": "Write one sentence about a fox."},)
SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"enum": ["A", "B"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}


def request(index=0, seeds=(1, 2), choices=None, json_schema=None, **sampling):
    chat = ({"role": "user", "content": "Write about a <s> fox. " * (1 + index % 3)},)
    sampling = Sampling(**{"max_tokens": 12, **sampling})
    return Request(f"r{index}", chat, sampling, seeds, choices, json_schema)


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:  # an engine belongs to one event loop
        yield runner


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    base = make_model(root / "base")
    return {
        "base": base,
        "other": make_model(root / "other", seed=1),
        "adapter": make_adapter(root / "adapter", base),
        "root": root,
    }


@pytest.fixture(scope="module")
def engine(runner, folders):
    config = VllmEngine(enable_lora=True, max_lora_rank=8, max_num_seqs=32)
    engine = runner.run(build_engine(config, folders["base"]))
    yield engine
    runner.run(engine.aclose())


@pytest.fixture(scope="module")
def server(folders):
    arguments = ("--enable-lora", "--max-lora-rank", "8", "--max-logprobs", "20")
    with vllm_server(folders["base"], folders["root"] / "server.log", *arguments) as url:
        yield url


def in_transformers(runner, folder, *requests):
    async def go():
        engine = await build_engine(TransformersEngine(), folder)
        answers = await asyncio.gather(*(engine.generate(r) for r in requests))
        await engine.aclose()
        return answers

    return runner.run(go())


@needs_vllm
def test_seeded_draws_repeat_and_differ(runner, engine):
    async def go():
        first = await asyncio.gather(*(engine.generate(request(i)) for i in range(6)))
        return first, [await engine.generate(request(i)) for i in range(6)]

    first, again = runner.run(go())
    tokens = [[a.token_ids for a in answers] for answers in first]
    assert [[a.token_ids for a in answers] for answers in again] == tokens
    assert all(one != two for one, two in tokens)


@needs_vllm
def test_agrees_with_transformers(runner, engine, folders):
    sent = request(seeds=(1,), choices=("A", "B"), temperature=0.0)
    (ours,) = runner.run(engine.generate(sent))
    ((theirs,),) = in_transformers(runner, folders["base"], sent)
    assert (ours.token_ids, ours.text) == (theirs.token_ids, theirs.text)
    assert ours.finish_reason == theirs.finish_reason
    assert ours.prompt_tokens == theirs.prompt_tokens
    assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
    for choice in sent.choices:
        expected = theirs.choice_logprobs[choice]
        assert ours.choice_logprobs[choice] == pytest.approx(expected, abs=1e-3)


@needs_vllm
def test_json_stop_and_overflow(runner, engine):
    (answer,) = runner.run(engine.generate(request(seeds=(1,), json_schema=SCHEMA, max_tokens=40)))
    assert json.loads(answer.text)["verdict"] in "AB"
    (free,) = runner.run(engine.generate(request(seeds=(3,), max_tokens=30)))
    stop = next(c for c in free.text[4:] if c.isalnum())
    (cut,) = runner.run(engine.generate(request(seeds=(3,), max_tokens=30, stop=(stop,))))
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish_reason == "stop"
    with pytest.raises(RequestRejected, match="context_overflow"):
        runner.run(engine.generate(request(max_tokens=1000)))


@needs_vllm
def test_lora_is_loaded_verified_and_a_policy_not_loaded_is_caught(runner, engine, folders):
    base, adapter = folders["base"], folders["adapter"]
    assert runner.run(verify_policy(engine, base, [CHAT])) < 1e-3
    with pytest.raises(PolicyMismatch):
        runner.run(verify_policy(engine, adapter, [CHAT], base=base))
    runner.run(engine.load_policy(adapter))
    assert runner.run(verify_policy(engine, adapter, [CHAT], base=base)) < 1e-3
    with pytest.raises(PolicyMismatch):
        runner.run(verify_policy(engine, base, [CHAT]))
    runner.run(engine.load_policy(base))  # back, in the same engine
    assert runner.run(verify_policy(engine, base, [CHAT])) < 1e-3


@needs_vllm
def test_whole_weights_are_loaded_and_verified(runner, engine, folders):
    runner.run(engine.generate(request(seeds=(1,))))
    told: list[int] = []
    reading, shut_down = engine._llm.output_handler, engine._llm.shutdown

    def noted():
        told.append(reading.cancelling())
        shut_down()

    engine._llm.shutdown = noted
    runner.run(engine.load_policy(folders["other"]))
    assert runner.run(verify_policy(engine, folders["other"], [CHAT])) < 1e-3
    if told:  # weights are loaded in place where there is a GPU
        assert told == [1], "vLLM reports an engine that is closed as one that died"


@needs_vllm
def test_a_killed_engine_is_one_clear_error(runner, engine):
    long = request(seeds=tuple(range(16)), max_tokens=200)

    async def go():
        running = asyncio.ensure_future(engine.generate(long))
        await asyncio.sleep(0.3)
        for process in engine._llm.engine_core.resources.engine_manager.processes:
            process.kill()
        await running

    with pytest.raises(EngineFailed, match="process died"):
        runner.run(go())


@needs_vllm
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_the_real_server_agrees_with_transformers(runner, server, folders, api):
    config = OpenAIEngine(base_url=server, api=api, tokenizer=folders["base"], vllm_extensions=True)
    plain = ({"role": "user", "content": "Write about a fox."},)
    greedy = replace(request(seeds=(1,), choices=("A", "B"), temperature=0.0), messages=plain)
    drawn = replace(request(seeds=(1, 2), top_k=50), messages=plain)

    async def go():
        engine = await build_engine(config, "policy")
        try:
            return (
                (await engine.generate(greedy))[0],
                await engine.generate(drawn),
                await engine.generate(drawn),
                (await engine.generate(request(seeds=(1,), json_schema=SCHEMA, max_tokens=60)))[0],
                await asyncio.gather(
                    engine.generate(request(max_tokens=1000)), return_exceptions=True
                ),
            )
        finally:
            await engine.aclose()

    answer, first, again, schema, (overflow,) = runner.run(go())
    ((expected,),) = in_transformers(runner, folders["base"], greedy)
    assert answer.token_ids == expected.token_ids
    # The server holds back bytes at the end that are not a whole character.
    assert answer.text.rstrip("\ufffd") == expected.text.rstrip("\ufffd")
    assert answer.prompt_tokens == expected.prompt_tokens  # one BOS, not two
    assert answer.completion_tokens == expected.completion_tokens
    assert answer.logprob == pytest.approx(expected.logprob, abs=1e-3)
    for choice, logprob in answer.choice_logprobs.items():
        if logprob != float("-inf"):
            assert logprob == pytest.approx(expected.choice_logprobs[choice], abs=1e-3)
    assert [a.token_ids for a in first] == [a.token_ids for a in again]
    assert first[0].token_ids != first[1].token_ids
    tokenizer = load_tokenizer(folders["base"])
    for one in first:
        [again] = answer_ids(tokenizer, [one.text], end_token(tokenizer))
        assert one.ids_differ == (one.token_ids not in (tuple(again), tuple(again[:-1])))
    assert json.loads(schema.text)["verdict"] in "AB"
    assert isinstance(overflow, RequestRejected)
    assert overflow.reason == "context_overflow"


@needs_vllm
def test_a_lora_policy_is_loaded_into_the_real_server(runner, server, folders):
    async def go():
        engine = await build_engine(OpenAIEngine(base_url=server, vllm_extensions=True), "policy")
        gone = await build_engine(OpenAIEngine(base_url=server), "no-such-model")
        try:
            await engine.load_policy(folders["adapter"])
            await engine.load_policy(folders["adapter"])  # a resumed run does it again
            with pytest.raises(PolicyMismatch):
                await verify_policy(engine, folders["base"], [CHAT])
            with pytest.raises(EngineFailed, match="no-such-model"):
                await gone.generate(request())
            return await verify_policy(engine, folders["adapter"], [CHAT], base=folders["base"])
        finally:
            await engine.aclose()
            await gone.aclose()

    assert runner.run(go()) < 1e-3


def test_without_vllm_the_error_says_what_to_install(monkeypatch, runner, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    with pytest.raises(EngineFailed, match=r"prefloop\[cpu\]"):
        runner.run(build_engine(VllmEngine(), str(tmp_path)))


def test_an_engine_argument_that_vllm_does_not_know_is_one_line(folders, runner):
    wrong = VllmEngine(engine_args={"kv_cache_dtpye": "fp8"})
    with pytest.raises(EngineFailed, match=r"'kv_cache_dtpye'.*write 'kv_cache_dtype'"):
        runner.run(build_engine(wrong, folders["base"]))


def test_further_engine_arguments_reach_vllm(folders):
    from prefloop.pipeline.engines.vllm_engine import _engine_args

    given = VllmEngine(engine_args={"swap_space": 1, "kv_cache_dtype": "auto"})
    made = _engine_args(given, folders["base"])
    assert (made["swap_space"], made["kv_cache_dtype"]) == (1, "auto")
    assert made["load_format"] == "safetensors"


@needs_vllm
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_several_answers_of_the_server_come_with_one_request(runner, server, folders, api):
    config = OpenAIEngine(
        base_url=server, api=api, tokenizer=folders["base"], vllm_extensions=True, n_per_request=5
    )
    asked = [request(index, seeds=(100, 200, 300, 400, 500)) for index in range(3)]
    alone = [replace(each, seeds=(seed,)) for each in asked for seed in (100, 101)]

    async def go():
        engine = await build_engine(config, "policy")
        try:
            found = [await asyncio.gather(*map(engine.generate, asked)) for _ in range(2)]
            first = await asyncio.gather(*map(engine.generate, alone))
            return *found, first, engine.several, engine.spent.tokens
        finally:
            await engine.aclose()

    together, again, first, several, spent = runner.run(go())
    assert (several.honoured, several.most_came) == ("honoured", 5)
    assert again == together
    for answers, [own], [next_own] in zip(together, first[::2], first[1::2], strict=True):
        assert len({answer.text for answer in answers}) > 1
        # The first is drawn by the seed that is sent, and the others by those that follow.
        assert [answer.text for answer in answers[:2]] == [own.text, next_own.text]
        assert all(one.completion_tokens == len(one.token_ids) for one in answers)
        assert sum(one.prompt_tokens for one in answers) == own.prompt_tokens
    each = [one for answers in (*together, *again, *first) for one in answers]
    assert spent == sum(one.prompt_tokens + one.completion_tokens for one in each)
