"""Rows as published data sets have them, read by every reader there is: one row, one meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import prefloop
from prefloop.data.config import PromptsConfig, PromptSource
from prefloop.data.conversations.conversation import conversation_of, template_turn, tools_in
from prefloop.data.errors import InputError
from prefloop.data.preferences import named_columns, read_preferences
from prefloop.data.preferences.answer_sets import AnswerSet
from prefloop.data.preferences.answer_source import AnswerSource
from prefloop.data.preferences.given import read_answer_sets
from prefloop.data.preferences.gold import GoldPair, read_gold
from prefloop.data.prompts.load import load_prompts
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.files import read_rows
from prefloop.data.sources.rows import RawRow
from prefloop.data.sources.tool_turns import tools_of
from prefloop.pipeline.audit.audit_options import make_options
from prefloop.pipeline.audit.check import audit
from prefloop.pipeline.audit.fix import write_fixed
from prefloop.pipeline.review.subjects import DatasetSubjects
from prefloop.pipeline.stages.given_rows import load_with_answers
from prefloop.training.inputs.rows import Dropped, pair_rows

Row = dict[str, Any]
FORMS = ("jsonl", "parquet")


def user(text: Any) -> Row:
    return {"role": "user", "content": text}


def answer(text: Any) -> Row:
    return {"role": "assistant", "content": text}


def write(folder: Path, form: str, rows: list[Row]) -> Path:
    path = folder / f"rows.{form}"
    folder.mkdir(parents=True, exist_ok=True)
    if form == "parquet":
        names = dict.fromkeys(name for row in rows for name in row)
        pq.write_table(
            pa.table({one: pa.array([row.get(one) for row in rows]) for one in names}), path
        )
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def audited(path: Path) -> tuple[list[tuple[list[Row], str, str]], list[str]]:
    """Prompt, chosen and rejected of each pair, and the reasons of bad rows."""
    batches = list(read_preferences(PromptSource(path=str(path))))
    pairs = [row for one in batches for row in one.pairs.to_pylist()]
    bad = [row["reason"] for one in batches for row in one.bad.to_pylist()]
    return [(row["prompt"], row["chosen"], row["rejected"]) for row in pairs], bad


def labelled(path: Path) -> tuple[list[AnswerSet], list[BadRow]]:
    found = list(read_answer_sets(PromptSource(path=str(path))))
    sets = [one for one in found if isinstance(one, AnswerSet)]
    return sets, [one for one in found if isinstance(one, BadRow)]


def golden(path: Path) -> list[GoldPair]:
    return read_gold(PromptSource(path=str(path)))[0]


def ratings(found: AnswerSet) -> list[tuple[str, float | None]]:
    return [(one.text, one.rating) for one in found.answers]


def prompts(path: Path, **columns: str) -> list[Row]:
    config = {"path": str(path), "columns": columns}
    tables = load_prompts(
        PromptsConfig.model_validate({"train": config, "heldout_share": 0.0}), seed=0
    )
    assert not len(tables.quarantine), tables.quarantine.to_pylist()
    return tables.train.to_pylist()


TALK = "Hi?\n<extra_id_1>Assistant\nHello.\n\nYou?\n<extra_id_1>User\nFine."
TURNS = [user("Hi?"), answer("Hello.\n\nYou?"), user("Fine.")]


@pytest.mark.parametrize("form", FORMS)
def test_turns_in_prompts_of_helpsteer_are_turns(tmp_path: Path, form: str) -> None:
    rated = [
        {"prompt": TALK, "response": text, "helpfulness": score, "correctness": 4}
        for text, score in (("Good.", 4), ("Bad.", 1))
    ]
    path = write(tmp_path / "rated", form, rated)
    assert audited(path) == ([(TURNS, "Good.", "Bad.")], [])
    assert [one.prompt for one in labelled(path)[0]] == [TURNS]
    assert [one["messages"] for one in prompts(path)] == [TURNS]
    one = {"prompt": TALK, "response_1": "Bad.", "response_2": "Good.", "preference_strength": 2}
    path = write(tmp_path / "pairs", form, [one])
    assert audited(path) == ([(TURNS, "Good.", "Bad.")], [])
    assert [list(pair.messages) for pair in golden(path)] == [TURNS]


def test_training_reads_turns_of_helpsteer_too(tmp_path: Path) -> None:
    path = write(tmp_path, "parquet", [{"prompt": TALK, "chosen": "Good.", "rejected": "Bad."}])
    dropped = Dropped()
    assert [one.prompt for one in pair_rows([path], dropped)] == [TURNS]
    assert not dropped.counts
    assert audited(path) == ([(TURNS, "Good.", "Bad.")], [])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (TALK + "\n<extra_id_1>Assistant\n", TURNS),
        ("<extra_id_0>System\nBe kind.\n<extra_id_1>User\nHi?",
         [{"role": "system", "content": "Be kind."}, user("Hi?")]),
        ("What does <extra_id_1>Assistant mean?", [user("What does <extra_id_1>Assistant mean?")]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", FORMS)
def test_headers_of_turns_stand_on_lines_of_their_own(
    tmp_path: Path, form: str, text: str, found: list[Row]
) -> None:
    path = write(tmp_path, form, [{"prompt": text, "chosen": "a", "rejected": "b"}])
    assert audited(path) == ([(found, "a", "b")], [])
    assert [one["messages"] for one in prompts(path)] == [found]


def test_two_turns_of_one_speaker_under_headers_are_refused(tmp_path: Path) -> None:
    text = "Hi?\n<extra_id_1>User\nYou?"
    path = write(tmp_path, "parquet", [{"prompt": text, "chosen": "a", "rejected": "b"}])
    assert audited(path) == ([], ["bad_messages"])


READ = {"question": "Who?", "chosen": "She.", "rejected": "He."}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("column", "value", "remedy"),
    [
        ("context", "A text.", "prompt=question+context"),
        ("choices", ["She.", "They."], "prompt=question+choices"),
        ("image", {"bytes": "GIF8", "path": None}, "reads text only"),
        ("system_message", "Be kind.", "call it system"),
    ],
)
def test_what_prompts_leave_out_is_said(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    form: str,
    column: str,
    value: Any,
    remedy: str,
) -> None:
    rows = [{**READ, "question": f"Who? {number}", column: value} for number in range(2)]
    path = write(tmp_path, form, [*rows, {**READ, column: None}])
    labelled(path)
    golden(path)
    assert len(caplog.records) == 2
    assert all(f"{column!r} holds something in 2 rows" in one.message for one in caplog.records)
    assert all(remedy in one.message for one in caplog.records)
    [found] = [one for one in audit(str(path)).findings if one.name == f"unread_column:{column}"]
    assert (found.count, found.severity, found.dropped_by_fix) == (2, "warning", False)
    assert found.examples == (f"{path}:1",)
    assert remedy in found.remedy


@pytest.mark.parametrize("form", FORMS)
def test_what_prompts_say_too_is_not_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    row = {"prompt": "A text.\n\nWho? A or B?", "context": "A text.", "choices": ["A", "B"],
           "options": 4, "chosen": "A", "rejected": "B"}  # fmt: skip
    path = write(tmp_path, form, [row])
    labelled(path)
    assert not caplog.records
    assert not [one for one in audit(str(path)).findings if one.name.startswith("unread")]


def test_columns_named_for_the_prompt_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, "parquet", [{**READ, "context": "A text."}])
    own = named_columns("prompt=question+context", None)
    [found] = [*read_answer_sets(PromptSource(path=str(path)), own)]
    assert isinstance(found, AnswerSet)
    assert found.prompt == [user("Who?\n\nA text.")]
    assert not caplog.records


@pytest.mark.parametrize("form", FORMS)
def test_tools_are_read_by_all(tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str) -> None:
    tools = json.dumps([{"name": "f", "parameters": {}}])
    path = write(tmp_path / "good", form, [{**READ, "tools": tools}])
    [one], [pair] = labelled(path)[0], read_gold(PromptSource(path=str(path)))[0]
    listed = json.loads(tools_of(tools, "tools") or "")
    assert json.loads(one.tools or "") == tools_in(pair.messages) == listed
    assert "tools" not in pair.metadata
    assert not caplog.records
    assert not [one for one in audit(str(path)).findings if "tools" in one.name]
    other = write(tmp_path / "bad", form, [{**READ, "tools": "a hammer"}])
    assert "unread_column:tools" in [one.name for one in audit(str(other)).findings]


UNPAIRED: dict[str, tuple[Row, str, Any, Any]] = {
    "LLaMA-Factory, turns": (
        {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": ...}]},
        "kto_tag", True, False,
    ),
    "LLaMA-Factory, Alpaca": ({"instruction": "Hi?", "input": "", "output": ...}, "kto_tag", 1, 0),
    "LLaMA-Factory's example": ({"messages": [user("Hi?"), answer(...)]}, "label", True, False),
    "axolotl": ({"messages": [user("Hi?"), answer(...)]}, "label", "true", "false"),
    "TRL": ({"prompt": [user("Hi?")], "completion": [answer(...)]}, "label", True, False),
}  # fmt: skip


def filled(value: Any, text: str) -> Any:
    """``value`` with ``text`` where it has an ellipsis."""
    if value is ...:
        return text
    if isinstance(value, dict):
        return {key: filled(one, text) for key, one in value.items()}
    return [filled(one, text) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", UNPAIRED)
def test_labels_of_single_answers_are_read(tmp_path: Path, form: str, name: str) -> None:
    row, column, yes, no = UNPAIRED[name]
    rows = [{**filled(row, text), column: said} for text, said in (("No.", no), ("Yes.", yes))]
    path = write(tmp_path, form, rows)
    [found], bad = labelled(path)
    assert (found.prompt, ratings(found), bad) == ([user("Hi?")], [("No.", 0), ("Yes.", 1)], [])
    assert not found.absolute
    assert not found.ties
    assert column not in json.loads(found.metadata)
    if "output" not in row:
        with pytest.raises(InputError, match="unpaired data"):
            audited(path)


@pytest.mark.parametrize("form", FORMS)
def test_rated_conversations(tmp_path: Path, form: str) -> None:
    rows = [
        {"messages": [user("Hi?"), answer(text)], "score": score, "model": model, "system": "Be."}
        for text, score, model in (("No.", 0.5, "m"), ("Yes.", 0.25, "n"))
    ]
    [found], bad = labelled(write(tmp_path, form, rows))
    assert found.prompt == [{"role": "system", "content": "Be."}, user("Hi?")]
    assert (ratings(found), found.absolute, bad) == ([("No.", 0.5), ("Yes.", 0.25)], True, [])
    assert [one.model for one in found.answers] == ["m", "n"]


@pytest.mark.parametrize("form", FORMS)
def test_outputs_of_several_models_are_answers_to_one_prompt(tmp_path: Path, form: str) -> None:
    rows = [
        {"instruction": "Hi?", "output": text, "generator": model, "dataset": "d"}
        for text, model in (('["Yes.", "No."]', "m"), ("[1, 2]", "n"), ("No.", "o"))
    ]
    [found], bad = labelled(write(tmp_path, form, rows))
    assert [(one.text, one.model) for one in found.answers] == [
        ('["Yes.", "No."]', "m"), ("[1, 2]", "n"), ("No.", "o"),
    ]  # fmt: skip
    assert not bad


@pytest.mark.parametrize("form", FORMS)
def test_an_output_beside_answers_is_none_of_them(tmp_path: Path, form: str) -> None:
    row = {"instruction": "Hi?", "output": "Known.", "generations": ["Yes.", "No."]}
    path = write(tmp_path / "list", form, [row])
    assert [ratings(one) for one in labelled(path)[0]] == [[("Yes.", None), ("No.", None)]]
    row = {"instruction": "Hi?", "output": "Known.", "response_a": "Yes.", "response_b": "No."}
    path = write(tmp_path / "two", form, [row])
    assert [ratings(one) for one in labelled(path)[0]] == [[("Yes.", None), ("No.", None)]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("said", [[False, True], ["False", "true"]])
def test_answers_that_were_checked_are_rated(tmp_path: Path, form: str, said: list[Any]) -> None:
    path = write(tmp_path / "beside", form, [{"instruction": "Hi?", "generations": ["No.", "Yes."],
                                              "scores": said}])  # fmt: skip
    pair = ([user("Hi?")], "Yes.", "No.")
    assert audited(path) == ([pair], [])
    assert [ratings(one) for one in labelled(path)[0]] == [[("No.", 0), ("Yes.", 1)]]
    inside = [
        {"text": text, "reward": one} for text, one in zip(("No.", "Yes."), said, strict=True)
    ]
    path = write(tmp_path / "inside", form, [{"instruction": "Hi?", "completions": inside}])
    assert audited(path) == ([pair], [])


TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"x": "y"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CALLED = [user("Hi?"), {"role": "assistant", "content": None, "tool_calls": [CALL]},
          {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "42"}]  # fmt: skip
CALLING = {
    "a prompt": {"prompt": CALLED, "chosen": "Yes.", "rejected": "No.", "tools": [TOOL]},
    "before the answers": {"chosen": [*CALLED, answer("Yes.")],
                           "rejected": [*CALLED, answer("No.")], "tools": json.dumps([TOOL])},
    "OpenAI": {"input": {"messages": CALLED, "tools": [TOOL], "parallel_tool_calls": True},
               "preferred_output": [answer("Yes.")], "non_preferred_output": [answer("No.")]},
    "LLaMA-Factory": {
        "conversations": [
            {"from": "human", "value": "Hi?"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "42"},
        ],
        "chosen": {"from": "gpt", "value": "Yes."}, "rejected": {"from": "gpt", "value": "No."},
        "tools": json.dumps([TOOL]),
    },
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CALLING)
def test_calls_of_tools_stay_calls_in_answers_that_are_labelled(
    tmp_path: Path, form: str, name: str
) -> None:
    path = write(tmp_path, form, [CALLING[name]])
    source = AnswerSource.model_validate({"path": str(path), "own_prompts": True})
    config = PromptsConfig.model_validate({"train": {"path": str(path)}, "heldout_share": 0.0})
    tables, answers = load_with_answers(config, source, seed=0)
    assert answers is not None
    assert answers.rows["text"].to_pylist() == ["Yes.", "No."]
    [prompt] = tables.train.to_pylist()
    whole = conversation_of(prompt["messages"], prompt["turns"], prompt["tools"])
    assert tools_in(whole) == [TOOL]
    asked, called, told = map(template_turn, whole)
    assert asked == user("Hi?")
    function = {"name": "f", "arguments": {"x": 1}}
    assert [one["function"] for one in called["tool_calls"]] == [function]
    assert told["content"] == "42"
    if name == "a prompt":
        [same] = prompts(path, tools="tools")
        assert {key: same[key] for key in ("prompt_id", "turns", "tools")} == {
            key: prompt[key] for key in ("prompt_id", "turns", "tools")
        }


def test_calls_with_other_ids_are_the_same_prompt(tmp_path: Path) -> None:
    other = json.loads(json.dumps(CALLED).replace("c1", "c2"))
    row = {"chosen": [*CALLED, answer("Yes.")], "rejected": [*other, answer("No.")]}
    pairs, bad = audited(write(tmp_path, "jsonl", [row]))
    assert ([(chosen, rejected) for _, chosen, rejected in pairs], bad) == ([("Yes.", "No.")], [])


THOUGHT: dict[str, tuple[list[Row], list[Row]]] = {
    **{
        key: ([{**answer("Yes."), key: "Hm."}], [{**answer("No."), key: "Er."}])
        for key in ("reasoning_content", "thinking", "reasoning")
    },
    "harmony": tuple(
        [
            {**answer(thought), "channel": "analysis"},
            {**answer(text), "channel": "final"},
        ]
        for thought, text in (("Hm.", "Yes."), ("Er.", "No."))
    ),
    "text": ([answer("<think>\nHm.\n</think>\n\nYes.")], [answer("<think>\nEr.\n</think>\n\nNo.")]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", THOUGHT)
def test_thoughts_beside_answers_are_kept_apart(tmp_path: Path, form: str, name: str) -> None:
    chosen, rejected = THOUGHT[name]
    row = {"prompt": [user("Hi?")], "chosen": chosen, "rejected": rejected}
    path = write(tmp_path, form, [row])
    yes, no = "<think>\nHm.\n</think>\n\nYes.", "<think>\nEr.\n</think>\n\nNo."
    assert audited(path) == ([([user("Hi?")], yes, no)], [])
    source = AnswerSource.model_validate({"path": str(path), "own_prompts": True})
    config = PromptsConfig.model_validate({"train": {"path": str(path)}, "heldout_share": 0.0})
    answers = load_with_answers(config, source, seed=0)[1]
    assert answers is not None
    assert answers.rows.select(["text", "reasoning"]).to_pylist() == [
        {"text": "Yes.", "reasoning": "Hm."}, {"text": "No.", "reasoning": "Er."},
    ]  # fmt: skip
    [pair] = golden(path)
    assert {pair.a, pair.b} == {"Yes.", "No."}
    assert {"a": pair.a, "b": pair.b}[pair.gold] == "Yes."
    subjects = DatasetSubjects(str(path))
    [subject] = subjects.read(subjects.population().pair_ids)
    assert {*subject.texts.values()} == {"Yes.", "No."}
    assert subject.texts[subject.chosen_id] == "Yes."


def test_verdicts_on_answers_with_thoughts_are_about_the_answers(tmp_path: Path) -> None:
    row = {"question_id": 1, "model_a": "m", "model_b": "n", "winner": "model_a", "prompt": "Hi?",
           "response_a": "<think>Hm. Hm. Hm.</think>Yes.", "response_b": "No!!"}  # fmt: skip
    gold = write(tmp_path / "gold", "jsonl", [row])
    verdicts = write(tmp_path / "said", "jsonl", [{**row, "verdict": "a"}])
    found = prefloop.judge_eval(gold, verdicts=[verdicts], out=tmp_path / "out").as_dict()
    assert [one["accuracy"]["value"] for one in found["judges"]] == [1.0]


@pytest.mark.parametrize("form", FORMS)
def test_thoughts_of_earlier_turns_are_no_turns(tmp_path: Path, form: str) -> None:
    talk = [user("Hi?"), {**answer("Hm."), "channel": "analysis"},
            {**answer("Yes."), "channel": "final"}, user("Why?")]  # fmt: skip
    kept = [user("Hi?"), answer("Yes."), user("Why?")]
    path = write(tmp_path, form, [{"prompt": talk, "chosen": "So.", "rejected": "No."}])
    assert audited(path) == ([(kept, "So.", "No.")], [])
    assert [one["messages"] for one in prompts(path)] == [kept]


def test_a_thought_without_an_answer_is_not_judged(tmp_path: Path) -> None:
    row = {"prompt": "Hi?", "chosen": "<think>Hm.</think>Yes.", "rejected": "<think>Er"}
    found, bad = read_gold(PromptSource(path=str(write(tmp_path, "jsonl", [row, {**READ}]))))
    assert len(found) == 1
    assert [(one.field, one.reason) for one in bad] == [("rejected", "empty_answer")]


@pytest.mark.parametrize("form", FORMS)
def test_weighted_preferences_of_alpacaeval(tmp_path: Path, form: str) -> None:
    said = (1.0000123, 1.98, 1.5, 2.0, 1.0, 1.4999)
    rows = [
        {"instruction": f"{number}?", "output_1": "One.", "generator_1": "m", "output_2": "Two.",
         "generator_2": "n", "annotator": "x", "preference": one}
        for number, one in enumerate(said)
    ]  # fmt: skip
    path = write(tmp_path, form, rows)
    pairs, bad = audited(path)
    assert ([chosen for _, chosen, _ in pairs], bad) == (
        ["One.", "Two.", "Two.", "One.", "One."],
        ["tie"],
    )
    assert [one.answers[0].rating for one in labelled(path)[0]] == [1, 0, 0.5, 0, 1, 1]
    assert [one.gold == one.listed_first for one in golden(path)].count(True) == 3


@pytest.mark.parametrize("form", FORMS)
def test_winners_named_by_their_model(tmp_path: Path, form: str) -> None:
    row = {"prompt": "Hi?", "model_a": "gpt-4", "model_b": "claude", "response_a": "One.",
           "response_b": "Two."}  # fmt: skip
    twins = {**row, "prompt": "You?", "model_b": "gpt-4", "winner": "gpt-4"}
    path = write(tmp_path, form, [{**row, "winner": "claude"}, twins])
    assert audited(path) == ([([user("Hi?")], "Two.", "One.")], ["bad_label"])


@pytest.mark.parametrize(
    ("answers", "said", "why"),
    [
        (("answer_0", "answer_1"), [1, 1], "the number of an answer"),
        (("answer_0", "answer_1"), [0, "tie"], "the number of an answer"),
        (("answer_a", "answer_b"), [0.0, 0.33, 0.67], "whose chance"),
        (("answer_a", "answer_b"), [1.0, 0.25, 0.5], "whose chance"),
        (("answer_a", "answer_b"), [1.5, 2.5, 1.0], "a scale"),
        (("answer_a", "answer_b"), [1.33, 2.67], "a scale"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_numbers_that_may_mean_two_things_are_refused(
    tmp_path: Path, form: str, answers: tuple[str, str], said: list[Any], why: str
) -> None:
    a, b = answers
    texts = [str(one) for one in said] if "tie" in said else said
    path = write(
        tmp_path,
        form,
        [{"prompt": f"{n}?", a: "One.", b: "Two.", "label": one} for n, one in enumerate(texts)],
    )
    for read in (audited, labelled, golden):
        with pytest.raises(InputError, match=why):
            read(path)


def test_labels_of_answers_numbered_from_zero_can_be_said(tmp_path: Path) -> None:
    row = {"prompt": "Hi?", "answer_0": "One.", "answer_1": "Two.", "label": 1}
    path = write(tmp_path, "jsonl", [row])
    own = named_columns(None, "a=0,b=1")
    [batch] = read_preferences(PromptSource(path=str(path)), columns=own)
    assert batch.pairs["chosen"].to_pylist() == ["Two."]


def judged_turn(turn: Any, **more: Any) -> Row:
    """A row as in MT-bench's judgments of people."""
    a, b = (
        [user("Hi?"), answer(one), user("Why?"), answer(f"{one} So.")] for one in ("No.", "Yes.")
    )
    return {"question_id": 81, "model_a": "m", "model_b": "n", "winner": "model_b", "judge": "ann",
            "conversation_a": a, "conversation_b": b, "turn": turn, **more}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_turn_that_was_judged_is_the_answer(tmp_path: Path, form: str) -> None:
    same = judged_turn(1)
    same["conversation_a"][1] = answer("Yes.")  # in the first round, both said the same
    later = {**judged_turn(2), "conversation_a": same["conversation_a"]}
    path = write(tmp_path, form, [judged_turn(1), judged_turn(2), later])
    talk = [user("Hi?"), answer("Yes."), user("Why?")]
    assert audited(path) == (
        [([user("Hi?")], "Yes.", "No."), (talk, "Yes. So.", "No. So.")],
        ["prompts_differ"],
    )
    sets, bad = labelled(path)
    assert [(one.prompt, ratings(one)) for one in sets] == [
        ([user("Hi?")], [("No.", 0), ("Yes.", 1)]), (talk, [("No. So.", 0), ("Yes. So.", 1)]),
    ]  # fmt: skip
    assert [one.reason for one in bad] == ["prompts_differ"]
    assert [one.metadata["turn"] for one in golden(path)] == [1, 2]


