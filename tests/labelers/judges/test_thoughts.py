"""What a judge thought is no verdict, whatever marks the thought, in every parser."""

import json
from functools import partial

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefloop.labelers.base import votes_table
from prefloop.labelers.judges.folder import load_judge, shipped_judges
from prefloop.labelers.judges.rankings import read_ranking
from prefloop.labelers.judges.ratings import from_ratings_json
from prefloop.labelers.judges.reread import reread
from prefloop.labelers.judges.settings import RatingSettings, VerdictWords
from prefloop.labelers.judges.thoughts import UnfinishedThought, without_thought
from prefloop.labelers.judges.verdicts import from_json, from_text
from tests.helpers.judging import ScriptedEngine, all_pairs, completion, cut_off, label

AB = VerdictWords()
ONE = RatingSettings(kind="rating", parser="json", max_tokens=9, aspects={"x": "any"})

THOUGHTS = [
    ("<think>", "</think>"),
    ("<THINK>\n", "\n</THINK>\n\n"),
    ("< think >", "</ think >"),
    ('<think time="3">', "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<scratchpad>", "</scratchpad>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<unused94>thought\n", "<unused95>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("analysisWe see. ", "assistantfinal"),
]
# What each parser reads as the first answer, or as the other one.
PARSERS = {
    "text": (lambda s, cut: from_text(s, AB, cut=cut).preferred, "[[{}]]", ("A", "B")),
    "json": (
        lambda s, cut: from_json(s, AB, cut=cut).preferred, '{{"verdict": "{}"}}', ("A", "B"),
    ),
    "rating": (
        lambda s, cut: from_ratings_json(s, ONE, "length" if cut else "stop").score,
        '{{"x": {}}}', ("4", "2"),
    ),
    "listwise": (
        lambda s, cut: read_ranking(s, 2, "length" if cut else "stop")[0],
        '{{"ranking": [{}]}}', ('"A", "B"', '"B", "A"'),
    ),
}  # fmt: skip


def read(parser: str, text: str, cut: bool = False) -> object:
    try:
        return PARSERS[parser][0](text, cut)
    except ValueError:
        return "invalid"


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(("begin", "end"), THOUGHTS)
def test_a_thought_is_never_read(parser: str, begin: str, end: str) -> None:
    _, form, (right, wrong) = PARSERS[parser]
    thought, verdict = f"At first {form.format(wrong)}, but", form.format(right)
    expected = read(parser, verdict)
    assert expected != "invalid"
    assert read(parser, f"{begin}{thought}{end}{verdict}") == expected
    for cut in (False, True):
        assert read(parser, f"{begin}{thought}", cut) == "invalid"
        assert read(parser, f"{begin}{form.format(wrong)}", cut) == "invalid"
    if "analysis" not in begin:
        assert read(parser, f"{begin}a{end}\n{begin}{form.format(wrong)}") == "invalid"
        # Or the template opened the thought.
        assert read(parser, f"{thought}{end}{verdict}") == expected
        assert read(parser, f"{form.format(wrong)}{end}\n\n{verdict}") == expected


@given(st.sampled_from(THOUGHTS), st.text(), st.text())
@example(THOUGHTS[0], "", "")
def test_nothing_of_a_thought_is_left(marks: tuple[str, str], thought: str, answer: str) -> None:
    begin, end = marks
    said = without_thought(f"{begin}{thought}{end}[[A]]")
    assert said.endswith("[[A]]") or end.strip() in thought
    with pytest.raises(UnfinishedThought):
        without_thought(f"<think>{thought.replace('</', '')}")


def test_a_bare_analysis_is_a_thought_where_it_ends_as_one() -> None:
    assert without_thought("analysisthe user asks. [[A]]?assistantfinal[[B]]") == "[[B]]"
    assert without_thought("analysisthe user asks. [[A]]") == "analysisthe user asks. [[A]]"


def test_words_about_thoughts_are_none() -> None:
    text = "Answer A shows its `<think>` and '</think>' marks. [[B]]"
    assert from_text(text, AB).preferred == "second"
    between = without_thought('<scratchpad>The first says "no"</scratchpad>"no" is wrong: [[B]]')
    assert between == '"no" is wrong: [[B]]'
    inside = json.dumps({"rationale": "A ends with </think> <think>", "verdict": "B"})
    assert from_json(inside, AB).preferred == "second"


def test_many_marks_are_read_in_linear_time() -> None:
    assert without_thought("<think></think>" * 20_000 + "x") == "x"
    assert without_thought("</think>" * 20_000).startswith("</think>")


@pytest.mark.parametrize(
    ("text", "preferred"),
    [
        ("So far [[A]] looks better, but the river", "invalid"),
        ("[[A]] because", "invalid"),
        ("<think>hm</think> [[A]], as", "invalid"),
        ("<think>hm</think> [[A]]", "first"),
        ("[[B]]", "second"),
        ("The better one is [[", "invalid"),
    ],
)
def test_text_that_was_cut_off_is_no_verdict(text: str, preferred: str) -> None:
    verdict = from_text(text, AB, cut=True)
    assert verdict.preferred == preferred
    assert preferred != "invalid" or "cut off" in (verdict.note or "")


@pytest.mark.parametrize(
    ("text", "preferred"),
    [
        ('{"rationale": "x", "verdict": "A"}', "first"),
        ('```json\n{"verdict": "A"}\n``', "first"),
        ('```json\n{"verdict": "A"}', "first"),
        ('{"verdict": "A"', "invalid"),
        ('{"verdict": "A"} {"verdict": "', "invalid"),
        ('{"verdict": "A", "rationale": "but', "invalid"),
        ("", "invalid"),
    ],
)
def test_json_that_was_cut_off_counts_where_it_is_whole(text: str, preferred: str) -> None:
    verdict = from_json(text, AB, cut=True)
    assert verdict.preferred == preferred
    assert preferred != "invalid" or "cut off" in (verdict.note or "")


@given(st.integers(min_value=0), st.sampled_from(["A", "B"]))
def test_no_beginning_of_an_answer_is_read_otherwise_than_the_whole(at: int, word: str) -> None:
    other = "B" if word == "A" else "A"
    whole = f"<think>[[{other}]]?</think>Not [[{other}]]: [[{word}]] is what I {word}"
    assert from_text(whole[: at % len(whole)], AB, cut=True).preferred == "invalid"
    whole = f'<think>{{"verdict": "{other}"}}</think> {{"rationale": "x", "verdict": "{word}"}}'
    for stop in range(len(whole)):
        assert from_json(whole[:stop], AB, cut=True).preferred == "invalid"


@pytest.mark.parametrize("name", shipped_judges())
def test_a_judge_that_was_cut_off_gives_no_vote_unless_it_is_read_from_the_first_token(
    name: str,
) -> None:
    judge = load_judge(name)
    text = '{"rationale": "I am going to say that'
    made = partial(completion, A=0.9) if judge.settings.kind == "pairwise" else completion
    if getattr(judge.settings, "parser", "json") == "token":
        word = "A" if judge.settings.kind == "pairwise" else "1"
        made = partial(completion, **{word: 0.9})
    engine = ScriptedEngine(lambda _: cut_off(text, made))
    votes = label(engine, *all_pairs("x", "y", reference="known"), judge=name)
    by_token = getattr(judge.settings, "parser", "json") == "token"
    assert {vote.preference == "invalid" for vote in votes} == {not by_token}
    table = votes_table(votes)
    assert "length" in table["finish_reason"][0].as_py()
    assert reread(table, judge, seed=0).equals(table)
