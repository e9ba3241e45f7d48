"""One reading of labels: the same word says the same in every file that holds labels."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences import PreferenceColumns, read_preferences
from prefloop.data.preferences.given import read_answer_sets
from prefloop.data.preferences.gold import read_gold
from prefloop.data.preferences.labels import (
    LABELS,
    label_text,
    labels_of_verdicts,
    parse_labels,
    read_label,
)

SAME = [
    ["1", 1, 1.0, "1.0", " 1 ", "+1", "1.", Decimal("1.0"), np.int64(1), np.float32(1), "[[1]]"],
    ["true", True, "True", " TRUE ", '"true"', np.True_],
    ["a", "A", " a ", "[[A]]", "[A]", "'a'", "[[ A ]]", "Ａ"],
    ["0.5", 0.5, "0.50", Decimal("0.5"), np.float64(0.5)],
    ["1.5", 1.5, " 1.50"],
    ["0", 0, -0.0, "0.0", "-0"],
    ["-1", -1, "-1.0"],
]


@pytest.mark.parametrize("spellings", SAME, ids=lambda spellings: spellings[0])
def test_a_label_is_one_text_however_it_is_written(spellings: list[Any]) -> None:
    assert {label_text(each) for each in spellings} == {spellings[0]}
    columns = parse_labels(f"a={spellings[0]},b=zzz")
    assert {read_label(each, columns, "x", "y") for each in spellings} == {"a"}


@pytest.mark.parametrize(
    "value", [None, "", " ", float("nan"), float("inf"), [], ["a"], {"a": 1}, b"a", 10**400]
)
def test_what_is_no_label(value: Any) -> None:
    assert label_text(value) is None
    assert read_label(value, LABELS, "x", "y") is None


@pytest.mark.parametrize(
    ("said", "values"),
    [
        ("a", [1, "A", "model_a", "Model A", "model-a", "Output (a)", "assistant a", "(A)", "first",
               "[[A>>B]]", "one_column"]),
        ("b", [2.0, "b", "Response B", "[[B]]", "second", "b > a", "B>A", "Two_Column"]),
        ("tie", [0, 0.5, "1.5", "Tie", "both", "equal", "Both bad", "tie (bothbad)", "[[A=B]]"]),
        (None, ["left", "c", "3", -1, True, "a or b", "ab", "model", "1,2", "assistant"]),
    ],
)  # fmt: skip
def test_what_labels_mean_where_nobody_says(said: str | None, values: list[Any]) -> None:
    spaced = {value: read_label(value, LABELS, "one_column", "two_column") for value in values}
    spaced.pop("b > a", None)
    assert set(spaced.values()) == {said}


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none()))
@example("[[" * 50)
@example("[[[[a]]]]")
@example("1" * 5000)
def test_reading_is_stable_and_blind_to_case_and_space(value: Any) -> None:
    text = label_text(value)
    if text is not None:
        assert label_text(text) == text
    if isinstance(value, str):
        assert label_text(f" {value}\n") == text
        assert label_text(value.casefold()) == text


@given(st.sampled_from(sorted(LABELS)), st.sampled_from(["{}", " {} ", "[[{}]]", '"{}"']))
def test_every_known_word_in_every_dress(word: str, dress: str) -> None:
    assert read_label(dress.format(word).upper(), LABELS, "x", "y") == LABELS[word]


def test_a_column_of_the_row_is_meant_before_a_letter() -> None:
    assert read_label("response_b", LABELS, "response_b", "response_a") == "a"


def write(path: Path, labels: list[Any]) -> str:
    path.write_text("\n".join(
        json.dumps({"input": f"q{i}", "output_1": "x", "output_2": "y", "label": label})
        for i, label in enumerate(labels)
    ))  # fmt: skip
    return str(path)


@pytest.mark.parametrize(
    ("labels", "meaning", "chosen", "ties"),
    [
        ([True, False, True, "False"], "a=true,b=false", "xyxy", 0),
        ([1, 0, 0.5, 0.5, "1.0", "0.50"], "a=1,b=0,tie=0.5", "xyx", 3),
        ([1, 2, 1.5, "1.5"], None, "xy", 2),
        (["[[A]]", "model_b", "Tie", "both"], None, "xy", 2),
    ],
)
def test_audit_and_gold_read_alike(
    tmp_path: Path, labels: list[Any], meaning: str | None, chosen: str, ties: int
) -> None:
    path = write(tmp_path / "d.jsonl", labels)
    columns = PreferenceColumns(labels=parse_labels(meaning)) if meaning else None
    batches = list(read_preferences(PromptSource(path=path), columns=columns))
    assert "".join(c for batch in batches for c in batch.pairs["chosen"].to_pylist()) == chosen
    assert sum(len(batch.bad) for batch in batches) == ties
    gold, refused = read_gold(PromptSource(path=path), columns)
    assert refused == []
    better = [{"a": pair.a, "b": pair.b}.get(pair.gold) for pair in gold]
    assert "".join(each for each in better if each) == chosen
    assert better.count(None) == ties


@pytest.mark.parametrize("labels", [[0, 1], ["0", 1.0], [0, 0.5, 1], [1, 0.5], [1, -1], [1, 0, -1]])
def test_numbers_that_may_mean_either_are_not_guessed(tmp_path: Path, labels: list[Any]) -> None:
    path = write(tmp_path / "d.jsonl", labels)
    for read in (lambda: list(read_preferences(PromptSource(path=path))),
                 lambda: read_gold(PromptSource(path=path))):  # fmt: skip
        with pytest.raises(InputError, match=r"d\.jsonl: field 'label' is .* say which with --lab"):
            read()


def of_auto_j(path: Path, labels: list[Any]) -> str:
    rows = [{"scenario": "s", "label": label, "prompt": f"q{at}", "response 1": "x",
             "response 2": "y"} for at, label in enumerate(labels)]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_auto_j_counts_from_zero(tmp_path: Path) -> None:
    path = of_auto_j(tmp_path / "j.jsonl", [0, 1, 2, "1"])
    gold, refused = read_gold(PromptSource(path=path))
    better = [{"a": pair.a, "b": pair.b}.get(pair.gold) for pair in gold]
    assert (better, refused) == (["x", "y", None, "y"], [])


def test_auto_j_with_another_count_is_not_guessed(tmp_path: Path) -> None:
    path = of_auto_j(tmp_path / "j.jsonl", [1, 2, 2])
    for read in (lambda: list(read_preferences(PromptSource(path=path))),
                 lambda: list(read_answer_sets(PromptSource(path=path))),
                 lambda: read_gold(PromptSource(path=path))):  # fmt: skip
        with pytest.raises(InputError, match=r"'label' is 1 or 2 in all rows, and never 0"):
            read()
    columns = PreferenceColumns(labels=parse_labels("a=1,b=2,tie=0"))
    gold, _ = read_gold(PromptSource(path=path), columns)
    assert [{"a": pair.a, "b": pair.b}[pair.gold] for pair in gold] == ["x", "y", "y"]


@pytest.mark.parametrize(
    ("words", "own", "of_gold"),
    [
        ({"1", "2"}, {"0": "a", "1": "b"}, {}),  # the verdicts count from 1
        ({"0", "tie"}, {"1": "a", "0": "b"}, {}),
        ({"0", "1"}, {}, {"0": "a", "1": "b"}),  # the gold labels count from 0
        ({"1", "2"}, {}, {"-1": "a", "0": "tie", "1": "b", "2": "b"}),
    ],
)
def test_a_word_with_two_meanings_is_an_error(words: set[str], own: Any, of_gold: Any) -> None:
    with pytest.raises(InputError, match=r"v\.jsonl: the verdict '[012]' means .* and may mean"):
        labels_of_verdicts(words, own, of_gold, "v.jsonl")


@pytest.mark.parametrize(
    ("words", "own", "of_gold"),
    [
        ({"0", "1"}, {"0": "a", "1": "b"}, {}),
        ({"x", "1"}, {"x": "a", "1": "b"}, {}),
        ({"1", "2"}, {}, {"0": "a", "1": "b"}),
        ({"a", "tie"}, {}, {"0": "a", "1": "b"}),
        ({"1", "2"}, {}, {}),
    ],
)
def test_words_with_one_meaning_keep_it(words: set[str], own: Any, of_gold: Any) -> None:
    assert labels_of_verdicts(words, own, of_gold, "v.jsonl") == (own or LABELS)
