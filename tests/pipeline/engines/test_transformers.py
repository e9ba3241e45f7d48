"""The transformers engine against transformers itself."""

import asyncio
import json
import math
import shutil
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prefloop.data.conversations.answer_edges import end_tokens, without_end
from prefloop.data.conversations.chat import render_tokens
from prefloop.data.embedded import resolve_embedded
from prefloop.data.protocol import EngineFailed, Request, RequestRejected, Sampling
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.engines.kv_cache import arguments_of, cache_keyword
from prefloop.pipeline.engines.policy_check import PolicyMismatch, verify_policy
from prefloop.pipeline.engines.settings import TransformersEngine
from prefloop.pipeline.engines.weights import configured_ends
from prefloop.training.inputs.tokens import answer_ids, end_token
from tests.helpers.engine_models import (
    BEHIND_WORDS,
    make_adapter,
    make_model,
    make_spaced_tokenizer,
)

CHAT = ({"role": "user", "content": "Write one sentence about a fox."},)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def reference(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(folder), model.eval()


def request(index=0, seeds=(1, 2), block="", block_size=1, choices=None, **sampling):
    chat = ({"role": "user", "content": "Write about a fox. " * (1 + index % 3)},)
    sampling = Sampling(**{"max_tokens": 12, **sampling})
    return Request(f"r{index}", chat, sampling, seeds, choices, block=block, block_size=block_size)


def complete(folder, *requests, **config):
    """All completions of ``requests`` sent at once to a fresh engine."""

    async def go():
        engine = await build_engine(TransformersEngine(**config), folder)
        try:
            return await asyncio.gather(
                *(engine.generate(r) for r in requests), return_exceptions=True
            )
        finally:
            await engine.aclose()

    return asyncio.run(go())


def teacher_forced(reference, messages, token_ids):
    """Log-probabilities (float32, [token]) of ``token_ids`` after ``messages``."""
    tokenizer, model = reference
    prompt = render_tokens(tokenizer, messages)
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *token_ids]])).logits[0]
    steps = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
    return steps[torch.arange(len(token_ids)), torch.tensor(token_ids)]


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 5}, {"temperature": 0.0}]
)
def test_logprobs_are_the_models_untempered_ones(folder, reference, sampling):
    requests = [request(i, block="b", block_size=5, **sampling) for i in range(5)]
    for sent, answers in zip(requests, complete(folder, *requests), strict=True):
        assert len(answers) == 2
        for answer in answers:
            expected = teacher_forced(reference, sent.messages, answer.token_ids).sum()
            assert answer.logprob == pytest.approx(float(expected), abs=2e-4)
            assert answer.completion_tokens == len(answer.token_ids)


def test_greedy_is_generates_greedy(folder, reference):
    tokenizer, model = reference
    (answers,) = complete(folder, request(seeds=(1,), temperature=0.0, max_tokens=20))
    prompt = torch.tensor([render_tokens(tokenizer, request().messages)])
    expected = model.generate(prompt, do_sample=False, max_new_tokens=20)[0, prompt.shape[1] :]
    assert list(answers[0].token_ids) == expected.tolist()


def test_it_is_known_which_tokens_a_text_does_not_say(folder, reference):
    tokenizer, _ = reference
    end = end_token(tokenizer)
    requests = [request(i, (1, 2, 3), "b", 8, max_tokens=1 + i, stop=("o",)) for i in range(8)]
    answers = [one for found in complete(folder, *requests) for one in found]
    for one in answers:
        [again] = answer_ids(tokenizer, [one.text], end)
        whole = one.token_ids[-1] in end_tokens(tokenizer, end)
        said = tuple(again if whole else again[:-1])
        assert one.ids_differ == (said != one.token_ids)
    assert {one.ids_differ for one in answers} == {True, False}
    assert any("o" in tokenizer.decode(one.token_ids) for one in answers if one.ids_differ)


