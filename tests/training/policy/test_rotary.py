"""A model whose rotary embedding goes by the longest sequence of a batch."""

import asyncio
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Phi3Config

from prefloop.data.conversations.chat import render_tokens
from prefloop.data.protocol import Completion, Request, RequestRejected, Sampling
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.engines.settings import TransformersEngine
from prefloop.training.config import TrainConfig
from prefloop.training.policy.checkpoints import load_model
from prefloop.training.policy.logprobs import sequence_logprobs
from prefloop.training.policy.rotary import rotary_limit
from prefloop.training.session.open_policy import open_policy
from tests.helpers.engine_models import make_tokenizer

LIMIT = 40


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    make_tokenizer(folder)
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=432, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=256, initializer_range=0.3,
        original_max_position_embeddings=LIMIT, pad_token_id=0,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
        },
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def alone(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> float:
    ids = torch.tensor([[*prompt, *answer]])
    with torch.inference_mode():
        log_p = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return float(log_p.gather(1, ids[0, len(prompt) :, None]).sum())


def test_a_long_sequence_changes_no_short_one(policy: Path) -> None:
    model = load_model(policy, dtype=torch.float32)
    assert rotary_limit(model) == LIMIT
    draw = np.random.default_rng(0)
    sizes = [(5, 4), (60, 3), (30, 30), (30, 8), (5, 20)]
    prompts, answers = (
        [draw.integers(3, 400, size=size[side]).astype(np.int32) for size in sizes]
        for side in (0, 1)
    )
    prompts[3] = prompts[2]  # one prompt, on both sides of the limit with its answers
    found = sequence_logprobs(model, prompts, answers, batch_size=8)
    expected = [
        alone(model, one.tolist(), two.tolist()) for one, two in zip(prompts, answers, strict=True)
    ]
    assert found == pytest.approx(expected, abs=1e-3)


def test_answers_on_either_side_of_the_limit(policy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    requests = [
        Request(f"r{n}", ({"role": "user", "content": "fox " * words},), Sampling(max_tokens=12),
                (n, 9 + n), block="b", block_size=4)
        for n, words in enumerate((1, 4, 40, 60))
    ]  # fmt: skip
    across = Request(
        "a", ({"role": "user", "content": "fox " * 10},), Sampling(max_tokens=30), (1,)
    )

    async def go() -> list[list[Completion]]:
        engine = await build_engine(TransformersEngine(), str(policy))
        try:
            with pytest.raises(RequestRejected, match=f"> {LIMIT}, from where on"):
                await engine.generate(across)
            return await asyncio.gather(*map(engine.generate, requests))
        finally:
            await engine.aclose()

    lengths = set()
    for request, answers in zip(requests, asyncio.run(go()), strict=True):
        prompt = render_tokens(tokenizer, request.messages)
        lengths.add(len(prompt) > LIMIT)
        for answer in answers:
            expected = alone(model, prompt, list(answer.token_ids))
            assert answer.logprob == pytest.approx(expected, abs=1e-3)
    assert lengths == {True, False}


def test_training_beyond_the_limit_is_a_warning(
    policy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        open_policy(policy, TrainConfig(max_length=LIMIT))
        assert not caplog.text
        open_policy(policy, TrainConfig(max_length=LIMIT + 1))
    assert f"set train.max_length to {LIMIT}" in caplog.text
    plain = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    assert rotary_limit(plain) is None
