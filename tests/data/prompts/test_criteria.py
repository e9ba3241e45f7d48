import json

import pytest
import yaml

from prefloop.data.config import Columns
from prefloop.data.prompts.criteria import Criterion, criteria_of, rubric_of
from prefloop.data.prompts.prompt_rows import parse_row
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.rows import RawRow


def test_criteria_are_texts_or_objects_and_may_be_written_as_json() -> None:
    value = ["Is short.", {"text": "Is kind.", "weight": 2, "choices": ["no", "partly", "yes"]}]
    expected = (
        Criterion(text="Is short."),
        Criterion(text="Is kind.", weight=2.0, choices=("no", "partly", "yes")),
    )
    assert criteria_of(value) == criteria_of(json.dumps(value)) == expected


def test_no_and_yes_without_quotes_are_words() -> None:
    found = yaml.safe_load("- {text: x, choices: [no, partly, yes]}")
    assert criteria_of(found)[0].choices == ("no", "partly", "yes")


def test_rubrics_as_others_write_them_are_read() -> None:
    health = [{"criterion": "Names the dose.", "points": -8, "tags": ["axis:accuracy"]}]
    assert criteria_of(health) == (Criterion(text="Names the dose.", weight=-8),)
    titled = [{"title": "Dose", "description": "Names it.", "weight": 5}]
    assert criteria_of(titled) == (Criterion(text="Names it.", name="Dose", weight=5),)
    # A column of structs gives each all keys.
    structs = [{"text": "x", "weight": None, "choices": None, "veto": True}]
    assert criteria_of(structs) == (Criterion(text="x", veto=True),)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[1", "is no JSON"),
        ({"text": "x"}, "is of type dict where a list"),
        (3, "is of type int where a list"),
        ([], "empty list"),
        ([7], "criterion 1 is neither"),
        (["x", {"weight": 1}], "criterion 2 has no text"),
        ([{"text": "x", "wieght": 1}], "criterion 1 has the unknown keys wieght"),
        ([{"text": "x", "criterion": "y"}], "criterion 1 has text, criterion: keep one"),
        ([{"text": "x", "weight": "5"}], "criterion 1: weight: write a number"),
        ([{"text": "x", "weight": True}], "criterion 1: weight: write a number"),
        ([{"text": "x", "weight": 0}], "criterion 1: weight: is 0"),
        ([{"text": "x", "weight": float("nan")}], "criterion 1: weight"),
        ([{"text": "x", "veto": "yes"}], "criterion 1: veto: write true or false"),
        ([{"text": "x", "choices": ["yes"]}], "criterion 1: choices"),
        ([{"text": "x", "choices": ["a", " A "]}], "criterion 1: choices: must be texts that"),
        ([{"text": "x", "choices": list("abcdefghij")}], "criterion 1: choices"),
        ([{"text": " "}], "criterion 1: text: holds no text"),
        (["x", " x"], "criterion 2 says the same as criterion 1"),
    ],
)
def test_what_is_no_rubric_is_refused_in_words(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said) as found:
        criteria_of(value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("nothing", [None, [], "", "  "])
def test_an_empty_cell_is_no_rubric(nothing: object) -> None:
    assert rubric_of(nothing) is None


def row(**fields: object) -> RawRow:
    return RawRow("prompts.jsonl", 7, {"prompt": "Say something.", **fields})


def test_the_rubric_of_a_row_goes_along_in_its_metadata() -> None:
    columns = Columns(rubric="criteria", metadata=("topic",))
    prompt = parse_row(row(criteria='["Is short."]', topic="x"), columns)
    assert not isinstance(prompt, BadRow)
    metadata = json.loads(prompt["metadata"])
    assert metadata.keys() == {"topic", "rubric"}
    assert criteria_of(metadata["rubric"]) == (Criterion(text="Is short."),)
    without = parse_row(row(criteria=""), columns)
    assert not isinstance(without, BadRow)
    assert json.loads(without["metadata"]) == {}


def test_a_row_with_a_bad_rubric_is_a_bad_row_that_names_its_column() -> None:
    found = parse_row(row(criteria=[{"text": "x"}, {}]), Columns(rubric="criteria"))
    assert isinstance(found, BadRow)
    assert (found.source, found.row, found.field) == ("prompts.jsonl", 7, "criteria")
    assert (found.reason, found.detail) == ("bad_rubric", "criterion 2 has no text")