@pytest.mark.parametrize("turn", [2, 3, 0, None])
def test_other_numbers_of_turns_leave_conversations_whole(tmp_path: Path, turn: Any) -> None:
    row = judged_turn(turn)
    row["conversation_a"][1] = answer("Yes.")
    [(prompt, chosen, _)], bad = audited(write(tmp_path, "jsonl", [row]))
    assert (len(prompt), chosen, bad) == (3, "Yes. So.", [])


@pytest.mark.parametrize("form", FORMS)
def test_ratings_of_the_cleaned_ultrafeedback_are_checked(tmp_path: Path, form: str) -> None:
    row = {"prompt": "Hi?", "chosen": [user("Hi?"), answer("Yes.")], "chosen-rating": 3.0,
           "chosen-model": "m", "rejected": [user("Hi?"), answer("No.")], "rejected-rating": 4.0,
           "rejected-model": "n"}  # fmt: skip
    path = write(tmp_path, form, [row])
    assert "scores_disagree" in [one.name for one in audit(str(path)).findings]
    [found] = labelled(path)[0]
    assert [one.model for one in found.answers] == ["m", "n"]


@pytest.mark.parametrize("form", FORMS)
def test_who_won_is_not_taken_from_the_order_of_the_models(tmp_path: Path, form: str) -> None:
    row = {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No.", "model_a": "m", "model_b": "n",
           "winner": "model_b"}  # fmt: skip
    [found] = labelled(write(tmp_path, form, [row]))[0]
    assert [one.model for one in found.answers] == [None, None]


