"""IFEval's 25 instruction types, its strict and loose rules, and a verifier that goes by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefloop.data.errors import NothingCameOut
from prefloop.labelers.scorers.check_types import ConstraintError
from prefloop.labelers.scorers.ifeval import counting
from prefloop.labelers.scorers.ifeval.following import followed
from prefloop.labelers.scorers.ifeval.instructions import INSTRUCTIONS
from prefloop.labelers.scorers.ifeval.language import is_in
from prefloop.pipeline.run.run_dir import RunDir
from tests.helpers.paths import PUBLIC
from tests.helpers.runs import run_small, small_config
from tests.labelers.scorers.test_verifier import label, make_pair

ENGLISH = "the weather is nice today and we will go for a long walk in the park"
SPANISH = "El perro come en la cocina y después duerme toda la tarde en el jardín."

CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    # Id, arguments, answers that follow it, answers that do not.
    (
        "keywords:existence",
        {"keywords": ["war", "peace"]},
        ["PEACE after war", "warm, peaceful"],  # parts of words count
        ["war only", "w a r and peace"],
    ),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, "relation": "at least"},
        ["Cat, cat.", "concatenate a cat"],
        ["one cat", "dogs"],
    ),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, "relation": "less than"},
        ["one cat"],
        ["cat cat"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock", "stone"]},
        ["rocket and stones"],  # whole words only
        ["a ROCK!", "stone"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "T", "let_frequency": 3, "let_relation": "at least"},
        ["Tiny toT"],
        ["tot"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "!", "let_frequency": 2, "let_relation": "less than"},
        ["Oh!"],
        ["Oh!!"],
    ),
    ("language:response_language", {"language": "es"}, [SPANISH, "12345"], [ENGLISH]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        ["One. Two! Three?"],
        ["Dr. Smith met Mr. Jones. They went to Washington, D.C. by car."],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
        ["It costs 3.5 francs"],
        ["One. Two."],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "at least"},
        ["isn't it so", "a-b-c d"],  # isn't is two words
        ["one two three"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["one\n***\ntwo", "***\none\n\nstill one ***two***"],
        ["one\n\ntwo", "one\n***\n***\ntwo", "one"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"},
        ["One.\n\n\"weekend's here", "One.\n\nWEEKEND, yes"],
        [
            "Weekend.\n\nTwo.",
            "One.\n\nWeekends.",
            "One.\n\nWeekend.\n\nThree.",
            "One.\n\n\n\nWeekend.",  # the second part is blank, though not counted
        ],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] [ ]", "[a] [b] [c]"],
        ["[name]", "[a\nb] [c]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye. p. s. more", "P.S."],
        ["PS more", "p.p.s"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["p. p.s more"],
        ["P.S. more"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* one\n- two", "  - one\n-two", "-\n*one", "*\n\n \n\n* two" + "\n" * 30_000],
        ["* one", "* one\n* two\n* three", "** one\n** two"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "So: My answer is maybe. That is all."],
        ["yes", "my answer is yes."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and **two**", "*a* *b*"],
        ["*one*", "** **", "*a\nb* c"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1 a SECTION2 b", "SECTION 1\nSECTION 2\nSECTION 3"],
        ["Section 1 Section 2", "SECTION 1 SECTION two"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1, null]}', '```json\n{"a": 1}\n```', "```\n3\n```"],
        ["{'a': 1}", 'Here: {"a": 1}', "[" * 100_000],
    ),
    (
        "detectable_format:title",
        {},
        ["<<A poem>>", "text <<< x >>"],
        ["<< >>", "<<a\nb>>", "<A poem>"],
    ),
    (
        "combination:two_responses",
        {},
        ["one ****** two", "******\none\n******\ntwo"],
        ["one", "one ****** one ", "a ****** b ****** c", "one ************ two"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a poem. "},
        ["WRITE A POEM. Roses", " write a poem."],
        ["Sure. Write a poem."],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Any questions?"},
        ['"Yes. any questions?"', "Any questions? \n"],
        ["Any questions? No."],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 3, "capital_relation": "at least"},
        ["I AM WELL-KNOWN.", "NASA IBM U.S."],
        ["I AM loud", "WELL-KNOWN TOO"],
    ),
    (
        "change_case:english_capital",
        {},
        [ENGLISH.upper()],
        [ENGLISH, "12345"],  # no letters: not upper
    ),
    ("change_case:english_lowercase", {}, [ENGLISH], [ENGLISH.capitalize(), SPANISH.lower()]),
    ("punctuation:no_comma", {}, ["one; two"], ["one, two"]),
    ("startend:quotation", {}, ['"yes"', ' "" '], ['"', "yes", '"yes" he said', "\u201cyes\u201d"]),
]


def row(*instructions: tuple[str, Any]) -> dict[str, Any]:
    return {
        "instruction_id_list": [name for name, _ in instructions],
        "kwargs": [arguments for _, arguments in instructions],
    }


def test_every_type_has_a_case_and_there_are_25() -> None:
    assert {name for name, *_ in CASES} == INSTRUCTIONS.described().keys()
    assert len(INSTRUCTIONS.described()) == 25


@pytest.mark.parametrize(
    ("name", "arguments", "text", "follows"),
    [
        pytest.param(name, arguments, text, follows, id=f"{name}-{follows}-{number}")
        for name, arguments, good, bad in CASES
        for follows, texts in ((True, good), (False, bad))
        for number, text in enumerate(texts)
    ],
)
def test_a_type(name: str, arguments: dict[str, Any], text: str, *, follows: bool) -> None:
    assert followed(row((name, arguments)), text) == [follows]


def test_all_of_ifevals_own_prompts_can_be_checked() -> None:
    lines = (PUBLIC / "ifeval" / "input_data.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 541
    marks = [mark for line in lines for mark in followed(json.loads(line), "Yes. No.", "strict")]
    assert len(marks) == 834
    assert 0 < sum(marks) < len(marks)


@pytest.mark.parametrize(
    ("text", "strict", "loose"),
    [
        ("My answer, as asked:\nno comma here", False, True),  # without the first line
        ("no comma here\nI hope, this helps", False, True),  # without the last
        ("Well, so:\nno comma here\nBye, then", False, True),  # without both
        ("a, b\nc, d\ne, f", False, False),
        ("", False, False),
        (" \n ", False, False),
    ],
)
def test_strict_and_loose(text: str, *, strict: bool, loose: bool) -> None:
    asked = row(("punctuation:no_comma", {}))
    assert followed(asked, text, "strict") == [strict]
    assert followed(asked, text, "loose") == [loose]


def test_loose_takes_asterisks_away_and_marks_each_instruction_by_itself() -> None:
    asked = row(
        ("startend:end_checker", {"end_phrase": "the end"}),
        ("detectable_format:number_highlighted_sections", {"num_highlights": 1}),
        ("punctuation:no_comma", {}),
    )
    text = "a, b\n**the end**"
    assert followed(asked, text, "strict") == [False, True, False]
    assert followed(asked, text, "loose") == [True, True, True]


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "no list of ids 'instruction_id_list'"),
        ({"instruction_id_list": "punctuation:no_comma", "kwargs": [{}]}, "no list of ids"),
        ({"instruction_id_list": ["punctuation:no_comma"]}, "'kwargs' must have one object"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}, {}]}, "one object"),
        (row(("punctuation:no_comma", "none")), "punctuation:no_comma: its 'kwargs' are no object"),
        (row(("punctuation:no_commas", {})), "did you mean 'punctuation:no_comma'"),
        (row(("keywords:existence", {})), "parameter 'keywords' is missing"),
        (row(("keywords:existence", {"keywords": "war"})), "must be a list of strings"),
        (row(("keywords:existence", {"keywords": []})), "the list of words is empty"),
        (row(("keywords:existence", {"keywords": ["yes", "C("]})), "is not a regular expression"),
        (row(("keywords:existence", {"keywords": ["(a|a)*$"]})), "takes more than"),
        (row(("language:response_language", {"language": "la"})), "'la' cannot be told"),
        (
            row(("length_constraints:number_words", {"num_words": 3, "relation": "at most"})),
            "a relation is 'less than' or 'at least', not 'at most'",
        ),
        (
            row(("length_constraints:number_words", {"num_words": -3, "relation": "at least"})),
            "is negative: -3",
        ),
        (
            row(("keywords:letter_frequency",
                 {"letter": "ab", "let_frequency": 3, "let_relation": "at least"})),
            "a letter is one character",
        ),
        (
            row(("length_constraints:nth_paragraph_first_word",
                 {"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "a"})),
            "no paragraph 2 among 1",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_no_mark(metadata: dict[str, Any], reason: str) -> None:
    """It is an error whatever the answer is, and a vote that is invalid rather than lost."""
    slow = "a" * 40 + "b"
    for text in (slow, *(() if "takes more" in reason else ("", "no yes"))):
        with pytest.raises(ConstraintError) as error:
            followed(metadata, text)
        assert reason in str(error.value)
    pair = make_pair(slow, "a" + slow, metadata)
    [vote] = label([pair], constraints="ifeval")
    assert vote.preference == "invalid"
    assert reason in (vote.completion or "")


def test_keywords_are_patterns_as_in_the_official_code() -> None:
    asked = row(
        ("keywords:frequency", {"keyword": "colou?r", "frequency": 2, "relation": "at least"})
    )
    assert followed(asked, "Color and COLOUR") == [True]
    assert followed(asked, "color") == [False]


def test_arguments_of_a_table_have_nulls_and_floats() -> None:
    """As Parquet, pandas and the hub's copy of IFEval give them."""
    given = {"num_words": 2.0, "relation": "at least", "keywords": None, "num_bullets": None}
    assert followed(row(("length_constraints:number_words", given)), "two words") == [True]
    assert followed(row(("punctuation:no_comma", None)), "two words") == [True]


