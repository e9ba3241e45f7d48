"""The time that a plan gives to what this machine computes, by its models' sizes and its speed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

from prefloop.labelers.config import JudgeLabeler, LabelerConfig, OwnModelLabeler
from prefloop.pipeline.config import POLICY, RunConfig
from prefloop.pipeline.engines.replicas.places import usable_cores
from prefloop.pipeline.engines.settings import OpenAIEngine, TransformersEngine, VllmEngine
from prefloop.pipeline.machine.duration import Computing
from prefloop.pipeline.machine.hardware import (
    BYTES,
    CPU,
    device_named,
    devices_of,
    dtype_of,
    dtype_on,
    gpus,
    gpus_pretended,
    replicas_of,
)
from prefloop.pipeline.machine.model_shape import ModelShape, model_shape
from prefloop.pipeline.machine.speed import MachineSpeed
from prefloop.pipeline.machine.stage_memory import stage_memory
from prefloop.pipeline.plan.speeds import (
    LOADED_PER_SECOND,
    START_S,
    VLLM_START_S,
    VLLM_WAKES_S,
)
from prefloop.pipeline.run.context import most_in_flight
from prefloop.training.config import TrainConfig

SpeedOf = Callable[[str, str], MachineSpeed]
"""The speed of a device in a type of numbers."""
_ORIGINS = {
    "weights": "counted in its weights",
    "config": "by its config",
    "name": "by its name",
    "nothing": "a guess: nothing of it is on this machine, and its name does not say",
}


class Clock:
    """Tells how long this machine takes for the parts of a run of ``config``."""

    def __init__(self, config: RunConfig, speed_of: SpeedOf) -> None:
        self._config = config
        self._speed_of = cache(speed_of)
        self._shapes: dict[str, ModelShape] = {}
        self._used: set[tuple[str, str]] = set()

    def answering(
        self,
        engine: str,
        model: str,
        requests: int,
        *,
        tokens: tuple[float, float, float],
        copies: int = 1,
    ) -> float:
        """Seconds of ``requests`` to an engine in this process.

        ``tokens`` of a prompt, of an answer as expected, and of an answer at most. ``copies``: so
        many requests share a prompt, which is read once.
        """
        settings = self._config.engines[engine]
        assert not isinstance(settings, OpenAIEngine)
        prompt, expected, most = tokens
        device = devices_of(settings)[0]
        # A block is computed by one of them.
        parts = min(replicas_of(settings), -(-requests // (self._config.block_size * copies)) or 1)
        computing = self._computing(model, device, dtype_of(settings), settings)
        if device == CPU:  # they share the cores, and each begins its operations by itself
            parts = min(parts, len(usable_cores()))
            speed = computing.speed
            speed = replace(
                speed,
                flops=speed.flops / parts,
                bytes_per_second=speed.bytes_per_second / parts,
            )
            computing = replace(computing, speed=speed)
        requests = -(-requests // parts)
        prompts = requests * prompt / copies
        in_flight = most_in_flight(self._config) * self._config.block_size * copies
        if isinstance(settings, VllmEngine):  # an answer that ends makes room for the next
            together = min(settings.max_num_seqs, in_flight)
            spread = (expected, expected)
        else:
            together = min(settings.batch_size, self._config.block_size * copies)
            spread = (expected, min(most, 2 * expected) if expected > 1 else expected)
        return computing.answering(requests, spread, prompts=prompts, together=together)

    def scoring(self, labeler: OwnModelLabeler, tokens: float) -> float:
        """Seconds in which each model of a labeler reads ``tokens``."""
        device = device_named(labeler.device)
        dtype = dtype_on(labeler.dtype, device)
        models = (self._computing(model, device, dtype) for model in labeler.models)
        return sum(model.reading(tokens) for model in models)

    def likelihoods(self, tokens: float) -> float:
        """Seconds of log-probabilities of ``tokens`` under a policy."""
        settings = self._config.engines[self._config.sample.engine]
        device = next(iter(devices_of(settings)), device_named("auto"))
        dtype = (
            dtype_on("auto", device) if isinstance(settings, OpenAIEngine) else dtype_of(settings)
        )
        return self._computing(self._config.policy, device, dtype).reading(tokens)

    def training(self, train: TrainConfig, tokens: float, steps: int) -> float:
        """Seconds of ``steps`` on ``tokens``, those of all epochs; the reference's pass is in."""
        bf16 = gpus() > 0 if train.precision == "auto" else train.precision == "bf16"
        dtype = "bfloat16" if bf16 else "float32"
        computing = self._computing(self._config.policy, device_named("auto"), dtype)
        # Two operations forwards, two for the gradients of activations, two for those of weights.
        operations = 4.0 if train.lora else 6.0
        if train.gradient_checkpointing:
            operations += 2
        if train.method in ("dpo", "kto") and train.uses_reference:
            operations += 2 / train.epochs if train.precompute_reference_logprobs else 2
        trained = 0.02 if train.lora else 1.0
        return computing.training(tokens, steps, operations=operations, trained=trained)

    def opening(self, rounds: int) -> float:
        """Seconds of starting, and of opening engines: once, or where they take turns whenever
        another stage begins."""
        config = self._config
        opened = {(member.engine, member.model) for member in config.sample.members()}
        judges = [one for one in config.all_labelers if isinstance(one, JudgeLabeler)]
        opened |= {asked for one in judges for asked in one.asked}
        turns = bool(config.train and gpus()) or config.memory == "one_at_a_time"
        turns = turns or any(one.in_turn for one in stage_memory(config))
        stages = rounds * (4 if config.train and config.evaluate.enabled else 2) if turns else 1
        return START_S + sum(self._opening_of(*one, stages) for one in opened)

    def opening_judges(self, labelers: Iterable[LabelerConfig]) -> float:
        """Seconds of starting, and of opening the engines of judges, where nothing is sampled."""
        judges = {asked for one in labelers if isinstance(one, JudgeLabeler) for asked in one.asked}
        return START_S + sum(self._opening_of(*one, 1) for one in judges)

    def _opening_of(self, engine: str, model: str, times: int) -> float:
        settings = self._config.engines[engine]
        if isinstance(settings, OpenAIEngine):
            return 0.0
        loading = self._shape(model).weight_bytes(BYTES[dtype_of(settings)]) / LOADED_PER_SECOND
        if replicas_of(settings) > 1:  # at the same time
            loading += START_S
        if isinstance(settings, TransformersEngine):
            return times * loading
        sleeps = settings.enable_sleep_mode is not False and devices_of(settings)[0] != CPU
        if sleeps:
            return VLLM_START_S + loading + (times - 1) * VLLM_WAKES_S
        return times * (VLLM_START_S + loading)

    def _computing(
        self,
        model: str,
        device: str,
        dtype: str,
        engine: TransformersEngine | VllmEngine | None = None,
    ) -> Computing:
        self._used.add((device, dtype))
        eager = not isinstance(engine, VllmEngine) or engine.enforce_eager is True or device == CPU
        return Computing(
            self._shape(model), self._speed_of(device, dtype), BYTES[dtype], eager=eager
        )

    def _shape(self, model: str) -> ModelShape:
        name = self._config.policy if model == POLICY else model
        if name not in self._shapes:
            self._shapes[name] = model_shape(name)
        return self._shapes[name]

    def assumptions(self) -> Iterable[str]:
        """What the times rest on, in words."""
        for name, engine in self._config.engines.items():
            if (count := replicas_of(engine)) > 1:
                where = "cores" if devices_of(engine)[0] == CPU else "GPUs"
                yield f"engines.{name}: {count} replicas, which share the {where} of this machine"
        there = gpus_pretended()
        for device, dtype in sorted(self._used):
            speed = self._speed_of(device, dtype)
            told = there.speed_from if there and device != CPU else "measured here"
            others = "" if there else " (other work on the machine slows both it and the run)"
            yield (
                f"speed of {device} in {dtype}, {told}: {speed.flops / 1e9:,.0f} GFLOP/s, "
                f"{speed.bytes_per_second / 1e9:,.0f} GB/s, {speed.operation_s * 1e6:,.0f} µs to "
                f"begin an operation{others}"
            )
        for name, shape in self._shapes.items():
            yield f"size of {name}: {_count(shape.parameters)} parameters, {_ORIGINS[shape.origin]}"


def _count(parameters: int) -> str:
    unit, name = (1e9, "billion") if parameters >= 1e9 else (1e6, "million")
    return f"{parameters / unit:.3g} {name}"
