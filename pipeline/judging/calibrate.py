"""Calibration to people: of judges on pairs with gold labels, and of a run's labelers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefloop.data.arrays import Floats
from prefloop.data.errors import InputError, StorageError
from prefloop.data.hashing import content_id
from prefloop.data.shards import atomic_write_json, read_json_object
from prefloop.labelers.base import LabelerError
from prefloop.labelers.jury.calibrator import CalibrationMethod, Calibrator, cross_fitted
from prefloop.labelers.jury.verdict_table import (
    VERDICT_COLUMNS,
    merge_votes,
    read_votes_and_pairs,
)
from prefloop.labelers.statistics.calibration_error import Calibration, calibration
from prefloop.labelers.statistics.dataset_accuracy import DatasetAccuracy, dataset_accuracy
from prefloop.pipeline.judging.gold_eval import JudgeEval
from prefloop.pipeline.judging.queue import PeopleLabel, read_people
from prefloop.pipeline.run.run_dir import RunDir

METHODS: tuple[CalibrationMethod, ...] = ("isotonic", "platt")
_SIDE = {"a": 1.0, "tie": 0.5, "b": 0.0}
_PAIR = ("pair_id", "prompt_id")


@dataclass(frozen=True)
class Calibrated:
    """A labeler's calibration and what it is good for."""

    labeler: str
    path: str
    method: CalibrationMethod
    n: int
    """Pairs with a soft vote and a label of people."""
    before: Calibration
    """Of the probabilities as they are; ties of people are left out here."""
    after: Calibration
    """Of calibrated ones, each by a calibration that has not seen it (ten folds)."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class RunCalibration:
    """What people's labels say about a run."""

    labels: int
    """Pairs of the run that people labelled."""
    calibrated: tuple[Calibrated, ...]
    skipped: dict[str, str]
    """Labelers without a calibration, and why."""
    accuracy: DatasetAccuracy | None
    """Of the kept pairs; null where too few of them are labelled."""
    no_accuracy: str | None
    uniform: bool
    """Whether the labelled pairs are taken to be drawn with equal chances: no file said how."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def calibrate_judges(found: JudgeEval, folder: Path, method: str, seed: int) -> list[Calibrated]:
    """Write a calibration for each judge of ``found`` that gives soft votes.

    Raises ``InputError`` for an unknown method, and ``LabelerError`` for too few pairs.
    """
    gold = {pair.pair_id: (_SIDE[pair.gold], pair.prompt_id) for pair in found.gold}
    chosen = _method(method)
    written = []
    for name, votes in found.votes.items():
        ids, p_a = soft_votes(votes).get(next(iter(set(votes["labeler"].to_pylist()))), ([], None))
        if p_a is None or not len(ids):
            continue
        people, prompts = zip(*(gold[one] for one in ids), strict=True)
        said = _Said(p_a, np.array(people), np.array(prompts))
        written.append(_calibrate(name, said, chosen, _path(folder, name), seed))
    if not written:
        raise InputError("no judge gives probabilities: there is nothing to calibrate")
    return written


def calibrate_run(
    run: RunDir, people: Sequence[str], *, out: Path, method: str = "isotonic", seed: int = 0
) -> RunCalibration:
    """Calibrate the labelers of ``run`` that give probabilities to the labels in the files
    ``people`` (``prefloop.pipeline.judging.queue``), and estimate the accuracy of its dataset.

    The calibrations go to ``out``, a file for each labeler. Raises ``InputError`` for files that
    cannot be read or hold no label on the run's pairs.
    """
    chosen = _method(method)
    labels = read_people(people, run)
    by_labeler: dict[str, tuple[list[float], list[float], list[str]]] = {}
    seen: dict[str, None] = {}
    for folder in run.rounds():
        for votes in folder.votes.batches(VERDICT_COLUMNS):
            labelled = pc.is_in(votes["pair_id"], pa.array(list(labels)))
            for name in pc.unique(votes["labeler"]).to_pylist():
                seen.setdefault(name)
            mine = votes.filter(labelled)
            asked = dict(zip(*(mine[one].to_pylist() for one in _PAIR), strict=True))
            for name, (ids, p_a) in soft_votes(mine).items():
                given, said, prompts = by_labeler.setdefault(name, ([], [], []))
                given += p_a.tolist()
                said += [labels[one].preference_for_a for one in ids]
                prompts += [asked[one] for one in ids]
    calibrated, skipped = [], {}
    for name in seen:
        given, said, prompts = by_labeler.get(name, ([], [], []))
        if not given:
            skipped[name] = "it gives no probabilities"
            continue
        try:
            path = _path(out, name)
            everything = _Said(np.array(given), np.array(said), np.array(prompts))
            calibrated.append(_calibrate(name, everything, chosen, path, seed))
        except LabelerError as error:
            skipped[name] = str(error)
    accuracy, why = None, None
    try:
        accuracy = _accuracy(run, labels)
    except LabelerError as error:
        why = str(error)
    return RunCalibration(
        labels=len(labels),
        calibrated=tuple(calibrated),
        skipped=skipped,
        accuracy=accuracy,
        no_accuracy=why,
        uniform=any(label.inclusion is None for label in labels.values()),
    )


def soft_votes(votes: pa.Table) -> dict[str, tuple[list[str], Floats]]:
    """For each labeler the pairs on which it prefers an answer with a probability, and the mean
    over its votes of P(a preferred to b), a and b as in the pair's first vote."""
    if not len(votes):
        return {}
    read, pairs = read_votes_and_pairs(votes)
    verdicts = merge_votes(read, len(pairs))
    ids = np.asarray(pairs["pair_id"].to_pylist())
    found = {}
    for index, name in enumerate(read.labelers):
        rows = verdicts.soft[:, index] & (verdicts.verdict[:, index] != 0)
        # A verifier's 0 and 1 are no probabilities.
        p_a = verdicts.p_a[rows, index]
        if len(p_a) and not np.isin(p_a, (0.0, 1.0)).all():
            found[name] = (ids[rows].tolist(), p_a)
    return found


