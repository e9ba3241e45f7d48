"""Verdicts of others: every row is read for what it says, or counted, and never guessed."""

from __future__ import annotations

import asyncio
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences import PreferenceColumns, parse_labels
from prefloop.data.preferences.gold import GoldPair, read_gold
from prefloop.labelers.base import Vote, votes_table
from prefloop.pipeline.judging.gold_eval import JudgeEval, JudgeEvalOptions, judge_eval
from prefloop.pipeline.judging.judge_figures import judge_figures
from prefloop.pipeline.judging.verdict_file import read_verdicts

PAIRS = [
    {"input": f"q{i}", "output_1": f"one {i}", "output_2": f"two {i}", "label": 1 + i % 2}
    for i in range(30)
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def evaluate(path: str, tmp_path: Path, **more: Any) -> JudgeEval:
    return asyncio.run(judge_eval(path, JudgeEvalOptions(out=tmp_path / "out", **more)))


def test_only_the_last_of_the_results_is_the_verdict(tmp_path: Path) -> None:
    path = write(tmp_path / "gold.jsonl", PAIRS)
    gold, _ = read_gold(PromptSource(path=path))
    rows = []
    for row in PAIRS:
        right, wrong = str(row["label"]), str(3 - row["label"])
        first = {"swap = False": {"winner": wrong}, "swap = True": {"winner": wrong}}
        last = {
            "swap = False": {"winner": right},
            "swap = True": {"winner": f"Output ({'-ab'[row['label']]})"},
        }
        rows.append({**row, "results": [{"metrics": "..."}, first, last]})
    rows[0]["results"] = []
    rows[1]["results"] = [rows[1]["results"][1], {"reference": "x"}]
    rows[2]["results"][-1]["swap = True"]["winner"] = None
    rows[3]["results"][-1]["swap = True"]["winner"] = "left"
    found = read_verdicts(write(tmp_path / "v.jsonl", rows), gold)
    [votes] = found.votes.values()
    assert found.refused == {"bad_verdict": 3}
    assert len(votes) == 2 * 28 - 1
    by_pair = {pair.pair_id: pair.gold for pair in gold}
    said = [(row["preference"], by_pair[row["pair_id"]]) for row in votes.to_pylist()]
    assert [pair for pair in said if pair[0] != pair[1]] == [("invalid", by_pair[gold[2].pair_id])]


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ({1: 0, 2: 1}, "a=0,b=1"),
        ({1: 1, 2: 0}, "a=1,b=0"),
        ({1: True, 2: False}, "a=true,b=false"),
        ({1: "good", 2: "Bad"}, "a=good,b=bad"),
        ({1: "[[A]]", 2: "model_b"}, None),
    ],
)
def test_labels_are_honoured_in_files_with_verdicts(
    tmp_path: Path, words: dict[int, Any], meaning: str | None
) -> None:
    gold = write(tmp_path / "g.jsonl", [{**row, "label": words[row["label"]]} for row in PAIRS])
    plain = [{"row": i, "verdict": words[row["label"]]} for i, row in enumerate(PAIRS, 1)]
    results = [
        {**row, "results": [{"swap = False": {"winner": words[row["label"]]}}]} for row in PAIRS
    ]
    columns = PreferenceColumns(labels=parse_labels(meaning)) if meaning else None
    paths = [write(tmp_path / "p.jsonl", plain), write(tmp_path / "r.jsonl", results)]
    found = evaluate(gold, tmp_path, verdicts=paths, columns=columns)
    for figures in found.figures:
        assert figures.accuracy is not None
        assert (figures.accuracy.value, figures.judged) == (1.0, 30)


def test_verdicts_that_may_mean_either_are_not_guessed(tmp_path: Path) -> None:
    gold = write(tmp_path / "g.jsonl", PAIRS)
    plain = [{"row": i, "verdict": row["label"] - 1} for i, row in enumerate(PAIRS, 1)]
    with pytest.raises(InputError, match=r"p\.jsonl: field 'verdict' is 0 or 1 in all rows"):
        evaluate(gold, tmp_path, verdicts=[write(tmp_path / "p.jsonl", plain)])
    columns = PreferenceColumns(labels=parse_labels("a=0,b=1"))
    zero = write(tmp_path / "z.jsonl", [{**row, "label": row["label"] - 1} for row in PAIRS])
    other = [{"row": i, "verdict": row["label"]} for i, row in enumerate(PAIRS, 1)]
    with pytest.raises(InputError, match=r"o\.jsonl: the verdict '1' means 'b' by --labels"):
        evaluate(zero, tmp_path, verdicts=[write(tmp_path / "o.jsonl", other)], columns=columns)


