"""What a plan is made of: the requests and the training of each round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prefloop.pipeline.engines.settings import EngineConfig, OpenAIEngine


@dataclass(frozen=True)
class Step:
    """One kind of request of one round: all that one engine is asked for one purpose."""

    round: int
    stage: str
    """sample, label, evaluate or final."""
    what: str
    """The policy or labeler that answers."""
    engine: str | None
    """Name of the engine; null where a function or a reward model of this process answers."""
    requests: int
    """Completions asked for, at most (identical candidates make fewer pairs)."""
    prompt_tokens: int
    completion_tokens: int
    """Expected."""
    max_tokens: int
    """Upper bound of prompt and generated tokens together."""
    cost: float
    max_cost: float
    seconds: float


@dataclass(frozen=True)
class Training:
    """One round of training."""

    round: int
    examples: int
    """Pairs (answers, with the methods kto and sft), at most: filters drop some."""
    steps: int
    seconds: float


@dataclass(frozen=True)
class BothPrices:
    """What an engine is expected to cost in either mode; the plan counts the one that is set."""

    engine: str
    mode: str
    """As set."""
    live: float
    """Each request is answered at once."""
    batch: float
    """They are answered as jobs of the server's batch API, where it has one."""


def both_prices(
    engines: Mapping[str, EngineConfig], steps: Iterable[Step]
) -> tuple[BothPrices, ...]:
    """Those of the engines among ``steps`` that cost something and could be asked in both."""
    costs: dict[str, float] = {}
    for step in steps:
        if step.engine is not None:
            costs[step.engine] = costs.get(step.engine, 0.0) + step.cost
    found = []
    for name, cost in costs.items():
        settings = engines[name]
        if isinstance(settings, OpenAIEngine) and cost and not settings.endpoints:
            live = cost / settings.price_share
            found.append(BothPrices(name, settings.mode, live, live * settings.batch.share))
    return tuple(found)