def _accuracy(run: RunDir, labels: Mapping[str, PeopleLabel]) -> DatasetAccuracy:
    right, confidence, every, inclusion, prompts = [], [], [], [], []
    columns = ["pair_id", "prompt_id", "chosen_id", "p_chosen", "kept"]
    for folder in run.rounds():
        for table in folder.decisions.batches(columns):
            kept = table.filter(table["kept"])
            every += kept["p_chosen"].to_pylist()
            for row in kept.filter(pc.is_in(kept["pair_id"], pa.array(list(labels)))).to_pylist():
                label = labels[row["pair_id"]]
                right.append(label.side_of(row["chosen_id"]))
                confidence.append(row["p_chosen"])
                inclusion.append(label.inclusion)
                prompts.append(row["prompt_id"])
    known = [one for one in inclusion if one is not None]
    return dataset_accuracy(
        right,
        confidence,
        every,
        known if len(known) == len(right) and known else None,
        prompts,
    )


@dataclass(frozen=True)
class _Said:
    """What a labeler and people say of N pairs."""

    p_a: Floats
    people: Floats
    """1, 0.5 or 0: a is preferred, neither is, b is."""
    prompts: NDArray[np.str_]


def _calibrate(
    name: str, said: _Said, method: CalibrationMethod, path: Path, seed: int
) -> Calibrated:
    p_a, people = said.p_a, said.people
    fitted = Calibrator.fit(p_a, people, method)
    folded = cross_fitted(p_a, people, method, seed=seed)
    decided = people != 0.5
    if not decided.any():
        raise LabelerError("people call every one of these pairs a tie")
    before, after = (
        calibration(p[decided], people[decided] == 1.0, said.prompts[decided])
        for p in (p_a, folded)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    result = Calibrated(name, str(path), method, len(p_a), before, after)
    atomic_write_json(path, {"calibration": fitted.as_dict(), **result.as_dict()})
    return result


def _method(name: str) -> CalibrationMethod:
    found = next((method for method in METHODS if method == name), None)
    if found is None:
        raise InputError(f"--method {name}: is none of {', '.join(METHODS)}")
    return found


def _path(folder: Path, name: str) -> Path:
    """The file of the labeler ``name``: no two of them share one.

    It is the name where that can be one of a file, and is not taken by another labeler's: older
    versions gave ``a/b`` the file ``a-b.json``, and it keeps one that it has.
    """
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    path = folder / f"{plain}.json"
    try:
        owner = read_json_object(path, "").get("labeler")
    except (FileNotFoundError, StorageError):
        owner = None
    if owner == name or (owner is None and plain == name):
        return path
    return folder / f"{plain}-{content_id(name)[:8]}.json"
