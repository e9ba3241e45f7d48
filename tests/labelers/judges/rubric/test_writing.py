import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prefloop.data.errors import PrefloopError
from prefloop.data.prompts.criteria import Criterion
from prefloop.data.protocol import Completion, Request, RequestRejected
from prefloop.labelers.base import LabelerError, Pair, Vote
from prefloop.labelers.config import JudgeLabeler
from prefloop.labelers.factory import build_labeler
from prefloop.labelers.judges.rubric.rubric_shelf import RubricShelf
from prefloop.labelers.judges.rubric.writing import WritingDesk, read_criteria
from tests.helpers.judging import ScriptedEngine, all_pairs, completion, cut_off

WRITTEN = {"model": "writer", "most": 3}


def writes(request: Request) -> Completion:
    """Criteria about the prompt's own name."""
    name = request.messages[0]["content"].split("Say something ")[1].split(".")[0]
    criteria = [
        {"text": f"Names {name}.", "weight": 3, "veto": False},
        {"text": "Rambles.", "weight": -1, "veto": False},
    ]
    return replace(completion(json.dumps({"criteria": criteria})), cost=10.0)


def judges(request: Request) -> Completion:
    yes = "good" in request.messages[0]["content"] and "Names" in request.messages[0]["content"]
    return completion("2" if yes else "1", **{"1": 1.0 - yes, "2": 0.0 + yes})


def label(
    engine: ScriptedEngine, writer: ScriptedEngine, *blocks: list[Pair], shelf: Path | None = None
) -> list[list[Vote]]:
    """The votes of a judge whose criteria ``writer`` writes, on all blocks at once."""
    config = JudgeLabeler(judge="rubric", model="m", criteria=WRITTEN)
    kept = None if shelf is None else RubricShelf(shelf, {"writer": "w"})
    judge = build_labeler(config, engine=engine, seed=0, desk=WritingDesk(writer, kept))

    async def both() -> list[list[Vote]]:
        return list(
            await asyncio.gather(
                *(judge.label(one, block=str(at)) for at, one in enumerate(blocks))
            )
        )

    return asyncio.run(both())


def test_criteria_are_written_once_a_prompt_and_no_candidate_is_shown(tmp_path: Path) -> None:
    pairs = all_pairs("good apricot", "poor plum", "quince", name="x")
    writer, engine = ScriptedEngine(writes), ScriptedEngine(judges)
    votes, again = label(engine, writer, pairs, pairs, shelf=tmp_path / "shelf")
    [asked] = writer.requests
    assert not any(text in str(asked.messages) for text in ("apricot", "plum", "quince"))
    assert "At most 3 criteria" in asked.messages[0]["content"]
    assert asked.json_schema is not None
    assert [vote.preference for vote in votes] == ["a", "a", "tie"]
    told = json.loads(votes[0].criteria or "")
    assert told["from"] == "written"
    assert [(one["text"], one["weight"]) for one in told["criteria"]] == [
        ("Names x.", 3.0),
        ("Rambles.", -1.0),
    ]
    # 3 answers, 2 criteria, 0.5 each, in both blocks; and the writing, once.
    assert sum(vote.cost for vote in [*votes, *again]) == pytest.approx(2 * 3 + 10)


