"""Policies on disk: a full checkpoint, or a LoRA adapter that names its base.

Safetensors only, and no code from a checkpoint is ever run. All paths are local folders.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.data.conversations.tokenizing import open_tokenizer, padding_id
from prefloop.labelers.model_loading import loading_model
from prefloop.training.errors import TrainingError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_GENERATION = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer*",
    "tekken.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)
"""Patterns of the files that a tokenizer and its chat template lie in."""


def is_adapter(checkpoint: Path) -> bool:
    """Whether ``checkpoint`` holds a LoRA adapter rather than a whole model."""
    return (checkpoint / _ADAPTER_CONFIG).is_file()


def adapter_settings(checkpoint: Path) -> dict[str, Any]:
    """The ``adapter_config.json`` of an adapter folder."""
    settings: dict[str, Any] = json.loads(
        (checkpoint / _ADAPTER_CONFIG).read_text(encoding="utf-8")
    )
    return settings


def base_of(checkpoint: Path) -> Path:
    """The full checkpoint under ``checkpoint``: itself, or the base that its adapter names.

    Raises ``TrainingError`` if that folder is not there (any more).
    """
    base = checkpoint
    if is_adapter(checkpoint):
        base = Path(adapter_settings(checkpoint)["base_model_name_or_path"])
    if not (base / "config.json").is_file():
        raise TrainingError(
            f"no model in {base}"
            + (f", the base of the adapter {checkpoint}" if base != checkpoint else "")
            + ": give the path of a local checkpoint folder with config.json and safetensors"
        )
    return base


def load_tokenizer(checkpoint: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in ``checkpoint`` (of an adapter that has no copy of it, its base's), with a
    token to pad with that the model has: those of Llama, Mistral and GPT-2 name none, and one that
    was added may be beyond the model."""
    has_none = is_adapter(checkpoint) and not (checkpoint / "tokenizer_config.json").is_file()
    tokenizer = open_tokenizer(
        str(base_of(checkpoint) if has_none else checkpoint),
        trust_remote_code=False,
        local_files_only=True,
    )
    has_model = is_adapter(checkpoint) or (checkpoint / "config.json").is_file()
    padding = padding_id(tokenizer, below=embeddings(checkpoint) if has_model else None)
    if padding not in (None, tokenizer.pad_token_id):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
    return tokenizer


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer and chat template of ``source`` into the folder ``target``, unchanged.

    Loading and saving would rewrite them, and a later round must tokenise as this one did.
    """
    for pattern in TOKENIZER_FILES:
        for file in source.glob(pattern):
            if file.is_file():
                copy = target / file.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)


def complete_policy(source: Path, target: Path) -> None:
    """Copy into the folder ``target``, which holds weights that were trained from the policy in
    ``source``, all that belongs to a policy beside its weights, unchanged: how it reads and writes
    texts, and which tokens end its answers."""
    copy_tokenizer(source, target)
    file = base_of(source) / _GENERATION
    if file.is_file() and not is_adapter(target):
        shutil.copyfile(file, target / _GENERATION)


def load_model(
    checkpoint: Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    trainable_adapter: bool = False,
    quantize: str | None = None,
) -> Any:
    """The causal language model in ``checkpoint``, in evaluation mode.

    An adapter is merged into its base, so that the result is an ordinary transformers model;
    with ``trainable_adapter`` it stays a ``PeftModel`` whose adapter can be trained on.
    ``quantize`` ("nf4") loads the base in 4 bits, computing in ``dtype``, and leaves an adapter
    beside it.
    Raises ``TrainingError`` if a folder holds no model, or not all weights of it, or where
    bitsandbytes is missing.
    """
    from transformers import AutoModelForCausalLM

    from prefloop.labelers.scorers.attention import attend_as_made

    four_bits = {"quantization_config": _four_bits(quantize, dtype)} if quantize else {}
    base = base_of(checkpoint)
    with _unloadable_is_named(checkpoint), loading_model():
        model, loading = AutoModelForCausalLM.from_pretrained(
            str(base.resolve()),  # an adapter records this path as its base
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **four_bits,
        )
    _require_whole(base, loading["missing_keys"])
    _forget_generation(model)
    attend_as_made(model)
    if is_adapter(checkpoint):
        from peft import PeftModel

        with _unloadable_is_named(checkpoint), loading_model():
            model = PeftModel.from_pretrained(
                model, str(checkpoint), is_trainable=trainable_adapter, use_safetensors=True
            )
        _require_whole(checkpoint, missing_in_adapter(model, checkpoint))
        if not trainable_adapter and not quantize:  # merged in 4 bits it would be rounded away
            # peft froze the base to train the adapter; a merged model is all one.
            model = merged(model).requires_grad_(True)
    # What is quantised is where it was loaded, and cannot be moved.
    return (model if quantize else model.to(device)).eval()


def merged(adapted: Any) -> Any:
    """The model of ``adapted`` (a ``PeftModel``) with the adapter in its weights.

    Where input and output embeddings are one matrix and the adapter is on one of them, they become
    two: what is added to the one is not the other's.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = adapted.get_base_model()
    given, taken = model.get_input_embeddings(), model.get_output_embeddings()
    apart = isinstance(given, BaseTunerLayer) or isinstance(taken, BaseTunerLayer)
    if apart and taken is not None and given.weight is taken.weight:
        layer = taken.get_base_layer() if isinstance(taken, BaseTunerLayer) else taken
        layer.weight = type(layer.weight)(layer.weight.detach().clone())
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
    return adapted.merge_and_unload()


