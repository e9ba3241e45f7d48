import asyncio
import math
import threading
from pathlib import Path

import pytest

from prefloop.data.hashing import content_id, pair_id
from prefloop.labelers.base import Answer, LabelerError, Pair, Vote
from prefloop.labelers.config import ReferenceLabeler, VerifierLabeler
from prefloop.labelers.factory import build_labeler
from prefloop.labelers.scorers.verifier import load_function

WORD = {"type": "includes_word", "word": "fox"}
SHOUT = {"type": "ends_with", "suffix": "!"}
CALLS: list[str] = []


def make_pair(a: str, b: str, metadata: dict | None = None, origins: str = "ss") -> Pair:
    prompt = content_id("prompt")
    names = {"s": "sampled", "r": "reference"}
    answers = [
        Answer(content_id(prompt, text, origin), text, len(text.split()), names[origin])
        for text, origin in zip((a, b), origins, strict=True)
    ]
    return Pair(
        pair_id=pair_id(prompt, *(answer.candidate_id for answer in answers)),
        prompt_id=prompt,
        round=3,
        messages=({"role": "user", "content": "Write about a fox."},),
        reference="ref",
        metadata={} if metadata is None else metadata,
        a=answers[0],
        b=answers[1],
    )


def label(pairs: list[Pair], **config: object) -> list[Vote]:
    verifier = build_labeler(VerifierLabeler(**config), engine=None, seed=0)
    return asyncio.run(verifier.label(pairs, block="b"))


def counted_length(text: str, *, messages, reference, metadata) -> float:
    assert messages[0]["role"] == "user"
    assert reference == "ref"
    CALLS.append(text)
    return len(text)


def misbehaving(text: str, **_: object) -> object:
    if text == "raise":
        raise KeyError("no such thing")
    return {"nan": math.nan, "inf": math.inf, "none": None, "word": "high"}.get(text, True)


@pytest.mark.parametrize(
    ("a", "b", "preference", "p_a", "scores"),
    [
        ("A fox!", "A fox.", "a", 1.0, (1.0, 0.5)),
        ("A dog.", "A fox.", "b", 0.0, (0.0, 0.5)),
        ("A dog!", "A fox.", "tie", 0.5, (0.5, 0.5)),
    ],
)
def test_the_constraints_of_the_prompt_decide(a, b, preference, p_a, scores) -> None:
    [vote] = label([make_pair(a, b, {"constraints": [WORD, SHOUT]})])
    assert (vote.preference, vote.p_a, (vote.score_a, vote.score_b)) == (preference, p_a, scores)
    assert (vote.order, vote.labeler, vote.round, vote.cost) == ("none", "verifier", 3, 0.0)


def test_swapping_the_answers_flips_the_vote() -> None:
    """ANCHORS 1."""
    metadata = {"constraints": [WORD]}
    [one, other] = label([make_pair("fox", "dog", metadata), make_pair("dog", "fox", metadata)])
    assert (one.preference, other.preference) == ("a", "b")


def test_each_answer_is_scored_once_however_many_pairs_it_is_in() -> None:
    CALLS.clear()
    texts = ["a", "bb", "ccc", "dddd"]
    pairs = [make_pair(x, y) for i, x in enumerate(texts) for y in texts[i + 1 :]]
    votes = label(pairs, function=f"{__name__}:counted_length", name="length")
    assert sorted(CALLS) == texts
    assert [vote.pair_id for vote in votes] == [pair.pair_id for pair in pairs]
    assert {vote.preference for vote in votes} == {"b"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise", "KeyError: 'no such thing'"),
        ("nan", "not a finite number"),
        ("inf", "not a finite number"),
        ("none", "TypeError"),
        ("word", "ValueError"),
    ],
)
def test_an_answer_that_cannot_be_scored_is_invalid_and_alone(text: str, reason: str) -> None:
    """ANCHORS 3."""
    pairs = [make_pair("x", "y"), make_pair("x", text), make_pair("y", "z")]
    votes = label(pairs, function=f"{__name__}:misbehaving")
    assert [vote.preference for vote in votes] == ["tie", "invalid", "tie"]
    assert reason in (votes[1].completion or "")
    assert (votes[1].p_a, votes[1].score_a, votes[1].score_b) == (None, 1.0, None)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "constraints_column"),
        ({"constraints": "includes_word"}, "constraints_column"),
        ({"constraints": [{"type": "no_such_type"}]}, "unknown constraint type"),
    ],
)
def test_constraints_that_cannot_be_checked_are_invalid(metadata: dict, reason: str) -> None:
    [vote] = label([make_pair("a", "b", metadata)])
    assert vote.preference == "invalid"
    assert reason in (vote.completion or "")


def test_differences_up_to_the_gap_are_ties() -> None:
    metadata = {"rules": [WORD, SHOUT, {"type": "starts_with", "prefix": "A"}]}
    pairs = [make_pair("A fox!", "A fox", metadata), make_pair("A fox!", "fox", metadata)]
    votes = label(pairs, constraints_column="rules", min_gap=1 / 3)
    assert [vote.preference for vote in votes] == ["tie", "a"]


def test_calls_of_several_blocks_never_run_the_function_at_the_same_time() -> None:
    config = VerifierLabeler(function=f"{__name__}:never_twice_at_once")
    verifier = build_labeler(config, engine=None, seed=0)

    async def blocks() -> list[list[Vote]]:
        pairs = [make_pair(f"a{i}", f"b{i}") for i in range(20)]
        return await asyncio.gather(*(verifier.label(pairs, block=str(i)) for i in range(4)))

    votes = [vote for block in asyncio.run(blocks()) for vote in block]
    assert {vote.preference for vote in votes} == {"tie"}


_BUSY = threading.Lock()


def never_twice_at_once(text: str, **_: object) -> float:
    if not _BUSY.acquire(blocking=False):
        raise RuntimeError("entered twice")
    try:
        return float(sum(range(2000)) > 0)
    finally:
        _BUSY.release()


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("no_such_module_here:f", "ModuleNotFoundError"),
        ("math:no_such_function", "no function 'no_such_function'"),
        ("math:pi", "no function 'pi'"),
    ],
)
def test_a_function_that_is_not_there_is_refused_in_one_line(path: str, problem: str) -> None:
    with pytest.raises(LabelerError, match=problem) as error:
        build_labeler(VerifierLabeler(function=path), engine=None, seed=0)
    assert "\n" not in str(error.value)


def test_modules_of_the_working_directory_are_found(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_checks_for_test.py").write_text(
        "def short(text, **_):\n    return -len(text)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert load_function("my_checks_for_test:short")("abc") == -3


@pytest.mark.parametrize("path", ["module", ":f", "module:", "a:b:c", "a b:c"])
def test_a_function_is_written_module_colon_name(path: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        VerifierLabeler(function=path)


def test_the_reference_is_preferred_and_abstains_elsewhere() -> None:
    labeler = build_labeler(ReferenceLabeler(), engine=None, seed=0)
    pairs = [make_pair("x", "y", origins=origins) for origins in ("ss", "rs", "sr", "rr")]
    votes = asyncio.run(labeler.label(pairs, block="b"))
    assert [(vote.pair_id, vote.preference, vote.p_a) for vote in votes] == [
        (pairs[1].pair_id, "a", 1.0),
        (pairs[2].pair_id, "b", 0.0),
    ]


def test_a_judge_without_an_engine_is_refused() -> None:
    from prefloop.labelers.config import JudgeLabeler

    with pytest.raises(LabelerError, match="needs an engine"):
        build_labeler(JudgeLabeler(model="m"), engine=None, seed=0)
