"""The rules of a jury: several labelers' verdicts on a pair become P(a preferred to b).

Nothing is ever drawn to break a tie. A pair is a tie where the rule cannot prefer an answer or the
probability is within ``tie_band`` of 0.5; it is undecided where no labeler that counts gave a valid
vote. What ``reliability`` and ``dawid_skene`` know about the labelers is a :class:`FittedJury`, the
same for every pair of a round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from prefloop.data.arrays import Bools, Floats
from prefloop.labelers.base import LabelerError
from prefloop.labelers.config import Jury, JuryRule
from prefloop.labelers.jury.verdict_table import ROUNDING, Verdicts

T = TypeVar("T")

DECIMALS = 12
"""Probabilities and scores are rounded to so many decimals."""

OUTCOMES = ("a", "b", "tie")
"""What a pair's truth, and a verdict on it, can be."""

MOST_TRUSTED = 0.99
"""No labeler's accuracy counts for more, so that several others can always outvote it."""

FITTED_RULES = ("reliability", "dawid_skene", "ensemble")
"""The rules that need a :class:`FittedJury`."""


@dataclass(frozen=True)
class FittedJury:
    """What is known about the labelers of a round; JSON through ``as_dict`` and ``from_dict``."""

    rule: JuryRule
    """The rule that decides: the configured one, or ``majority`` where the votes cannot tell how
    reliable their labelers are (``notes`` says so)."""
    pairs: int
    """Pairs whose votes the figures come from; 0 where they were given in the config."""
    accuracy: Mapping[str, float] | None = None
    """``reliability``: P(right verdict) of each labeler on the pairs that it decides."""
    prior: Mapping[str, float] | None = None
    """``dawid_skene``: share of the pairs whose truth is each of OUTCOMES."""
    confusions: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None
    """``dawid_skene``: for each labeler, P(verdict | truth) as ``[truth][verdict]``."""
    scales: Mapping[str, Mapping[str, float]] | None = None
    """``ensemble``: ``mean`` and ``deviation`` of the scores of each labeler that has scores."""
    notes: tuple[str, ...] = ()
    """What a person should know about the figures, one sentence each."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self)
        if self.scales is None:  # as earlier versions wrote it
            del found["scales"]
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FittedJury:
        """The opposite of ``as_dict``."""
        return cls(**{**values, "notes": tuple(values["notes"])})


def jury_p_a(
    verdicts: Verdicts,
    labelers: tuple[str, ...],
    weight: Floats,
    jury: Jury,
    fitted: FittedJury | None = None,
) -> Floats:
    """P(a preferred to b) [P]: exactly 0.5 for a tie, NaN where no valid vote counts.

    ``weight`` [L] are the configured weights of ``labelers`` (the columns of ``verdicts``):

    * ``mean``: the weighted mean of the probabilities.
    * ``majority``: the weighted share of verdicts for a, ties counting half; a tie unless one
      answer has more weight behind it than the other and than the ties.
    * ``reliability``: sigma(sum of +-w log(acc / (1 - acc))) over the verdicts, + for a and - for
      b: the posterior for independent labelers of known accuracy and no prior preference, and the
      optimal weighted majority (Nitzan and Paroush 1982, International Economic Review 23, theorem
      1). A labeler no better than chance has weight 0; a verdict of tie adds nothing.
    * ``dawid_skene``: P(truth) proportional to prior x product of P(verdict | truth)^w over the
      labelers (Dawid and Skene 1979, Applied Statistics 28, eq. 2.5); the probability of a tie is
      shared by both answers, and it is a tie where no truth is more probable than that one.

    Raises ``LabelerError`` where a fitted rule has nothing fitted, or not for one of ``labelers``.
    """
    rule = jury.rule
    assert rule != "ensemble", "it looks at scores: see prefloop.labelers.jury.ensemble"
    if rule in FITTED_RULES:
        if fitted is None:
            raise LabelerError(f"the jury's rule {rule} needs what is fitted to a round's votes")
        rule = fitted.rule
    if rule == "mean":
        p_a, tie, seated = _mean(verdicts, weight)
    elif rule == "majority":
        p_a, tie, seated = _majority(verdicts, weight)
    elif rule == "reliability":
        assert fitted is not None
        p_a, tie, seated = _reliability(verdicts, labelers, weight, fitted)
    else:
        assert fitted is not None
        p_a, tie, seated = _dawid_skene(verdicts, labelers, weight, fitted)
    return settled(p_a, tie, seated, jury)


def settled(p_a: Floats, tie: Bools, seated: Bools, jury: Jury) -> Floats:
    """The probabilities of a rule [P] as the jury's: 0.5 for a tie, NaN where nobody counts."""
    p_a = np.round(p_a, DECIMALS)
    p_a[tie | (np.abs(p_a - 0.5) <= jury.tie_band + ROUNDING)] = 0.5
    p_a[~seated] = np.nan
    result: Floats = p_a
    return result


