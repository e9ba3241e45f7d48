"""A jury that is ready to decide: its config, and what is known about its members."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prefloop.labelers.config import Jury
from prefloop.labelers.jury.calibrator import Calibrator
from prefloop.labelers.jury.rules import FittedJury
from prefloop.labelers.people import PeopleRole


@dataclass(frozen=True)
class RoundJury:
    """By what the pairs of a round are decided: the same for each of them."""

    config: Jury = field(default_factory=Jury)
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of each labeler by name; 1 for those that are not named."""
    fitted: FittedJury | None = None
    """What the rules ``reliability`` and ``dawid_skene`` know about the labelers
    (``prefloop.labelers.jury.fit.fit_jury``); the other rules need none."""
    calibrators: Mapping[str, Calibrator] = field(default_factory=dict)
    """Calibration of the probabilities of each labeler that has one, by name."""
    people: PeopleRole = "override"
    """What votes of people do."""
    silent: frozenset[str] = frozenset()
    """Labelers whose votes decide nothing."""
