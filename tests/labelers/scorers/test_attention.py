"""Heads that share keys and values: the same figures as transformers', without its copies."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    LlamaConfig,
)

from prefloop.labelers.scorers import attention
from prefloop.labelers.scorers.attention import SHARED_HEADS, share_heads
from prefloop.labelers.scorers.sequence_scores import SequenceScorer
from prefloop.pipeline.engines.weights import load_model as load_into_engine
from prefloop.training.policy.checkpoints import load_model
from tests.helpers.engine_models import make_tokenizer

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
IDS = torch.arange(2, 26).reshape(2, 12)
PADDED = torch.tensor([[0] * 5 + [1] * 7, [1] * 12])


def llama(key_heads: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        LlamaConfig(**SIZES, num_key_value_heads=key_heads), attn_implementation="sdpa"
    )


@pytest.fixture
def forbidden(monkeypatch):
    """Transformers' way of doing it, which copies."""

    def refuse(*_args, **_how):
        raise AssertionError("keys and values were repeated")

    monkeypatch.setattr(attention, "sdpa_attention_forward", refuse)


@pytest.mark.parametrize("key_heads", [1, 2])
def test_padded_rows_get_the_same_logits(forbidden, key_heads):
    model = llama(key_heads)
    before = model(IDS, attention_mask=PADDED).logits
    share_heads(model)
    assert torch.equal(before, model(IDS, attention_mask=PADDED).logits)


def test_gradients_are_the_same(forbidden):
    model = llama(2)
    found = []
    for _ in range(2):
        model.zero_grad()
        model(IDS, attention_mask=PADDED).logits.square().mean().backward()
        found.append([weight.grad.clone() for weight in model.parameters()])
        share_heads(model)
    for plain, shared in zip(*found, strict=True):
        torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("key_heads", "mask"), [(4, PADDED), (2, None)])
def test_where_nothing_is_copied_transformers_does_it(forbidden, key_heads, mask):
    model = llama(key_heads)
    share_heads(model)
    with pytest.raises(AssertionError, match="repeated"):
        model(IDS, attention_mask=mask)


def test_a_model_that_attends_otherwise_is_left_alone():
    model = llama(2)
    model.set_attn_implementation("eager")
    share_heads(model)
    assert model.config._attn_implementation == "eager"


def test_a_checkpoint_does_not_say_how_it_was_computed(tmp_path):
    model = llama(2)
    share_heads(model)
    model.save_pretrained(tmp_path)
    assert SHARED_HEADS not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    loaded = load_model(tmp_path, dtype=torch.float32)
    assert loaded.config._attn_implementation == SHARED_HEADS
    AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["policy", "engine", "reward model"])
def test_a_cap_on_scores_is_kept(tmp_path, kind):
    make_tokenizer(tmp_path)
    sizes = SIZES | {"vocab_size": 432, "num_key_value_heads": 2, "head_dim": 16}
    config = Gemma2Config(
        **sizes, attn_logit_softcapping=1.0, initializer_range=0.5, pad_token_id=0, num_labels=1,
        query_pre_attn_scalar=1,
    )  # fmt: skip
    torch.manual_seed(0)
    auto = AutoModelForSequenceClassification if kind == "reward model" else AutoModelForCausalLM
    auto.from_config(config).save_pretrained(tmp_path)
    capped = auto.from_pretrained(tmp_path, attn_implementation="eager")
    if kind == "policy":
        model = load_model(tmp_path, dtype=torch.float32)
    elif kind == "engine":
        model = load_into_engine(
            str(tmp_path), base="", device=torch.device("cpu"), dtype=torch.float32
        )
    else:
        [ids] = IDS[:1].tolist()
        found = SequenceScorer(str(tmp_path)).score([ids])
        assert found[0] == pytest.approx(float(capped(IDS[:1]).logits), abs=1e-4)
        return
    torch.testing.assert_close(model(IDS).logits, capped(IDS).logits)
