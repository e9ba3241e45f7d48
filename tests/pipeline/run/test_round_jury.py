"""A jury is fitted to counts of votes, whoever counted which of them, and in whatever order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefloop.labelers.config import LabelConfig
from prefloop.labelers.jury.calibrator import Calibrator
from prefloop.labelers.jury.verdict_table import VOTE_COLUMNS
from prefloop.pipeline.run.round_jury import (
    count_votes,
    jury_details,
    jury_in,
    jury_on,
    keep_fit,
    wants_fit,
)
from prefloop.pipeline.run.run_dir import RunDir
from tests.pipeline.executors.test_ray_tables import NAMES, labelled

BLOCKS = 9


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A person voted on one block of nine."""
    return labelled(tmp_path_factory.mktemp("run"), blocks=BLOCKS)


def label_of(rule: str, people: str) -> LabelConfig:
    labelers: list[dict[str, Any]] = [{"type": "verifier", "name": name} for name in NAMES]
    return LabelConfig.model_validate(
        {"labelers": labelers, "jury": {"rule": rule}, "people": people}
    )


@pytest.mark.parametrize(
    ("rule", "people"),
    [
        ("reliability", "jury"), ("reliability", "override"), ("dawid_skene", "jury"),
        ("dawid_skene", "calibration"), ("ensemble", "override"),
    ],
)  # fmt: skip
def test_counts_of_parts_are_as_good_as_the_votes(
    run: RunDir, tmp_path: Path, rule: str, people: str
) -> None:
    label, votes = label_of(rule, people), run.round(0).votes
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    jury = jury_on(label, votes, whole)
    assert jury.fitted is not None
    assert jury.fitted.pairs > 100
    assert wants_fit(label, parts)
    counted = [
        count_votes(label, votes.iter(VOTE_COLUMNS, blocks))
        for blocks in ([7, 8], [0], [4, 5, 6], [1, 2, 3])
    ]
    keep_fit(label, counted, parts)
    assert parts.read_bytes() == whole.read_bytes()
    assert not wants_fit(label, parts)
    known = jury.fitted.accuracy or jury.fitted.confusions or jury.fitted.scales
    assert known is not None
    assert ("human:ann" in known) is (people == "jury")


def test_a_jury_is_told_whole(run: RunDir, tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    platt = Calibrator("platt", n=50, slope=0.5)
    file.write_text(json.dumps({"calibration": platt.as_dict()}))
    judge = {"type": "judge", "name": "three", "model": "m", "calibration": str(file), "weight": 2}
    raw = label_of("dawid_skene", "jury").model_dump(mode="json")
    label = LabelConfig.model_validate(raw | {"labelers": [*raw["labelers"][:2], judge]})
    jury = jury_on(label, run.round(0).votes, tmp_path / "jury.json")
    assert jury.calibrators == {"three": platt}
    assert jury.weights["three"] == 2
    assert jury_in(label, json.loads(json.dumps(jury_details(jury)))) == jury
    mean = label_of("mean", "override")
    jury = jury_on(mean, run.round(0).votes, tmp_path / "none.json")
    assert jury_in(mean, json.loads(json.dumps(jury_details(jury)))) == jury
