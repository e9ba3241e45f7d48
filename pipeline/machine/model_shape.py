"""How large a model is, without loading it: from the headers of its safetensors, its config, or
its name where nothing of it is here yet."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

from prefloop.data.embedded import resolve_embedded

_LONGEST_HEADER = 100 * 2**20
_IN_NAME = re.compile(r"(?<![A-Za-z\d.])(?:(\d+)x)?(\d+(?:\.\d+)?)([BM])(?![A-Za-z\d])", re.I)
_ACTIVE_IN_NAME = re.compile(r"(?<![A-Za-z\d])A(\d+(?:\.\d+)?)B(?![A-Za-z\d])", re.I)
_ADAPTER = "adapter_config.json"
_UNKNOWN_PARAMETERS = 1_000_000_000

Origin = Literal["weights", "config", "name", "nothing"]


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a model that its time and its memory follow from."""

    parameters: int
    read: int
    """Parameters that every token is multiplied with: not an input embedding that is only looked
    up, and of a mixture's experts those that a token is sent to."""
    layers: int
    hidden: int
    key_width: int
    """Width of a token's keys in one layer; its values have the same."""
    vocabulary: int
    context: int | None
    """Longest sequence; null where nobody says."""
    stored_bytes: int | None
    """Of the weights on disk; null where they are not here."""
    quantized: bool
    """Whether the weights stay in memory as they are on disk."""
    origin: Origin
    """What the numbers come from."""

    def weight_bytes(self, each: int) -> int:
        """Memory of the weights with so many bytes a parameter."""
        if self.quantized and self.stored_bytes:
            return self.stored_bytes
        return self.parameters * each

    def cache_bytes(self, each: int) -> int:
        """Memory of one token in the KV cache."""
        return 2 * self.layers * self.key_width * each


def model_shape(model: str) -> ModelShape:
    """That of ``model``: a checkpoint folder, an adapter's (its base), an embedded or hub name.

    Nothing is downloaded: a hub name that is not in the hub's local cache is guessed by its name.
    """
    folder = checkpoint_folder(model)
    if folder is None:
        return _by_name(model)
    settings = _read(folder / "config.json")
    if not settings:
        return _by_name(model)
    return _by_config(settings, folder)


def checkpoint_folder(model: str) -> Path | None:
    """The local folder with the config of ``model`` (of an adapter: of its base), if there is
    one."""
    folder = Path(resolve_embedded(model)).expanduser()
    if (folder / _ADAPTER).is_file():
        base = _read(folder / _ADAPTER).get("base_model_name_or_path")
        return checkpoint_folder(str(base)) if base and str(base) != model else None
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or model.count("/") > 1:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _by_config(settings: Mapping[str, Any], folder: Path) -> ModelShape:
    text = settings.get("text_config")
    inner: Mapping[str, Any] = text if isinstance(text, Mapping) else settings

    def number(*names: str) -> int:
        """The first of these keys that is a number; 0 where none is."""
        found = (inner.get(name) for name in names)
        return next((int(one) for one in found if isinstance(one, int | float) and one), 0)

    hidden = number("hidden_size", "n_embd", "d_model")
    layers = number("num_hidden_layers", "n_layer", "num_layers") or 1
    heads = number("num_attention_heads", "n_head") or 1
    width = number("head_dim") or hidden // heads
    keys = (number("num_key_value_heads") or heads) * width
    vocabulary = number("vocab_size")
    experts = number("num_local_experts", "num_experts", "n_routed_experts")
    chosen = number("num_experts_per_tok", "experts_per_token") or experts
    dense = number("intermediate_size", "n_inner") or 4 * hidden
    of_expert = 3 * hidden * (number("moe_intermediate_size") or dense)
    attention = 2 * hidden * (heads * width) + 2 * hidden * keys
    body = layers * (attention + (experts * of_expert if experts else 3 * hidden * dense))
    tied = bool(settings.get("tie_word_embeddings", inner.get("tie_word_embeddings", True)))
    embedding = vocabulary * hidden
    formula = body + embedding * (1 if tied else 2)
    tensors = _tensors(folder)
    parameters = sum(prod(one["shape"]) for one in tensors.values()) or formula
    resting = 0 if tied else embedding
    if experts:
        resting += (experts - chosen) * of_expert * layers
    return ModelShape(
        parameters=parameters,
        read=max(parameters - resting, 1),
        layers=layers,
        hidden=hidden,
        key_width=keys,
        vocabulary=vocabulary,
        context=number("max_position_embeddings", "n_positions") or None,
        stored_bytes=sum(_size(one) for one in tensors.values()) or None,
        quantized=bool(settings.get("quantization_config")),
        origin="weights" if tensors else "config",
    )


def _by_name(model: str) -> ModelShape:
    """A guess: dense, in the proportions of usual models of that size."""
    found = _IN_NAME.search(model.rpartition("/")[2])
    origin: Origin = "name" if found else "nothing"
    parameters = _UNKNOWN_PARAMETERS
    if found:
        unit = 1e9 if found[3].upper() == "B" else 1e6
        parameters = round(int(found[1] or 1) * float(found[2]) * unit)
    layers = max(round((parameters / (12 * 128**2)) ** (1 / 3)), 2)
    guess = ModelShape(
        parameters=parameters,
        read=parameters,
        layers=layers,
        hidden=128 * layers,
        key_width=32 * layers,
        vocabulary=128_000,
        context=None,
        stored_bytes=None,
        quantized=False,
        origin=origin,
    )
    active = _ACTIVE_IN_NAME.search(model.rpartition("/")[2])
    return replace(guess, read=round(float(active[1]) * 1e9)) if active else guess


def _tensors(folder: Path) -> dict[str, Any]:
    """The tensors of a checkpoint by name; none unless all of its files are here and whole."""
    index = _read(folder / "model.safetensors.index.json").get("weight_map")
    if isinstance(index, dict):
        files = [folder / str(name) for name in sorted(set(index.values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    found: dict[str, Any] = {}
    for file in files:
        header = _header(file)
        if header is None:
            return {}
        found |= header
    return found


def _header(file: Path) -> dict[str, Any] | None:
    """What a safetensors file says it holds: https://github.com/huggingface/safetensors#format."""
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length > _LONGEST_HEADER:
                return None
            header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        return {
            name: {"shape": [*map(int, one["shape"])], "ends": [*map(int, one["data_offsets"])]}
            for name, one in header.items()
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None


def _size(tensor: Mapping[str, Any]) -> int:
    begin, end = tensor["ends"]
    return int(end) - int(begin)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
