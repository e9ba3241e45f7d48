"""Rows with lists of good and bad answers (RewardBench 2): their pairs, and best of n by hand."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences.gold import GoldPair, read_gold
from prefloop.labelers.base import Vote, votes_table
from prefloop.labelers.statistics.winrate import win_rate
from prefloop.pipeline.judging.figures.best_of_n import best_of_n
from prefloop.pipeline.judging.figures.judged import read_judged
from prefloop.pipeline.judging.gold_eval import JudgeEvalOptions, judge_eval
from prefloop.pipeline.judging.judge_figures import judge_figures
from prefloop.pipeline.judging.judges_page import judge_page
from prefloop.pipeline.judging.verdict_file import read_verdicts


def row(number: int, good: list[str], wrong: list[str], subset: str = "Math") -> dict[str, Any]:
    """As the set has them."""
    return {
        "id": str(number), "prompt": f"q{number}", "chosen": good, "rejected": wrong,
        "num_correct": len(good), "num_rejected": len(wrong),
        "total_completions": len(good) + len(wrong), "models": ["m"] * 4, "subset": subset,
        "additional_metadata": None,
    }  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def read(path: Path, rows: list[dict[str, Any]]) -> list[GoldPair]:
    gold, refused = read_gold(PromptSource(path=write(path, rows)))
    assert not refused
    return gold


def by_scores(gold: list[GoldPair], scores: dict[str, float]) -> list[Vote]:
    """What a judge says who gives each answer a score."""
    votes = []
    for pair in gold:
        a, b = scores[pair.a], scores[pair.b]
        votes.append(Vote(
            pair_id=pair.pair_id, prompt_id=pair.prompt_id, round=0, a_id=pair.a_id,
            b_id=pair.b_id, labeler="j", order="none",
            preference="tie" if a == b else "a" if a > b else "b",
        ))  # fmt: skip
    return votes


def official(scores: list[float]) -> float:
    """RewardBench 2's score of a row whose first answer is the good one."""
    best = max(scores)
    return 1 / scores.count(best) if scores[0] == best else 0.0


def test_every_good_answer_is_a_pair_with_every_bad_one(tmp_path: Path) -> None:
    rows = [row(1, ["4"], ["5", "6", "7"]), row(2, ["red", "blue"], ["dog", "cat"], "Ties")]
    gold = read(tmp_path / "g.jsonl", rows)
    assert [(pair.row, pair.of_row, pair.several_good) for pair in gold] == (
        [(1, 3, False)] * 3 + [(2, 4, True)] * 4
    )
    better = [pair.a if pair.gold == "a" else pair.b for pair in gold]
    worse = [pair.b if pair.gold == "a" else pair.a for pair in gold]
    assert list(zip(better, worse, strict=True)) == [
        ("4", "5"), ("4", "6"), ("4", "7"),
        ("red", "dog"), ("red", "cat"), ("blue", "dog"), ("blue", "cat"),
    ]  # fmt: skip
    assert all(pair.metadata["subset"] in ("Math", "Ties") for pair in gold)
    # Which is a is drawn by hash: nothing can be learned from the place.
    many = read(tmp_path / "m.jsonl", [row(i, [f"g{i}"], [f"b{i}", f"c{i}"]) for i in range(99)])
    assert 60 < sum(pair.gold == "a" for pair in many) < 138


def test_lists_of_one_are_pairs_as_ever(tmp_path: Path) -> None:
    one = {"prompt": "q", "chosen": "good", "rejected": "bad", "subset": "x"}
    lists = {**one, "chosen": ["good"], "rejected": ["bad"]}
    [plain], [listed] = (
        read(tmp_path / f"{i}.jsonl", [given]) for i, given in enumerate((one, lists))
    )
    for name in ("a", "b", "gold", "listed_first", "of_row", "metadata"):
        assert getattr(plain, name) == getattr(listed, name)
    votes = votes_table(by_scores([plain], {"good": 1, "bad": 0}))
    assert judge_figures("j", votes, [plain]).best_of_n is None