def test_sentences_are_split_as_nltk_splits_them() -> None:
    """Where the package's own splitter differs from NLTK's, NLTK's counts."""
    text = "Is there anything else?\n\n\n!*\nTHIS IS LOUD. It is.\nSection 1\n, "
    assert counting.sentence_count(text) == 5
    assert counting.sentence_count("He lives in the U.S. and likes Dr. Who. Yes.") == 2
    assert counting.sentence_count("") == 0


def test_a_language_is_told_alike_each_time() -> None:
    short = "Hola amigo hello"
    assert len({is_in(short, "es") for _ in range(30)}) == 1
    assert is_in("...", "en") is None


def test_a_verifier_prefers_the_answer_that_follows_more() -> None:
    asked = row(("punctuation:no_comma", {}), ("startend:quotation", {}))
    pairs = [make_pair('"one two"', "one two", asked), make_pair('Sure, here:\n"a"', "b, c", asked)]
    strict, loose = (label(pairs, constraints="ifeval", mode=mode) for mode in ("strict", "loose"))
    assert [(v.preference, v.score_a, v.score_b) for v in strict] == [("a", 1, 0.5), ("tie", 0, 0)]
    assert [(v.preference, v.score_a, v.score_b) for v in loose] == [("a", 1, 0.5), ("a", 1, 0)]


def test_prompts_of_a_user_keep_both_columns(tmp_path: Path) -> None:
    """From a file to the verifier's votes, through a run."""
    asked = {"amber": {"num_words": 3}, "birch": {"num_words": 200}}
    rows = [
        {
            "prompt": f"Say something about {what}.",
            **row(("length_constraints:number_words", {"relation": "less than", **number})),
        }
        for what, number in asked.items()
    ]
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    config = small_config(
        prompts={"train": {"path": str(source)}, "heldout_share": 0.0},
        sample={"n": 2, "max_tokens": 16},
        label={"labelers": [{"type": "verifier", "constraints": "ifeval", "mode": "loose"}]},
    )
    with pytest.raises(NothingCameOut):  # both answers always follow, or neither
        run_small(tmp_path / "run", config)
    votes = RunDir(tmp_path / "run").round(0).votes.table().to_pylist()
    assert sorted((vote["score_a"], vote["score_b"]) for vote in votes) == [(0, 0), (1, 1)]