def test_null_draws_as_the_model_s_generation_config_says(folder, tmp_path):
    advised = tmp_path / "advised"
    shutil.copytree(folder, advised)
    advice = {"temperature": 0.4, "top_k": 3, "top_p": 0.8, "do_sample": True}
    file = advised / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | advice))
    left_open = request(temperature=None, top_p=None, top_k=None, max_tokens=30)
    own = request(temperature=None, top_p=1.0, top_k=0, max_tokens=30)
    said = request(temperature=0.4, top_p=0.8, top_k=3, max_tokens=30)
    plain = request(max_tokens=30)
    assert complete(advised, left_open) == complete(folder, said)
    assert complete(folder, left_open) == complete(folder, plain)
    [drawn] = complete(advised, own)
    [cooler] = complete(folder, request(temperature=0.4, max_tokens=30))
    assert drawn == cooler


def test_variables_of_the_engine_reach_the_template_and_the_request_s_win(folder, tmp_path):
    varied = tmp_path / "varied"
    shutil.copytree(folder, varied)
    template = varied / "chat_template.jinja"
    template.write_text(template.read_text() + "{{ 'x' * (length or 0) }}{{ reasoning_effort }}")

    def prompt(own=None, **config):
        asked = replace(request(seeds=(1,), max_tokens=1), chat_template_kwargs=own or {})
        ((answer,),) = complete(str(varied), asked, **config)
        return answer.prompt_tokens

    bare = prompt()
    of_engine = prompt(chat_template_kwargs={"length": 40})
    assert of_engine > bare
    assert prompt({"length": 0}, chat_template_kwargs={"length": 40}) == bare
    assert prompt({"length": 40}) == of_engine
    assert prompt(reasoning_effort="very high") > bare


def test_arrival_order_in_a_block_changes_nothing(folder):
    requests = [
        request(i, seeds=(i, 50 + i, 9), block="b", block_size=7, max_tokens=12 + i % 2)
        for i in range(7)
    ]
    forward = complete(folder, *requests, batch_size=4)
    backward = complete(folder, *requests[::-1], batch_size=4)[::-1]
    assert forward == backward  # to the last bit of the log-probabilities


def test_a_seed_draws_the_same_tokens_in_any_batch(folder):
    alone = complete(folder, request(1, seeds=(42,)))
    requests = [request(i, seeds=(42, 43), block="b", block_size=9) for i in range(9)]
    together = complete(folder, *requests)
    assert together[1][0].token_ids == alone[0][0].token_ids
    assert together[1][0].token_ids != together[1][1].token_ids


def test_sampled_frequencies_follow_the_softmax(folder, reference):
    n, sampling = 4000, {"temperature": 1.5, "top_k": 8, "max_tokens": 1}
    (answers,) = complete(folder, request(seeds=tuple(range(n)), **sampling), batch_size=1000)
    tokenizer, model = reference
    with torch.inference_mode():
        logits = model(torch.tensor([render_tokens(tokenizer, request().messages)])).logits[0, -1]
    top = torch.topk(logits, 8)
    expected = dict(
        zip(top.indices.tolist(), torch.softmax(top.values / 1.5, 0).tolist(), strict=True)
    )
    counts = Counter(answer.token_ids[0] for answer in answers)
    assert set(counts) <= set(expected)
    chi_square = sum((counts[t] - n * p) ** 2 / (n * p) for t, p in expected.items())
    assert chi_square < 24.3  # 99.9% quantile at 7 degrees of freedom; seeds are fixed


def test_finish_reasons_and_end_token(folder, reference):
    end = reference[0].eos_token_id
    (answers,) = complete(folder, request(seeds=tuple(range(40)), max_tokens=150, temperature=2.0))
    reasons = {answer.finish_reason for answer in answers}
    assert reasons == {"stop", "length"}
    for answer in answers:
        stopped = answer.finish_reason == "stop"
        assert (answer.token_ids[-1] == end) == stopped
        assert end not in answer.token_ids[:-1]
        assert len(answer.token_ids) == 150 or stopped
        assert "<|end|>" not in answer.text


