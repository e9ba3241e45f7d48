"""How often a labeler prefers the answer that it was shown first, and how sure that is."""

from __future__ import annotations

import math

from prefloop.labelers.jury.verdict_table import PositionBias
from prefloop.labelers.statistics.estimate import Estimate, wilson


def first_shown_share(bias: PositionBias, confidence: float = 0.95) -> Estimate | None:
    """Share of votes for the answer shown first; null where no vote counts. ``n`` counts votes.

    A pair's two votes are one observation: a judge that looks at the answers prefers the first
    shown in one order and the second in the other, so that they cancel, and one that looks at the
    place says the same twice; and the pairs of a prompt tend to be alike. The interval is Wilson's
    at the effective sample size p (1 - p) / V, V being the cluster-robust variance of the share,
    prompts being the clusters. Where votes cancel that is more than there are votes, and V rests on
    the few prompts whose votes do not cancel: as in the interval of Agresti and Coull 1998 (The
    American Statistician 52), z^2 such prompts are added, so that it has width where there is none.
    """
    from scipy.special import ndtri

    share, shown, prompts = bias.first_share, bias.shown, bias.prompts
    if share is None:
        return None
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    # Sum over prompts of (first - share x shown)^2.
    spread = (bias.first_squares - 2 * share * bias.products + share**2 * bias.shown_squares) * (
        prompts / (prompts - 1) if 1 < prompts < shown else 1.0
    )
    alone = share * (1 - share) * shown
    if alone == 0:  # all votes for the first, or none: prompts are the observations
        effective = float(prompts)
    elif math.isclose(spread, alone):  # as many as votes, but for what rounding makes of it
        effective = float(shown)
    elif spread > alone:
        effective = max(alone * shown / spread, 1.0)
    else:
        of_a_prompt = z2 * (shown / prompts) ** 2 / 4
        effective = max(alone * shown / (spread + of_a_prompt), float(shown))
    return Estimate(share, *wilson(share, effective, confidence), shown)
