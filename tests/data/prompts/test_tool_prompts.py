"""Prompts with tools: how they are read, what a chat template is given, and what people read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from prefloop.data.config import Columns, PromptsConfig, PromptSource
from prefloop.data.conversations.chat import render_tokens
from prefloop.data.conversations.conversation import as_sampled, conversation_text, plain, tools_in
from prefloop.data.hashing import prompt_id
from prefloop.data.prompts.load import PromptTables, load_prompts
from prefloop.data.protocol import RequestRejected
from tests.data.test_formats import write
from tests.helpers.engine_models import TEMPLATE, make_tokenizer
from tests.helpers.tool_models import TOOL_TEMPLATE

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
    },
}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
ASK = {"role": "user", "content": "1+1?"}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "2", "name": "add"}
TURNS = [ASK, CALLS, RESULT]
SHOWN = [
    ASK,
    {"role": "assistant", "content": '[{"name": "add", "arguments": {"a": 1}}]'},
    {"role": "tool", "content": "2"},
]


def read(path: str, **columns: Any) -> PromptTables:
    source = PromptSource(path=path, columns=Columns(**{"tools": "tools", **columns}))
    return load_prompts(PromptsConfig(train=source, heldout_share=0), seed=0)


def only(folder: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    (row,) = read(write(folder, "jsonl", list(rows))).train.to_pylist()
    return row


def problem(folder: Path, **row: Any) -> tuple[str, str, str]:
    (bad,) = read(
        write(folder, "jsonl", [{"prompt": "Hi?", "tools": [], **row}])
    ).quarantine.to_pylist()
    return bad["field"], bad["reason"], bad["detail"]


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "datasets", "csv"])
def test_tools_and_their_calls_are_the_same_from_every_format(tmp_path: Path, form: str) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": TURNS, "tools": [TOOL]},
        {"messages": [{**ASK, "content": "Hi?"}], "tools": None},
    ]
    if form == "csv":
        rows = [{key: json.dumps(value) for key, value in row.items()} for row in rows]
    first, second = read(write(tmp_path, form, rows)).train.to_pylist()
    assert first["messages"] == SHOWN
    assert json.loads(first["turns"]) == TURNS
    assert json.loads(first["tools"]) == [TOOL]
    assert (second["tools"], second["turns"]) == (None, None)
    assert second["prompt_id"] == prompt_id([{**ASK, "content": "Hi?"}])


@pytest.mark.parametrize(
    "turns",
    [
        [ASK, {**CALLS, "tool_calls": json.dumps([CALL])}, RESULT],
        [ASK, {**CALLS, "content": None, "tool_calls": [CALL["function"]]}, RESULT],
        [ASK, {**CALLS, "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}]},
         {**RESULT, "role": "function"}],
        [ASK, {**CALLS, "role": "gpt"}, RESULT],
        [{"from": "human", "value": "1+1?"},
         {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
         {"from": "observation", "value": "2", "name": "add"}],
    ],
)  # fmt: skip
def test_calls_are_one_thing_however_they_are_written(
    tmp_path: Path, turns: list[dict[str, Any]]
) -> None:
    row = only(tmp_path, {"messages": turns, "tools": json.dumps([TOOL["function"]])})
    assert (row["messages"], json.loads(row["turns"])) == (SHOWN, TURNS)
    assert json.loads(row["tools"]) == [TOOL]


def test_other_tools_make_another_prompt(tmp_path: Path) -> None:
    rows = [
        {"prompt": "1+1?", "tools": tools} for tools in ([], [TOOL], [CALL["function"]], [TOOL])
    ]
    tables = read(write(tmp_path, "jsonl", rows))
    ids = tables.train["prompt_id"].to_pylist()
    assert len(set(ids)) == 3
    assert ids[0] == prompt_id([ASK])
    (dropped,) = tables.dropped.to_pylist()
    assert (dropped["reason"], dropped["detail"]) == ("exact_duplicate", ids[1])


def test_what_is_no_tool_is_a_bad_row(tmp_path: Path) -> None:
    assert problem(tmp_path, tools="{")[:2] == ("tools", "bad_tools")
    assert problem(tmp_path, tools=7)[2].startswith("is of type int where a list of JSON schemas")
    assert problem(tmp_path, tools=[{"x": 1}])[2].startswith("tool 1 has no name")
    bad_call = [ASK, {**CALLS, "tool_calls": [{"function": {}}]}, RESULT]
    assert problem(tmp_path, messages=bad_call)[2].startswith("turn 2 has a call without a name")
    of_user = [{**ASK, "tool_calls": [CALL]}]
    assert "no assistant's" in problem(tmp_path, messages=of_user)[2]


# --- what a chat template is given ----------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    found = AutoTokenizer.from_pretrained(folder)
    found.chat_template = TOOL_TEMPLATE
    return found


def test_templates_are_given_turns_and_tools_as_they_take_them(
    tmp_path: Path, tokenizer: Any
) -> None:
    messages = as_sampled(only(tmp_path, {"messages": TURNS, "tools": [TOOL]}), "Be brief.")
    wanted = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, *TURNS],
        tools=[TOOL], add_generation_prompt=True, return_dict=False,
    )  # fmt: skip
    assert render_tokens(tokenizer, messages) == wanted
    text = tokenizer.decode(wanted)
    assert 'call add({"a": 1})' in text
    assert '"description": "Adds."' in text


def test_control_tokens_in_tools_and_calls_stay_text(tmp_path: Path, tokenizer: Any) -> None:
    end = "<|end|>"
    tool = {"type": "function", "function": {**TOOL["function"], "description": end}}
    calls = {
        **CALLS,
        "tool_calls": [{**CALL, "function": {"name": "add", "arguments": {"a": end}}}],
    }
    messages = as_sampled(only(tmp_path, {"messages": [ASK, calls, RESULT], "tools": [tool]}), None)
    ids = render_tokens(tokenizer, messages)
    assert ids.count(tokenizer.convert_tokens_to_ids(end)) == 3  # one behind each turn
    assert tokenizer.decode(ids).count(end) == 5


@pytest.mark.parametrize(("turns", "tools", "says"), [([ASK], [TOOL], "no tools"),
                                                      (TURNS, None, "no tool_calls")])  # fmt: skip
def test_a_template_that_leaves_tools_out_is_refused(
    tmp_path: Path, tokenizer: Any, monkeypatch: Any, turns: Any, tools: Any, says: str
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    messages = as_sampled(only(tmp_path, {"messages": turns, "tools": tools}), None)
    with pytest.raises(RequestRejected, match=f"writes {says}"):
        render_tokens(tokenizer, messages)


def test_judges_read_tools_and_calls_as_json(tmp_path: Path) -> None:
    messages = as_sampled(only(tmp_path, {"messages": TURNS, "tools": [TOOL]}), None)
    assert plain(messages) == SHOWN
    assert tools_in(messages) == [TOOL]
    assert conversation_text(messages) == (
        f"[tools]\n{json.dumps([TOOL])}\n\n[user]\n1+1?\n\n"
        '[assistant]\n[{"name": "add", "arguments": {"a": 1}}]\n\n[tool]\n2'
    )