def test_stop_string_ends_and_is_cut_off(folder):
    (free,) = complete(folder, request(seeds=(3,), max_tokens=30))
    stop = next(c for c in free[0].text[4:] if c.isalnum())
    cut = free[0].text.index(stop)
    (stopped,) = complete(folder, request(seeds=(3,), max_tokens=30, stop=(stop,)))
    assert stopped[0].text == free[0].text[:cut]
    assert stopped[0].finish_reason == "stop"
    n = len(stopped[0].token_ids)
    assert n < 30
    assert stopped[0].token_ids == free[0].token_ids[:n]


def test_stop_strings_are_found_in_the_text_and_not_in_tokens_that_it_leaves_out(folder, reference):
    tokenizer, _ = reference
    silent = ["<|user|>", "<|system|>", "<|assistant|>"]
    names = {tokenizer.convert_tokens_to_ids(name): name for name in silent}
    requests = [request(i, (i,), "b", 60, max_tokens=40) for i in range(60)]
    of_a_name, across = [], []
    for sent, [free] in zip(requests, complete(folder, *requests), strict=True):
        ids = free.token_ids
        parts = [tokenizer.decode(ids[:n], skip_special_tokens=True) for n in range(len(ids) + 1)]
        for at in [at for at, token in enumerate(ids) if token in names][:1]:
            letters = [letter for letter in names[ids[at]] if letter not in free.text]
            of_a_name += [(sent, free, letters[0], len(ids))] if letters else []
            stop = free.text[len(parts[at]) - 1 :][:2] if parts[at] else ""
            if len(stop) == 2 and "\ufffd" not in stop and stop not in parts[at]:
                length = next(n for n, text in enumerate(parts) if stop in text)
                across.append((sent, free, stop, length))
    assert of_a_name
    assert across
    asked = [*of_a_name, *across]
    stopping = [
        replace(sent, block="", sampling=replace(sent.sampling, stop=(stop,)))
        for sent, _, stop, _ in asked
    ]
    for [got], (_, free, stop, length) in zip(complete(folder, *stopping), asked, strict=True):
        assert got.token_ids == free.token_ids[:length]
        assert got.text == free.text.partition(stop)[0]


def test_a_stop_string_that_no_token_can_end_stops_nothing(tmp_path, caplog):
    """Letters that the vocabulary lacks, and no bytes to spell them by."""
    model = make_model(tmp_path)
    make_spaced_tokenizer(tmp_path, BEHIND_WORDS, legacy=False)
    requests = [request(i, (3,), "b", 2, max_tokens=20) for i in range(2)]
    free = complete(model, *requests)
    stopping = [replace(one, sampling=replace(one.sampling, stop=("日本",))) for one in requests]
    assert complete(model, *stopping) == free
    assert [record.message for record in caplog.records if "日本" in record.message] == [
        f"no token of {model} ends any of the stop strings '日本': no answer will stop there"
    ]


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324])
def test_a_temperature_that_rounds_to_0_takes_the_likeliest_token(folder, temperature):
    (greedy,) = complete(folder, request(temperature=0.0))
    assert complete(folder, request(temperature=temperature)) == [greedy]


def test_choices_are_first_token_probabilities(folder, reference):
    tokenizer, model = reference
    requests = [
        request(i, (0,), "b", 4, choices, max_tokens=1)
        for i, choices in enumerate([("A", "B"), ("B", "A"), None, ("A", "x")])
    ]
    answers = [answer for (answer,) in complete(folder, *requests)]
    assert answers[2].choice_logprobs is None
    for sent, answer in zip(requests, answers, strict=True):
        if sent.choices is None:
            continue
        with torch.inference_mode():
            prompt = torch.tensor([render_tokens(tokenizer, sent.messages)])
            steps = torch.log_softmax(model(prompt).logits[0, -1], -1)
        assert list(answer.choice_logprobs) == list(sent.choices)
        for choice, logprob in answer.choice_logprobs.items():
            ids = {tokenizer.convert_tokens_to_ids(t) for t in (choice, "Ġ" + choice)}
            ids = [i for i in ids if i is not None]
            expected = float(torch.logsumexp(steps[ids], 0))
            assert logprob == pytest.approx(expected, abs=1e-4)


