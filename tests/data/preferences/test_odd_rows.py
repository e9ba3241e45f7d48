"""Rows whose plain reading would be wrong without a word: steps that are no answers, conversations
in the place of answers, calls of tools, scales, lists and missing values written as text."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefloop.data.config import Columns, PromptsConfig, PromptSource
from prefloop.data.conversations.conversation import plain
from prefloop.data.errors import InputError
from prefloop.data.preferences import parse_columns, parse_labels, read_preferences
from prefloop.data.preferences.answer_sets import AnswerSet
from prefloop.data.preferences.given import read_answer_sets
from prefloop.data.preferences.layouts import PreferenceColumns
from prefloop.data.preferences.ratings import as_number
from prefloop.data.prompts.evaluation_sets import read_evaluation_set
from prefloop.data.prompts.load import load_prompts
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.written import looks_like_list, written_list
from prefloop.training.inputs.rows import Dropped, pair_rows

Row = dict[str, Any]


def say(role: str, content: Any, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def write(folder: Path, rows: list[Row], form: str = "jsonl") -> Path:
    path = folder / f"data.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs_in(path: Path, columns: PreferenceColumns | None = None) -> tuple[list[Row], list[Row]]:
    pairs: list[Row] = []
    bad: list[Row] = []
    for batch in read_preferences(PromptSource(path=str(path)), columns=columns):
        pairs += batch.pairs.to_pylist()
        bad += batch.bad.to_pylist()
    return pairs, bad


def sets_in(path: Path) -> list[AnswerSet]:
    found = list(read_answer_sets(PromptSource(path=str(path))))
    assert not any(isinstance(one, BadRow) for one in found), found
    return [one for one in found if isinstance(one, AnswerSet)]


def prompts_in(path: Path, **columns: Any) -> tuple[list[Any], list[str]]:
    source = PromptSource(path=str(path), columns=Columns(**columns))
    tables = load_prompts(PromptsConfig(train=source, heldout_share=0.0), seed=0)
    return tables.train["messages"].to_pylist(), tables.quarantine["reason"].to_pylist()


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_steps_are_no_answers(tmp_path: Path, form: str) -> None:
    steps = {"prompt": "2+2?", "completions": ["Add.", "4."], "labels": [True, False]}
    path = write(tmp_path, [steps], form)
    with pytest.raises(InputError, match="steps of one answer"):
        list(read_answer_sets(PromptSource(path=str(path))))
    with pytest.raises(InputError, match="steps of one answer"):
        pairs_in(path)


CALLS = {
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"in": "Rome"}'}}],
    "function_call": {"name": "f", "arguments": '{"in": "Rome"}'},
}
CALL = '[{"name": "f", "arguments": {"in": "Rome"}}]'


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("key", list(CALLS))
@pytest.mark.parametrize("before", ["", "Let me look."])
def test_calls_are_part_of_an_answer(tmp_path: Path, form: str, key: str, before: str) -> None:
    asked = [say("user", "Weather?")]
    row = {
        "chosen": [*asked, say("assistant", before, **{key: CALLS[key]})],
        "rejected": [*asked, say("assistant", "Let me look.", **{key: None})],
    }
    [pair], bad = pairs_in(write(tmp_path, [row], form))
    assert not bad
    assert pair["chosen"] == (f"{before}\n{CALL}" if before else CALL)
    assert pair["rejected"] == "Let me look."


def test_calls_in_a_prompt_read_as_those_of_a_run(tmp_path: Path) -> None:
    asked = [
        say("user", "Weather?"),
        say("assistant", "Let me look.", function_call=CALLS["function_call"]),
        say("function", "", name="f"),
    ]
    path = write(tmp_path, [{"messages": asked, "chosen": "Sun.", "rejected": "Rain."}])
    [pair], _ = pairs_in(path)
    [prompt], _ = prompts_in(path)
    assert pair["prompt"] == prompt
    assert prompt[1]["content"] == f"Let me look.\n{CALL}"


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_number_is_no_text_in_any_format(tmp_path: Path, form: str) -> None:
    row = {"prompt": "2+2?", "chosen": [say("assistant", 4)], "rejected": [say("assistant", 5)]}
    pairs, bad = pairs_in(write(tmp_path, [row], form))
    assert (pairs, [one["reason"] for one in bad]) == ([], ["bad_messages"])


def test_conversations_as_lists_of_texts_are_no_lists_of_answers(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hi?", "chosen": ["Hi? ", "Yes."], "rejected": ["Hi?", "No."]},
        {"prompt": "Hi?", "chosen": ["Hi?"], "rejected": ["No.", "Hm."]},
    ]
    pairs, bad = pairs_in(write(tmp_path, rows))
    assert [one["row"] for one in pairs] == [2]
    assert [(one["row"], one["reason"]) for one in bad] == [(1, "bad_messages")]


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ([{"system": "Be brief.", "chosen": [say("user", "q"), say("assistant", "a")],
           "rejected": [say("user", "q"), say("assistant", "b")]}], None),
        ([{"system": "Be brief.", "prompt": None,
           "rejected": [say("user", "q"), say("assistant", "b")],
           "chosen": [say("user", "q"), say("assistant", "a")]}], None),
        ([{"system": "Be brief.", "question": "q", "yes": "a", "no": "b"}],
         "prompt=question,chosen=yes,rejected=no"),
        ([{"system": "Be brief.", "q": "q", "x": "a", "y": "b", "best": "a"}],
         "prompt=q,a=x,b=y,label=best"),
    ],
)  # fmt: skip
def test_a_column_of_system_prompts_is_never_lost(
    tmp_path: Path, rows: list[Row], columns: str | None
) -> None:
    own = parse_columns(columns) if columns else None
    [pair], bad = pairs_in(write(tmp_path, rows), own)
    assert not bad
    assert pair["prompt"] == [say("system", "Be brief."), say("user", "q")]
    assert (pair["chosen"], pair["rejected"]) == ("a", "b")


@pytest.mark.parametrize("values", [[1, 2, 4, 7], [1, 3], [-2, -1, 0, 1, 2], ["1", "2", "5"]])
def test_a_scale_is_not_taken_for_first_and_second(tmp_path: Path, values: list[Any]) -> None:
    rows = [
        {"prompt": f"q{value}", "response_a": "x", "response_b": "y", "preference": value}
        for value in values
    ]
    path = write(tmp_path, rows)
    with pytest.raises(InputError, match="scale"):
        pairs_in(path)
    named = PreferenceColumns(labels=parse_labels("a=1|2|-1|-2,b=3|5|7,tie=4|0"))
    assert pairs_in(path, named)[0]


WRITTEN = {
    "json": json.dumps,
    "python": str,
    "numpy objects": lambda value: str(np.array(value, dtype=object)),
}


@pytest.mark.parametrize("how", ["json", "python"])
@pytest.mark.parametrize("named", [False, True])
def test_lists_of_answers_in_the_cells_of_a_table(tmp_path: Path, how: str, named: bool) -> None:
    answers: list[Any] = ["good, 'x'", "bad\nb"]
    row: Row = {"prompt": "q", "completions": answers, "ratings": [2, 1.5]}
    if named:
        row = {"prompt": "q", "completions": [{"text": "good, 'x'", "score": 2},
                                              {"text": "bad\nb", "score": 1.5}]}  # fmt: skip
    cells = {
        name: value if name == "prompt" else WRITTEN[how](value) for name, value in row.items()
    }
    path = write(tmp_path, [cells], "csv")
    [pair], bad = pairs_in(path)
    assert not bad
    assert (pair["chosen"], pair["rejected"]) == ("good, 'x'", "bad\nb")
    [found] = sets_in(path)
    assert [(one.text, one.rating) for one in found.answers] == [("good, 'x'", 2), ("bad\nb", 1.5)]


def test_a_list_that_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    # Python joins texts that stand side by side.
    row = {"prompt": "q", "completions": WRITTEN["numpy objects"](["a", "b"]), "ratings": "[1 2]"}
    path = write(tmp_path, [row], "csv")
    assert [one["reason"] for one in pairs_in(path)[1]] == ["written_list"]
    [found] = read_answer_sets(PromptSource(path=str(path)))
    assert isinstance(found, BadRow)
    assert found.reason == "written_list"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(max_size=8), min_size=1, max_size=4),
    st.sampled_from(sorted(WRITTEN)),
)
def test_a_list_of_texts_is_read_as_it_was_or_refused(texts: list[str], how: str) -> None:
    text = WRITTEN[how](texts)
    assert looks_like_list(text)
    try:
        found = written_list(text)
    except ValueError:
        assert how != "json"
    else:
        assert found == texts


@pytest.mark.parametrize(
    "ranking", [[2, 3, 1], [3, 1, 2], [1, 2, 0], ["2", "3", "1"], [2.0, 3.0, 1.0]]
)
def test_ranks_or_an_order_is_asked_for(tmp_path: Path, ranking: list[Any]) -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c"], "ranking": ranking}
    path = write(tmp_path, [row])
    assert [one["reason"] for one in pairs_in(path)[1]] == ["ambiguous_ranking"]
    [pair], _ = pairs_in(path, parse_columns("prompt=prompt,answers=responses,ranks=ranking"))
    best = min(range(3), key=lambda place: float(ranking[place]))
    assert pair["chosen"] == "abc"[best]
    [named], _ = pairs_in(write(tmp_path, [{**row, "ranks": ranking}]))
    assert named["chosen"] == "abc"[best]


@pytest.mark.parametrize("ranking", [[2, 1, 3], [1, 2, 3], [1, 1, 2], [0, 2, 1], [5, 7, 1]])
def test_a_ranking_that_says_the_same_both_ways_is_read(tmp_path: Path, ranking: list[Any]) -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c"], "ranking": ranking}
    [pair], bad = pairs_in(write(tmp_path, [row]))
    assert not bad
    assert pair["chosen"] == "abc"[ranking.index(min(ranking))]


def test_ratings_that_are_no_numbers_are_heard_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[Row] = [
        {"prompt": "q", "responses": ["a", "b"], "scores": ["4/5", "5/5"]},
        {"prompt": "r", "responses": ["a", "b"], "scores": [None, "N/A"]},
        {"prompt": "s", "responses": ["a", "b"], "scores": ["4.5", 3]},
    ]
    with caplog.at_level(logging.WARNING):
        found = sets_in(write(tmp_path, rows))
    assert [[one.rating for one in each.answers] for each in found] == [
        [None, None],
        [None, None],
        [4.5, 3],
    ]
    [said] = [one.getMessage() for one in caplog.records]
    assert "1 rows have ratings in 'scores' that are no numbers ('4/5')" in said


def test_python_s_own_numbers_are_no_ratings() -> None:
    assert [as_number(one) for one in ("1_0", "1e1", " 5 ", "nan", True)] == [
        None,
        10,
        5,
        None,
        None,
    ]


LINES = "Human: a\nAssistant: b\nHuman: c\nAssistant:"


@pytest.mark.parametrize("text", [LINES, LINES.replace("\n", "\n\n"), LINES.replace("\n", "\r\n"),
                                  LINES.replace("\n", "\r\n\r\n"), "\n" + LINES])  # fmt: skip
def test_transcripts_of_any_line_ends(tmp_path: Path, text: str) -> None:
    turns = [say("user", "a"), say("assistant", "b"), say("user", "c")]
    path = write(tmp_path, [{"prompt": text, "chosen": "d", "rejected": "e"}])
    assert prompts_in(path) == ([turns], [])
    assert [one["prompt"] for one in pairs_in(path)[0]] == [turns]


def test_lines_that_are_turns_or_quotations_are_refused(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Human: Go on:\nAssistant: a\nAssistant: b"},
        {"prompt": "Human: Go on:\nHuman: a\n\nAssistant: b\n\nHuman: c"},
        {"prompt": "Human: One line.\nAnother."},
    ]
    kept, bad = prompts_in(write(tmp_path, rows))
    assert bad == ["bad_messages"]
    assert [one[0]["content"] for one in kept] == ["Go on:\nHuman: a", "One line.\nAnother."]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("word", ["nan", "None", " NULL ", "<NA>", "N/A"])
def test_a_word_for_a_missing_value_is_no_prompt(tmp_path: Path, form: str, word: str) -> None:
    rows = [
        {"prompt": word, "chosen": "a", "rejected": "b"},
        {"prompt": f"What is {word}?", "chosen": "None", "rejected": "b"},
    ]
    path = write(tmp_path, rows, form)
    kept, bad = prompts_in(path)
    assert ([one[0]["content"] for one in kept], bad) == ([f"What is {word}?"], ["null"])
    pairs, refused = pairs_in(path)
    assert [one["row"] for one in pairs] == [2 if form != "csv" else 3]
    assert [one["reason"] for one in refused] == ["null"]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_conversation_beside_such_a_word_is_read(tmp_path: Path, form: str) -> None:
    row = {
        "prompt": "None",
        "chosen": [say("user", "q"), say("assistant", "a")],
        "rejected": [say("user", "q"), say("assistant", "b")],
    }
    [pair], bad = pairs_in(write(tmp_path, [row], form))
    assert not bad
    assert pair["prompt"] == [say("user", "q")]


def test_a_prompt_that_is_a_list_of_texts_is_refused(tmp_path: Path) -> None:
    rows = [
        {"prompt": '["Hi?", "And?"]', "chosen": "a", "rejected": "b"},
        {"prompt": "[1, 2] is what?", "chosen": '["a"]', "rejected": "b"},
    ]
    path = write(tmp_path, rows)
    kept, bad = prompts_in(path)
    assert (len(kept), bad) == (1, ["written_turns"])
    pairs, refused = pairs_in(path)
    assert [one["chosen"] for one in pairs] == ['["a"]']
    assert [one["reason"] for one in refused] == ["written_turns"]


@pytest.mark.parametrize("column", ["turns", "prompt"])
def test_an_evaluation_set_may_have_both(tmp_path: Path, column: str) -> None:
    rows = [
        {column: '["Hi?", "And?"]'},
        {column: "['Who?', 'Why?']"},
        {column: "None"},
        {column: "[1, 2] is what?"},
    ]
    found = read_evaluation_set(PromptSource(path=str(write(tmp_path, rows, "csv"))))
    assert [list(one.turns) for one in found] == [
        ["Hi?", "And?"],
        ["Who?", "Why?"],
        ["None"],
        ["[1, 2] is what?"],
    ]


@pytest.mark.parametrize(
    ("prompt", "odd"),
    [
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", True),
        ("<s>[INST] hi [/INST]", True),
        ("<start_of_turn>user\nhi", True),
        ("<｜User｜>hi", True),
        ("USER: hi ASSISTANT:", True),
        ("### Instruction:\nhi\n\n### Response:", True),
        ("What does <|im_start|> mean?", False),
        ("Explain [INST].", False),
        ("Who is the assistant?", False),
        ("hi", False),
    ],
)
def test_a_rendered_template_in_a_prompt_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, prompt: str, odd: bool
) -> None:
    with caplog.at_level(logging.WARNING):
        prompts_in(write(tmp_path, [{"prompt": prompt}]))
    said = [one.getMessage() for one in caplog.records]
    assert len(said) == odd
    assert all("1 of 1 prompts hold a chat template's marks" in one for one in said)


@pytest.mark.parametrize("columns", [{"prompt": "{{ ask }}\n\n{{ input }}"},
                                     {"prompt": "ask", "reference": "input"}])  # fmt: skip
def test_a_word_for_a_missing_value_elsewhere_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, columns: dict[str, str]
) -> None:
    rows = [{"ask": f"Sum up {value}.", "input": value} for value in ("nan", "text", "")]
    with caplog.at_level(logging.WARNING):
        prompts_in(write(tmp_path, rows), **columns)
    [said] = [one.getMessage() for one in caplog.records]
    assert "the column 'input' is the word 'nan' in 1 of 3 rows" in said


@pytest.mark.parametrize("word", ["nan", "None", "NULL"])
def test_such_a_word_is_no_system_prompt(tmp_path: Path, word: str) -> None:
    row = {"system": word, "prompt": "q", "chosen": "a", "rejected": "b"}
    path = write(tmp_path, [row], "parquet")
    asked = [say("user", "q")]
    assert prompts_in(path, system="system") == ([asked], [])
    assert [one["prompt"] for one in pairs_in(path)[0]] == [asked]
    assert [plain(one.prompt) for one in pair_rows([path], Dropped())] == [asked]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(["None", "nan", " ", "\n", "\x1c", "a", '["x"]', "Human:",
                                 "Assistant:", "\r\n"]), min_size=1, max_size=5)
       .map("".join))  # fmt: skip
def test_odd_prompts_read_the_same_from_lines_and_tables(
    tmp_path_factory: pytest.TempPathFactory, prompt: str
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    rows = [{"prompt": prompt, "chosen": "a", "rejected": "b"}]
    found = [pairs_in(write(folder, rows, form)) for form in ("jsonl", "parquet")]
    read = [
        ([one["prompt"] for one in pairs], [one["reason"] for one in bad]) for pairs, bad in found
    ]
    assert read[0] == read[1]
