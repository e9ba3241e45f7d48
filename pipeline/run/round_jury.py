"""Who labels a round, and the jury of its votes: its config, with what was fitted to them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from prefloop.data.shards import ShardFolder, atomic_write_json, damaged, read_json_object
from prefloop.labelers.config import LabelConfig
from prefloop.labelers.jury.calibrator import Calibrator, read_calibrator
from prefloop.labelers.jury.ensemble import AnswerScores, scales_of, scores_in
from prefloop.labelers.jury.fit import MISSING, Patterns, count_patterns, fit_jury
from prefloop.labelers.jury.round_jury import RoundJury
from prefloop.labelers.jury.rules import FITTED_RULES, FittedJury
from prefloop.labelers.jury.verdict_table import VOTE_COLUMNS
from prefloop.labelers.people import is_human, without, without_people
from prefloop.pipeline.executors.block_task import Tables
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
    if wants_fit(label, kept):
        keep_fit(label, [count_votes(label, votes.iter(columns=VOTE_COLUMNS))], kept)
    calibrators = {name: read_calibrator(path) for name, path in label.calibrations.items()}
    return _jury(label, calibrators, _fitted(kept) if label.jury.rule in FITTED_RULES else None)


def wants_fit(label: LabelConfig, kept: Path) -> bool:
    """Whether something is yet to be fitted to the votes."""
    return label.jury.rule in FITTED_RULES and not kept.exists()


def count_votes(label: LabelConfig, parts: Iterable[pa.Table]) -> Tables:
    """What a fit has to know of votes tables (VOTE_COLUMNS), each with whole prompts in it: small
    tables, which :func:`keep_fit` adds up."""
    counted = (without(part, label.silent) for part in parts)
    if label.people != "jury":
        counted = (without_people(part) for part in counted)
    if label.jury.rule == "ensemble":
        return _counted_scores(counted)
    return _counted_patterns(label, counted)


def keep_fit(label: LabelConfig, counted: Sequence[Tables], kept: Path) -> None:
    """Fit the jury to what :func:`count_votes` gave for each part of the votes, in whatever order,
    and keep it in the file ``kept``."""
    if label.jury.rule == "ensemble":
        fitted = scales_of((_scores_in(*tables) for tables in counted), _members(label))
    else:
        fitted = _fit_patterns(label, counted)
    for note in fitted.notes:
        logger.warning("%s", note)
    atomic_write_json(kept, fitted.as_dict())


def jury_details(jury: RoundJury) -> dict[str, Any]:
    """What of ``jury`` stands in no config, as JSON has it."""
    return {
        "fitted": jury.fitted and jury.fitted.as_dict(),
        "calibrators": {name: one.as_dict() for name, one in jury.calibrators.items()},
    }


def jury_in(label: LabelConfig, details: Mapping[str, Any]) -> RoundJury:
    """The jury of which :func:`jury_details` gave ``details``."""
    calibrators = {name: Calibrator.from_dict(one) for name, one in details["calibrators"].items()}
    fitted = details["fitted"]
    return _jury(label, calibrators, fitted and FittedJury.from_dict(fitted))


def _jury(
    label: LabelConfig, calibrators: Mapping[str, Calibrator], fitted: FittedJury | None
) -> RoundJury:
    return RoundJury(
        config=label.jury,
        weights=label.weights,
        fitted=fitted,
        calibrators=calibrators,
        people=label.people,
        silent=label.silent,
    )


def _fitted(kept: Path) -> FittedJury:
    remedy = "delete it and run the same command again, which fits it to the votes again"
    try:
        return FittedJury.from_dict(read_json_object(kept, remedy))
    except (KeyError, TypeError) as error:
        raise damaged(kept, f"no fitted jury: {error}", remedy) from None


def _members(label: LabelConfig) -> list[str]:
    return [one.name for one in label.labelers if one.name not in label.silent]


def _counted_patterns(label: LabelConfig, parts: Iterable[pa.Table]) -> Tables:
    """How many pairs got which verdicts of which labelers."""
    patterns: Counter[tuple[tuple[str, ...], tuple[int, ...]]] = Counter()
    for part in parts:
        names = (*_members(label), *sorted(_people(part)))
        for said, times in count_patterns([part], names).items():
            patterns[names, said] += times
    columns = {
        "labelers": pa.array([names for names, _ in patterns], pa.list_(pa.string())),
        "said": pa.array([said for _, said in patterns], pa.list_(pa.int8())),
        "times": pa.array(list(patterns.values()), pa.int64()),
    }
    return (pa.table(columns),)


def _fit_patterns(label: LabelConfig, counted: Sequence[Tables]) -> FittedJury:
    rows = [row for [table] in counted for row in table.to_pylist()]
    people = {name for row in rows for name in row["labelers"] if is_human(name)}
    labelers = [*_members(label), *sorted(people)]
    place = {name: index for index, name in enumerate(labelers)}
    patterns: Patterns = Counter()
    for row in rows:
        said = [MISSING] * len(labelers)
        for name, one in zip(row["labelers"], row["said"], strict=True):
            said[place[name]] = one
        patterns[tuple(said)] += row["times"]
    return fit_jury(patterns, labelers, label.jury)


def _counted_scores(parts: Iterable[pa.Table]) -> Tables:
    """The scores of each labeler, and how many pairs they are on."""
    scores = scores_in(parts)
    sizes = [len(one) for one in scores.by_labeler.values()]
    names = pa.array(list(scores.by_labeler), pa.string())
    columns = {
        "labeler": names.take(pa.array(np.repeat(np.arange(len(sizes)), sizes))),
        "score": np.concatenate([np.empty(0), *scores.by_labeler.values()]),
    }
    return pa.table(columns), pa.table({"pairs": pa.array([scores.pairs], pa.int64())})


def _scores_in(table: pa.Table, pairs: pa.Table) -> AnswerScores:
    names = table["labeler"]
    scores = {
        name: table["score"].filter(pc.equal(names, name)).to_numpy()
        for name in pc.unique(names).to_pylist()
    }
    return AnswerScores(pairs["pairs"][0].as_py(), scores)


def _people(votes: pa.Table) -> set[str]:
    """The people who voted, by the names of their votes."""
    return {name for name in pc.unique(votes["labeler"]).to_pylist() if is_human(name)}
