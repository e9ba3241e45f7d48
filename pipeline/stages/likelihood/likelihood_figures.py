"""KL of a policy, and its implicit rewards on held-out triples, from log-probabilities."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefloop.labelers.statistics.estimate import mean_estimate
from prefloop.labelers.statistics.winrate import win_rate
from prefloop.pipeline.run.context import RoundContext
from prefloop.pipeline.stages.likelihood.measured_texts import (
    ANSWERS,
    TRIPLES,
    MeasuredTexts,
    TextsOfPolicy,
)
from prefloop.pipeline.stages.likelihood.reading import OpenScorer, Reading, log_probabilities
from prefloop.training.policy.heldout import margins_between
from prefloop.training.policy.logprobs import kl_estimate

POLICY, OTHER, REFERENCE = "policy", "other", "reference"
"""What the policies under which texts are read are called."""


@dataclass(frozen=True)
class Likely:
    """How the likelihood of texts is measured."""

    open_scorer: OpenScorer
    confidence: float
    """Coverage of the intervals."""
    untempered: bool
    """Whether held-out answers are drawn from the policy's own distribution; else only those that
    were drawn for KL are."""


@dataclass(frozen=True)
class MeasuredPolicy:
    """A policy and those that it is measured against."""

    number: int
    """Whose answers are read."""
    policy: Path
    other: Path
    """That KL is to: the starting policy, or the first of several that are compared."""
    against: str
    """What that is called in figures."""
    start: Path
    """The starting policy."""
    reference: Path | None = None
    """The reference policy of the training; null where rewards are not measured."""
    beta: float = 0.0
    """Its weight."""


async def likelihood_figures(
    context: RoundContext, measured: MeasuredPolicy, likely: Likely
) -> list[dict[str, Any]]:
    """KL, and with a reference policy the rewards on the triples that the context's round held out.

    What cannot be measured is left out, which is said of KL.
    """
    of = TextsOfPolicy(measured.number, likely.untempered, measured.policy)
    answers = await asyncio.to_thread(of.find, ANSWERS, context)
    triples = await asyncio.to_thread(of.find, TRIPLES, context) if measured.reference else None
    readings = _readings(ANSWERS, answers, measured.policy, (OTHER, measured.other))
    if measured.reference:
        readings += _readings(TRIPLES, triples, measured.policy, (REFERENCE, measured.reference))
    found = iter(await log_probabilities(context, of, readings, measured.start, likely.open_scorer))
    rows: list[dict[str, Any]] = []
    if answers:
        divergence = kl_estimate(next(found), next(found), answers.prompt_ids, likely.confidence)
        rows.append({"name": "kl", "against": measured.against, "estimate": divergence})
    if triples:
        margins = margins_between(next(found), next(found), measured.beta)
        prompts = triples.prompt_ids[: len(margins)]
        right = np.sign(margins) / 2 + 0.5
        rows += [
            {
                "name": "reward_margin",
                "estimate": mean_estimate(margins, prompts, likely.confidence),
            },
            {"name": "reward_accuracy", "estimate": win_rate(right, prompts, likely.confidence)},
        ]
    return rows


def _readings(
    name: str, texts: MeasuredTexts | None, policy: Path, other: tuple[str, Path]
) -> list[tuple[Reading, MeasuredTexts]]:
    if texts is None:
        return []
    return [(Reading(name, POLICY, policy), texts), (Reading(name, *other), texts)]
