"""Loading checkpoints and LoRA adapters with transformers: safetensors only, errors in one line."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from prefloop.data.conversations.chat import render_tokens
from prefloop.data.conversations.tokenizing import beyond_embedding, open_tokenizer
from prefloop.data.protocol import EngineFailed, RequestRejected
from prefloop.labelers.model_loading import loading_model
from prefloop.training.policy import checkpoints

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def is_adapter(path: str) -> bool:
    """Whether ``path`` is a LoRA adapter folder (as peft saves it) and not a whole model."""
    return checkpoints.is_adapter(Path(path))


def adapter_rank(path: str) -> int:
    """The rank of the LoRA adapter at ``path``."""
    return int(checkpoints.adapter_settings(Path(path))["r"])


def adapter_base(path: str) -> str:
    """The model that the LoRA adapter at ``path`` was trained on, as its config names it."""
    return str(checkpoints.adapter_settings(Path(path))["base_model_name_or_path"])


def usable_device(name: str) -> torch.device:
    """The device that ``name`` says; ``auto``: the first GPU, where there is one. Raises
    ``EngineFailed`` where it is not here."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise EngineFailed(
            f"device {name!r} cannot be used here: {str(error).splitlines()[0]}",
            "set the engine's `device` to auto or cpu",
        ) from None
    return device


def load_tokenizer(
    model: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of ``model``. Raises ``EngineFailed``."""
    try:
        return open_tokenizer(model, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable("tokenizer", model, error) from error


def check_template_tokens(tokenizer: PreTrainedTokenizerBase, model: str, embeddings: int) -> None:
    """Raise ``EngineFailed`` where the chat template writes tokens that ``model``, with so many
    ``embeddings``, does not have: no request could be answered."""
    try:
        ids = render_tokens(tokenizer, [{"role": "user", "content": "?"}])
    except (EngineFailed, RequestRejected):
        return  # each request says so
    if max(ids, default=0) >= embeddings:
        raise EngineFailed(f"{model}: {beyond_embedding(max(ids), embeddings)}")


def configured_ends(model: str, revision: str | None) -> int | list[int] | None:
    """The end tokens that the generation config of ``model`` names; null where it has none."""
    from transformers import AutoConfig, GenerationConfig

    # Where there is no generation config, transformers makes one of the model's.
    for kind in (GenerationConfig, AutoConfig):
        try:
            found = kind.from_pretrained(model, revision=revision)
        except (OSError, ValueError):
            continue
        ends: int | list[int] | None = getattr(found, "eos_token_id", None)
        return ends
    return None


def load_model(
    path: str,
    *,
    base: str,
    device: torch.device,
    dtype: torch.dtype,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model at ``path``, or ``base`` with the LoRA adapter at ``path``, ready for inference.

    In float32 an adapter is merged; in shorter types merging would round the update away.
    ``revision`` is of ``base``. Raises ``EngineFailed``.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from prefloop.labelers.scorers.attention import attend_as_made

    whole = base if is_adapter(path) else path
    try:
        with loading_model():
            model, loading = AutoModelForCausalLM.from_pretrained(
                whole,
                dtype=dtype,
                revision=revision if whole == base else None,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
        _require_whole(whole, loading["missing_keys"])
        attend_as_made(model)
        _forget_balance(model)
        if is_adapter(path):
            model = _with_adapter(model, path, merge=model.dtype.itemsize >= 4)
    except (
        # The first three: what transformers raises where a quantisation's packages are not here.
        ImportError,
        AssertionError,
        AttributeError,
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise _unloadable("weights", path, error) from error
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def _forget_balance(model: PreTrainedModel) -> None:
    """Compute no loss of balance between experts, which some models are saved with: it is for
    training, and fails where a cache holds what was read before."""
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "output_router_logits", False):
            config.output_router_logits = False


def _with_adapter(model: PreTrainedModel, path: str, *, merge: bool) -> PreTrainedModel:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise EngineFailed("peft is not installed", "pip install peft") from error
    with loading_model():
        adapted = PeftModel.from_pretrained(model, path, use_safetensors=True)
    _require_whole(path, checkpoints.missing_in_adapter(adapted, Path(path)))
    return checkpoints.merged(adapted) if merge else adapted


def _require_whole(path: str, missing: Collection[str]) -> None:
    if missing:
        raise EngineFailed(f"{path}: {checkpoints.lacking(missing)}")


def _unloadable(what: str, path: str, error: Exception) -> EngineFailed:
    first_line = next(iter(str(error).strip().splitlines()), "")
    return EngineFailed(
        f"cannot load the {what} of {path}: {first_line}",
        "a model is a folder with config.json, *.safetensors and a tokenizer, or its hub name",
    )
