"""The size of a model that is never loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefloop.pipeline.machine.model_shape import model_shape
from tests.helpers.engine_models import make_adapter, make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("model")))


def parameters(folder: Path) -> int:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    return sum(one.numel() for one in model.parameters())


def test_a_checkpoint_is_counted_in_its_weights(folder: Path) -> None:
    shape = model_shape(str(folder))
    assert (shape.origin, shape.parameters) == ("weights", parameters(folder))
    assert (shape.layers, shape.hidden, shape.key_width, shape.context) == (2, 64, 32, 256)
    assert shape.stored_bytes == 4 * shape.parameters == shape.weight_bytes(4)
    assert shape.cache_bytes(2) == 2 * 2 * 32 * 2
    # The input embedding is looked up: it is not multiplied with.
    assert shape.read == shape.parameters - 64 * shape.vocabulary


def test_an_adapter_is_as_large_as_its_base(folder: Path, tmp_path: Path) -> None:
    assert model_shape(make_adapter(tmp_path, str(folder))) == model_shape(str(folder))


def test_without_its_weights_the_config_tells(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    shape = model_shape(str(tmp_path))
    assert (shape.origin, shape.stored_bytes) == ("config", None)
    assert shape.parameters == pytest.approx(parameters(folder), rel=0.01)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, b"\x02" + bytes(7) + b"[]"])
def test_cut_weights_are_not_counted(folder: Path, tmp_path: Path, damage: bytes) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(damage)
    assert model_shape(str(tmp_path)).origin == "config"


def test_only_the_experts_of_a_token_are_read(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 100,
        "intermediate_size": 64, "num_local_experts": 8, "num_experts_per_tok": 2,
        "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(settings))
    shape = model_shape(str(tmp_path))
    assert shape.parameters - shape.read == 3 * 6 * (3 * 32 * 64)


@pytest.mark.parametrize(
    ("name", "size", "read"),
    [
        ("Qwen/Qwen3-0.6B", 600_000_000, 600_000_000),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135_000_000, 135_000_000),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", 30_000_000_000, 3_000_000_000),
        ("mistralai/Mixtral-8x7B-v0.1", 56_000_000_000, 56_000_000_000),
    ],
)
def test_a_name_tells_a_size(name: str, size: int, read: int) -> None:
    shape = model_shape(name)
    assert (shape.origin, shape.parameters, shape.read) == ("name", size, read)


@pytest.mark.parametrize("name", ["gpt-4o", "policy-model", "a/b/c/d", "/nowhere/at/all"])
def test_other_names_tell_nothing(name: str) -> None:
    assert model_shape(name).origin == "nothing"