@pytest.mark.parametrize("form", FORMS)
def test_named_columns_leave_ties_ties(tmp_path: Path, form: str) -> None:
    row = {"input": "Hi?", "chosen": "Yes.", "rejected": "No.", "status": "tie",
           "chosen_model": "m", "rejected_model": "n",
           "score_chosen": 1, "score_rejected": 2}  # fmt: skip
    rows = [row, {**row, "input": "You?", "status": "unchanged"}]
    source = PromptSource(path=str(write(tmp_path, form, rows)))
    own = named_columns("prompt=input,chosen=chosen,rejected=rejected", None)
    [batch] = read_preferences(source, columns=own)
    assert [one["reason"] for one in batch.bad.to_pylist()] == ["tie"]
    assert batch.disputed.tolist() == [True]
    assert [gold.gold for gold in read_gold(source, own)[0]].count("tie") == 1
    sets = [one for one in read_answer_sets(source, own) if isinstance(one, AnswerSet)]
    assert [[one.model for one in found.answers] for found in sets] == [["m", "n"]] * 2


def test_files_that_programs_keep_for_themselves_are_no_data(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b/c.jsonl", ".ipynb_checkpoints/a.jsonl", "._a.jsonl", "__x/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"prompt": name}) + "\n")
    rows = read_rows(PromptSource(path=str(tmp_path), format="jsonl"))
    assert [one.fields["prompt"] for one in rows if isinstance(one, RawRow)] == [
        "a.jsonl", "b/c.jsonl",
    ]  # fmt: skip