def missing_in_adapter(model: Any, checkpoint: Path) -> set[str]:
    """Names of the weights of ``model`` (a ``PeftModel``) that its adapter ``checkpoint`` should
    hold and does not; they would be those of an adapter that was never trained."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(checkpoint / _ADAPTER_WEIGHTS, "pt") as file:
        return set(get_peft_model_state_dict(model, save_embedding_layers=False)) - set(file.keys())


def lacking(names: Collection[str]) -> str:
    """What a message says of a checkpoint without the weights ``names``."""
    first, more = min(names), len(names) - 1
    others = f" and {more:,} more" if more else ""
    return (
        f"its weights lack {first}{others}, which would be random: copy the model anew, or where a "
        "training made it delete the folder and train again"
    )


def _forget_generation(model: Any) -> None:
    """Forget all but the end tokens. transformers refuses to write the generation config that many
    models came with (a temperature without do_sample): it is copied, see ``complete_policy``."""
    from transformers import GenerationConfig

    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.generation_config.eos_token_id = ends


def _require_whole(checkpoint: Path, missing: Collection[str]) -> None:
    if missing:
        raise TrainingError(f"{checkpoint}: {lacking(missing)}")


@contextmanager
def _unloadable_is_named(checkpoint: Path) -> Iterator[None]:
    """Raise ``TrainingError`` for weights that are no safetensors, cut or of another shape."""
    from safetensors import SafetensorError

    try:
        yield
    except (ImportError, AssertionError, AttributeError) as error:
        # What transformers raises where the packages of a quantisation are not here.
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TrainingError(f"{checkpoint}: its weights cannot be loaded: {first}") from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TrainingError(
            f"{checkpoint}: its weights cannot be loaded: {first}: copy the model anew, or where a "
            "training made it delete the folder and train again"
        ) from error


def _four_bits(kind: str, dtype: torch.dtype) -> Any:
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise TrainingError(
            "train.lora.quantize needs bitsandbytes: pip install 'prefloop[qlora]', or leave it out"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def context_length(policy: Path) -> int:
    """Positions the model was made for; a longer sequence would be noise to it."""
    found = _setting(policy, "max_position_embeddings", "n_positions")
    return 2**31 if found is None else found


def embeddings(policy: Path) -> int | None:
    """Token embeddings of the model; null where its config does not say."""
    return _setting(policy, "vocab_size")


def _setting(policy: Path, *names: str) -> int | None:
    """What the model's config, or that of its language model, says under the first of ``names``;
    where it leaves them out, as Falcon's and Gemma 3's do, what transformers takes them for."""
    folder = base_of(policy)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for part in (settings, settings.get("text_config") or {}):
        for name in names:
            if part.get(name):
                return int(part[name])
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        ).get_text_config()
    except (OSError, ValueError, KeyError):  # whoever loads the model says so
        return None
    found = next((getattr(config, name, None) for name in names if getattr(config, name, None)), 0)
    return int(found) if found and found > 0 else None