def test_rows_are_rows_and_no_lines(tmp_path: Path) -> None:
    rows = [{**row, "input": f"two\nlines, {i}"} for i, row in enumerate(PAIRS)]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "g.jsonl").write_text("\n\n" + "\n\n\n".join(lines))
    (tmp_path / "g.json").write_text(json.dumps(rows, indent=1))
    with (tmp_path / "g.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    verdicts = write(
        tmp_path / "v.jsonl", [{"row": i, "verdict": row["label"]} for i, row in enumerate(rows, 1)]
    )
    for name in ("g.jsonl", "g.json", "g.csv"):
        [figures] = evaluate(str(tmp_path / name), tmp_path, verdicts=[verdicts]).figures
        assert figures.accuracy is not None
        assert (figures.accuracy.value, figures.judged) == (1.0, 30), name


def test_a_row_in_a_message_is_the_row(tmp_path: Path) -> None:
    (tmp_path / "g.jsonl").write_text("\n\n".join(json.dumps(row) for row in [*PAIRS, PAIRS[2]]))
    _, [refused] = read_gold(PromptSource(path=str(tmp_path / "g.jsonl")))
    assert str(refused).endswith("g.jsonl, row 31: duplicate: row 3 has the same pair")


def test_a_row_of_several_files_is_not_guessed(tmp_path: Path) -> None:
    for name, part in (("g1.jsonl", PAIRS[:15]), ("g2.jsonl", PAIRS[15:])):
        write(tmp_path / name, part)
    verdicts = write(tmp_path / "v.jsonl", [{"row": 1, "verdict": 1}])
    with pytest.raises(InputError, match="are in several files: give the pair's own columns"):
        evaluate(str(tmp_path / "g?.jsonl"), tmp_path, verdicts=[verdicts])


def test_votes_from_a_table_are_checked(tmp_path: Path) -> None:
    gold, _ = read_gold(PromptSource(path=write(tmp_path / "g.jsonl", PAIRS)))
    good = {name: getattr(gold[0], name) for name in ("pair_id", "a_id", "b_id")}
    good |= {"preference": "a", "p_a": "0.9", "prompt_tokens": "12", "order": "", "cost": ""}
    with (tmp_path / "v.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(good))
        writer.writeheader()
        writer.writerows([
            good, good | {"a_id": good["b_id"], "b_id": good["a_id"]}, good | {"a_id": "other"},
            good | {"p_a": "high"}, good | {"order": "backwards"}, good | {"preference": "A"},
        ])  # fmt: skip
    found = read_verdicts(str(tmp_path / "v.csv"), gold)
    [votes] = found.votes.values()
    assert votes["preference"].to_pylist() == ["a", "b"]
    assert votes["p_a"].to_pylist() == pytest.approx([0.9, 0.1])
    assert found.refused == {"other_pair": 1, "bad_verdict": 3}


@given(st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.sampled_from([0, 1, 2]), st.booleans()),
                min_size=1, max_size=30))  # fmt: skip
@example([(1, 1, False)])
@example([(1, 2, True), (2, 1, False), (0, 0, True)])
def test_kappa_knows_nothing_of_the_order_of_answers(rows: list[tuple[int, int, bool]]) -> None:
    """Exchange the two answers of any pairs: kappa, and all else, stays."""
    assume(any(label for label, *_ in rows))

    def figures(swap: bool) -> Any:
        pairs, votes = [], []
        for i, (label, said, swapped) in enumerate(rows):
            turn = swap and swapped
            names = {0: "tie", 1: "b" if turn else "a", 2: "a" if turn else "b"}
            a, b = ("yy", "x") if turn else ("x", "yy")
            messages = ({"role": "user", "content": str(i)},)
            pairs.append(GoldPair("g", i + 1, messages, a, b, names[label], "a"))
            ids = {n: getattr(pairs[-1], n) for n in ("pair_id", "prompt_id", "a_id", "b_id")}
            votes.append(Vote(**ids, round=0, labeler="j", order="none", preference=names[said]))
        return judge_figures("j", votes_table(votes), pairs)

    one, other = figures(False).as_dict(), figures(True).as_dict()
    assert one["kappa"] == pytest.approx(other["kappa"])
    assert one["accuracy"] == other["accuracy"]
    decided = [(label, said) for label, said, _ in rows]
    if all(label == said for label, said in decided):
        assert one["kappa"] == pytest.approx(1.0)
