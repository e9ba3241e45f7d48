"""Several scorers as one, cautiously: the mean of their scores less a penalty for disagreement.

Scorers have units of their own, so each one's scores are standardised over the answers of the
round. Where reward models disagree about an answer, at least one of them is wrong about it, and an
answer that only one of them loves is how a policy learns to fool it (Coste et al. 2024, arXiv
2310.02743).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import Bools, Floats
from prefloop.labelers.base import LabelerError
from prefloop.labelers.jury.rules import FittedJury
from prefloop.labelers.jury.verdict_table import Votes

_SAME = 1e-12
"""Deviation, as a share of the largest score, at which all scores are the same."""


@dataclass(frozen=True)
class AnswerScores:
    """The scores in some votes."""

    pairs: int
    """That the votes are on."""
    by_labeler: Mapping[str, Floats]
    """One for each answer that the labeler gave any: the mean over the votes about it."""


def scores_in(parts: Iterable[pa.Table]) -> AnswerScores:
    """The scores in votes tables, each with whole prompts in it."""
    pairs, found = 0, defaultdict[str, list[Floats]](list)
    for votes in parts:
        pairs += len(pc.unique(votes["pair_id"]))
        for name, scores in _of_answers(votes).items():
            found[name].append(scores)
    return AnswerScores(pairs, {name: np.concatenate(scores) for name, scores in found.items()})


def fit_scales(parts: Iterable[pa.Table], labelers: Sequence[str]) -> FittedJury:
    """:func:`scales_of` the scores in votes tables, each with whole prompts in it."""
    return scales_of([scores_in(parts)], labelers)


def scales_of(parts: Iterable[AnswerScores], labelers: Sequence[str]) -> FittedJury:
    """Mean and standard deviation of each labeler's scores over the answers in ``parts``, in none
    of which is a prompt of another. An answer counts once, however many pairs it is in."""
    found, pairs = defaultdict[str, list[Floats]](list), 0
    for part in parts:
        pairs += part.pairs
        for name, of_part in part.by_labeler.items():
            found[name].append(of_part)
    scales, notes = {}, []
    for name in labelers:
        if name not in found:
            notes.append(f"{name} gives no scores: it is left out of the ensemble")
            continue
        scores = np.sort(np.concatenate(found[name]))  # the order of the answers decides nothing
        mean, deviation = float(scores.mean()), float(scores.std())
        if deviation <= _SAME * float(np.abs(scores).max()):
            notes.append(f"{name} gives every answer the same score: it is left out")
            continue
        scales[name] = {"mean": mean, "deviation": deviation}
    return FittedJury("ensemble", pairs, scales=scales, notes=tuple(notes))


def pair_scores(table: pa.Table, votes: Votes, pairs: int) -> Floats:
    """Mean score of each labeler for a and for b of each pair [P, L, 2], from the votes' table and
    the same as numbers; NaN where it gave none to both."""
    both = np.stack([table[name].to_numpy() for name in ("score_a", "score_b")], axis=1)
    both = np.where(votes.flipped[:, None], both[:, ::-1], both).astype(np.float64)
    rows = np.isfinite(both).all(axis=1)
    cells = pairs * len(votes.labelers)
    given = np.bincount(votes.cell[rows], minlength=cells)
    sums = [np.bincount(votes.cell[rows], both[rows, side], minlength=cells) for side in (0, 1)]
    with np.errstate(invalid="ignore"):
        mean = np.stack(sums, axis=1) / given[:, None]
    return mean.reshape(pairs, len(votes.labelers), 2)


def ensemble_votes(
    scores: Floats,
    valid: Bools,
    labelers: tuple[str, ...],
    weight: Floats,
    penalty: float,
    fitted: FittedJury | None,
) -> tuple[Floats, Bools]:
    """P(a preferred to b) [P] by the ensemble's scores, and whether any labeler counts [P].

    ``scores`` [P, L, 2] as :func:`pair_scores` gives them, ``valid`` [P, L]. An answer's score is
    the weighted mean of its standardised ones less ``penalty`` times their weighted standard
    deviation. The probability is Bradley-Terry's, in the mean unit of the labelers: of models that
    are all the same, it is what one of them says.
    """
    from scipy.special import expit

    if fitted is None or fitted.scales is None:
        raise LabelerError("the jury's rule ensemble needs what is fitted to a round's votes")
    scales = [fitted.scales.get(name) for name in labelers]
    mean = np.array([one["mean"] if one else 0.0 for one in scales])
    unit = np.array([one["deviation"] if one else 1.0 for one in scales])
    counts = valid & np.isfinite(scores).all(axis=2) & np.array([bool(one) for one in scales])
    shares = counts * weight
    total = shares.sum(axis=1)
    shares = shares / np.where(total > 0, total, 1.0)[:, None]
    standard = np.where(counts[:, :, None], (scores - mean[:, None]) / unit[:, None], 0.0)
    means = np.einsum("pl,pls->ps", shares, standard)
    squares = np.einsum("pl,pls->ps", shares, (standard - means[:, None, :]) ** 2)
    cautious = means - penalty * np.sqrt(squares)
    p_a: Floats = expit((shares * unit).sum(axis=1) * (cautious[:, 0] - cautious[:, 1]))
    seated: Bools = total > 0
    return p_a, seated


def _of_answers(votes: pa.Table) -> dict[str, Floats]:
    """The scores of each labeler, one for each answer: the mean over the votes about it."""
    sides = [
        votes.select([f"{side}_id", "labeler", f"score_{side}"]).rename_columns(
            ["candidate_id", "labeler", "score"]
        )
        for side in ("a", "b")
    ]
    both = pa.concat_tables(sides)
    both = both.filter(pc.is_finite(both["score"]))
    mean = both.group_by(["labeler", "candidate_id"]).aggregate([("score", "mean")])
    found = {}
    for name in pc.unique(mean["labeler"]).to_pylist():
        own = mean.filter(pc.equal(mean["labeler"], name))
        found[name] = own["score_mean"].to_numpy().astype(np.float64)
    return found