def test_what_was_written_is_there_for_the_next_process(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    pairs = [*all_pairs("good", "poor", name="x"), *all_pairs("good", "poor", name="y")]
    first = label(ScriptedEngine(judges), ScriptedEngine(writes), pairs, shelf=shelf)
    [file] = shelf.glob("*.json")
    kept = json.loads(file.read_text())
    assert kept["writer"] == "w"
    assert {one["said"] for one in kept["rubrics"].values()} == {
        writes(Request("", ({"role": "user", "content": f"Say something {name}."},), None, ())).text
        for name in "xy"
    }

    def nobody(_: Request) -> Completion:
        raise AssertionError

    more = all_pairs("good", "poor", name="z")
    writer = ScriptedEngine(writes)
    votes = label(ScriptedEngine(judges), writer, [*pairs, *more], shelf=shelf)
    assert [
        request.messages[0]["content"].count("something z.") for request in writer.requests
    ] == [1]
    assert [vote.criteria for vote in votes[0][:2]] == [vote.criteria for vote in first[0]]
    label(ScriptedEngine(judges), ScriptedEngine(nobody), [*pairs, *more], shelf=shelf)


def test_the_first_file_counts_where_two_processes_wrote(tmp_path: Path) -> None:
    one, two = Criterion(text="one"), Criterion(text="two")
    RubricShelf(tmp_path, {}).keep({"p": ((one,), ""), "q": ((one,), "")})
    late = RubricShelf(tmp_path / "other", {})
    late.keep({"p": ((two,), "")})
    [file] = (tmp_path / "other").glob("*.json")
    for name, expected in (("0.json", two), ("z.json", one)):
        (tmp_path / name).write_text(file.read_text())
        assert RubricShelf(tmp_path, {}).of("p") == (expected,)
        (tmp_path / name).unlink()


def test_who_comes_late_goes_by_what_is_there(tmp_path: Path) -> None:
    one, two = Criterion(text="one"), Criterion(text="two")
    early, late = RubricShelf(tmp_path, {}), RubricShelf(tmp_path, {})
    assert late.of("p") is None
    early.keep({"p": ((one,), "")})
    late.keep({"p": ((two,), "")})
    assert late.of("p") == early.of("p") == (one,)


def test_a_damaged_shelf_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"rubrics": {"p": {"criteria": []}}}')
    with pytest.raises(PrefloopError, match=r"a\.json: is damaged .*delete it"):
        RubricShelf(tmp_path, {}).of("p")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("I would rather not", "expected a JSON object"),
        ('{"criteria": []}', "empty list"),
        ('{"criteria": "x"}', "no list of criteria"),
        ('{"rubric": []}', "no list of criteria"),
        ('{"criteria": [{"weight": 1}]}', "criterion 1 has no text"),
        ('{"criteria": [{"text": "x", "text": "y"}]}', "conflicting values of 'text'"),
        ('{"criteria": [["text", "x"]]}', "criterion 1 is neither"),
        (json.dumps({"criteria": [str(n) for n in range(31)]}), "31 criteria, more than 30"),
    ],
)
def test_what_is_no_rubric_makes_invalid_votes_and_is_not_kept(
    tmp_path: Path, said: str, why: str
) -> None:
    writer, engine = ScriptedEngine(lambda _: completion(said)), ScriptedEngine(judges)
    [[vote]] = label(engine, writer, all_pairs("x", "y"), shelf=tmp_path / "shelf")
    assert vote.preference == "invalid"
    assert vote.completion is not None
    assert vote.completion.startswith("unwritten_rubric: ")
    assert why in vote.completion
    assert not engine.requests
    assert not list(tmp_path.glob("shelf/*"))
    assert vote.cost == 0.5  # the writing was paid for


def test_one_prompt_that_is_refused_takes_no_other_with_it() -> None:
    def script(request: Request) -> Completion:
        if "something x" in request.messages[0]["content"]:
            raise RequestRejected("context_overflow", "long")
        return writes(request)

    pairs = [*all_pairs("good", "poor", name="x"), *all_pairs("good", "poor", name="y")]
    [votes] = label(ScriptedEngine(judges), ScriptedEngine(script), pairs)
    assert [vote.preference for vote in votes] == ["invalid", "a"]
    assert votes[0].completion == "unwritten_rubric: context_overflow: long"


def test_an_answer_that_was_cut_off_is_none() -> None:
    whole = '{"criteria": ["x"]}'
    assert read_criteria(completion(whole)) == (Criterion(text="x"),)
    with pytest.raises(ValueError, match="cut off"):
        read_criteria(cut_off(whole[:-2]))


def test_who_writes_has_to_be_told_and_stays_the_same(tmp_path: Path) -> None:
    def config(**more: Any) -> JudgeLabeler:
        return JudgeLabeler(**{"judge": "rubric", "model": "m", "criteria": WRITTEN} | more)

    with pytest.raises(LabelerError, match="needs who writes its criteria"):
        build_labeler(config(), engine=ScriptedEngine(judges), seed=0)
    with pytest.raises(ValidationError, match="the policy changes"):
        config(criteria={"model": "policy"})
    (tmp_path / "judge.yaml").write_text("{kind: rubric, parser: token, max_tokens: 1}")
    (tmp_path / "prompt.jinja").write_text("{{ request }}{{ answer }}{{ criterion.text }}")
    with pytest.raises(LabelerError, match=r"put a criteria\.jinja into its folder"):
        build_labeler(config(judge=str(tmp_path)), engine=ScriptedEngine(judges), seed=0)
    assert config().asked == (("default", "m"), ("default", "writer"))
    assert config().models == ("m", "writer")
