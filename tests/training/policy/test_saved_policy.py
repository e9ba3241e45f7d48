"""A policy that was trained has all that its model came with, and trains whatever that is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
)

from prefloop.training.config import TrainConfig
from prefloop.training.errors import TrainingError
from prefloop.training.methods.offline import train_offline
from prefloop.training.policy.averaging import average_policies
from prefloop.training.policy.checkpoints import context_length, embeddings
from prefloop.training.session.fit import TrainResult
from prefloop.training.session.job import Job
from tests.helpers.dpo_data import rows, write
from tests.helpers.engine_models import make_model, make_tokenizer


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return Path(make_model(tmp_path / "policy", layers=1))


def train(policy: Path, **settings: Any) -> TrainResult:
    shard = write(policy.with_name("triples.parquet"), rows(8))
    config = TrainConfig(**{"learning_rate": 1e-3, "batch_size": 4, **settings})
    out = policy.with_name(f"trained-{settings.get('method', 'dpo')}")
    return train_offline(Job(policy, policy, (shard,), out, config, 1))


@pytest.mark.parametrize(
    "said",
    [
        {"temperature": 0.9, "top_p": 0.6, "eos_token_id": [2, 5]},  # Llama 2's: no do_sample
        {"do_sample": True, "top_k": 20, "repetition_penalty": 1.05, "eos_token_id": [5, 3]},
    ],
)
def test_its_generation_config_is_that_of_the_model(said: dict[str, Any], policy: Path) -> None:
    file = policy / "generation_config.json"
    file.write_text(json.dumps(said))
    made = train(policy, save_steps=1).policy_path
    assert (made / file.name).read_text() == file.read_text()
    mean = average_policies([policy, made], policy.with_name("mean"))
    assert (mean / file.name).read_text() == file.read_text()


def test_templates_for_tools_are_kept(policy: Path) -> None:
    folder = policy / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_text("{{ tools }}{{ messages[0].content }}<|assistant|>")
    made = train(policy).policy_path
    before, after = (AutoTokenizer.from_pretrained(one).chat_template for one in (policy, made))
    assert sorted(before) == ["default", "tool_use"]
    assert after == before


@pytest.mark.parametrize("method", ["dpo", "sft", "kto"])
def test_padding_is_no_token_beyond_the_model(method: str, policy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(policy)
    model = AutoModelForCausalLM.from_pretrained(policy)
    assert model.get_input_embeddings().num_embeddings == tokenizer.pad_token_id
    assert train(policy, method=method).steps


def test_the_context_of_a_model_that_calls_it_otherwise(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    config = GPT2Config(vocab_size=420, n_embd=32, n_layer=1, n_head=2, n_positions=48)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert context_length(tmp_path) == 48
    nested = tmp_path / "nested"
    shutil.copytree(tmp_path, nested, ignore=shutil.ignore_patterns("nested"))
    file = nested / "config.json"
    file.write_text(json.dumps({"text_config": {"max_position_embeddings": 40}}))
    assert context_length(nested) == 40
    # What these leave out is their kind's: Falcon's and Gemma 3's are published so.
    file.write_text(json.dumps({"model_type": "falcon", "vocab_size": 420}))
    assert context_length(nested) == 2048
    file.write_text(json.dumps({"model_type": "gemma3", "text_config": {"hidden_size": 32}}))
    assert embeddings(nested) == Gemma3TextConfig().vocab_size
    file.write_text(json.dumps({"model_type": "mamba", "vocab_size": 420}))
    assert context_length(nested) == 2**31


@pytest.mark.parametrize("kind", ["gptq", "awq", "bitsandbytes"])
def test_quantised_weights_are_refused_in_one_line(kind: str, policy: Path) -> None:
    file = policy / "config.json"
    settings = json.loads(file.read_text())
    more = {"load_in_8bit": True} if kind == "bitsandbytes" else {"bits": 4, "group_size": 128}
    settings["quantization_config"] = {"quant_method": kind, **more}
    file.write_text(json.dumps(settings))
    with pytest.raises(TrainingError) as refused:
        train(policy)
    assert "\n" not in str(refused.value)
    assert str(policy) in str(refused.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_a_short_type_are_trained_in_float32(dtype: torch.dtype, policy: Path) -> None:
    AutoModelForCausalLM.from_pretrained(policy, dtype=dtype).save_pretrained(policy)
    made = train(policy, learning_rate=5e-7).policy_path
    after = AutoModelForCausalLM.from_pretrained(made)
    assert after.dtype == torch.float32
    before = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    moved = [
        not torch.equal(one, other)
        for one, other in zip(before.parameters(), after.parameters(), strict=True)
    ]
    assert all(moved)


@pytest.mark.parametrize("modules", [("no_such_proj",), "all-linear"])
def test_an_adapter_that_does_not_fit_is_one_line(modules: Any, policy: Path) -> None:
    if modules == "all-linear":  # of which Mamba's are read by kernels of their own
        config = MambaConfig(vocab_size=420, hidden_size=32, num_hidden_layers=1, state_size=8)
        AutoModelForCausalLM.from_config(config).save_pretrained(policy)
    with pytest.raises(TrainingError, match=r"train.lora does not fit .*target_modules$"):
        train(policy, lora={"r": 2, "alpha": 4, "target_modules": modules})
