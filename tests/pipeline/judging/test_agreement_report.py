"""`prefloop agreement` on tables as people have them, on public labels and on a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from prefloop.data.errors import InputError
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.judging.agreement_report import file_agreement, run_agreement
from prefloop.pipeline.judging.label_table import LabelColumns, ratings_of, read_labels
from tests.helpers.paths import PUBLIC
from tests.helpers.runs import JUDGE, VERIFIER, run_small, small_config
from tests.helpers.synthetic_run import write_run

PANDALM = PUBLIC / "pandalm" / "testset-v1.json"
LONG = LabelColumns(item="item", annotator="who", label="label")


def write_long(path: Path, rows: list[tuple]) -> str:
    frame = pd.DataFrame(rows, columns=["item", "who", "label"], dtype=object)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.astype(str).to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    return str(path)


ROWS = [(i, who, label) for i, labels in enumerate(["11", "12", "22", "11"]) for who, label in
        zip("xy", labels, strict=True)]  # fmt: skip


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same(tmp_path: Path, ending: str) -> None:
    found = file_agreement(write_long(tmp_path / f"votes{ending}", ROWS), LONG).as_dict()
    # Three of four agree; by chance 3/4 x 2/4 + 1/4 x 2/4 = 0.5; (0.75 - 0.5) / 0.5.
    assert found["raw_agreement"]["value"] == 0.75
    [kappa] = found["cohen_kappa"]
    assert kappa["annotators"] == ["x", "y"]
    assert kappa["value"] == pytest.approx(0.5)
    assert found["majority"] == {
        "counts": {"1": 2, "2": 1}, "no_majority": 1, "unlabelled": 0,
    }  # fmt: skip
    assert found["labels_by_annotator"] == {"x": {"1": 3, "2": 1}, "y": {"1": 2, "2": 2}}


def test_pandalm() -> None:
    annotators = [f"annotator{index}" for index in (1, 2, 3)]
    found = file_agreement(str(PANDALM), LabelColumns(annotators=annotators)).as_dict()
    kappas = {tuple(one["annotators"]): round(one["value"], 2) for one in found["cohen_kappa"]}
    assert kappas == {
        ("annotator1", "annotator2"): 0.85,
        ("annotator1", "annotator3"): 0.88,
        ("annotator2", "annotator3"): 0.86,
    }
    assert found["majority"]["counts"] == {"0": 105, "1": 422, "2": 472}
    assert found["majority"]["no_majority"] == 0
    assert found["items"] == 999


def test_dirty_labels_are_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    rows = [
        {"item": 1, "who": "x", "label": "good"},
        {"item": 1, "who": "x", "label": "bad"},  # changed their mind
        {"item": 1, "who": "y", "label": " good "},
        {"item": 1.0, "who": "y", "label": "good"},  # twice the same
        {"item": 2, "who": "x", "label": "bad"},
        {"item": 2, "who": "y", "label": None},
        {"item": 2, "who": "z", "label": ""},
        {"item": 3, "who": "x", "label": ["good"]},
        {"item": None, "who": "x", "label": "good"},
        {"item": 3, "who": "", "label": "good"},
        {"item": 3, "label": "good"},
    ]
    path.write_text("\n".join([*map(json.dumps, rows), "{broken"]))
    found = file_agreement(str(path), LONG).as_dict()
    assert found["rows"]["unreadable"] == {
        "not_a_label": 1, "no_item": 1, "no_annotator": 1, "missing_column": 1, "broken_json": 1,
    }  # fmt: skip
    assert "row 8, field 'label': not_a_label" in found["rows"]["unreadable_examples"][0]
    assert found["rows"]["conflicting_examples"] == ["item 1, annotator x: bad and good"]
    assert (found["rows"]["missing_labels"], found["rows"]["repeated_labels"]) == (2, 1)
    assert found["cohen_kappa"][0]["reason"] == "no item has labels of both"
    assert found["krippendorff_alpha"]["ordinal"]["reason"].startswith("the labels are no numbers")
    json.dumps(found, allow_nan=False)


def test_levels_give_words_an_order(tmp_path: Path) -> None:
    labels = [("low", "mid"), ("high", "high"), ("low", "low"), ("mid", "high")]
    rows = [(i, who, pair[at]) for i, pair in enumerate(labels) for at, who in enumerate("xy")]
    path = write_long(tmp_path / "votes.csv", rows)
    found = file_agreement(path, LONG, levels=["low", "mid", "high"]).as_dict()
    numbers = {"low": 1, "mid": 2, "high": 3}
    numeric = write_long(tmp_path / "n.csv", [(i, who, numbers[one]) for i, who, one in rows])
    expected = file_agreement(numeric, LONG).as_dict()
    alphas, theirs = found["krippendorff_alpha"], expected["krippendorff_alpha"]
    assert alphas["ordinal"] == theirs["ordinal"]
    assert alphas["interval"]["value"] is None
    assert theirs["interval"]["value"] is not None
    with pytest.raises(InputError, match="the label 'mid' is not among --levels low,high"):
        file_agreement(path, LONG, levels=["low", "high"])


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    path = write_long(tmp_path / "votes.csv", ROWS)
    with pytest.raises(InputError, match="has no column 'rater': it has item, who, label"):
        file_agreement(path, LabelColumns(item="item", annotator="rater", label="label"))
    with pytest.raises(InputError, match="say which columns hold what"):
        file_agreement(path, LabelColumns(label="label"))
    with pytest.raises(InputError, match="give one or the other"):
        file_agreement(path, LabelColumns(annotator="who", annotators=["a"]))
    empty = write_long(tmp_path / "empty.jsonl", [(1, "x", None)])
    with pytest.raises(InputError, match="holds no label"):
        file_agreement(empty, LONG)
    many = write_long(tmp_path / "many.csv", [(i, "x", f"{i}.25") for i in range(101)])
    with pytest.raises(InputError, match="101 different labels"):
        file_agreement(many, LONG)


def test_many_annotators_have_the_busiest_compared(tmp_path: Path) -> None:
    rows = [(i % 10, f"w{i // 10}", i % 2) for i in range(600)]
    found = file_agreement(write_long(tmp_path / "crowd.csv", rows), LONG).as_dict()
    assert len(found["annotators"]) == 60
    assert len(found["cohen_kappa"]) + found["cohen_kappa_left_out"] == 60 * 59 // 2
    assert len(found["cohen_kappa"]) <= 1000


def test_a_run_has_judges_and_their_positions(tmp_path: Path) -> None:
    run = run_small(tmp_path / "run", small_config(label={"labelers": [JUDGE, VERIFIER]}))
    found = run_agreement(run).as_dict()
    votes = run.round(0).votes.table().to_pylist()
    assert found["items"] == len({vote["pair_id"] for vote in votes})
    assert set(found["position"]) == {"judge"}
    said: dict[tuple[str, str], set[str]] = {}
    for vote in votes:
        said.setdefault((vote["pair_id"], vote["labeler"]), set()).add(vote["preference"])
    verdict = {key: one.pop() if len(one) == 1 else "tie" for key, one in said.items()}
    pairs = {pair for pair, _ in verdict}
    same = [verdict[pair, "judge"] == verdict[pair, "verifier"] for pair in pairs]
    assert found["raw_agreement"]["value"] == pytest.approx(sum(same) / len(same))


def test_the_command(tmp_path: Path) -> None:
    path = write_long(tmp_path / "votes.csv", ROWS)
    columns = ["--item", "item", "--annotator", "who", "--label", "label"]
    done = CliRunner().invoke(app, ["agreement", path, *columns, "--json"])
    assert json.loads(done.output)["items"] == 4
    done = CliRunner().invoke(app, ["agreement", path, *columns, "--bootstrap", "50"])
    assert "Cohen's kappa, x and y" in done.output
    done = CliRunner().invoke(app, ["agreement", str(write_run(tmp_path / "run", rounds=1).root)])
    assert done.exit_code == 0
    assert "first shown" in done.output


def test_grades_have_weighted_kappas_and_words_without_order_have_none(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("item,x,y\n1,low,mid\n2,mid,mid\n3,high,high\n4,low,low\n")
    columns = ["--annotators", "x,y", "--item", "item", "--bootstrap", "20"]
    command = ["agreement", str(path), *columns]
    assert "weighted kappa" not in CliRunner().invoke(app, command).output
    wide = CliRunner(env={"COLUMNS": "200"})
    shown = wide.invoke(app, [*command, "--levels", "low,mid,high"]).output
    assert "weighted kappa, linear, x and y" in shown
    assert "weighted kappa, quadratic, x and y" in shown
    assert "alpha, ratio" not in shown
    path.write_text("item,x,y\n1,1,2\n2,2,2\n3,4,4\n4,1,1\n")
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert found["weighted_kappa"]["linear"][0]["annotators"] == ["x", "y"]
    assert found["krippendorff_alpha"]["ratio"]["value"] < 1


def test_one_label_in_several_spellings_is_one_category(tmp_path: Path) -> None:
    rows = [
        {"item": 1, "x": True, "y": "True"}, {"item": 2, "x": "false", "y": False},
        {"item": 3, "x": " TRUE ", "y": '"true"'}, {"item": 4, "x": None, "y": "false"},
    ]  # fmt: skip
    path = tmp_path / "t.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)))
    labels = read_labels(str(path), LabelColumns(item="item", annotators=("x", "y")))
    ratings = ratings_of("t", labels)
    assert sorted(ratings.labels) == ["false", "true"]
    assert labels.missing == 1
    assert (ratings.codes[:3, 0] == ratings.codes[:3, 1]).all()
    words = [{"x": "Good", "y": "good"}, {"x": "BAD ", "y": "[[Bad]]"}]
    path.write_text("\n".join(map(json.dumps, words)))
    table = ratings_of(
        "t", read_labels(str(path), LabelColumns(annotators=("x", "y"))), ["bad", "GOOD"]
    )
    assert table.labels == ("BAD", "Good")
    assert table.codes.tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize(
    "text", ["item;ann;bob\n0;1,0;1,0\n1;1,0;2,0\n", "item;ann;bob\n0;1;1\n1;1;2\n"]
)
def test_semicolons_are_read_or_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    said, given = "", []
    try:
        labels = read_labels(str(path), LabelColumns(item="item", annotators=("ann", "bob")))
    except InputError as error:
        said = str(error)
    else:
        given = [list(each.values()) for each in labels.given.values()]
    assert [one == other for one, other in given] == [True, False] or (
        "is the delimiter ';'?" in said and "\n" not in said
    )


def test_decimal_commas_are_numbers_where_all_labels_have_one(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    for cells, values in ((["2,5", "10,0"], [2.5, 10.0]), (["1,2", "3"], None), (["3", "x"], None)):
        rows = [{"x": cell, "y": cell} for cell in cells]
        path.write_text("\n".join(map(json.dumps, rows)))
        found = ratings_of("t", read_labels(str(path), LabelColumns(annotators=("x", "y"))))
        assert found.ordered == (values is not None)
        assert (None if found.values is None else found.values.tolist()) == values


def test_items_of_one_prompt_are_drawn_together(tmp_path: Path) -> None:
    rows = [
        {"item": f"{number}-{copy}", "x": said[0], "y": said[1], "asked": f"prompt {number}"}
        for number, said in enumerate(["11", "12", "22", "11", "21", "22", "11", "22"] * 3)
        for copy in range(6)
    ]
    path = tmp_path / "votes.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    wide = ["agreement", str(path), "--item", "item", "--annotators", "x,y", "--json"]
    widths = []
    for more in ([], ["--prompt", "asked"]):
        done = CliRunner().invoke(app, [*wide, *more])
        assert done.exception is None
        found = json.loads(done.stdout)["raw_agreement"]
        assert found["value"] == 0.75
        widths.append(found["high"] - found["low"])
    assert widths[1] > 2 * widths[0]


def test_an_item_has_one_prompt(tmp_path: Path) -> None:
    rows = [("1", "x", "a", "p"), ("1", "y", "a", "q"), ("2", "x", "a", None), ("1", "z", "b", "p")]
    path = tmp_path / "votes.csv"
    pd.DataFrame(rows, columns=["item", "who", "label", "asked"]).to_csv(path, index=False)
    columns = LabelColumns(item="item", annotator="who", label="label", prompt="asked")
    labels = read_labels(str(path), columns)
    assert labels.bad == {"another_prompt": 1, "no_prompt": 1}
    assert "asked" in labels.examples[0]
    assert "item 1 was about p before: an item has one prompt" in labels.examples[0]
    assert ratings_of(str(path), labels).prompts == ["p"]
    with pytest.raises(InputError, match="has no column 'theme'"):
        read_labels(str(path), replace(columns, prompt="theme"))


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_long_ids_are_not_rounded_to_one(tmp_path: Path, ending: str) -> None:
    first = 2**53
    rows = [(first + place, who, label) for place, label in enumerate("AB") for who in "xy"]
    found = file_agreement(write_long(tmp_path / f"votes{ending}", rows), LONG).as_dict()
    assert (found["items"], found["raw_agreement"]["value"]) == (2, 1.0)


def test_words_for_a_missing_value_are_no_labels(tmp_path: Path) -> None:
    rows = [("i", "x", "A"), ("i", "y", "nan"), ("j", "x", "NULL"), ("j", "y", "None")]
    labels = read_labels(write_long(tmp_path / "votes.csv", rows), LONG)
    assert labels.missing == 2
    assert labels.given == {"i": {"x": "a"}, "j": {"y": "none"}}


def test_labels_that_all_contradict_each_other_are_one_line(tmp_path: Path) -> None:
    path = write_long(tmp_path / "votes.csv", [("i", "x", "A"), ("i", "x", "B")])
    with pytest.raises(InputError, match="no label is left: each of the 1 was given twice"):
        file_agreement(path, LONG)
