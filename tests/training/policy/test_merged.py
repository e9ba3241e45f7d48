"""Adapters in the weights of their model: the policy that was trained, and no other."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from prefloop.pipeline.engines.weights import load_model as load_into_engine
from prefloop.training.policy.checkpoints import load_model
from tests.helpers.engine_models import make_tokenizer

IDS = torch.arange(3, 27).reshape(2, 12)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose input and output embeddings are one matrix."""
    folder = tmp_path_factory.mktemp("base")
    make_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=432, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=True, initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "adapter",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"]},
    ],
    ids=str,
)
def test_what_is_merged_says_what_was_trained(base: Path, tmp_path: Path, adapter: dict) -> None:
    torch.manual_seed(1)
    made = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, task_type="CAUSAL_LM", **adapter),
    )
    with torch.no_grad():
        for weight in made.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape))
    made.save_pretrained(tmp_path / "adapter")
    beside = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter"
    ).eval()
    trained = beside(IDS).logits.log_softmax(-1)

    merged = load_model(tmp_path / "adapter", dtype=torch.float32)
    served = load_into_engine(
        str(tmp_path / "adapter"), base=str(base), device=torch.device("cpu"), dtype=torch.float32
    )
    merged.save_pretrained(tmp_path / "whole")
    again = load_model(tmp_path / "whole", dtype=torch.float32)
    for model in (merged, served, again):
        found = model(IDS).logits.log_softmax(-1)
        torch.testing.assert_close(found, trained, rtol=1e-4, atol=1e-4)