PLAIN = [user("Hi?"), answer('[{"name": "f", "arguments": {"x": 1}}]'),
         {"role": "tool", "content": "42"}]  # fmt: skip
WHOLE = json.dumps(
    [user("Hi?"), {"role": "assistant", "content": "", "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
     {"role": "tool", "content": "42", "name": "f", "tool_call_id": "c1"}]
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_calls_in_datasets_of_prefloop_are_read_again(tmp_path: Path, form: str) -> None:
    """A triple has the turns as they are read, and beside them those that templates take."""
    row = {"prompt_id": "x", "prompt": PLAIN, "chosen": [answer("Yes.")],
           "rejected": [answer("No.")], "tools": json.dumps([TOOL]),
           "prompt_turns": WHOLE}  # fmt: skip
    other = {**row, "prompt": [user("Hi?")], "tools": None, "prompt_turns": None}
    path = write(tmp_path / "good", form, [row, other])
    sets, bad = labelled(path)
    assert [one.turns and json.loads(one.turns) for one in sets] == [json.loads(WHOLE), None]
    assert not bad
    assert "prompt_turns" not in json.loads(sets[0].metadata)
    assert [one["turns"] for one in prompts(path, tools="tools")] == [sets[0].turns, None]
    path = write(tmp_path / "texts", form, [{**row, "prompt_turns": '["Hi?", "You?"]'}])
    assert [one.turns for one in labelled(path)[0]] == [None]  # somebody else's column
    path = write(tmp_path / "bad", form, [{**row, "prompt": [user("You?")]}])
    assert [(one.field, one.reason) for one in labelled(path)[1]] == [
        ("prompt_turns", "bad_messages")
    ]


@pytest.mark.parametrize("form", FORMS)
def test_a_cleaned_dataset_keeps_calls_and_tools(tmp_path: Path, form: str) -> None:
    called = json.loads(WHOLE)
    rows = [{"prompt": called, "chosen": [answer("Yes.")], "rejected": [answer("No.")],
             "tools": [TOOL]},
            {"prompt": [user("Hi?")], "chosen": [answer("Yes.")], "rejected": [answer("Yes.")],
             "tools": [TOOL]},
            {"prompt": [user("You?")], "chosen": [answer("Yes.")], "rejected": [answer("No.")],
             "tools": None}]  # fmt: skip
    path, options = str(write(tmp_path, form, rows)), make_options()
    write_fixed(audit(path, options), path, tmp_path / "out", options)
    [dropped] = pq.read_table(tmp_path / "out" / "dropped")["content"].to_pylist()
    tools = tools_of([TOOL], "tools")
    assert json.loads(dropped)["tools"] == tools
    lost = Dropped()
    asked, plain_one = (
        row.prompt for row in pair_rows([*(tmp_path / "out" / "data").iterdir()], lost)
    )
    assert not lost.counts
    assert [template_turn(turn) for turn in asked] == called
    assert tools_in(asked) == json.loads(tools or "")
    assert plain_one == [user("You?")]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("texts", "scores", "found"),
    [
        (["Yes.", "No.", "Yes."], [5, 3, 2], [("Yes.", "No.")]),
        (["Yes.", "No.", "Yes."], [5, 4, 1], [("No.", "Yes.")]),
        (["Yes.", "No.", "Yes."], [5, 3, 1], []),
        (["Yes.", "Yes."], [5, 3], [("Yes.", "Yes.")]),
    ],
)
def test_an_answer_that_was_rated_twice_has_the_mean(
    tmp_path: Path, form: str, texts: list[str], scores: list[int], found: list[tuple[str, str]]
) -> None:
    row = {"instruction": "Hi?", "generations": texts, "ratings": scores}
    pairs, bad = audited(write(tmp_path / "list", form, [row]))
    assert [pair[1:] for pair in pairs] == found
    rows = [
        {"prompt": "Hi?", "response": text, "score": score}
        for text, score in zip(texts, scores, strict=True)
    ]
    assert [pair[1:] for pair in audited(write(tmp_path / "rows", form, rows))[0]] == found
    assert bad == ([] if found else ["tie"])


def test_ratings_in_answers_that_cannot_be_read_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [{"text": "Yes.", "score": "8/10"}, {"text": "No.", "score": 3}]
    ranked = [{"text": "Yes.", "rank": 1, "score": "8/10"}, {"text": "No.", "rank": 2}]
    labelled(write(tmp_path / "good", "jsonl", [{"instruction": "Hi?", "completions": ranked}]))
    assert not caplog.records
    labelled(write(tmp_path / "bad", "jsonl", [{"instruction": "Hi?", "completions": answers}]))
    assert "1 rows have ratings in 'completions.score'" in caplog.text


@pytest.mark.parametrize("form", FORMS)
def test_what_an_instruction_is_about_is_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    row = {"instruction": "Answer this.", "question": "Who?", "chosen": "a", "rejected": "b"}
    labelled(write(tmp_path / "apart", form, [row]))
    assert "--columns prompt=instruction+question" in caplog.text
    caplog.clear()
    row = {**row, "instruction": "Answer this: Who?"}
    labelled(write(tmp_path / "within", form, [row]))
    assert not caplog.records


@pytest.mark.parametrize("form", FORMS)
def test_tools_that_cannot_be_read_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    path = write(tmp_path, form, [{**READ, "tools": str([TOOL])}])  # as Python writes it
    assert [one.tools for one in labelled(path)[0]] == [None]
    assert "'tools' holds something in 1 rows" in caplog.text
    assert "a list of JSON schemas" in caplog.text


@pytest.mark.parametrize("form", FORMS)
def test_a_system_prompt_that_is_no_text_is_refused(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, form, [{**READ, "system": ["Be kind."]}])
    assert audited(path) == ([], ["wrong_type"])
    assert [(one.field, one.reason) for one in labelled(path)[1]] == [("system", "wrong_type")]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("said", "text"), [(42, "42"), (42.0, "42"), (0.5, "0.5"), ("042", "042"), (float("nan"), None)]
)
def test_references_that_are_numbers_are_read(
    tmp_path: Path, form: str, said: Any, text: str | None
) -> None:
    row = {"prompt": "6 * 7?", "chosen": "It is 42.", "rejected": "41.", "reference": said}
    path = write(tmp_path, form, [row])
    assert [one.reference for one in labelled(path)[0]] == [text]
    assert [one.reference for one in golden(path)] == [text]


