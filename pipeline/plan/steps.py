"""What a plan is made of: the requests and the training of each round."""

from __future__ import annotations

from dataclasses import dataclass


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
