"""What a plan takes for granted, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from prefloop.pipeline.engines.endpoints.endpoint_settings import EndpointConfig
from prefloop.pipeline.engines.settings import EngineConfig, OpenAIEngine
from prefloop.pipeline.plan.speeds import (
    ANSWER_SHARE,
    DECODED_PER_CONNECTION,
    JOB_S,
    LATENCY_S,
    RATIONALE_SHARE,
    START_S,
    VLLM_START_S,
    Measured,
)
from prefloop.pipeline.plan.token_counts import CHARACTERS_PER_TOKEN, TEMPLATE_TOKENS
from prefloop.pipeline.report.formats import duration
from prefloop.training.config import TrainConfig

_FEW = 16
"""Examples in an optimiser step; with fewer, steps go in all directions and margins explode."""


def token_assumptions(measured: Measured, ratios: Mapping[str, float]) -> Iterable[str]:
    """About lengths and numbers; ``ratios`` are the measured characters per token by model."""
    yield from question_assumptions(ratios)
    if measured.answer_tokens:
        yield f"answers: {measured.answer_tokens:.0f} tokens, as measured in the run directory"
    else:
        yield f"answers: {ANSWER_SHARE:.0%} of sample.max_tokens (upper bound: all of them)"
    if measured.thought_tokens:
        yield (
            f"thoughts before answers: {measured.thought_tokens:.0f} tokens, as measured in the "
            "run directory"
        )
    yield (
        "pairs: no two candidates of a prompt are the same, and every pair passes the filters "
        "(upper bounds); prompts count once for each completion"
    )


def question_assumptions(ratios: Mapping[str, float]) -> Iterable[str]:
    """About the lengths of prompts, of judges' questions and of what judges say."""
    for model, ratio in ratios.items():
        yield f"{model}: {ratio:.1f} characters per token, measured with its tokenizer"
    yield (
        f"prompts of models without a local tokenizer: {CHARACTERS_PER_TOKEN:g} characters per "
        f"token; {TEMPLATE_TOKENS} tokens of chat template per message"
    )
    yield f"thoughts: {ANSWER_SHARE:.0%} of thought_tokens (upper bound: all of them)"
    yield (
        f"judges: one token for a token verdict, {RATIONALE_SHARE:.0%} of max_tokens for a "
        "rationale"
    )


def time_assumptions(measured: Measured, *, engines: Set[str], trains: bool) -> Iterable[str]:
    """About speeds that nothing of this machine tells; ``engines`` are the types of engines that
    are used and whose speed finished work does not tell."""
    for stage, seconds in measured.seconds_each.items():
        what = "vote of a judge" if stage == "label" else "sample"
        yield f"time of {stage}: {seconds:.3g} s a {what}, as measured in the run directory"
    if "openai" in engines:
        yield (
            f"time of openai engines: {LATENCY_S:g} s and {DECODED_PER_CONNECTION:g} tokens a "
            "second for each of max_concurrency connections, or its rate limits if slower"
        )
    vllm = f", {VLLM_START_S:g} s for vLLM to start" if "vllm" in engines else ""
    yield f"{START_S:g} s for the libraries to be loaded{vllm}"
    if trains and measured.seconds_per_step:
        yield f"time of training: {measured.seconds_per_step:.3g} s a step, as measured"


def endpoint_assumptions(engines: Mapping[str, EngineConfig]) -> Iterable[str]:
    """Which servers are asked, of engines that have several, and how much of each; how long those
    take that are asked in jobs."""
    for name, engine in engines.items():
        if isinstance(engine, OpenAIEngine) and engine.endpoints:
            told = "; ".join(_limits_of(server) for server in engine.servers)
            yield f"engines.{name} asks {len(engine.endpoints)} endpoints: {told}"
        elif isinstance(engine, OpenAIEngine) and engine.mode == "batch":
            yield (
                f"engines.{name} asks in jobs: {duration(JOB_S)} for each of its lines above, and "
                f"the server may take {engine.batch.completion_window}"
            )


def _limits_of(server: EndpointConfig) -> str:
    limits = [f"{server.max_concurrency} at once at most"]
    if server.requests_per_minute:
        limits.append(f"{server.requests_per_minute} requests a minute")
    if server.tokens_per_minute:
        limits.append(f"{server.tokens_per_minute} tokens a minute")
    return f"{server.base_url} ({', '.join(limits)})"


def training_settings(train: TrainConfig | None) -> Iterable[str]:
    """What a training is set to, those settings among it that the config leaves out."""
    if train is None:
        return
    loss = f", loss {'+'.join(train.losses)}" if train.method == "dpo" else ""
    answers = train.method in ("grpo", "rloo", "kto", "sft")
    step = train.batch_size * train.gradient_accumulation * train.processes
    several = f" x {train.processes} processes" if train.processes > 1 else ""
    few = "; 16 to 128 are usual" if step < _FEW else ""
    yield (
        f"training: {train.method}{loss}, beta {train.beta:g}, learning rate "
        f"{train.learning_rate:g}, {step} {'answers' if answers else 'pairs'} a step "
        f"({train.batch_size} x {train.gradient_accumulation}{several}{few})"
    )
    chosen = {f"train.{key}": value for key, value in train.resolved.items()}
    if chosen:
        source = f"the preset {train.preset}" if train.preset else "method, loss and adapter"
        yield f"left out in the config, and set by {source}: " + ", ".join(
            f"{key} {value}" for key, value in chosen.items()
        )
