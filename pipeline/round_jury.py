"""The jury of a round: what was fitted to its votes, and the calibrations it applies."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow.compute as pc

from data.shards import atomic_write_json
from labelers.calibration import Calibrator, read_calibrator
from labelers.jury import FITTED_RULES, FittedJury
from labelers.jury_fit import count_patterns, fit_jury
from labelers.people import is_human, without_people
from labelers.verdict_table import VOTE_COLUMNS
from pipeline.config import RunConfig
from pipeline.run_dir import RoundDir

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundJury:
    """What ``labelers.decisions.decide`` needs beside the config."""

    fitted: FittedJury | None = None
    calibrators: Mapping[str, Calibrator] = field(default_factory=dict)


def seat_jury(config: RunConfig, folder: RoundDir) -> RoundJury:
    """The jury of a round whose votes are all there.

    Where the rule needs it, the labelers' reliability is fitted to the votes once and kept in
    ``jury.json``: a resumed run, and the evaluation of the round's policy, decide by the same
    figures. Raises ``LabelerError`` for a calibration file that cannot be used.
    """
    label = config.label
    calibrators = {name: read_calibrator(path) for name, path in label.calibrations.items()}
    if label.jury.rule not in FITTED_RULES:
        return RoundJury(calibrators=calibrators)
    if not folder.jury.exists():
        names = [labeler.name for labeler in label.labelers]
        if label.people == "jury":
            names += _people(folder)
        votes = folder.votes.iter(columns=VOTE_COLUMNS)
        if label.people != "jury":
            votes = map(without_people, votes)
        patterns = count_patterns(votes, names)
        fitted = fit_jury(patterns, names, label.jury)
        for note in fitted.notes:
            logger.warning("round %d: %s", folder.index, note)
        atomic_write_json(folder.jury, fitted.as_dict())
    kept = json.loads(folder.jury.read_text(encoding="utf-8"))
    return RoundJury(FittedJury.from_dict(kept), calibrators)


def _people(folder: RoundDir) -> list[str]:
    """The people who voted in a round, by the names of their votes."""
    names: set[str] = set()
    for table in folder.votes.iter(columns=["labeler"]):
        names |= {name for name in pc.unique(table["labeler"]).to_pylist() if is_human(name)}
    return sorted(names)
