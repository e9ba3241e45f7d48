"""Calibration to people: symmetric, monotone, better on labels it has not seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.labelers.base import LabelerError
from prefloop.labelers.jury.calibrator import Calibrator, cross_fitted, read_calibrator

METHODS = ["isotonic", "platt"]


def overconfident(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities whose log-odds are three times what is true, verdicts, true probabilities."""
    draw = np.random.default_rng(seed)
    true = draw.uniform(0.05, 0.95, n)
    odds = (true / (1 - true)) ** 3
    return odds / (1 + odds), (draw.random(n) < true).astype(float), true


@pytest.mark.parametrize("method", METHODS)
def test_overconfidence_is_found(method: str) -> None:
    p_a, people, true = overconfident(4000)
    found = Calibrator.fit(p_a, people, method).apply(p_a)
    assert np.abs(p_a - true).mean() > 0.12
    assert np.abs(found - true).mean() < 0.03


def test_platt_finds_the_slope() -> None:
    # The log-odds were multiplied by 3, so a third of them is true.
    p_a, people, _ = overconfident(8000)
    assert Calibrator.fit(p_a, people, "platt").slope == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 10_000))
def test_calibration_is_symmetric_and_turns_nothing_round(method: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    p_a = draw.random(40).round(2)
    people = draw.choice([0.0, 0.5, 1.0], 40)
    fitted = Calibrator.fit(p_a, people, method)
    grid = np.linspace(0, 1, 201)
    found = fitted.apply(grid)
    np.testing.assert_allclose(found + fitted.apply(1 - grid), 1, atol=1e-12)
    assert (np.diff(found) >= -1e-12).all()
    assert ((found[grid > 0.5] >= 0.5 - 1e-12) & (found[grid > 0.5] <= 1 - 1 / 42)).all()
    assert fitted.apply([0.5])[0] == pytest.approx(0.5)
    mirrored = Calibrator.fit(1 - p_a, 1 - people, method)
    np.testing.assert_allclose(mirrored.apply(grid), found, atol=1e-4)


def test_a_judge_worse_than_chance_is_left_without_an_opinion() -> None:
    draw = np.random.default_rng(0)
    people = draw.choice([0.0, 1.0], 200)
    p_a = np.where(draw.random(200) < 0.8, 1 - people, people) * 0.8 + 0.1
    for method in METHODS:
        np.testing.assert_allclose(Calibrator.fit(p_a, people, method).apply([0.1, 0.9]), 0.5)


def test_few_labels_cannot_say_that_something_is_certain() -> None:
    p_a = np.tile([0.99, 0.01], 10)
    found = Calibrator.fit(p_a, np.tile([1.0, 0.0], 10)).apply([0.999])
    assert found[0] == pytest.approx(1 - 1 / 22)


def test_cross_fitting_does_not_flatter() -> None:
    own, others = [], []
    for seed in range(20):
        draw = np.random.default_rng(seed)
        p_a, people = draw.random(60), draw.choice([0.0, 1.0], 60)  # nothing to be learnt
        own.append(((Calibrator.fit(p_a, people).apply(p_a) - people) ** 2).mean())
        others.append(((cross_fitted(p_a, people, "isotonic", seed=0) - people) ** 2).mean())
    assert np.mean(own) < 0.249 < 0.25 < np.mean(others)  # 0.25 is what no opinion would get


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    p_a, people, _ = overconfident(50)
    for method in METHODS:
        fitted = Calibrator.fit(p_a, people, method)
        path = tmp_path / f"{method}.json"
        path.write_text(json.dumps({"calibration": fitted.as_dict(), "labeler": "judge"}))
        assert read_calibrator(path) == fitted


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"calibration": 3}', '{"calibration": {"method": "platt"}}',
        '{"calibration": {"method": "isotonic", "n": 30, "slope": null, "x": [0.1], "y": []}}',
        '{"calibration": {"method": "isotonic", "n": 30, "slope": null, "x": [1, 0], "y": [0, 1]}}',
        '{"calibration": {"method": "platt", "n": 30, "slope": null, "x": [], "y": []}}',
    ],
)  # fmt: skip
def test_another_file_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(LabelerError, match="is no calibration"):
        read_calibrator(path)
    with pytest.raises(LabelerError, match="cannot be read"):
        read_calibrator(tmp_path / "none.json")


def test_the_fewest_labels_can_be_cross_fitted() -> None:
    p_a, people, _ = overconfident(20)
    assert cross_fitted(p_a, people, "platt", seed=0).shape == (20,)


def test_too_few_labels_are_refused() -> None:
    with pytest.raises(LabelerError, match="19 labels of people are too few"):
        Calibrator.fit([0.6] * 19, [1.0] * 19)
    with pytest.raises(ValueError, match="people's verdicts 0"):
        Calibrator.fit([0.6] * 20, [0.7] * 20)
    with pytest.raises(ValueError, match="do not fit together"):
        Calibrator.fit([0.6] * 20, [1.0] * 21)
