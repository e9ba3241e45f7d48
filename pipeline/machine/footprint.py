"""How much memory models take: weights, KV cache, what training keeps beside them.

Estimates for deciding and for people, a little high rather than low.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prefloop.labelers.config import OwnModelLabeler, RewardModelLabeler
from prefloop.pipeline.engines.settings import OpenAIEngine, TransformersEngine, VllmEngine
from prefloop.pipeline.machine.hardware import (
    BYTES,
    CPU,
    capacity,
    device_named,
    devices_of,
    dtype_of,
    dtype_on,
    gpus,
    replicas_of,
)
from prefloop.pipeline.machine.model_shape import ModelShape, model_shape
from prefloop.training.config import TrainConfig

GIB = 2**30
ASLEEP = 2 * GIB
"""What a sleeping vLLM may keep of a GPU: its context, and graphs that were recorded."""
_VLLM_OVERHEAD = 3 * GIB // 2  # of a process on the CPU, its libraries included
_TORCH_ON_GPU = GIB // 2
_PROCESS = GIB // 2  # Python, torch and transformers once more
_LOGIT_COPIES = 4
LOGITS_AT_ONCE = 1 << 24
"""Logits that a training computes at the same time on a CPU, at most: as
``prefloop.training.policy.head.CHUNK``, whose module imports torch."""
_TILE = 4096 * 32768  # the same of TRL's kernel on a GPU
_USUAL_CONTEXT = 4096


@dataclass(frozen=True)
class Footprint:
    """What something takes, by what for, and of which devices."""

    parts: Mapping[str, int]
    """Bytes on each device."""
    devices: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """On each of its devices."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Longest:
    """The longest sequences of a stage, in tokens."""

    prompt: int
    answer: int
    thought: int = 0
    """Before the answer; nobody is shown it afterwards."""

    def within(self, shape: ModelShape) -> int:
        """Both together, as far as the model's context goes."""
        wanted = self.prompt + self.thought + self.answer
        return min(wanted, shape.context or wanted)


def engine_footprint(
    engine: TransformersEngine | VllmEngine | OpenAIEngine, model: str, longest: Longest
) -> Footprint:
    """That of ``engine`` serving ``model``, in all of its processes; nothing for a server's."""
    devices = devices_of(engine)
    if isinstance(engine, OpenAIEngine):
        return Footprint({}, devices)
    shape = model_shape(model)
    each = BYTES[dtype_of(engine)]
    if isinstance(engine, TransformersEngine):
        cache = engine.batch_size * longest.within(shape) * shape.cache_bytes(each)
        logits = _LOGIT_COPIES * engine.batch_size * shape.vocabulary * 4
        parts = {"weights": shape.weight_bytes(each), "KV cache": cache, "logits": logits}
        parts |= _of_torch(devices[0])
        return Footprint(_of_processes(parts, replicas_of(engine), devices), devices)
    weights = shape.weight_bytes(each) // engine.tensor_parallel_size
    if devices[0] == CPU:
        cache = engine.cpu_kv_cache_gib * GIB
        parts = {"weights": shape.weight_bytes(each), "KV cache": cache, "vLLM": _VLLM_OVERHEAD}
        return Footprint(_of_processes(parts, replicas_of(engine), devices), devices)
    # It takes its share whole, and lays the cache out in what the weights leave of it.
    share = int(engine.gpu_memory_utilization * capacity(devices[0]))
    return Footprint({"weights": weights, "KV cache": max(share - weights, 0)}, devices)


def vllm_needs(engine: VllmEngine, model: str) -> int:
    """Bytes of a device without which vLLM does not start: weights, and one sequence's cache."""
    shape, each = model_shape(model), BYTES[dtype_of(engine)]
    context = engine.max_model_len or shape.context or _USUAL_CONTEXT
    needed = shape.weight_bytes(each) + context * shape.cache_bytes(each)
    if devices_of(engine)[0] == CPU:
        return replicas_of(engine) * (needed + _VLLM_OVERHEAD)
    return needed // engine.tensor_parallel_size + _VLLM_OVERHEAD


