"""What stands on the axes of a plot, and what is drawn on them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from prefloop.pipeline.report.plots import Bars, Figure, Series, Words, histogram, lines


def texts(figure: Figure) -> list[str]:
    """Of both axes' marks, and of what is written below."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", str(figure.svg))


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [0.0, 0.004, 0.3], [0.02, 1.0, 0.4]])
def test_an_axis_of_shares_does_not_go_below_zero(values: list[float]) -> None:
    places = ["start", "round 0", "round 1"]
    drawn = lines(Words("share", "Share"), [Series("share", range(3), values)], x_names=places)
    marks = [float(text.replace("−", "-")) for text in texts(drawn) if text not in places]
    assert min(marks) >= 0
    assert len(set(marks)) == len(marks) > 1


def test_an_axis_goes_below_zero_with_its_values() -> None:
    drawn = lines(Words("kl", "KL"), [Series("kl", [1, 2], [-0.1, 0.2], [-0.2, 0.1], [0, 0.3])])
    assert any(text.startswith("−") for text in texts(drawn))


def test_a_training_of_one_step_is_seen() -> None:
    words = Words("loss", "Loss", x="optimiser step")
    one = str(lines(words, [Series("round 0", [1.0], [0.693])]).svg)
    two = str(lines(words, [Series("round 0", [1.0, 2.0], [0.693, 0.6])]).svg)
    assert len(re.findall(r"<use\b[^>]*style=\"fill: var\(--series-0\)", one)) == 1
    assert "fill: var(--series-0)" not in two  # a line, which needs no marks


@pytest.mark.parametrize("steps", [1, 2, 3, 40])
def test_steps_are_counted(steps: int) -> None:
    words = Words("loss", "Loss", x="optimiser step")
    places = [float(step) for step in range(1, steps + 1)]
    drawn = lines(words, [Series("round 0", places, [10.5 * place for place in places])])
    before = texts(drawn)[: texts(drawn).index("optimiser step")]
    assert before
    assert all(text.isdigit() for text in before)


@pytest.mark.parametrize("highest", [1, 2, 3, 7])
def test_pairs_are_counted_in_whole_numbers(highest: int) -> None:
    words = Words("margins", "Margins", x="margin")
    drawn = histogram(words, np.arange(3.0), [Bars("all", [highest, 1])])
    counts = texts(drawn)[texts(drawn).index("margin") + 1 :]
    assert counts[0] == "0"
    assert len(counts) > 1
    assert all(text.isdigit() for text in counts)
