"""Ranked and rated lists of answers, in one row or over several, as pairs and as sets."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences import parse_columns, read_preferences
from prefloop.data.preferences.answer_sets import AnswerSet
from prefloop.data.preferences.given import read_answer_sets
from prefloop.data.utf8 import is_blank

Row = dict[str, Any]
ASKED = [{"role": "user", "content": "Hi?"}]
WHY = [*ASKED, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]


def write(path: Path, rows: list[Row]) -> Path:
    if path.suffix == ".parquet":
        names = dict.fromkeys(name for row in rows for name in row)
        pq.write_table(pa.table({one: [row.get(one) for row in rows] for one in names}), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


def pairs_in(path: Path, columns: str | None = None) -> tuple[list[Row], list[Row], int, int]:
    """Pairs, bad rows, answers left out, and rows read."""
    own = parse_columns(columns) if columns else None
    batches = list(read_preferences(PromptSource(path=str(path)), columns=own))
    return (
        [row for one in batches for row in one.pairs.to_pylist()],
        [row for one in batches for row in one.bad.to_pylist()],
        sum(int(one.left_out.sum()) for one in batches),
        sum(one.rows for one in batches),
    )


def sets_in(path: Path) -> list[AnswerSet]:
    found = list(read_answer_sets(PromptSource(path=str(path))))
    assert all(isinstance(one, AnswerSet) for one in found), found
    return [one for one in found if isinstance(one, AnswerSet)]


def say(text: str) -> Row:
    return {"role": "assistant", "content": text}


LISTS: dict[str, Row] = {
    "distilabel": {"instruction": "Hi?", "generations": ["Er.", "Yes.", "No."],
                   "generation_models": ["m", "best", "worst"], "ratings": [3, 5, 1]},
    "distilabel, ratings as text": {"instruction": "Hi?", "generations": ["Er.", "Yes.", "No."],
                                    "model_names": ["m", "best", "worst"],
                                    "ratings": ["3", "5", "1"]},
    "PairRM": {"prompt": "Hi?", "candidates_completions": ["Er.", "Yes.", "No."],
               "candidate_policies": ["m", "best", "worst"], "ranks": [2, 1, 3]},
    "Nectar": {"prompt": "\n\nHuman: Hi?\n\nAssistant: ", "answers": [
        {"answer": "Er.", "model": "m", "rank": 2.0}, {"answer": "Yes.", "model": "best",
                                                       "rank": 1.0},
        {"answer": "No.", "model": "worst", "rank": 7.0}]},
    "NeMo-RL": {"context": ASKED, "completions": [
        {"rank": 1, "completion": [say("Er.")]}, {"rank": 0, "completion": [say("Yes.")]},
        {"rank": 2, "completion": [say("No.")]}]},
    "LLaMA-Factory": {"instruction": "Hi?", "input": "", "output": ["Yes.", "Er.", "No."]},
    "scores": {"prompt": "Hi?", "responses": ["Er.", "Yes.", "No."], "scores": [0.1, 0.5, -2.0]},
    "UltraFeedback": {"instruction": "Hi?", "completions": [
        {"response": "Er.", "model": "m", "annotations": {"help": {"Rating": "3"}}},
        {"response": "Yes.", "model": "best", "annotations": {"help": {"Rating": "5"}}},
        {"response": "No.", "model": "worst", "annotations": {"help": {"Rating": "1"}}}]},
    "StackExchange": {"question": "Hi?", "answers": [
        {"text": "Er.", "pm_score": 1}, {"text": "Yes.", "pm_score": 4},
        {"text": "No.", "pm_score": 0}]},
    "a pair beside its list": {
        "prompt": "Hi?", "chosen": [*ASKED, say("Yes.")], "rejected": [*ASKED, say("No.")],
        "generations": ["Er.", "Yes.", "No."], "ratings": [3.0, 5.0, 1.0]},
}  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("layout", LISTS, ids=str)
def test_lists_of_answers(tmp_path: Path, layout: str, ending: str) -> None:
    path = write(tmp_path / f"d.{ending}", [LISTS[layout]] * 2)
    pairs, bad, left_out, rows = pairs_in(path)
    found = [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in pairs]
    assert (found, bad, left_out, rows) == ([(ASKED, "Yes.", "No.")] * 2, [], 2, 2)
    one, _ = sets_in(path)
    by_rating = sorted(one.answers, key=lambda answer: -(answer.rating or 0.0))
    assert [answer.text for answer in by_rating] == ["Yes.", "Er.", "No."]
    assert one.prompt == ASKED
    if any(answer.model for answer in one.answers):
        assert [answer.model for answer in by_rating] == ["best", "m", "worst"]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_several_good_and_bad_answers(tmp_path: Path, ending: str) -> None:
    row = {"prompt": "Hi?", "chosen": ["Yes."], "rejected": ["No.", "Never.", "Nil."],
           "num_correct": 1, "models": ["a", "b", "c", "d"]}  # fmt: skip
    path = write(tmp_path / f"d.{ending}", [row])
    pairs, _, left_out, _ = pairs_in(path)
    assert (len(pairs), left_out) == (1, 2)
    [found] = sets_in(path)
    assert [(one.text, one.rating) for one in found.answers] == [
        ("Yes.", 1.0), ("No.", 0.0), ("Never.", 0.0), ("Nil.", 0.0),
    ]  # fmt: skip
    assert not found.ties  # bad answers are not said to be equally bad


HELPSTEER = [
    {"prompt": prompt, "response": text, "helpfulness": score, "verbosity": 2}
    for prompt, text, score in [("Hi?", "Er.", 2), ("Ho?", "Ho.", 1), ("Hi?", "Yes.", 4),
                                ("Hi?", "No.", 0)]
]  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_one_rated_answer_a_row(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"d.{ending}"
    if ending == "csv":
        lines = [",".join(map(str, row.values())) for row in HELPSTEER]
        path.write_text("\n".join([",".join(HELPSTEER[0]), *lines]))
    else:
        write(path, HELPSTEER)
    pairs, bad, left_out, rows = pairs_in(path)
    first = 2 if ending == "csv" else 1
    assert [(pair["row"], pair["chosen"], pair["rejected"]) for pair in pairs] == [
        (first + 2, "Yes.", "No.")
    ]
    assert ([one["reason"] for one in bad], left_out, rows) == (["single_answer"], 1, 4)
    hi, ho = sets_in(path)
    assert ([one.rating for one in hi.answers], hi.absolute) == ([2.0, 4.0, 0.0], True)
    assert len(ho.answers) == 1
    assert "helpfulness" not in json.loads(hi.metadata)


MESSAGES = [
    {"message_id": "4", "parent_id": "3", "text": "So.", "role": "assistant", "rank": None},
    {"message_id": "1", "parent_id": None, "text": "Hi?", "role": "prompter", "rank": None},
    {"message_id": "2", "parent_id": "1", "text": "Yes.", "role": "assistant", "rank": 0},
    {"message_id": "5", "parent_id": "1", "text": "No.", "role": "assistant", "rank": 2},
    {"message_id": "6", "parent_id": "1", "text": "Er.", "role": "assistant", "rank": 1},
    {"message_id": "3", "parent_id": "2", "text": "Why?", "role": "prompter", "rank": None},
    {"message_id": "7", "parent_id": "gone", "text": "x", "role": "assistant", "rank": 0},
]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_messages_of_trees(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"d.{ending}", MESSAGES)
    pairs, bad, left_out, rows = pairs_in(path)
    assert [(one["row"], one["chosen"], one["rejected"]) for one in pairs] == [(3, "Yes.", "No.")]
    assert [(one["row"], one["reason"]) for one in bad] == [(1, "single_answer"), (7, "no_parent")]
    assert (left_out, rows) == (1, 7)
    sets = [one for one in read_answer_sets(PromptSource(path=str(path)))
            if isinstance(one, AnswerSet)]  # fmt: skip
    assert [one.prompt for one in sets] == [WHY, ASKED]


def test_whole_trees(tmp_path: Path) -> None:
    def node(role: str, text: str, rank: int | None, *replies: Row) -> Row:
        return {"role": role, "text": text, "rank": rank, "replies": list(replies)}

    again = node("prompter", "Why?", None, node("assistant", "b", 1), node("assistant", "a", 0))
    answers = [node("assistant", "No.", 1), node("assistant", "Yes.", 0, again)]
    row = {"message_tree_id": "t", "tree_state": "ready",
           "prompt": node("prompter", "Hi?", None, *answers)}  # fmt: skip
    path = write(tmp_path / "d.jsonl", [row])
    pairs, bad, _, rows = pairs_in(path)
    assert [(one["prompt"], one["chosen"], one["rejected"]) for one in pairs] == [
        (ASKED, "Yes.", "No."), (WHY, "a", "b"),
    ]  # fmt: skip
    assert (bad, rows) == ([], 1)


def test_mixed_names_read_the_same_in_every_format(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."},
        {"instruction": "Hi?", "chosen": "Yes.", "rejected": "No.", "input": "Now."},
        {"question": "Hi?", "answer_a": "No.", "answer_b": "Yes.", "winner": "b"},
        {"prompt": "Hi?", "generations": ["Yes.", "No."], "ratings": [2, 1]},
        {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."},
    ]
    as_lines, as_table = (write(tmp_path / f"d.{end}", rows) for end in ("jsonl", "parquet"))
    for path in (as_lines, as_table):
        pairs, bad, *_ = pairs_in(path)
        assert bad == []
        assert [pair["row"] for pair in pairs] == [1, 2, 3, 4, 5]
        assert {(pair["chosen"], pair["rejected"]) for pair in pairs} == {("Yes.", "No.")}
        assert pairs[1]["prompt"][0]["content"] == "Hi?\n\nNow."


def test_earlier_turns_of_alpaca_rows_are_read(tmp_path: Path) -> None:
    row = {"instruction": "Why?", "input": "", "history": [["Hi?", "Yes."]], "chosen": "So.",
           "rejected": "No."}  # fmt: skip
    for ending in ("jsonl", "parquet"):
        [pair], _, _, _ = pairs_in(write(tmp_path / f"d.{ending}", [row]))
        assert pair["prompt"] == WHY
    _, [bad], _, _ = pairs_in(write(tmp_path / "bad.jsonl", [{**row, "history": "Hi? Yes."}]))
    assert (bad["field"], bad["reason"]) == ("history", "bad_messages")


def test_lists_can_be_named(tmp_path: Path) -> None:
    row = {"q": "Hi?", "said": ["No.", "Yes."], "place": [2, 1]}
    path = write(tmp_path / "d.jsonl", [row])
    [pair], _, _, _ = pairs_in(path, "prompt=q,answers=said,ranks=place")
    assert (pair["chosen"], pair["rejected"]) == ("Yes.", "No.")
    for wrong in ("answers=a,chosen=b,rejected=c", "ratings=a", "answers=a,ratings=b,ranks=c"):
        with pytest.raises(InputError, match="--columns"):
            parse_columns(wrong)


def test_ratings_that_do_not_fit_their_answers(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Hi?", "generations": ["a", "b"], "ratings": [1]},
        {"instruction": "Hi?", "generations": ["a", "b"], "ratings": [1, None]},
        {"instruction": "Hi?", "generations": ["a", "b"], "ratings": [1, 1]},
        {"instruction": "Hi?", "generations": ["a", ""], "ratings": [2, 1]},
    ]
    _, bad, _, _ = pairs_in(write(tmp_path / "d.jsonl", rows))
    assert [one["reason"] for one in bad] == [
        "missing_rating", "missing_rating", "tie", "empty_answer",
    ]  # fmt: skip


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;\r"])
def test_what_excel_says_of_its_separator(tmp_path: Path, first: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(f'{first}\nprompt;chosen;rejected\nHi?;"a, b";No.\nHi?;x\n', "utf-8-sig")
    pairs, [bad], _, _ = pairs_in(path)
    assert [(one["row"], one["chosen"]) for one in pairs] == [(3, "a, b")]
    assert (bad["row"], bad["reason"]) == (4, "wrong_field_count")


NAMES = ["prompt", "instruction", "input", "context", "messages", "history", "chosen", "rejected",
         "completions", "generations", "ratings", "ranks", "generation_models", "response",
         "helpfulness", "output", "completion", "label", "response_a", "response_b", "message_id",
         "parent_id", "role", "text", "rank", "message_tree_id", "reference", "x"]  # fmt: skip
words = st.sampled_from(
    ["Hi?", "Yes.", "No.", "", " ", "prompter", "assistant", "1", "a", "\ud800"]
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), words),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["role", "content", "rank", "answer", "text", "replies", "model"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(st.dictionaries(st.sampled_from(NAMES), values, max_size=8), max_size=4))
@example(rows=[{"prompt": "Hi?", "response_a": "x", "response_b": "y", "label": None}])
@example(rows=[{"message_tree_id": "t", "prompt": {"role": "prompter", "text": "a", "replies": 3}}])
@example(rows=[{"message_id": "1", "parent_id": "1", "role": "assistant", "text": "a"}])
def test_no_row_is_too_odd(rows: list[Row]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "d.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        for read in (read_preferences, read_answer_sets):
            try:
                found: list[Any] = list(read(PromptSource(path=str(path))))
            except InputError:
                continue
            for one in found:
                if isinstance(one, AnswerSet):
                    assert one.prompt[-1]["role"] == "user"
                    assert one.answers
                    assert not any(is_blank(answer.text) for answer in one.answers)
                    json.loads(one.metadata)
