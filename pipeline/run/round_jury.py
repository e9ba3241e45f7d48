"""Who labels a round, and the jury of its votes: its config, with what was fitted to them."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
from pydantic import ValidationError

from prefloop.data.shards import ShardFolder, atomic_write_json, damaged, read_json_object
from prefloop.labelers.config import LabelConfig
from prefloop.labelers.jury.calibrator import read_calibrator
from prefloop.labelers.jury.ensemble import fit_scales
from prefloop.labelers.jury.fit import count_patterns, fit_jury
from prefloop.labelers.jury.round_jury import RoundJury
from prefloop.labelers.jury.rules import FITTED_RULES, FittedJury
from prefloop.labelers.jury.verdict_table import VOTE_COLUMNS
from prefloop.labelers.people import is_human, without, without_people
from prefloop.pipeline.run.run_dir import RoundDir

if TYPE_CHECKING:
    from prefloop.pipeline.config import RunConfig

logger = logging.getLogger(__name__)

_LABELS = "labels.json"
"""In the folder of a round: the section ``label`` by which it was labelled, where rounds after it
are labelled otherwise."""

_REMEDY = "put `label` there as it stood in the config that the round was labelled with"


def has_own_labels(folder: RoundDir) -> bool:
    """Whether the round was labelled otherwise than the run's config says."""
    return (folder.root / _LABELS).exists()


def labels_of(folder: RoundDir) -> dict[str, Any]:
    """The section ``label`` by which the round was labelled, where it is not the run's; else
    nothing. Raises ``StorageError`` where it cannot be read."""
    try:
        raw = read_json_object(folder.root / _LABELS, _REMEDY)
    except FileNotFoundError:
        return {}
    label = raw.get("label")
    if not isinstance(label, dict):
        raise damaged(folder.root / _LABELS, "no section `label`", _REMEDY)
    return label


def with_labels_of(config: RunConfig, folder: RoundDir) -> RunConfig:
    """``config`` as it labels the round, whose labelers may be others than those of rounds to come;
    what the votes of people do is the same in all.

    Raises ``StorageError`` where what the round was labelled by cannot be read.
    """
    raw = labels_of(folder)
    if not raw:
        return config
    try:
        label = LabelConfig.model_validate(raw)
    except ValidationError as error:
        fault = f"no labelers: {error.errors()[0]['msg']}"
        raise damaged(folder.root / _LABELS, fault, _REMEDY) from None
    label = label.model_copy(update={"people": config.label.people})
    return config.model_copy(update={"label": label})


def keep_labels(label: LabelConfig, folder: RoundDir) -> None:
    """Write down that the round was labelled by ``label``, if that is not known yet."""
    if not has_own_labels(folder):
        atomic_write_json(folder.root / _LABELS, {"label": label.model_dump(mode="json")})


def load_round_jury(label: LabelConfig, folder: RoundDir) -> RoundJury:
    """The jury of a round whose votes are all there, by what was fitted to them (``jury.json``).

    A resumed run, and the evaluation of the round's policy, decide by the same figures. Raises
    ``LabelerError`` for a calibration file that cannot be used.
    """
    return jury_on(label, folder.votes, folder.jury)


def jury_on(label: LabelConfig, votes: ShardFolder, kept: Path) -> RoundJury:
    """The jury on ``votes``. Where its rule needs it, the labelers' reliability is fitted to them
    once and kept in the file ``kept``."""
    jury = RoundJury(
        config=label.jury,
        weights=label.weights,
        calibrators={name: read_calibrator(path) for name, path in label.calibrations.items()},
        people=label.people,
        silent=label.silent,
    )
    if label.jury.rule not in FITTED_RULES:
        return jury
    if not kept.exists():
        names = [one.name for one in label.labelers if one.name not in label.silent]
        parts = (without(part, label.silent) for part in votes.iter(columns=VOTE_COLUMNS))
        if label.people == "jury":
            names += _people(votes)
        else:
            parts = (without_people(part) for part in parts)
        if label.jury.rule == "ensemble":
            fitted = fit_scales(parts, names)
        else:
            fitted = fit_jury(count_patterns(parts, names), names, label.jury)
        for note in fitted.notes:
            logger.warning("%s", note)
        atomic_write_json(kept, fitted.as_dict())
    remedy = "delete it and run the same command again, which fits it to the votes again"
    try:
        fitted = FittedJury.from_dict(read_json_object(kept, remedy))
    except (KeyError, TypeError) as error:
        raise damaged(kept, f"no fitted jury: {error}", remedy) from None
    return replace(jury, fitted=fitted)


def _people(votes: ShardFolder) -> list[str]:
    """The people who voted, by the names of their votes."""
    names: set[str] = set()
    for table in votes.iter(columns=["labeler"]):
        names |= {name for name in pc.unique(table["labeler"]).to_pylist() if is_human(name)}
    return sorted(names)