def log_odds(accuracy: float) -> float:
    """log(acc / (1 - acc)) in nats; 0 for a labeler no better than chance."""
    trusted = min(accuracy, MOST_TRUSTED)
    return float(np.log(trusted / (1 - trusted))) if trusted > 0.5 else 0.0


def _mean(verdicts: Verdicts, weight: Floats) -> tuple[Floats, Bools, Bools]:
    shares = verdicts.valid * weight
    total = shares.sum(axis=1)
    p_a = (shares * verdicts.p_a).sum(axis=1) / np.where(total > 0, total, 1.0)
    return p_a, np.zeros(len(p_a), np.bool_), total > 0


def _majority(verdicts: Verdicts, weight: Floats) -> tuple[Floats, Bools, Bools]:
    shares = verdicts.valid * weight
    total = shares.sum(axis=1)
    for_a, for_b, for_tie = (
        np.round(
            (shares * (verdicts.verdict == one)).sum(axis=1) / np.where(total > 0, total, 1.0),
            DECIMALS,
        )
        for one in (1, -1, 0)
    )
    tie = np.maximum(for_a, for_b) <= np.maximum(np.minimum(for_a, for_b), for_tie)
    return for_a + for_tie / 2, tie, total > 0


def _reliability(
    verdicts: Verdicts, labelers: tuple[str, ...], weight: Floats, fitted: FittedJury
) -> tuple[Floats, Bools, Bools]:
    from scipy.special import expit

    assert fitted.accuracy is not None
    accuracy = [_known(fitted.accuracy, name) for name in labelers]
    odds = weight * np.array([log_odds(value) for value in accuracy])
    counts = verdicts.valid & (odds > 0)
    p_a: Floats = expit((counts * verdicts.verdict * odds).sum(axis=1))
    seated: Bools = counts.sum(axis=1) > 0
    return p_a, np.zeros(len(p_a), np.bool_), seated


def _dawid_skene(
    verdicts: Verdicts, labelers: tuple[str, ...], weight: Floats, fitted: FittedJury
) -> tuple[Floats, Bools, Bools]:
    assert fitted.prior is not None
    assert fitted.confusions is not None
    with np.errstate(divide="ignore"):
        log_prior = np.log([fitted.prior[truth] for truth in OUTCOMES])
    column = np.where(verdicts.verdict == 1, 0, np.where(verdicts.verdict == -1, 1, 2))
    log_posterior = np.tile(log_prior, (len(verdicts.valid), 1))
    for index, name in enumerate(labelers):
        confusion = _known(fitted.confusions, name)
        likelihood = np.log([[confusion[t][said] for said in OUTCOMES] for t in OUTCOMES])
        said = weight[index] * likelihood[:, column[:, index]].T
        log_posterior += np.where(verdicts.valid[:, [index]], said, 0.0)
    posterior = np.exp(log_posterior - log_posterior.max(axis=1, keepdims=True))
    posterior = np.round(posterior / posterior.sum(axis=1, keepdims=True), DECIMALS)
    of_a, of_b, of_tie = posterior.T
    tie: Bools = np.maximum(of_a, of_b) <= np.maximum(np.minimum(of_a, of_b), of_tie)
    seated: Bools = verdicts.valid.sum(axis=1) > 0
    return of_a + of_tie / 2, tie, seated


def _known(figures: Mapping[str, T], labeler: str) -> T:
    if labeler not in figures:
        raise LabelerError(
            f"nothing is known of how reliable the labeler {labeler} is: the jury was fitted "
            f"without it, for {', '.join(figures)}"
        )
    return figures[labeler]
