"""The shares and limits that a plan reckons with: guesses, and what finished work tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prefloop.labelers.config import JudgeLabeler
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.engines.endpoints.endpoint_settings import EndpointConfig
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.run.round_jury import with_labels_of
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.run.status import collect_status

ANSWER_SHARE = 0.5
"""Expected length of a sampled answer, as a share of ``max_tokens``."""
RATIONALE_SHARE = 0.25
"""Expected length of a judge's rationale, as a share of its ``max_tokens``."""
DECODED_PER_CONNECTION = 40.0
"""Generated tokens per second of one connection to an HTTP server."""
JOB_S = 3600.0
"""Seconds that a batch job is thought to take; nobody promises less than a day."""
LATENCY_S = 0.5
"""Seconds before the first token of an HTTP answer."""
START_S = 15.0
"""Seconds until Python and its libraries are there, before a stage begins."""
VLLM_START_S = 45.0
"""Seconds in which vLLM starts."""
VLLM_WAKES_S = 5.0
"""Seconds in which vLLM goes to sleep and wakes."""
LOADED_PER_SECOND = 1e9
"""Bytes of weights that are read from disk in a second."""


@dataclass(frozen=True)
class Measured:
    """What finished work of this run directory tells; null or empty where there is none."""

    answer_tokens: float | None = None
    """Of a sampled answer, without its thought."""
    thought_tokens: float | None = None
    """Of the thought before it."""
    seconds_each: Mapping[str, float] = field(default_factory=dict)
    """By stage: of a sample, or of a judge's vote. A request may be behind many votes, and many
    behind one."""
    seconds_per_step: float | None = None

    def lengths(self) -> Measured:
        """Without the speeds, which are those of this machine."""
        return Measured(self.answer_tokens, self.thought_tokens)

    @classmethod
    def of(cls, config: RunConfig, run: RunDir) -> Measured:
        """What ``run`` tells about the lengths and speeds of ``config``."""
        if not run.journal.exists():
            return cls()
        status = collect_status(run)
        samples = sum(each.samples for each in status.rounds)
        sampling = [each.usage["sample"] for each in status.rounds]
        thoughts = sum(usage.reasoning_tokens for usage in sampling)
        tokens = sum(usage.completion_tokens for usage in sampling) - thoughts
        configs = [config, *(with_labels_of(config, folder) for folder in run.rounds())]
        labelers = [one for each in configs for one in each.label.labelers]
        asked = {one.name for one in labelers if isinstance(one, JudgeLabeler)}
        judged = sum(each.votes.get(name, 0) for each in status.rounds for name in asked)
        made = {"sample": samples, "label": judged}
        rates = {
            stage: status.seconds[stage] / number
            for stage, number in made.items()
            if number and status.seconds.get(stage)
        }
        steps = sum(_trained_steps(run))
        trained = status.seconds.get("train", 0.0)
        return cls(
            answer_tokens=tokens / samples if samples else None,
            thought_tokens=thoughts / samples if samples else None,
            seconds_each=rates,
            seconds_per_step=trained / steps if steps and trained else None,
        )


def server_seconds(
    settings: OpenAIEngine, requests: int, prompt_tokens: float, answer_tokens: float
) -> float:
    """How long an engine's servers are thought to take together for requests of so many tokens
    each, by their limits; in jobs, which are at work at the same time, as one takes."""
    if settings.mode == "batch":
        return JOB_S if requests else 0.0
    tokens = prompt_tokens + answer_tokens
    alone = [_seconds_alone(one, requests, tokens, answer_tokens) for one in settings.servers]
    if len(alone) == 1 or not requests:
        return alone[0]
    return 1 / sum(1 / seconds for seconds in alone)


def _seconds_alone(
    server: EndpointConfig, requests: int, tokens: float, answer_tokens: float
) -> float:
    answering = LATENCY_S + answer_tokens / DECODED_PER_CONNECTION
    bounds = [requests * answering / (server.max_concurrency or 1)]
    if server.requests_per_minute:
        bounds.append(60 * requests / server.requests_per_minute)
    if server.tokens_per_minute:
        bounds.append(60 * requests * tokens / server.tokens_per_minute)
    return max(bounds)


def _trained_steps(run: RunDir) -> Iterable[int]:
    for folder in run.rounds():
        if folder.metrics.exists(0):
            steps = folder.metrics.read(0, ["step"])["step"].to_pylist()
            yield max((step for step in steps if step is not None), default=0)