def own_model_footprint(labeler: OwnModelLabeler, longest: Longest) -> Footprint:
    """That of a labeler's models in this process. ``longest``: of the answers that it reads."""
    device = device_named(labeler.device)
    if not isinstance(labeler, RewardModelLabeler):
        dtype = dtype_on(labeler.dtype, device)
        both = [
            scoring_footprint(model, device, dtype, longest, rows=labeler.batch_size)
            for model in labeler.models
        ]
        # One after the other reads: what is not weights is there once.
        largest = max(both, key=lambda one: one.bytes)
        weights = sum(one.parts["weights"] for one in both)
        return Footprint({**largest.parts, "weights": weights}, (device,))
    shape = model_shape(labeler.model)
    each = BYTES[dtype_on(labeler.dtype, device)]
    tokens = min(labeler.batch_tokens, 1024) if device == CPU else labeler.batch_tokens
    parts = {"weights": shape.weight_bytes(each), "activations": tokens * _of_token(shape, each)}
    return Footprint(parts | _of_torch(device), (device,))


def scoring_footprint(
    model: str, device: str, dtype: str, longest: Longest, *, rows: int = 16
) -> Footprint:
    """That of computing the log-probabilities of answers under ``model``, ``rows`` at a time."""
    shape, each = model_shape(model), BYTES[dtype]
    parts = {
        "weights": shape.weight_bytes(each),
        "activations": rows * longest.within(shape) * _of_token(shape, each),
        "logits": _of_logits(rows * longest.answer, shape, device),
    }
    return Footprint(parts | _of_torch(device), (device,))


def training_footprint(train: TrainConfig, policy: str, longest: Longest) -> Footprint:
    """That of training ``policy``: weights, gradients, the optimiser's two states, activations of a
    batch, and the reference where it is not computed before."""
    device = device_named("auto")
    shape = model_shape(policy)
    bf16 = gpus() > 0 if train.precision == "auto" else train.precision == "bf16"
    each = 2 if bf16 else 4
    sequences = train.batch_size * (1 if train.method in ("kto", "sft") else 2)
    length = min(longest.within(shape), train.max_length)
    kept = _of_trained_token(shape, each)
    if train.gradient_checkpointing:
        kept = kept // shape.layers + shape.layers * shape.hidden * each
    if train.lora:
        frozen = shape.parameters // 2 if train.lora.quantize else shape.weight_bytes(each)
        trained = lora_parameters(shape, train.lora.r)
        parts = {"weights": frozen, "adapter, gradients, optimiser": 16 * trained}
    else:
        parts = {
            "weights": 4 * shape.parameters,
            "gradients": 4 * shape.parameters,
            "optimiser": (2 if train.optimizer.endswith("8bit") else 8) * shape.parameters,
        }
    parts["activations"] = sequences * length * kept
    parts["logits"] = _of_logits(sequences * min(longest.answer, length), shape, device)
    if train.method in ("dpo", "kto") and not train.precompute_reference_logprobs:
        parts["reference"] = shape.weight_bytes(each if train.lora else 4)
    return Footprint(parts | _of_torch(device), (device,))


def lora_parameters(shape: ModelShape, rank: int) -> int:
    """Of adapters of ``rank`` on all linear layers of a usual block."""
    # Seven products of a block, whose inputs and outputs together are about 20 widths.
    return 20 * rank * shape.hidden * shape.layers


def _of_token(shape: ModelShape, each: int) -> int:
    """Activations of a token that exist at one time in a pass without gradients."""
    return 16 * shape.hidden * each


def _of_logits(tokens: int, shape: ModelShape, device: str) -> int:
    """Those of answers' tokens, some at a time, in float32, and once more for their softmax or
    gradient."""
    return 8 * min(tokens * shape.vocabulary, LOGITS_AT_ONCE if device == CPU else _TILE)


def _of_trained_token(shape: ModelShape, each: int) -> int:
    """Activations of a token that a backward pass needs: 34 bytes a width and layer in 16 bits
    (Korthikanti et al. 2022, arXiv 2205.05198, equation 2, without the attention matrix)."""
    return 17 * each * shape.hidden * shape.layers


def _of_processes(parts: dict[str, int], count: int, devices: tuple[str, ...]) -> dict[str, int]:
    """What ``count`` processes take of each device, of which each takes ``parts``: on GPUs each has
    devices of its own."""
    if count == 1 or devices[0] != CPU:
        return parts
    return {name: count * size for name, size in parts.items()} | {"processes": count * _PROCESS}


def _of_torch(device: str) -> dict[str, int]:
    return {} if device == CPU else {"torch": _TORCH_ON_GPU}