def test_a_verdict_of_one_token_is_one_forward_pass(folder):
    async def go():
        engine = await build_engine(TransformersEngine(), folder)
        calls = []
        hook = engine._model.register_forward_hook(lambda *_: calls.append(1))
        await asyncio.gather(
            *(engine.generate(request(i, (0,), "b", 8, ("A", "B"), max_tokens=1)) for i in range(8))
        )
        hook.remove()
        await engine.aclose()
        return len(calls)

    assert asyncio.run(go()) == 1


def test_too_long_a_request_is_rejected_and_the_block_goes_on(folder):
    requests = [request(i, block="b", block_size=3) for i in range(2)]
    long = replace(request(2, block="b", block_size=3), sampling=Sampling(max_tokens=10_000))
    *answers, rejected = complete(folder, *requests, long)
    assert isinstance(rejected, RequestRejected)
    assert rejected.reason == "context_overflow"
    assert all(len(answer) == 2 for answer in answers)


def test_an_incomplete_block_is_computed_after_a_wait(folder, caplog):
    requests = [request(i, block="b", block_size=64) for i in range(2)]
    answers = complete(folder, *requests, block_wait_s=0.2)
    assert [len(a) for a in answers] == [2, 2]
    assert "only 2 of its requests" in caplog.text


def test_closing_fails_what_waits(folder):
    async def go():
        engine = await build_engine(TransformersEngine(), folder)
        waiting = asyncio.ensure_future(engine.generate(request(block="b", block_size=2)))
        await asyncio.sleep(0)
        await engine.aclose()
        await engine.aclose()
        with pytest.raises(EngineFailed, match="closed"):
            await waiting
        with pytest.raises(EngineFailed, match="closed"):
            await engine.generate(request())

    asyncio.run(go())


def test_refusals_say_what_to_do(folder, tmp_path):
    schema = replace(request(), json_schema={"type": "object"})
    (error,) = complete(folder, schema)
    assert isinstance(error, EngineFailed)
    assert "JSON schema" in str(error)
    (error,) = complete(folder, request(choices=("[[A]]",)))
    assert isinstance(error, EngineFailed)
    assert "one token" in str(error)
    with pytest.raises(EngineFailed, match="cannot load"):
        complete(str(tmp_path), request())


def test_pickled_weights_are_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m/model.safetensors").unlink()
    torch.save({}, tmp_path / "m/pytorch_model.bin")
    with pytest.raises(EngineFailed, match="cannot load the weights"):
        complete(str(tmp_path / "m"), request())


def test_new_policies_are_loaded_and_verified(folder, tmp_path):
    other = make_model(tmp_path / "other", seed=1)
    adapter = make_adapter(tmp_path / "adapter", folder)

    async def go():
        engine = await build_engine(TransformersEngine(), folder)
        before = await engine.generate(request())
        differences = []
        for policy in (other, adapter, folder):
            await engine.load_policy(policy)
            differences.append(await verify_policy(engine, policy, [CHAT], base=folder))
            wrong = folder if policy != folder else other
            with pytest.raises(PolicyMismatch):
                await verify_policy(engine, wrong, [CHAT])
        after = await engine.generate(request())
        await engine.aclose()
        return before, after, differences

    before, after, differences = asyncio.run(go())
    assert after == before
    assert max(differences) < 1e-4
    assert not any(map(math.isnan, differences))


def test_a_cache_is_called_as_the_model_calls_it(folder, reference):
    class Named(torch.nn.Module):
        def forward(self, input_ids, cache=None, **_):
            return input_ids

    class Before(torch.nn.Module):
        def forward(self, input_ids, past_key_values=None, **_):
            return input_ids

    assert [cache_keyword(model()) for model in (Named, Before)] == ["cache", "past_key_values"]
    model = reference[1]
    assert cache_keyword(model) in arguments_of(model)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        complete(folder, request(temperature=0.0))
    assert not [one for one in told if "past_key_values" in str(one.message)]