def test_a_system_turn_without_text_is_left_out_by_training_too(tmp_path: Path) -> None:
    empty = {"role": "system", "content": ""}
    rows = [
        {"prompt": [empty, user("Hi?")], "chosen": [answer("Yes.")], "rejected": [answer("No.")],
         "system": said}
        for said in ("Be kind.", None)
    ]  # fmt: skip
    path = write(tmp_path, "parquet", rows)
    dropped = Dropped()
    found = [one.prompt for one in pair_rows([path], dropped)]
    assert found == [[{"role": "system", "content": "Be kind."}, user("Hi?")], [user("Hi?")]]
    assert [prompt for prompt, _, _ in audited(path)[0]] == found
    assert not dropped.counts


@pytest.mark.parametrize("form", FORMS)
def test_references_stand_without_their_thoughts(tmp_path: Path, form: str) -> None:
    thought = "<think>\n6 * 7.\n</think>\n\n42"
    row = {"prompt": "6 * 7?", "chosen": "It is 42.", "rejected": "41.", "reference": thought}
    path = write(tmp_path / "column", form, [row])
    assert [one["reference"] for one in prompts(path, reference="reference")] == ["42"]
    assert [one.reference for one in labelled(path)[0]] == ["42"]
    assert [one.reference for one in golden(path)] == ["42"]
    path = write(tmp_path / "known", form, [{**row, "chosen": "<think>Hm.</think>42"}])
    assert [one.reference for one in labelled(path)[0]] == [None]  # it would say which is good
    assert [one.reference for one in golden(path)] == [None]
    path = write(tmp_path / "turn", form, [{"messages": [user("6 * 7?"), answer(thought)]}])
    assert [one["reference"] for one in prompts(path, last_turn="reference")] == ["42"]


def test_what_is_left_out_is_counted_alike_in_tables_and_lines(tmp_path: Path) -> None:
    """Also in rows that are read by other columns than most."""
    rows = [
        {"question": None if number % 3 else f"{number}?", "query": f"What {number}?",
         "context": "A text." if number % 2 else None, "chosen": "a", "rejected": "b"}
        for number in range(30)
    ]  # fmt: skip
    counts = [
        {one.name: one.count for one in audit(str(write(tmp_path, form, rows))).findings}
        for form in FORMS
    ]
    assert counts[0] == counts[1]
    assert (counts[0]["unread_column:query"], counts[0]["unread_column:context"]) == (10, 15)
