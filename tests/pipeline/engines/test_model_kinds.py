"""Models that keep what they have read in other forms than keys and values of every token."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Mamba2Config,
    MambaConfig,
    PretrainedConfig,
    Qwen3MoeConfig,
    RecurrentGemmaConfig,
)

from prefloop.data.conversations.chat import render_tokens
from prefloop.data.protocol import Completion, EngineFailed, Request, Sampling
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.engines.settings import TransformersEngine
from tests.helpers.engine_models import make_tokenizer

SIZE: dict[str, Any] = {"vocab_size": 432, "hidden_size": 64, "bos_token_id": 1, "eos_token_id": 2}
STATES = {
    "mamba": MambaConfig(**SIZE, num_hidden_layers=2, state_size=8),
    "mamba2": Mamba2Config(
        **SIZE, num_hidden_layers=2, state_size=8, num_heads=8, head_dim=16, n_groups=2
    ),
}
IN_ITSELF = RecurrentGemmaConfig(
    **SIZE, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
    attention_window_size=8, lru_width=64,
)  # fmt: skip


def make(folder: Path, config: PretrainedConfig) -> str:
    """A random model of that kind, far from uniform; its folder."""
    make_tokenizer(folder)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "norm" not in name:
                weight.normal_(0, 0.3)
    model.save_pretrained(folder)
    return str(folder)


def ask(folder: str, *requests: Request) -> list[list[Completion]]:
    async def go() -> list[list[Completion]]:
        engine = await build_engine(TransformersEngine(batch_size=4), folder)
        try:
            return await asyncio.gather(*map(engine.generate, requests))
        finally:
            await engine.aclose()

    return asyncio.run(go())


@pytest.mark.parametrize("kind", STATES)
def test_a_model_of_states_alone_remembers_what_it_has_read(kind: str, tmp_path: Path) -> None:
    folder = make(tmp_path, STATES[kind])
    requests = [
        Request(f"r{n}", ({"role": "user", "content": "Write about a fox. " * n},),
                Sampling(max_tokens=12), (n, 10 + n), block="b", block_size=3)
        for n in (1, 2, 3)
    ]  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for request, answers in zip(requests, ask(folder, *requests), strict=True):
        prompt = render_tokens(tokenizer, request.messages)
        for answer in answers:
            with torch.inference_mode():
                ids = torch.tensor([[*prompt, *answer.token_ids]])
                log_p = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            picked = log_p.gather(1, ids[0, len(prompt) :, None])
            assert answer.logprob == pytest.approx(float(picked.sum()), abs=1e-3)


def test_a_mixture_of_experts_that_was_saved_in_training_answers(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        **SIZE, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, output_router_logits=True, pad_token_id=0,
    )  # fmt: skip
    folder = make(tmp_path, config)
    asked = ({"role": "user", "content": "Write about a fox."},)
    [answers] = ask(folder, Request("r", asked, Sampling(max_tokens=8), (1, 2)))
    assert all(0 < answer.completion_tokens <= 8 for answer in answers)


def test_a_model_that_forgets_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path, IN_ITSELF)
    with pytest.raises(EngineFailed, match="recurrent_gemma forget what they have read"):
        ask(folder, Request("r", ({"role": "user", "content": "?"},), Sampling(), (1,)))
