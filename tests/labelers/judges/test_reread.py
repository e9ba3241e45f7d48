import json
import math
from dataclasses import replace

import pyarrow as pa
import pytest

from prefloop.data.protocol import Completion, Request, RequestRejected
from prefloop.labelers.base import Vote, votes_table
from prefloop.labelers.judges.folder import load_judge, shipped_judges
from prefloop.labelers.judges.reread import reread
from prefloop.labelers.judges.settings import ListwiseSettings, RatingSettings, RubricSettings
from tests.helpers.judging import ScriptedEngine, all_pairs, completion, label


def answers(request: Request) -> Completion:
    """Something of everything: verdicts, rankings and ratings that differ, refusals, nonsense."""
    number = request.seeds[0] % 20
    if number == 0:
        raise RequestRejected("context_overflow", "[[A]] is too long")
    if number == 1:
        return completion("I cannot say")
    schema = request.json_schema
    if schema is None:
        words = request.choices or ()
        weights = [1 + (request.seeds[0] >> i) % 5 for i in range(len(words))]
        shares = [weight / sum(weights) for weight in weights]
        return completion(words[0], **dict(zip(words, shares, strict=True)))
    found: dict[str, object] = {"rationale": f"number {number}"}
    for name, kind in schema["properties"].items():
        if kind["type"] == "integer":
            found[name] = kind["minimum"] + (request.seeds[0] + len(name)) % (
                kind["maximum"] - kind["minimum"] + 1
            )
        elif "enum" in kind:
            found[name] = kind["enum"][number % len(kind["enum"])]
        elif kind["type"] == "array":
            labels = kind["items"]["items"]["enum"]
            found[name] = labels[number % len(labels) :] + labels[: number % len(labels)]
    return completion(json.dumps(found))


def some_votes(judge: str, orders: str = "both") -> list[Vote]:
    pairs = [
        pair
        for index in range(12)
        for pair in all_pairs(f"x{index}", "y", "zz", "w", name=f"p{index}", reference="known")
    ]
    return label(ScriptedEngine(answers), *pairs, judge=judge, orders=orders, seed=5)


@pytest.mark.parametrize("orders", ["both", "one"])
@pytest.mark.parametrize("judge", shipped_judges())
def test_reading_again_with_the_same_judge_changes_nothing(judge: str, orders: str) -> None:
    votes = votes_table(some_votes(judge, orders))
    assert len(set(votes["preference"].to_pylist())) > 2
    assert reread(votes, load_judge(judge), seed=5).equals(votes)


BY_TOKEN = [
    name
    for name in shipped_judges()
    if getattr(load_judge(name).settings, "parser", None) == "token"
]


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("judge", BY_TOKEN)
def test_words_that_were_not_told_are_as_unknown_when_read_again(judge: str, thinks: bool) -> None:
    """Of a list that is too short, nobody knows how likely the words are that it leaves out."""

    def answer(request: Request) -> Completion:
        words = request.choices or ()
        told = dict(zip(words, [0.6, *[math.nan] * len(words)], strict=False))
        said = completion(words[0], **told)
        return replace(said, reasoning="hm") if thinks else said

    pairs = all_pairs("x", "y", reference="known")
    votes = votes_table(label(ScriptedEngine(answer), *pairs, judge=judge, seed=5))
    assert set(votes["preference"].to_pylist()) == {"invalid"}
    assert all("left out" in why for why in votes["rationale"].to_pylist())
    assert all("NaN" not in kept for kept in votes["choice_logprobs"].to_pylist())
    assert reread(votes, load_judge(judge), seed=5).equals(votes)


@pytest.mark.parametrize("judge", shipped_judges())
def test_what_was_read_comes_from_the_answers_alone(judge: str) -> None:
    """Spoil everything that was read, and read it again: only a vote without an answer differs."""
    votes = some_votes(judge)
    right = votes_table(votes).to_pylist()
    spoiled = [
        row
        if row["preference"] == "invalid" and row["rationale"] is None
        else row | {"preference": "tie", "p_a": 0.5, "score_a": 9.0, "rationale": "spoiled"}
        for row in right
    ]
    table = pa.Table.from_pylist(spoiled, schema=votes_table(votes).schema)
    assert reread(table, load_judge(judge), seed=5).to_pylist() == right


def test_a_lower_threshold_makes_invalid_votes_valid_without_a_request(tmp_path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "prompt.jinja").write_text("{{ request }} {{ answer_a }} {{ answer_b }}")

    def with_min_mass(value: float):
        (folder / "judge.yaml").write_text(f"{{parser: token, max_tokens: 1, min_mass: {value}}}")
        return str(folder)

    engine = ScriptedEngine(lambda _: completion("Well", A=0.3, B=0.1))
    votes = label(engine, *all_pairs("x", "y"), judge=with_min_mass(0.5))
    assert [vote.preference for vote in votes] == ["invalid", "invalid"]
    found = reread(votes_table(votes), load_judge(with_min_mass(0.3)), seed=0)
    assert found["preference"].to_pylist() == ["a", "b"]
    assert found["p_a"].to_pylist() == pytest.approx([0.75, 0.25])
    assert len(engine.requests) == 2


def test_the_shipped_judges_are_of_every_kind() -> None:
    kinds = {type(load_judge(name).settings) for name in shipped_judges()}
    assert {ListwiseSettings, RatingSettings, RubricSettings} < kinds
