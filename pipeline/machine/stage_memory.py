"""The memory of each stage of a run, and whether it fits into this machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prefloop.labelers.config import JudgeLabeler, LabelerConfig, OwnModelLabeler
from prefloop.pipeline.config import POLICY, PoolMember, RunConfig
from prefloop.pipeline.engines.settings import VllmEngine
from prefloop.pipeline.machine.footprint import (
    GIB,
    Footprint,
    Longest,
    engine_footprint,
    own_model_footprint,
    scoring_footprint,
    training_footprint,
    vllm_needs,
)
from prefloop.pipeline.machine.hardware import CPU, capacity, device_name, devices_of, dtype_of
from prefloop.pipeline.machine.residency import USABLE

USUAL_PROMPT = 1024
"""Tokens of a long prompt, where no prompts were read."""
_TRAINING_REMEDY = "set train.gradient_checkpointing, a smaller train.batch_size, or train.lora"
_ENGINE_REMEDY = "a smaller batch_size of the engine, or a smaller or quantized model"
_VLLM_REMEDY = (
    "a smaller max_model_len, a larger gpu_memory_utilization, or a smaller or quantized model"
)


@dataclass(frozen=True)
class StageMemory:
    """What one stage needs of one device at most."""

    stage: str
    who: tuple[str, ...]
    device: str
    needed: int
    """Bytes at one time: of all together, or where they take turns of the largest."""
    capacity: int
    parts: dict[str, int]
    in_turn: bool
    remedy: str

    @property
    def fits(self) -> bool:
        """Whether the device has that much."""
        return self.needed <= self.capacity * (1 if self.device != CPU else USABLE)

    def line(self) -> str:
        """For people."""
        parts = ", ".join(f"{name} {_size(size)}" for name, size in self.parts.items() if size)
        turns = ", in turn" if self.in_turn else ""
        verdict = "fits" if self.fits else f"does not fit: {self.remedy}"
        return (
            f"{self.stage}: {' + '.join(self.who)}{turns}: {_size(self.needed)} of "
            f"{_size(self.capacity)} ({parts}): {verdict}"
        )


@dataclass(frozen=True)
class _Guest:
    """A model in a stage. ``least``: bytes of a device without which it does not start."""

    name: str
    footprint: Footprint
    least: int
    remedy: str


def memory_lines(config: RunConfig, *, longest_prompt: int = USUAL_PROMPT) -> list[str]:
    """Lines that say what each stage needs of each device, and whether that fits.

    ``longest_prompt``: tokens of the longest prompt, where it is known.
    """
    stages = stage_memory(config, longest_prompt=longest_prompt)
    lines = []
    for device in dict.fromkeys(one.device for one in stages):
        lines.append(f"memory of {device_name(device)}:")
        lines += [f"  {one.line()}" for one in stages if one.device == device]
    return lines


def stage_memory(config: RunConfig, *, longest_prompt: int = USUAL_PROMPT) -> list[StageMemory]:
    """The memory of every stage of ``config`` that computes on this machine."""
    longest = sampling_longest(config, longest_prompt)
    members = config.sample.members()
    stages = []
    if config.sample.total:
        sampling = [_engine(config, one.name, one.engine, one.model, longest) for one in members]
        stages.append(("sample", sampling))
    stages.append(("label", _labelers(config, config.label.labelers, longest)))
    if config.train:
        footprint = training_footprint(config.train, config.policy, longest)
        trained = _Guest(config.train.method, footprint, footprint.bytes, _TRAINING_REMEDY)
        stages.append(("train", [trained]))
        if config.evaluate.enabled:
            stages.append(("evaluate", _evaluating(config, longest)))

    def beside(device: str) -> int:
        return capacity(device) - beside_training(config, device, longest_prompt)

    found: list[StageMemory] = []
    for stage, guests in stages:
        room = beside if stage in ("sample", "label") else capacity
        found += _of_stage(config, stage, guests, room)
    return found


def beside_training(config: RunConfig, device: str, longest_prompt: int = USUAL_PROMPT) -> int:
    """Bytes of ``device`` that a training takes while answers are sampled and labelled; 0 where
    training comes after both."""
    if config.train is None or not config.train.on_policy:
        return 0
    longest = sampling_longest(config, longest_prompt)
    needed = training_footprint(config.train, config.policy, longest)
    return needed.bytes if device in needed.devices else 0


def sampling_longest(config: RunConfig, prompt: int = USUAL_PROMPT) -> Longest:
    """The longest sequences of the policies."""
    return Longest(prompt, config.sample.max_tokens, config.sample.thought_tokens or 0)


def judging_longest(labeler: JudgeLabeler, longest: Longest) -> Longest:
    """The longest sequences of a judge, which is shown two answers or more behind a prompt."""
    shown = longest.prompt + 2 * longest.answer
    return Longest(shown, labeler.max_tokens or 512, labeler.thought_tokens or 0)


def _labelers(
    config: RunConfig, labelers: Sequence[LabelerConfig], longest: Longest
) -> list[_Guest]:
    found: dict[object, _Guest] = {}
    for one in labelers:
        if isinstance(one, JudgeLabeler):
            asked = judging_longest(one, longest)
            for engine, model in one.asked:
                key: object = (engine, model)
                found[key] = _engine(config, one.name, engine, model, asked)
        elif isinstance(one, OwnModelLabeler):
            footprint = own_model_footprint(one, longest)
            found[one.name] = _Guest(one.name, footprint, footprint.bytes, _ENGINE_REMEDY)
    return list(found.values())


def _evaluating(config: RunConfig, longest: Longest) -> list[_Guest]:
    engine = config.engines[config.sample.engine]
    most = config.evaluate.max_tokens or longest.answer
    answers = Longest(longest.prompt, most, longest.thought)
    member = PoolMember(name=POLICY, engine=config.sample.engine)
    guests = [_engine(config, member.name, member.engine, member.model, answers)]
    guests += _labelers(config, (*config.evaluators, *config.final_judges), answers)
    device = next(iter(devices_of(engine)), None)
    if device:
        scored = scoring_footprint(config.policy, device, dtype_of(engine), answers)
        guests.append(_Guest("log-probabilities", scored, scored.bytes, _ENGINE_REMEDY))
    return guests


def _engine(config: RunConfig, who: str, engine: str, model: str, longest: Longest) -> _Guest:
    settings = config.engines[engine]
    name = config.policy if model == POLICY else model
    footprint = engine_footprint(settings, name, longest)
    if isinstance(settings, VllmEngine):
        return _Guest(who, footprint, vllm_needs(settings, name), _VLLM_REMEDY)
    return _Guest(who, footprint, footprint.bytes, _ENGINE_REMEDY)


def _of_stage(
    config: RunConfig, stage: str, guests: Sequence[_Guest], room: Callable[[str], int]
) -> Iterable[StageMemory]:
    by_device: dict[str, list[_Guest]] = defaultdict(list)
    for guest in guests:
        for device in guest.footprint.devices:
            by_device[device].append(guest)
    for device, here in by_device.items():
        together = sum(guest.footprint.bytes for guest in here)
        alone = len(here) == 1
        fit = together <= USABLE * room(device)
        in_turn = not alone and (
            config.memory == "one_at_a_time" or (config.memory == "auto" and not fit)
        )
        largest = max(here, key=lambda guest: max(guest.footprint.bytes, guest.least))
        of_largest = max(largest.footprint.bytes, largest.least)
        parts = [largest.footprint] if in_turn else [guest.footprint for guest in here]
        added: dict[str, int] = defaultdict(int)
        for footprint in parts:
            for name, size in footprint.parts.items():
                added[name] += size
        remedy = largest.remedy
        if largest.remedy == _VLLM_REMEDY and largest.least <= room(device) < of_largest:
            remedy = "a smaller gpu_memory_utilization"
        elif not in_turn and not alone and of_largest <= room(device):
            remedy = "set memory: auto, so that they take turns"
        yield StageMemory(
            stage=stage,
            who=tuple(guest.name for guest in here),
            device=device,
            needed=of_largest if in_turn or alone else together,
            capacity=room(device),
            parts=dict(added),
            in_turn=in_turn,
            remedy=remedy,
        )


def _size(size: int) -> str:
    if size < GIB // 10:
        return f"{max(size / 2**20, 1):.0f} MiB"
    return f"{size / GIB:.1f} GiB"
