"""Rows that take the places of ended ones draw what they would draw in a batch of their own."""

import asyncio
import string
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.data.embedded import resolve_embedded
from prefloop.data.protocol import Completion, Request, Sampling
from prefloop.labelers.scorers.attention import share_heads
from prefloop.pipeline.engines.decoding import stepper
from prefloop.pipeline.engines.decoding.decoder import Drawn, decode, decode_batches
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.engines.settings import TransformersEngine
from prefloop.pipeline.engines.transformers_engine import HfEngine
from prefloop.pipeline.engines.weights import load_model
from tests.helpers.engine_models import make_adapter, make_model

WORDS = 64
DRAWN = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=40)
ENDS = range(0, WORDS, 12)


def small(kind: str = "llama", **changes):
    """A model with random weights, wide enough that its distributions are far from uniform; in
    float64, so that no draw hangs on rounding."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {
        "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
        "initializer_range": 0.3,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **{**shape, **changes})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).double().eval()


@pytest.fixture(scope="module")
def llama():
    model = small()
    share_heads(model)
    return model


def batches(seed: int, sizes: list[int], samples: int = 3, longest: int = 20):
    """Prompts of all lengths in no order, some with several seeds."""
    draw = np.random.default_rng(seed)
    rows = []
    while len(rows) < sum(sizes):
        length = int(draw.integers(1, longest))
        prompt = tuple(draw.integers(WORDS, size=length).tolist())
        rows += [(prompt, len(rows) + sample) for sample in range(samples)]
    return [[rows.pop(0) for _ in range(size)] for size in sizes]


def together(model, rows, sampling=DRAWN, **options) -> list[Drawn]:
    found = list(decode_batches(model, rows, sampling, **{"end_ids": ENDS, **options}))
    numbers = [number for number, _ in found]
    assert sorted(numbers) == list(range(sum(map(len, rows))))
    return [drawn for _, drawn in sorted(found, key=lambda one: one[0])]


def apart(model, rows, sampling=DRAWN, **options) -> list[Drawn]:
    return [
        drawn
        for batch in rows
        for drawn in decode(
            model, *zip(*batch, strict=True), sampling, **{"end_ids": ENDS, **options}
        )
    ]


def check(got: list[Drawn], expected: list[Drawn]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert (one.token_ids, one.ended) == (other.token_ids, other.ended)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert one.first_logprobs == pytest.approx(other.first_logprobs, abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{}, {"top_p": 0.7, "temperature": 1.5}, {"top_k": 4}, {"temperature": 0.0}],
    ids=["drawn", "top_p", "top_k", "greedy"],
)
def test_answers_are_those_of_batches_of_their_own(llama, changes):
    sampling, rows = replace(DRAWN, **changes), batches(0, [16] * 5)
    got = together(llama, rows, sampling, watch_ids=[3, 7])
    check(got, apart(llama, rows, sampling, watch_ids=[3, 7]))
    assert len({len(row.token_ids) for row in got}) > 3
    if sampling.temperature:
        assert {row.ended for row in got} == {True, False}
    again = together(llama, rows, sampling, watch_ids=[3, 7])
    assert [(one.token_ids, one.logprob) for one in got] == [
        (one.token_ids, one.logprob) for one in again
    ]  # to the last bit


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 1000), st.lists(st.integers(1, 12), min_size=2, max_size=6), st.integers(2, 24),
    st.sampled_from([ENDS, range(WORDS - 2), []]),
)  # fmt: skip
def test_whatever_the_batches_and_however_long_the_answers(llama, seed, sizes, budget, ends):
    """Prompts get longer and shorter, rows end at once, or never: the cache has room."""
    sampling, rows = replace(DRAWN, max_tokens=budget), batches(seed, sizes)
    widest, largest = max(len(prompt) for batch in rows for prompt, _ in batch), []
    hook = llama.register_forward_pre_hook(
        lambda _, __, asked: largest.append(asked["attention_mask"].shape), with_kwargs=True
    )
    got = together(llama, rows, sampling, end_ids=ends)
    hook.remove()
    check(got, apart(llama, rows, sampling, end_ids=ends))
    assert max(columns for _, columns in largest) <= widest + budget
    assert max(count for count, columns in largest) <= max(sizes)


def test_what_is_no_number_in_fresh_memory_stays_out(llama, monkeypatch):
    """Columns that a later, longer prompt uncovers in other rows."""
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *given, **how: empty(*given, **how).fill_(torch.nan)
    )
    draw = np.random.default_rng(0)
    rows = [
        [(tuple(draw.integers(WORDS, size=length).tolist()), 10 * length + at) for at in range(8)]
        for length in (2, 19, 3, 19)
    ]
    got = together(llama, rows)
    assert all(np.isfinite(one.logprob) for one in got)
    monkeypatch.undo()
    check(got, apart(llama, rows))


def test_the_batch_stays_full_and_takes_fewer_passes(llama):
    rows, passes = batches(1, [16] * 6), []
    hook = llama.register_forward_pre_hook(
        lambda _, __, asked: passes.append(asked["input_ids"].shape), with_kwargs=True
    )
    together(llama, rows)
    refilled = [count for count, length in passes if length == 1]
    passes.clear()
    apart(llama, rows)
    hook.remove()
    assert len(refilled) < 0.6 * sum(length == 1 for _, length in passes)
    full = refilled.index(next(count for count in refilled if count < 16))
    assert full > 0.5 * len(refilled)
    assert refilled == sorted(refilled, reverse=True)  # dropped only when none waits


def test_the_cache_moves_to_the_front_where_it_is_short_of_room(llama, monkeypatch):
    moved = []
    move = stepper.SeatedCache.move
    monkeypatch.setattr(
        stepper.SeatedCache, "move", lambda cache, end: moved.append(end) or move(cache, end)
    )
    rows, sampling = batches(2, [8] * 20, longest=6), replace(DRAWN, max_tokens=30)
    check(together(llama, rows, sampling), apart(llama, rows, sampling))
    assert len(moved) > 2


@pytest.mark.parametrize("kind", ["qwen3", "phi3", "gpt_neox", "gemma", "gpt2"])
def test_models_of_many_families(kind):
    model = small(kind, **({"head_dim": 16} if kind in ("gemma", "qwen3") else {}))
    rows, sampling = batches(3, [8] * 4), replace(DRAWN, max_tokens=20)
    check(together(model, rows, sampling), apart(model, rows, sampling))


def test_an_adapter_refills_as_its_base_does(tmp_path):
    base = make_model(tmp_path / "base")
    model = load_model(
        make_adapter(tmp_path / "adapter", base), base=base, device=torch.device("cpu"),
        dtype=torch.float32, revision=None, trust_remote_code=False,
    ).double()  # fmt: skip
    rows, sampling = batches(4, [8] * 4), replace(DRAWN, max_tokens=20)
    ends = range(0, 420, 12)
    check(together(model, rows, sampling, end_ids=ends), apart(model, rows, sampling, end_ids=ends))


# The engine ---------------------------------------------------------------------------------------


def asked(count: int, **changes) -> list[Request]:
    sampling = replace(DRAWN, **{"max_tokens": 60, **changes})
    return [
        Request(
            f"r{at}", ({"role": "user", "content": f"Write about {'a fox ' * (1 + at % 7)}."},),
            sampling, (at, 100 + at, 200 + at), block="b", block_size=count,
        )
        for at in range(count)
    ]  # fmt: skip


def complete(folder: str, requests: list[Request], **config) -> list[list[Completion]]:
    async def go():
        engine = await build_engine(TransformersEngine(threads=1, **config), folder)
        try:
            return await asyncio.gather(*map(engine.generate, requests))
        finally:
            await engine.aclose()

    return asyncio.run(go())


@pytest.fixture
def runs(monkeypatch) -> list[list[int]]:
    """The sizes of the batches of each run that an engine decodes."""
    found: list[list[int]] = []
    whole = HfEngine._decode

    def noted(engine, rows):
        found.append([len(batch) for batch in rows])
        return whole(engine, rows)

    monkeypatch.setattr(HfEngine, "_decode", noted)
    return found


@pytest.fixture(scope="module")
def folder() -> str:
    return resolve_embedded("embedded:policy")


def test_a_block_s_batches_follow_one_another_in_any_order_of_arrival(folder, runs):
    requests = asked(20)
    forward = complete(folder, requests, batch_size=16)
    assert runs == [[15] * 4]
    backward = complete(folder, requests[::-1], batch_size=16)[::-1]
    assert forward == backward  # to the last bit of the log-probabilities
    alone = complete(folder, requests, batch_size=64)
    assert runs[2:] == [[60]]
    for ones, others in zip(forward, alone, strict=True):
        for one, other in zip(ones, others, strict=True):
            assert replace(one, logprob=0.0) == replace(other, logprob=0.0)
            assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_stop_strings_stop_rows_that_began_at_different_times(folder, runs):
    requests = asked(20, stop=(" the", "."))
    refilled = complete(folder, requests, batch_size=8)
    assert len(runs[0]) > 1
    whole = complete(folder, requests, batch_size=64)
    lengths = set()
    for ones, others in zip(refilled, whole, strict=True):
        for one, other in zip(ones, others, strict=True):
            assert (one.text, one.token_ids, one.finish_reason) == (
                other.text, other.token_ids, other.finish_reason,
            )  # fmt: skip
            assert " the" not in one.text
            lengths.add(len(one.token_ids))
    assert len(lengths) > 5


def test_short_answers_and_prompts_of_their_own_length_stay_apart(folder, runs):
    complete(folder, asked(20, max_tokens=4), batch_size=16)
    assert runs == [[15]] * 4
    runs.clear()
    long = replace(
        asked(21)[-1], messages=({"role": "user", "content": "Write about a fox. " * 150},)
    )
    short = [
        replace(one, messages=({"role": "user", "content": word},), block_size=21)
        for one, word in zip(asked(20), string.ascii_letters, strict=False)
    ]
    complete(folder, [*short, long], batch_size=16)
    assert runs == [[15, 16, 16], [13], [3]]


def test_what_a_model_keeps_besides_keys_and_values_stays_in_its_batch(tmp_path, runs):
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(resolve_embedded("embedded:policy")).save_pretrained(tmp_path)
    windows = {"sliding_window": 8, "vocab_size": 1536, "max_position_embeddings": 256}
    small("mistral", **windows).save_pretrained(tmp_path)
    complete(str(tmp_path), asked(8, max_tokens=20), batch_size=8)
    assert runs == [[8]] * 3


def test_verdicts_behind_thoughts_of_different_lengths(thinking_model: str, runs):
    words = ["one", "two", "never"] * 8
    sampling = replace(DRAWN, temperature=0.3, max_tokens=4)
    requests = [
        Request(
            f"r{at}", ({"role": "user", "content": f"Which? {word}"},), sampling, (at,),
            ("A", "B"), block="b", block_size=len(words), thought_tokens=40,
        )
        for at, word in enumerate(words)
    ]  # fmt: skip
    refilled = complete(thinking_model, requests, batch_size=6)
    assert runs == [[6] * 4]
    whole = complete(thinking_model, requests, batch_size=64)
    verdicts = 0
    for [one], [other] in zip(refilled, whole, strict=True):
        assert (one.text, one.reasoning, one.token_ids) == (
            other.text, other.reasoning, other.token_ids,
        )  # fmt: skip
        assert (one.choice_logprobs is None) == (other.choice_logprobs is None)
        if one.choice_logprobs is not None:
            assert one.choice_logprobs == pytest.approx(other.choice_logprobs, abs=1e-3)
            verdicts += 1
    assert verdicts > 5