def test_bfloat16_runs(folder):
    (answers,) = complete(folder, request(), dtype="bfloat16")
    assert all(np.isfinite(answer.logprob) for answer in answers)


def test_an_engine_that_still_serves_the_previous_policy_is_found_out(folder, tmp_path):
    """A small step of training, within the tolerance of a coarse dtype."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.001 * torch.randn_like(weights)
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (Path(folder) / name).exists():
            (tmp_path / name).write_bytes((Path(folder) / name).read_bytes())

    async def check() -> None:
        engine = await build_engine(TransformersEngine(), folder)
        coarse = {"tolerance_nats": 0.15, "previous": folder}
        assert await verify_policy(engine, str(tmp_path), [CHAT], tolerance_nats=0.15) < 0.15
        with pytest.raises(PolicyMismatch, match="still serves"):
            await verify_policy(engine, str(tmp_path), [CHAT], **coarse)
        await engine.load_policy(str(tmp_path))
        assert await verify_policy(engine, str(tmp_path), [CHAT], **coarse) < 1e-3
        await engine.aclose()

    asyncio.run(check())


def _edited(folder: Path, **names: object) -> Path:
    """``folder`` with ``eos_token`` and ``eos_token_id`` of all its configs as in ``names``."""
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        file = folder / name
        settings = json.loads(file.read_text())
        settings |= {key: value for key, value in names.items() if key in settings}
        file.write_text(json.dumps(settings))
    return folder


def test_a_turn_ends_where_the_template_ends_it_though_eos_is_another(tmp_path):
    """As in a base model with a chat template."""
    model = tmp_path / "model"
    shutil.copytree(resolve_embedded("embedded:policy"), model)
    (before,) = complete(str(model), request(max_tokens=60))
    _edited(model, eos_token="<|pad|>", eos_token_id=5)
    (answers,) = complete(str(model), request(max_tokens=60))
    assert {answer.finish_reason for answer in answers} == {"stop"}
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in before]
    assert [answer.text for answer in answers] == [answer.text for answer in before]


def test_every_end_that_the_generation_config_names_counts(reference):
    tokenizer, _ = reference
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    assert end_tokens(tokenizer, None) == [end]
    assert end_tokens(tokenizer, user) == sorted([end, user])
    assert end_tokens(tokenizer, [user, 0]) == sorted([end, user, 0])
    assert list(without_end((7, 9, end), [end])) == [7, 9]
    assert list(without_end((end, 9), [end])) == [end, 9]
    assert list(without_end((), [end])) == []


def test_the_ends_that_vllm_is_told_are_the_models(folder, tmp_path):
    other = tmp_path / "several"
    shutil.copytree(folder, other)
    _edited(other, eos_token_id=[2, 4])
    assert configured_ends(folder, None) == 2
    assert configured_ends(str(other), None) == [2, 4]
    (other / "generation_config.json").unlink()
    assert configured_ends(str(other), None) == [2, 4]
    assert configured_ends(str(tmp_path / "nowhere"), None) is None


def test_a_token_beyond_the_embedding_is_named(folder, tmp_path):
    other = tmp_path / "grown"
    shutil.copytree(folder, other)
    size = json.loads((other / "config.json").read_text())["vocab_size"]
    file = other / "tokenizer.json"
    settings = json.loads(file.read_text())
    settings["added_tokens"].append(
        {"id": size, "content": "fox", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": False}
    )  # fmt: skip
    file.write_text(json.dumps(settings))
    plain = replace(request(1), messages=({"role": "user", "content": "Hello."},))
    poison, good = complete(str(other), request(0), plain)
    assert isinstance(poison, RequestRejected)
    assert poison.reason == "token_beyond_embedding"
    assert f"token id {size} " in poison.detail
    assert f"has {size} embeddings" in poison.detail
    assert len(good) == 2  # one poison prompt costs itself

    template = other / "chat_template.jinja"
    template.write_text("fox" + template.read_text())
    with pytest.raises(EngineFailed, match=f"token id {size} .* {size} embeddings.*resize"):
        complete(str(other), plain)