def test_the_score_of_a_row_is_the_official_one(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows, scores, expected = [], {}, []
    for number in range(60):
        drawn = draw.integers(0, 4, 4).tolist()
        names = [f"{number} {at}" for at in range(4)]
        scores |= dict(zip(names, drawn, strict=True))
        rows.append(row(number, names[:1], names[1:]))
        expected.append(official(drawn))
    assert {0.0, 0.5, 1.0} <= set(expected)
    gold = read(tmp_path / "g.jsonl", rows)
    found = judge_figures("j", votes_table(by_scores(gold, scores)), gold)
    assert found.best_of_n == win_rate(expected)
    assert found.best_of_n_left_out == 0
    assert found.pairs == 180


@pytest.mark.parametrize(
    ("scores", "share"),
    [({"r": 3, "b": 2, "d": 1, "c": 0}, 1), ({"r": 3, "b": 1, "d": 1, "c": 0}, 0),
     ({"r": 2, "b": 1, "d": 3, "c": 0}, 0)],
)  # fmt: skip
def test_ties_are_strict(tmp_path: Path, scores: dict[str, float], share: float) -> None:
    gold = read(tmp_path / "g.jsonl", [row(2, ["r", "b"], ["d", "c"], "Ties")])
    found = best_of_n(read_judged(votes_table(by_scores(gold, scores)), gold), gold)
    assert found is not None
    assert found.share is not None
    assert (found.share.value, found.share.n) == (share, 1)


def test_the_reference_rows_of_ties_have_one_good_answer_and_are_strict(tmp_path: Path) -> None:
    gold = read(tmp_path / "g.jsonl", [row(1, ["r"], ["d", "c"], "Ties")])
    found = best_of_n(read_judged(votes_table(by_scores(gold, {"r": 1, "d": 1, "c": 0})), gold),
                      gold)  # fmt: skip
    assert found is not None
    assert found.share is not None
    assert found.share.value == 0


def test_a_row_that_is_not_whole_is_left_out_and_said(tmp_path: Path) -> None:
    rows = [
        row(1, ["4"], ["5", "6"]), row(2, ["x"], ["y", "z"]), row(3, ["s"], ["s", "t"]),
        row(4, ["u"], ["v", "v"]), {**row(1, ["4"], ["5", "9"]), "id": "again"},
        row(6, ["u"], ["", "v"]),
    ]  # fmt: skip
    gold, refused = read_gold(PromptSource(path=write(tmp_path / "g.jsonl", rows)))
    assert [(one.row, one.reason) for one in refused] == [
        (3, "identical"), (5, "duplicate"), (6, "empty_answer"),
    ]  # fmt: skip
    votes = by_scores(gold, {"4": 9, "x": 9, "s": 9, "u": 9, **dict.fromkeys("56yztv9", 1.0)})
    at = next(i for i, pair in enumerate(gold) if pair.row == 2)
    votes[at] = replace(votes[at], preference="invalid")
    found = best_of_n(read_judged(votes_table(votes), gold), gold)
    assert found is not None
    # Row 1 is whole; row 2 lacks a verdict, row 3 and 5 a pair; row 4 has one pair.
    assert found.left_out == 3
    assert found.share is not None
    assert (found.share.value, found.share.n) == (1.0, 1)


def test_verdicts_on_lists_name_their_pair(tmp_path: Path) -> None:
    rows = [row(1, ["4"], ["5", "6"])]
    gold = read(tmp_path / "g.jsonl", rows)
    one = {"prompt": "q1", "a": "5", "b": "4", "verdict": 2}
    found = read_verdicts(
        write(tmp_path / "v.jsonl", [one, {"row": 1, "verdict": 1}, {**rows[0], "verdict": 1}]),
        gold,
    )
    assert found.refused == {"other_pair": 2}
    [votes] = found.votes.values()
    assert len(votes) == 1
    with pytest.raises(InputError, match="several pairs with gold labels"):
        read_verdicts(write(tmp_path / "r.jsonl", [{"row": 1, "verdict": 1}]), gold)


def test_text_and_page_show_it(tmp_path: Path) -> None:
    path = write(tmp_path / "g.jsonl", [row(1, ["4"], ["5", "6"])])
    verdicts = write(tmp_path / "v.jsonl", [
        {"prompt": "q1", "a": "4", "b": other, "verdict": 1} for other in "56"
    ])  # fmt: skip
    options = JudgeEvalOptions(verdicts=[verdicts], out=tmp_path / "out")
    found = asyncio.run(judge_eval(path, options))
    assert found.as_dict()["judges"][0]["best_of_n"]["value"] == 1.0
    assert "best of n, by row" in judge_page(found)
