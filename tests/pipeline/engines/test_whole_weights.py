"""A checkpoint that lacks weights is refused by every loader: the rest would be random."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefloop.data.embedded import resolve_embedded
from prefloop.data.errors import PrefloopError
from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.engines import weights
from prefloop.pipeline.engines.policy_check import verify_policy
from prefloop.training.policy import checkpoints
from tests.helpers.engine_models import make_adapter, make_model


def engine(path: str, base: str) -> object:
    return weights.load_model(path, base=base, device=torch.device("cpu"), dtype=torch.float32)


def training(path: str, base: str) -> object:
    return checkpoints.load_model(Path(path), dtype=torch.float32)


def resumed(path: str, base: str) -> object:
    return checkpoints.load_model(Path(path), dtype=torch.float32, trainable_adapter=True)


Load = Callable[[str, str], object]
LOADERS = [engine, training, resumed]


def drop(file: Path, part: str) -> str:
    """Take the weights with ``part`` in their names out of ``file``; the first of the names."""
    tensors = load_file(file)
    lost = sorted(name for name in tensors if part in name)
    save_file(
        {name: one for name, one in tensors.items() if name not in lost}, file, {"format": "pt"}
    )
    return lost[0]


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("part", ["layers.1.", "embed_tokens", "model.norm"])
def test_a_policy_that_lacks_weights(load: Load, part: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", layers=2)
    load(model, model)
    lost = drop(tmp_path / "model" / "model.safetensors", part)
    with pytest.raises(PrefloopError, match="copy the model anew") as error:
        load(model, model)
    assert f"{model}: its weights lack {lost}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize("load", LOADERS)
def test_an_adapter_that_lacks_weights(load: Load, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", layers=2)
    adapter = make_adapter(tmp_path / "adapter", base)
    load(adapter, base)
    lost = drop(tmp_path / "adapter" / "adapter_model.safetensors", "layers.0.")
    with pytest.raises(PrefloopError, match="copy the model anew") as error:
        load(adapter, base)
    assert f"{adapter}: its weights lack {lost} and 3 more" in str(error.value)


@pytest.mark.parametrize("load", LOADERS)
def test_weights_that_are_tied_are_not_missing(load: Load, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = make_model(tmp_path / "model", layers=1)
    model = AutoModelForCausalLM.from_pretrained(path)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    load(str(tmp_path / "tied"), str(tmp_path / "tied"))


@pytest.mark.parametrize("load", LOADERS)
def test_loading_shows_no_bar(load: Load, capfd: pytest.CaptureFixture[str]) -> None:
    """It would break into the run's own."""
    path = str(resolve_embedded("embedded:policy"))
    load(path, path)
    assert "Loading" not in "".join(capfd.readouterr())


def test_a_policy_is_not_checked_on_no_prompt() -> None:
    with pytest.raises(EngineFailed, match="there is no prompt to compare"):
        asyncio.run(verify_policy(None, "policy", []))  # type: ignore[arg-type]
