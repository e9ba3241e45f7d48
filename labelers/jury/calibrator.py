"""A labeler's probabilities mapped to those that the verdicts of people bear out.

Which answer of a pair is called a is arbitrary, so a calibration is symmetric: what it makes of
1 - p is one minus what it makes of p. It never turns a verdict round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefloop.data.arrays import Floats
from prefloop.labelers.base import LabelerError

CalibrationMethod = Literal["isotonic", "platt"]

FEWEST = 20
"""People's labels that a calibration needs at least."""
_CLIP = 1e-6  # probabilities of 0 and 1 have no logit


@dataclass(frozen=True)
class Calibrator:
    """A monotone, symmetric map of P(a preferred to b), fitted to what people prefer."""

    method: CalibrationMethod
    n: int
    """People's labels that it was fitted to."""
    slope: float | None = None
    """``platt``: factor of the log-odds, at least 0."""
    x: tuple[float, ...] = ()
    """``isotonic``: probabilities as given, ascending; between them the map is linear."""
    y: tuple[float, ...] = ()
    """``isotonic``: what they become."""

    @classmethod
    def fit(
        cls, p_a: ArrayLike, people: ArrayLike, method: CalibrationMethod = "isotonic"
    ) -> Calibrator:
        """Fit to P(a preferred to b) ``p_a`` [N] and people's verdicts [N]: 1 a, 0 b, 0.5 tie.

        ``platt`` has one parameter: sigma(slope x logit(p)) (Platt 1999, without the intercept,
        which symmetry makes 0; also temperature scaling, Guo et al. 2017, section 4.2). It suits
        few labels. ``isotonic`` is the best monotone step function (Zadrozny and Elkan 2002),
        which wants some hundreds. A tie counts as half a label for each answer.

        Raises ``LabelerError`` for fewer than 20 labels, and ``ValueError`` for arrays that do not
        fit together or values that are no probabilities.
        """
        n = len(np.asarray(p_a))
        if n < FEWEST:
            raise LabelerError(
                f"{n} labels of people are too few to calibrate with: label at least {FEWEST} pairs"
            )
        return cls._fit(p_a, people, method)

    @classmethod
    def _fit(cls, p_a: ArrayLike, people: ArrayLike, method: CalibrationMethod) -> Calibrator:
        p, y, weight = _mirrored(p_a, people)
        n = len(np.asarray(p_a))
        if method == "platt":
            from sklearn.linear_model import LogisticRegression

            logit = np.log(p / (1 - p))[:, None]
            fit = LogisticRegression(C=1e6, fit_intercept=False).fit(logit, y, weight)
            return cls(method, n, slope=max(0.0, float(fit.coef_[0, 0])))
        from sklearn.isotonic import IsotonicRegression

        iso = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p, y, weight)
        return cls(
            method,
            n,
            x=tuple(map(float, iso.X_thresholds_)),
            y=tuple(map(float, iso.y_thresholds_)),
        )

    def apply(self, p_a: ArrayLike) -> Floats:
        """Calibrated P(a preferred to b), float64 [N]; 0.5 stays 0.5.

        No value is nearer to 0 or 1 than 1 / (n + 2): n labels cannot say more.
        """
        p = np.clip(np.asarray(p_a, np.float64), _CLIP, 1 - _CLIP)
        found = (self._raw(p) + 1 - self._raw(1 - p)) / 2
        least = 1 / (self.n + 2)
        result: Floats = np.clip(found, least, 1 - least)
        return result

    def _raw(self, p: Floats) -> Floats:
        if self.method == "platt":
            assert self.slope is not None
            odds = self.slope * np.log(p / (1 - p))
            result: Floats = 1 / (1 + np.exp(-odds))
            return result
        return np.interp(p, self.x, self.y)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibrator:
        """The opposite of ``as_dict``. Raises ``ValueError`` for anything else."""
        found = cls(**{**values, "x": tuple(values["x"]), "y": tuple(values["y"])})
        knots = np.array([found.x, found.y])
        usable = (
            len(found.x) == len(found.y)
            and bool((np.diff(knots, axis=1) >= 0).all())
            and bool(((knots >= 0) & (knots <= 1)).all())
        )
        has_map = found.slope is not None if found.method == "platt" else len(found.x) > 0
        if not (usable and has_map and found.method in ("platt", "isotonic") and found.n > 0):
            raise ValueError("not a calibration")
        return found


def cross_fitted(
    p_a: ArrayLike, people: ArrayLike, method: CalibrationMethod, *, seed: int, folds: int = 10
) -> Floats:
    """Calibrated ``p_a`` [N], each by a calibration fitted to the other folds.

    What a calibration does to labels that it has not seen: its own would flatter it.
    """
    from sklearn.model_selection import KFold

    p, y = np.asarray(p_a, np.float64), np.asarray(people, np.float64)
    found = np.empty(len(p))
    splits = KFold(min(folds, len(p)), shuffle=True, random_state=seed).split(p)
    for train, test in splits:
        found[test] = Calibrator._fit(p[train], y[train], method).apply(p[test])
    return found


def read_calibrator(path: Path) -> Calibrator:
    """The calibration in a file that `prefloop calibrate` wrote.

    Raises ``LabelerError`` where the file is not there or is something else.
    """
    try:
        return Calibrator.from_dict(json.loads(path.read_text(encoding="utf-8"))["calibration"])
    except OSError as error:
        raise LabelerError(
            f"{path}: the calibration cannot be read ({error.strerror}): `prefloop calibrate` "
            "writes one"
        ) from None
    except (ValueError, TypeError, KeyError):
        raise LabelerError(f"{path}: is no calibration: `prefloop calibrate` writes one") from None


def _mirrored(p_a: ArrayLike, people: ArrayLike) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Probabilities, labels 0 or 1 and weights of every verdict and its mirror image."""
    p, said = np.asarray(p_a, np.float64), np.asarray(people, np.float64)
    if p.ndim != 1 or p.shape != said.shape:
        raise ValueError(f"probabilities {p.shape} and verdicts {said.shape} do not fit together")
    if not (((p >= 0) & (p <= 1)).all() and np.isin(said, (0.0, 0.5, 1.0)).all()):
        raise ValueError("p_a are probabilities, and people's verdicts 0, 0.5 or 1")
    p = np.clip(p, _CLIP, 1 - _CLIP)
    both_p = np.concatenate([p, 1 - p])
    both_said = np.concatenate([said, 1 - said])
    weight = np.concatenate([both_said, 1 - both_said])
    label = np.concatenate([np.ones(len(both_p), np.int64), np.zeros(len(both_p), np.int64)])
    counts = weight > 0
    return np.tile(both_p, 2)[counts], label[counts], weight[counts]
