"""Which answers lie so many standard deviations below the mean of their prompt's answers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from prefloop.data.arrays import Floats

_DECIMALS = 9


def distance_to_low(
    decisions: pa.Table,
    rows: np.ndarray,
    deviations: float,
    rewards: Mapping[str, float],
) -> Floats:
    """How far the rejected answer of each of the ``rows`` of ``decisions`` is from the mean minus
    ``deviations`` standard deviations of its prompt's answers, in their reward.

    The answers are all of a prompt's in decided pairs, whether a filter dropped the pair or not. An
    answer's reward is that in ``rewards`` where each of the prompt's answers has one, else the
    normal score of its mean win probability p: that of a standard normal variable which exceeds
    another with probability p (it is the reward itself where rewards are normal and a labeler is
    never in doubt). Equal distances are exactly equal.
    """
    columns = [
        "prompt_id", "chosen_id", "rejected_id", "score_chosen", "score_rejected", "labelers",
    ]  # fmt: skip
    scores: dict[str, dict[str, float]] = {}
    for row in decisions.select(columns).to_pylist():
        if not row["labelers"]:  # nobody's vote is valid: its scores say nothing
            continue
        of_prompt = scores.setdefault(row["prompt_id"], {})
        of_prompt[row["chosen_id"]] = row["score_chosen"]
        of_prompt[row["rejected_id"]] = row["score_rejected"]
    below = {prompt: _below(of_prompt, deviations, rewards) for prompt, of_prompt in scores.items()}
    wanted = decisions.select(["prompt_id", "rejected_id"]).take(pa.array(rows)).to_pylist()
    found = [round(below[row["prompt_id"]][row["rejected_id"]], _DECIMALS) for row in wanted]
    return np.array(found, np.float64)


def _below(
    scores: Mapping[str, float], deviations: float, rewards: Mapping[str, float]
) -> dict[str, float]:
    """The distance of each answer of a prompt."""
    if all(one in rewards for one in scores):
        reward = np.array([rewards[one] for one in scores])
    else:
        reward = _normal_scores(np.array(list(scores.values())))
    low = reward.mean() - deviations * reward.std()
    return dict(zip(scores, np.abs(reward - low).tolist(), strict=True))


def _normal_scores(win_probability: Floats) -> Floats:
    """Where p is 0 or 1, what a half of one of n answers would be."""
    from scipy.special import ndtri

    half = 0.5 / len(win_probability)
    found: Floats = ndtri(np.clip(win_probability, half, 1 - half))
    return found
