"""What prompts share is computed once, and nothing else changes: against each prompt alone."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.embedded import resolve_embedded
from prefloop.data.protocol import Request, Sampling
from prefloop.pipeline.engines import prefixes
from prefloop.pipeline.engines.decoding.decoder import decode
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.engines.kv_cache import is_plain
from prefloop.pipeline.engines.prefixes import Packed, Work, can_share, passes_over, trees_of
from prefloop.pipeline.engines.settings import TransformersEngine
from prefloop.pipeline.engines.weights import load_model

GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_tokens=1)
DRAWN = replace(GREEDY, temperature=1.0)
END = 4


def embedded(name: str):
    folder = resolve_embedded(name)
    return load_model(
        folder, base=folder, device=torch.device("cpu"), dtype=torch.float32, revision=None,
        trust_remote_code=False,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["embedded:judge", "embedded:policy"])
def model(request):
    return embedded(request.param)


def random_prompts(seed: int, roots: int = 4, words: int = 1500) -> list[tuple[int, ...]]:
    """Trees of random shape, some prompts within others, in random order."""
    draw = np.random.default_rng(seed)
    grown = [tuple(draw.integers(6, words, draw.integers(20, 60)).tolist()) for _ in range(roots)]
    for _ in range(10 * roots):
        stem = grown[draw.integers(len(grown))]
        keep = len(stem) - int(draw.integers(0, 8))
        grown.append(stem[:keep] + tuple(draw.integers(6, words, draw.integers(1, 15)).tolist()))
    draw.shuffle(grown)
    return [tuple(map(int, prompt)) for prompt in grown]


def decoded(model, prompts, sampling, **options):
    return decode(model, prompts, range(len(prompts)), sampling, **{"end_ids": [END], **options})


def alone(monkeypatch, model, prompts, sampling, **options):
    with monkeypatch.context() as patch:
        patch.setattr(prefixes, "trees_of", lambda *_: None)
        return decoded(model, prompts, sampling, **options)


@given(st.sets(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1))
def test_each_prompt_stands_in_its_tree_as_it_would_alone(found):
    prompts = sorted(found, key=hash)
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    tree = Packed.of(prompts, order)
    last = {int(path[-1]) for path in tree.paths}
    assert len(last) == len(prompts)
    for row, path in zip(tree.rows, tree.paths, strict=True):
        assert tuple(tree.ids[path]) == prompts[row]
        assert tree.positions[path].tolist() == list(range(len(path)))
        for place, token in enumerate(path):
            assert np.flatnonzero(tree.sees[token]).tolist() == path[: place + 1].tolist()


@given(st.integers(0, 50))
def test_every_prompt_is_in_one_tree_and_in_one_pass(seed):
    prompts = list(dict.fromkeys(random_prompts(seed)))
    trees = trees_of(prompts, Work(128))
    assert trees is not None
    assert sorted(row for tree in trees for row in tree) == list(range(len(prompts)))
    passes = passes_over(prompts, Work(128))
    assert passes is not None
    rows = [row for trees in passes for tree in trees for row in tree.rows]
    assert sorted(rows) == list(range(len(prompts)))


@pytest.mark.parametrize("seed", range(3))
def test_verdicts_are_those_of_each_prompt_alone(monkeypatch, model, seed):
    prompts = random_prompts(seed)
    got = decoded(model, prompts, GREEDY, watch_ids=[31, 32])
    expected = alone(monkeypatch, model, prompts, GREEDY, watch_ids=[31, 32])
    for one, other in zip(got, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert one.first_logprobs == pytest.approx(other.first_logprobs, abs=3e-5)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
def test_texts_are_those_of_each_prompt_alone(monkeypatch, model, sampling):
    """Two samples of each prompt, ended rows dropped on the way."""
    sampling = replace(sampling, max_tokens=16)
    prompts = [prompt for prompt in random_prompts(7, roots=2) for _ in range(2)]
    forwards = []
    hook = model.register_forward_pre_hook(lambda *_: forwards.append(1))
    ends = range(0, 1500, 6)
    got = decoded(model, prompts, sampling, end_ids=ends)
    hook.remove()
    assert len(forwards) == max(len(row.token_ids) for row in got) - 1  # the prompts went elsewhere
    expected = alone(monkeypatch, model, prompts, sampling, end_ids=ends)
    assert sampling.temperature == 0 or len({len(row.token_ids) for row in got}) > 1
    for one, other in zip(got, expected, strict=True):
        assert (one.token_ids, one.ended) == (other.token_ids, other.ended)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_fewer_tokens_are_computed(monkeypatch):
    model, prompts = embedded("embedded:judge"), random_prompts(1)
    computed = []
    hook = model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: computed.append((args[0] if args else kwargs["input_ids"]).numel()),
        with_kwargs=True,
    )
    decoded(model, prompts, GREEDY)  # tries the model first
    computed.clear()
    decoded(model, prompts, GREEDY)
    together = sum(computed)
    computed.clear()
    alone(monkeypatch, model, prompts, GREEDY)
    hook.remove()
    assert together < 0.5 * sum(computed)


def test_prompts_that_share_little_are_computed_as_ever():
    prompts = [(1, 2, 3, *range(10 * i, 10 * i + 30)) for i in range(1, 20)]
    assert trees_of(prompts, Work(128)) is None
    assert trees_of(prompts[:1], Work(128)) is None


def test_a_prompt_that_shares_stays_alone_where_attention_over_others_costs_more():
    shared = tuple(range(40))
    prompts = [shared + tuple(range(100 * i, 100 * i + 4000)) for i in range(1, 9)]
    assert trees_of(prompts, Work(128)) is None


def _llama_like(kind: str, **changes):
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **{**shape, **changes})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).float().eval()


OTHERS = {
    "window": ("mistral", {"sliding_window": 8}),
    "some windows": ("gemma2", {"head_dim": 16, "sliding_window": 8}),
    "convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "positions by place": ("bloom", {"n_head": 2, "n_layer": 2}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_models_that_keep_or_see_more_than_a_mask_says_are_left_alone(monkeypatch, name):
    kind, changes = OTHERS[name]
    model = _llama_like(kind, **changes)
    assert not can_share(model)
    assert is_plain(model) == (name == "positions by place")
    prompts = random_prompts(3, roots=2, words=64)
    sampling = replace(DRAWN, max_tokens=4)
    assert trees_of(list(dict.fromkeys(prompts)), Work(32)) is not None
    got = decoded(model, prompts, sampling)
    expected = alone(monkeypatch, model, prompts, sampling)
    assert [(r.token_ids, r.logprob) for r in got] == [(r.token_ids, r.logprob) for r in expected]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3", "gpt_neox", "gemma", "olmo2"])
def test_plain_attention_of_many_families_shares(monkeypatch, kind):
    model = _llama_like(kind, **({"head_dim": 16} if kind in ("gemma", "qwen3") else {}))
    assert can_share(model)
    prompts = random_prompts(5, roots=2, words=64)
    sampling = replace(GREEDY, max_tokens=6)
    got = decoded(model, prompts, sampling)
    for one, other in zip(got, alone(monkeypatch, model, prompts, sampling), strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def complete(folder: str, requests: list[Request], **config):
    async def go():
        engine = await build_engine(TransformersEngine(threads=1, **config), folder)
        try:
            return [one for [one] in await asyncio.gather(*map(engine.generate, requests))]
        finally:
            await engine.aclose()

    return asyncio.run(go())


def judge_requests() -> list[Request]:
    """All pairs of four answers to each of five prompts, in both orders."""
    answers = [
        "A fox sleeps.",
        "A fox sleeps under the lantern!",
        "No.",
        "The fox, the fox, the fox.",
    ]
    asked = []
    for prompt in range(5):
        said = [f"{answer} {'Again. ' * prompt}" for answer in answers]
        for first in said:
            for second in said:
                if first != second:
                    text = (
                        "Which answer follows the request better, A or B?\nRequest: Write "
                        f"{prompt} sentences about a fox.\nAnswer A: {first}\nAnswer B: {second}"
                    )
                    chat = ({"role": "user", "content": text},)
                    asked.append(
                        Request(f"r{len(asked)}", chat, GREEDY, (0,), ("A", "B"), block="b")
                    )
    return [replace(one, block_size=len(asked)) for one in asked]


@pytest.mark.parametrize("batch_size", [7, 64])
def test_the_embedded_judge_s_verdicts(monkeypatch, batch_size):
    folder, requests = resolve_embedded("embedded:judge"), judge_requests()
    got = complete(folder, requests, batch_size=batch_size)
    backward = complete(folder, requests[::-1], batch_size=batch_size)[::-1]
    assert got == backward  # to the last bit
    with monkeypatch.context() as patch:
        patch.setattr(prefixes, "trees_of", lambda *_: None)
        expected = complete(folder, requests, batch_size=batch_size)
    for one, other in zip(got, expected, strict=True):
        assert one.choice_logprobs == pytest.approx(other.choice_logprobs, abs=1e-5)
        assert (one.text, one.prompt_tokens) == (other.text, other.prompt_tokens)


def test_verdicts_behind_thoughts(monkeypatch, thinking_model: str):
    """The second request, behind the thought, shares too."""
    words = ["one", "two", "never"] * 4
    requests = [
        Request(
            f"r{i}", ({"role": "user", "content": f"Which? {word}"},),
            replace(DRAWN, temperature=0.3, max_tokens=4), (i,), ("A", "B"), block="b",
            block_size=len(words), thought_tokens=40,
        )
        for i, word in enumerate(words)
    ]  # fmt: skip
    monkeypatch.setattr(prefixes, "WORTHWHILE", 2.0)  # prompts this short share too
    shared = []
    run = prefixes.SharedPrefill.run
    monkeypatch.setattr(
        prefixes.SharedPrefill, "run", lambda *given: shared.append(1) or run(*given)
    )
    got = complete(thinking_model, requests)
    assert len(shared) == 2
    with monkeypatch.context() as patch:
        patch.setattr(prefixes, "trees_of", lambda *_: None)
        expected = complete(thinking_model, requests)
    for one, other in zip(got, expected, strict=True):
        assert (one.text, one.reasoning) == (other.text, other.reasoning)
        assert one.choice_logprobs == pytest.approx(other.choice_logprobs, abs=1e-4)


def test_an_adapter_shares_as_its_base_does(monkeypatch, tmp_path: Path):
    from tests.helpers.engine_models import make_adapter, make_model

    base = make_model(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    model = load_model(
        adapter, base=base, device=torch.device("cpu"), dtype=torch.float32, revision=None,
        trust_remote_code=False,
    )  # fmt: skip
    assert can_share(model)
    prompts = random_prompts(2, roots=2, words=300)
    got = decoded(model, prompts, replace(GREEDY, max_tokens=4))
    expected = alone(monkeypatch, model, prompts, replace(GREEDY, max_tokens=4))
    assert [row.token_ids for row in got] == [row.token_ids for row in expected]
