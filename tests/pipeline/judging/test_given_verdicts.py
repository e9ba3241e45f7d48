"""Files of AlpacaEval, MT-Bench, JudgeBench and others: win rates and verdicts by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import prefloop
from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences.gold import read_gold
from prefloop.labelers.statistics.winrate import length_controlled_win_rate, win_rate
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.judging.verdict_file import read_verdicts
from tests.helpers.paths import PUBLIC


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def rates(path: Path, **more: Any) -> list[dict[str, Any]]:
    return prefloop.win_rate(path, **more).as_dict()["win_rates"]


def alpaca(number: int, preference: Any, **more: Any) -> dict[str, Any]:
    return {
        "instruction": f"q{number}", "output_1": "short", "generator_1": "gpt4",
        "dataset": "koala", "output_2": "longer " * (1 + number % 3), "generator_2": "mine",
        "annotator": "weighted", "preference": preference, "preference_raw_completion": "M",
        **more,
    }  # fmt: skip


def test_alpaca_eval_weighted(tmp_path: Path) -> None:
    """Its own win rate: the mean of preference minus one, nulls left out, 0 being 1.5."""
    said = [1.7, 1.2, None, 1.5, 2.0, 1.0, 0, 1.9999, 1.6]
    [found] = rates(write(tmp_path / "a.jsonl", [alpaca(i, p) for i, p in enumerate(said)]))
    won = np.array([0.7, 0.2, 0.5, 1.0, 0.0, 0.5, 0.9999, 0.6])
    assert (found["judge"], found["model"], found["opponent"]) == ("weighted", "mine", "gpt4")
    assert found["win_rate"]["value"] == pytest.approx(won.mean())
    assert found["win_rate"]["low"] == pytest.approx(win_rate(won).low)
    assert (found["wins"], found["ties"], found["losses"], found["invalid"]) == (4, 2, 2, 1)
    gap = [len("longer " * (1 + i % 3)) - 5 for i in range(9) if i != 2]
    assert found["length_controlled"]["value"] == pytest.approx(
        length_controlled_win_rate(won, gap).value
    )
    assert found["first_share"] is None
    [other] = rates(tmp_path / "a.jsonl", against="mine")
    assert (other["model"], other["win_rate"]["value"]) == ("gpt4", pytest.approx(1 - won.mean()))


def test_an_empty_answer_was_judged(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [alpaca(0, 1.0, output_2=""), alpaca(1, 2.0)])
    [found] = rates(path)
    assert (found["wins"], found["losses"]) == (1, 1)


def test_alpaca_eval_hard(tmp_path: Path) -> None:
    said = [2, 1, "output_2", 0, "1.0", float("nan")]
    rows = [alpaca(i, p, is_switched_output_1_output_2=i % 2 == 0) for i, p in enumerate(said)]
    [found] = rates(write(tmp_path / "a.jsonl", rows))
    assert (found["wins"], found["ties"], found["losses"], found["invalid"]) == (2, 1, 2, 1)
    assert found["win_rate"]["value"] == 0.5
    # Preferred and shown first: rows 0 and 2 (switched, the second won) and 1 (not, the first won);
    # row 4 is switched, and the first won.
    assert found["first_share"]["value"] == 0.75
    assert found["one_order"] == 6


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([0, 1, 0, 1], "field 'preference' is 0 or 1 in all rows, which may mean draw and first"),
        ([None, None], "none of its 2 verdicts on gpt4 is valid"),
        ([2.5, -1, "left", 0.4], "holds no verdict on the answers of two models, e.g. .*bad_verd"),
    ],
)
def test_preferences_that_say_nothing(tmp_path: Path, said: list[Any], message: str) -> None:
    path = write(tmp_path / "a.jsonl", [alpaca(i, p) for i, p in enumerate(said)])
    with pytest.raises(InputError, match=message):
        prefloop.win_rate(path)


def test_labels_say_what_preferences_mean(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [alpaca(i, p) for i, p in enumerate([0, 1, 1])])
    [found] = rates(path, labels="a=0,b=1")
    assert found["win_rate"]["value"] == pytest.approx(2 / 3)


def game(question: int, one: str, two: str, first: str, second: str, **more: Any) -> dict[str, Any]:
    return {
        "question_id": question, "model_1": one, "model_2": two, "g1_winner": first,
        "g2_winner": second, "judge": ["gpt-4", "pair-v2"], "g1_user_prompt": "",
        "g1_judgment": "", "g2_user_prompt": "", "g2_judgment": "", "turn": 1, "tstamp": 1.0,
        **more,
    }  # fmt: skip


def test_mt_bench_pairs_against_fastchats_own_figures(tmp_path: Path) -> None:
    """`win_rate_adjusted` of its show_result.py: games that disagree are a tie, errors left out."""
    draw = np.random.default_rng(3)
    words = ["model_1", "model_2", "tie", "error"]
    rows = [
        game(q, one, two, *draw.choice(words, 2, p=[0.4, 0.3, 0.2, 0.1]).tolist(), turn=turn)
        for q in range(20)
        for turn in (1, 2)
        for one, two in (("x", "y"), ("z", "x"), ("y", "z"))
    ]
    won: dict[str, list[float]] = {"x": [], "y": [], "z": []}
    for row in rows:
        if "error" in (row["g1_winner"], row["g2_winner"]):
            continue
        both = row["g1_winner"] if row["g1_winner"] == row["g2_winner"] else "tie"
        score = {"model_1": 1.0, "model_2": 0.0, "tie": 0.5}[both]
        won[row["model_1"]].append(score)
        won[row["model_2"]].append(1 - score)
    found = prefloop.win_rate(write(tmp_path / "gpt-4_pair.jsonl", rows)).as_dict()
    assert found["against"] is None
    pooled = {one["model"]: one for one in found["win_rates"] if one["opponent"] is None}
    for model, outcomes in won.items():
        assert pooled[model]["win_rate"]["value"] == pytest.approx(np.mean(outcomes))
        assert pooled[model]["matches"] == len(outcomes)
        assert pooled[model]["prompts"] <= 20
    each = [one for one in found["win_rates"] if one["opponent"] is not None]
    assert len(each) == 3
    assert sum(one["both_orders"] for one in each) == 120
    firsts = [word == f"model_{1 + at}" for row in rows
              for at, word in enumerate((row["g1_winner"], row["g2_winner"]))
              if word in ("model_1", "model_2")]  # fmt: skip
    shares = [(one["first_share"]["value"], one["first_share"]["n"]) for one in each]
    assert sum(share * n for share, n in shares) == pytest.approx(sum(firsts))
    assert sum(n for _, n in shares) == len(firsts)


def test_games_of_scores_show_no_order(tmp_path: Path) -> None:
    scores = [(9, 2, "model_1"), (-1, 3, "model_2"), (4, 4, "tie")]
    rows = [game(q, "x", "y", winner, winner, m1_score=one, m2_score=two)
            for q, (one, two, winner) in enumerate(scores)]  # fmt: skip
    [found] = rates(write(tmp_path / "p.jsonl", rows), against="y")
    assert (found["wins"], found["ties"], found["losses"], found["invalid"]) == (1, 1, 0, 1)
    assert (found["first_share"], found["both_orders"]) == (None, 0)


def test_one_winner_a_row(tmp_path: Path) -> None:
    rows = [{"question_id": q, "model_1": "x", "model_2": "y", "winner": winner}
            for q, winner in enumerate(["model_1", "tie", "model_2", "model_1"])]  # fmt: skip
    [found] = rates(write(tmp_path / "p.jsonl", rows), against="y")
    assert (found["wins"], found["ties"], found["losses"]) == (2, 1, 1)


def test_a_match_written_down_twice_counts_once(tmp_path: Path) -> None:
    rows = [game(1, "x", "y", "model_1", "model_1"), game(1, "x", "y", "model_2", "model_2"),
            game(1, "y", "x", "model_2", "model_2"), game(2, "x", "x", "tie", "tie"),
            game(3, "x", "y", "left", "tie")]  # fmt: skip
    found = prefloop.win_rate(write(tmp_path / "p.jsonl", rows))
    assert found.refused == {"duplicate": 2, "same_model": 1, "bad_verdict": 1}
    [only] = found.rates
    assert (only.model, only.losses, only.matches) == ("y", 1, 1)


def test_mt_bench_single_scores(tmp_path: Path) -> None:
    def score(question: int, model: str, said: float, turn: int = 1) -> dict[str, Any]:
        prompt = "single-v1" if turn == 1 else "single-v1-multi-turn"
        return {"question_id": question, "model": model, "judge": ["gpt-4", prompt], "score": said,
                "user_prompt": "", "judgment": "", "turn": turn, "tstamp": 1.0}  # fmt: skip

    rows = [
        score(1, "x", 9), score(1, "y", 7), score(1, "x", 4, 2), score(1, "y", 4.05, 2),
        score(2, "x", 1), score(2, "y", 8), score(3, "x", -1), score(3, "y", 5),
        score(2, "y", 3),
    ]  # fmt: skip
    found = prefloop.win_rate(write(tmp_path / "gpt-4_single.jsonl", rows))
    assert found.refused == {"no_score": 1, "duplicate": 1, "single_answer": 1}
    [only] = found.rates
    assert (only.judge, only.model, only.opponent) == ("gpt-4", "y", "x")
    assert (only.wins, only.ties, only.losses, only.prompts) == (1, 1, 1, 2)


def test_arena_style(tmp_path: Path) -> None:
    def told(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]

    rows = [
        {"question_id": 1, "model_a": "x", "model_b": "y", "winner": "model_a", "judge": "ann",
         "conversation_a": told("one"), "conversation_b": told("three"), "turn": 1},
        {"question_id": 1, "model_a": "x", "model_b": "y", "winner": "tie (bothbad)",
         "judge": "bob", "conversation_a": told("one"), "conversation_b": told("three")},
    ]  # fmt: skip
    ann, bob = rates(write(tmp_path / "h.jsonl", rows), against="y")
    assert (ann["judge"], ann["win_rate"]["value"]) == ("ann", 1.0)
    assert (bob["judge"], bob["win_rate"]["value"]) == ("bob", 0.5)


def test_lengths_are_of_the_answers_alone(tmp_path: Path) -> None:
    def told(answer: str, thought: str) -> list[dict[str, str]]:
        said = {"role": "assistant", "content": answer, "reasoning_content": thought}
        return [{"role": "user", "content": "Hi"}, said]

    def controlled(name: str, thought: str = "") -> Any:
        rows = [
            {"question_id": at, "model_a": "x", "model_b": "y",
             "winner": "model_a" if at % 3 else "model_b",
             "conversation_a": told("one" * (1 + at), thought * (at % 5)),
             "conversation_b": told("two" * (4 - at % 4), "")}
            for at in range(12)
        ]  # fmt: skip
        [found] = rates(write(tmp_path / name, rows), against="y")
        return found["length_controlled"]

    plain = controlled("plain.jsonl")
    assert plain is not None
    assert controlled("thought.jsonl", "Let me think about this. ") == plain


def test_verdicts_without_the_answers(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "model_a": "x", "model_b": "y", "verdict": "x", "swapped": False},
        {"prompt": "p", "model_a": "x", "model_b": "y", "verdict": 2, "swapped": True},
        {"prompt": "q", "model_a": "y", "model_b": "x", "verdict": "[[B]]"},
        {"prompt": "r", "model_a": "y", "model_b": "x", "verdict": None},
        {"prompt": "s", "model_a": "y", "verdict": 1},
        {"model_a": "y", "model_b": "x", "verdict": 1},
    ]
    found = prefloop.win_rate(write(tmp_path / "v.jsonl", rows))
    assert found.refused == {"no_models": 1, "missing_column": 1}
    [only] = found.rates
    assert (only.model, only.opponent) == ("y", "x")
    assert (only.wins, only.ties, only.losses, only.invalid) == (0, 1, 1, 1)
    assert (only.both_orders, only.first_share.value) == (1, 1.0)


def test_zeros_and_ones_are_not_guessed(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "model_a": "x", "model_b": "y", "winner": i % 2} for i in range(4)]
    with pytest.raises(InputError, match="field 'winner' is 0 or 1 in all rows"):
        prefloop.win_rate(write(tmp_path / "v.jsonl", rows))


def test_pandalm(tmp_path: Path) -> None:
    """The majority of its three annotators, counted here by hand."""
    path = PUBLIC / "pandalm" / "testset-v1.json"
    won: dict[frozenset[str], list[float]] = {}
    for row in json.loads(path.read_text(encoding="utf-8")):
        texts = row["response1"], row["response2"]
        if not all(isinstance(text, str) for text in texts):
            continue  # `true` for an answer; an empty one was judged
        (said, most), *rest = Counter(row[f"annotator{i}"] for i in (1, 2, 3)).most_common()
        said = 0 if rest and rest[0][1] == most else said
        one, two = row["cmp_key"].split("_")
        of_one = {1: 1.0, 2: 0.0, 0: 0.5}[said]
        won.setdefault(frozenset((one, two)), []).append(of_one if one < two else 1 - of_one)
    read = prefloop.win_rate(path)
    assert read.refused == {"wrong_type": 6}
    found = [one for one in read.rates if one.opponent is not None]
    assert len(found) == len(won)
    for one in found:
        expected = float(np.mean(won[frozenset((one.model, one.opponent))]))
        if one.model > one.opponent:
            expected = 1 - expected
        assert one.win_rate is not None
        assert one.win_rate.value == pytest.approx(expected)
        assert one.length_controlled is not None


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    llmbar = str(PUBLIC / "llmbar" / "evaluators" / "Natural_GPT-4_Vanilla.json")
    for call, said in (
        ([llmbar], "does not say which two models wrote the answers"),
        ([str(write(tmp_path / "a.jsonl", [alpaca(1, 1.2)])), "--against", "me"], "no such model"),
    ):
        result = CliRunner().invoke(app, ["win-rate", *call])
        assert result.exit_code == 1
        assert isinstance(result.exception, InputError)
        assert said in str(result.exception)
        assert "\n" not in str(result.exception)


def test_text_and_json(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.jsonl", [alpaca(i, 1 + i / 10) for i in range(1, 9)]))
    text = CliRunner().invoke(app, ["win-rate", path]).stdout
    assert "judge weighted" in text
    found = json.loads(CliRunner().invoke(app, ["win-rate", path, "--json"]).stdout)
    assert found["win_rates"][0]["win_rate"]["value"] == pytest.approx(0.45)


JUDGE_BENCH = [
    {"pair_id": f"p{i}", "original_id": i, "source": "mmlu-pro-law", "question": f"q{i}",
     "response_model": "gpt-4o", "response_A": "aaa", "response_B": f"bb{i}",
     "label": "A>B" if i % 2 else "B>A"}
    for i in range(6)
]  # fmt: skip


def evaluated(gold: Path, verdicts: Path, tmp_path: Path) -> dict[str, Any]:
    found = prefloop.judge_eval(gold, verdicts=[verdicts], out=tmp_path / "out").as_dict()
    [judge] = found["judges"]
    return {**judge, "refused": found["verdict_rows_refused"]}


def test_judge_bench_outputs(tmp_path: Path) -> None:
    """Its own accuracy: right and right, or right and a tie, are right; here a tie is half."""
    gold = write(tmp_path / "gold.jsonl", JUDGE_BENCH)
    swapped = {"A>B": "B>A", "B>A": "A>B", "A=B": "A=B", None: None}
    said = [("B>A", "B>A"), ("A>B", "A>B"), ("A>B", "A>B"), ("A>B", "B>A"), ("A=B", "A=B"),
            (None, "A>B")]  # fmt: skip
    rows = [
        {**row, "judge_name": "arena_hard", "judgments": [
            {"judgment": {"judge_model": "o1"}, "decision": first},
            {"judgment": {"judge_model": "o1"}, "decision": swapped[second]}]}
        for row, (first, second) in zip(JUDGE_BENCH, said, strict=True)
    ]  # fmt: skip
    rows.append({**rows[0], "judgments": [{"decision": "A?"}]})
    found = evaluated(gold, write(tmp_path / "out.jsonl", rows), tmp_path)
    assert found["judge"] == "arena_hard o1"
    # Pairs 0 and 1 right, pair 2 wrong, pair 3 contradicts itself, pair 4 a tie, pair 5 without.
    assert (found["accuracy"]["value"], found["accuracy"]["n"]) == (3 / 5, 5)
    assert found["both_right"]["value"] == 2 / 5
    assert list(found["refused"].values()) == [{"bad_verdict": 1}]
    # Shown first is A in the first judgment and B in the second.
    assert found["first_share"]["value"] == pytest.approx(np.mean([0, 1, 1, 0, 1, 0, 1, 1, 0]))


def test_alpaca_eval_on_gold_pairs(tmp_path: Path) -> None:
    gold = [{"instruction": f"q{i}", "output_1": f"x{i}", "output_2": f"y{i}", "label": 1 + i % 2}
            for i in range(6)]  # fmt: skip
    said = [1.1, 1.8, 1.6, None, 1.5, 2.0]
    rows = [{**{name: row[name] for name in ("instruction", "output_1", "output_2")},
             "generator_1": "g", "generator_2": "h", "annotator": "w", "preference": p}
            for row, p in zip(gold, said, strict=True)]  # fmt: skip
    found = evaluated(write(tmp_path / "gold.jsonl", gold), write(tmp_path / "a.jsonl", rows),
                      tmp_path)  # fmt: skip
    assert (found["judge"], found["invalid_votes"], found["tie_votes"]) == ("w", 1, 1)
    assert (found["accuracy"]["value"], found["accuracy"]["n"]) == (pytest.approx(3.5 / 5), 5)
    # p of the right one: 0.9, 0.8, 0.4, 0.5, 1.0
    brier = np.mean([0.1**2, 0.2**2, 0.6**2, 0.5**2, 0.0])
    assert found["calibration"]["brier"] == pytest.approx(brier)


def test_mt_bench_on_what_people_said(tmp_path: Path) -> None:
    gold = [
        {"question_id": q, "model_a": "x", "model_b": "y", "winner": "model_a", "turn": 1,
         "judge": "ann", "conversation_a": [{"role": "user", "content": f"q{q}"},
                                            {"role": "assistant", "content": "one"}],
         "conversation_b": [{"role": "user", "content": f"q{q}"},
                            {"role": "assistant", "content": "two"}]}
        for q in range(3)
    ]  # fmt: skip
    rows = [game(0, "x", "y", "model_1", "model_1"), game(1, "y", "x", "model_1", "model_2"),
            game(2, "y", "x", "model_1", "error"), game(0, "x", "y", "tie", "tie", turn=2),
            game(1, "x", "z", "tie", "tie")]  # fmt: skip
    found = evaluated(write(tmp_path / "gold.jsonl", gold), write(tmp_path / "p.jsonl", rows),
                      tmp_path)  # fmt: skip
    assert found["judge"] == "gpt-4"
    assert (found["accuracy"]["value"], found["accuracy"]["n"]) == (0.75, 2)
    assert found["invalid_votes"] == 1
    assert list(found["refused"].values()) == [{"other_pair": 2}]


def test_winners_that_are_classes_are_read_by_their_names(tmp_path: Path) -> None:
    """And so are the verdicts on gold pairs in such a file."""
    import datasets

    features = datasets.Features(
        {
            **dict.fromkeys(
                ("question_id", "model_a", "model_b", "input", "output_1", "output_2"),
                datasets.Value("string"),
            ),
            "winner": datasets.ClassLabel(names=["model_b", "model_a", "tie"]),
        }
    )
    rows = [
        {"question_id": str(n), "model_a": "x", "model_b": "y", "input": f"q{n}", "output_1": "one",
         "output_2": "two", "winner": winner}
        for n, winner in enumerate([0, 0, 1, 2])
    ]  # fmt: skip
    path = tmp_path / "matches.parquet"
    dataset = datasets.Dataset.from_list(rows, features=features)
    dataset.to_parquet(str(path))
    [found] = rates(path)
    assert (found["model"], found["opponent"]) == ("y", "x")
    assert (found["wins"], found["ties"], found["losses"]) == (2, 1, 1)
    gold = write(tmp_path / "gold.jsonl", [
        {"input": f"q{n}", "output_1": "one", "output_2": "two", "label": label}
        for n, label in enumerate(["b", "b", "a", "tie"])
    ])  # fmt: skip
    pairs, _ = read_gold(PromptSource(path=str(gold)))
    dataset.rename_column("winner", "verdict").to_parquet(str(path))
    [votes] = read_verdicts(str(path), pairs).votes.values()
    right = {pair.pair_id: pair.gold for pair in pairs}
    assert [vote["preference"] for vote in votes.to_pylist()] == [
        right[vote["pair_id"]] for vote in votes.to_pylist()
    ]
