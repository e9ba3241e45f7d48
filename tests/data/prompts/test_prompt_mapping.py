"""Prompts out of the columns that people have: templates, conversations, columns left aside."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from prefloop.data.config import Columns, OverlapSet, PromptsConfig, PromptSource
from prefloop.data.errors import InputError
from prefloop.data.prompts.load import PromptTables, load_prompts
from prefloop.data.prompts.row_template import LONGEST, RowTemplate
from prefloop.data.sources.turns import Unusable
from tests.data.test_formats import write
from tests.helpers.markdown import fenced
from tests.helpers.paths import ROOT

FORMATS = ("jsonl", "json", "csv", "parquet", "datasets")
ALPACA = "{{ instruction }}\n\n{{ input }}"
ROWS = [
    {"instruction": "Summarise the text.", "input": "A long one.", "output": "Long."},
    {"instruction": "Name a colour.", "input": "", "output": "Red."},
]


def read(path: Path | str, **columns: Any) -> PromptTables:
    source = PromptSource(path=str(path), columns=Columns(**columns))
    return load_prompts(PromptsConfig(train=source, heldout_share=0), seed=0)


def asked(tables: PromptTables) -> list[str]:
    return [turns[-1]["content"] for turns in tables.train["messages"].to_pylist()]


def jsonl(folder: Path, *rows: dict[str, Any]) -> str:
    return write(folder, "jsonl", list(rows))


def bad(tables: PromptTables) -> tuple[str, str, str]:
    (row,) = tables.quarantine.to_pylist()
    return row["field"], row["reason"], row["detail"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_template_joins_columns_and_leaves_no_empty_lines(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*ROWS, {"instruction": "Count.", "input": None, "output": "1"}]
    with caplog.at_level(logging.WARNING):
        tables = read(write(tmp_path, form, rows), prompt=ALPACA, reference="output")
    assert asked(tables) == ["Summarise the text.\n\nA long one.", "Name a colour.", "Count."]
    assert tables.train["reference"].to_pylist() == ["Long.", "Red.", "1"]
    assert set(tables.train["metadata"].to_pylist()) == {"{}"}
    assert not caplog.messages


def test_the_readme_maps_alpaca_like_that() -> None:
    found = [block for block in fenced(ROOT / "README.md") if block.language == "yaml"]
    blocks = [yaml.safe_load(block.text) for block in found]
    columns = [
        one["prompts"]["train"]["columns"]
        for one in blocks
        if isinstance(one.get("prompts", {}).get("train"), dict)
    ]
    assert columns == [{"prompt": ALPACA, "reference": "output"}]


def test_the_example_shows_judges_no_answer_of_the_dataset(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = yaml.safe_load((ROOT / "examples" / "qwen3-0.6b.yaml").read_text())
    said = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "Chosen."}]
    row = {"prompt": "Q?", "messages": said, "chosen": said, "score_chosen": 9.0}
    for source in ("train", "heldout"):
        tables = read(jsonl(tmp_path, row), **config["prompts"][source]["columns"])
        (prompt,) = tables.train.to_pylist()
        assert prompt["messages"] == said[:1]
        assert (prompt["reference"], prompt["metadata"]) == (None, "{}")
    assert not caplog.messages


def test_an_evaluation_set_may_be_a_template(tmp_path: Path) -> None:
    known = PromptSource(
        path=jsonl(tmp_path / "known", ROWS[0]), columns=Columns(prompt=ALPACA, metadata=())
    )
    path = jsonl(tmp_path, {"prompt": "Summarise the text. A long one."}, {"prompt": "Other?"})
    config = PromptsConfig(
        train=PromptSource(path=path),
        heldout_share=0,
        exclude_overlap=(OverlapSet(name="known", source=known),),
    )
    assert asked(load_prompts(config, seed=0)) == ["Other?"]


def test_nan_is_empty_as_pandas_writes_it(tmp_path: Path) -> None:
    table = pa.table({"instruction": ["Count.", "Say."], "input": [float("nan"), 7.0]})
    pq.write_table(table, tmp_path / "p.parquet")
    assert asked(read(tmp_path / "p.parquet", prompt=ALPACA)) == ["Count.", "Say.\n\n7.0"]


def test_a_column_that_no_row_has_stops_the_reading(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *ROWS)
    with pytest.raises(InputError, match=r"no row has the column 'inputs' of .*columns\.prompt; "
                       r"columns found: instruction, input, output"):  # fmt: skip
        read(path, prompt="{{ instruction }} {{ inputs }}")


def test_a_row_without_the_column_is_a_bad_row(tmp_path: Path) -> None:
    tables = read(jsonl(tmp_path, ROWS[0], {"instruction": "Count."}), prompt=ALPACA)
    field, reason, detail = bad(tables)
    assert (field, reason) == ("input, instruction", "missing_column")
    assert "'input' is undefined; the row has instruction" in detail


def test_a_row_with_nothing_in_its_columns_is_a_bad_row(tmp_path: Path) -> None:
    tables = read(jsonl(tmp_path, {"q": " "}, {"q": "1?"}), prompt="Answer: {{ q }}")
    assert (asked(tables), bad(tables)[:2]) == (["Answer: 1?"], ("q", "empty"))


def test_names_that_are_no_words_loops_and_conditions(tmp_path: Path) -> None:
    row = {"The Question": "Which?", "choices": ["a", "b"], "hint": None}
    template = (
        '{{ row["The Question"] | trim }}{% for one in choices %}\n{{ loop.index }}. {{ one }}'
        "{% endfor %}{% if hint %} ({{ hint.strip() }}){% endif %}\n"
    )
    assert asked(read(jsonl(tmp_path, row), prompt=template)) == ["Which?\n1. a\n2. b"]


def test_a_line_of_a_text_file_is_the_column_prompt(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    assert asked(read(tmp_path / "p.txt", prompt="Say {{ prompt }}.")) == ["Say one.", "Say two."]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ a", "unexpected end of template"),
        ("just text {# nothing #}", "names no column"),
        ("{% set x = a %}{{ x }}", "Assign has no place"),
        ("{% macro f() %}{% endmacro %}{{ a }}", "Macro has no place"),
        ("{% include 'x' %}{{ a }}", "Include has no place"),
        ("{{ a * 99 }}", "Mul has no place"),
        ("{{ a.__class__() }}", "only these methods"),
        ("{{ range(9) }}{{ a }}", "only these methods"),
        ("{{ a | random }}", "no filter 'random'"),
        ("{{ a | center(9) }}", "no filter 'center'"),
        ("{% for b in a recursive %}{% endfor %}", "recursive"),
        ("{% for b in a %}" * 4 + "{% endfor %}" * 4, "nested more than 3"),
    ],
)
def test_what_is_no_template_is_refused_in_one_line(template: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as refused:
        RowTemplate(template)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for x in a %}{% for y in a %}{% for z in a %}{% endfor %}{% endfor %}{% endfor %}",
         "go round more than"),
        ("{% for x in a %}{{ a }}{% endfor %}", "longer than"),
        ("{{ a | replace('', a) }}", "longer than"),
        ("{{ a | list | join(a) }}", "longer than"),
        ("{{ '%999999999d' % b }}", "% is for numbers"),
        ("{{ c }}", "type list, no text"),
        ("{{ a.__class__ }}", "unsafe"),
        ("{{ d }}", "reads text only"),
    ],
)  # fmt: skip
def test_no_template_runs_away(template: str, says: str) -> None:
    fields = {"a": "x" * (LONGEST // 1000), "b": 1, "c": ["x"], "d": {"bytes": b"", "path": "p"}}
    with pytest.raises(Unusable) as refused:
        RowTemplate(template).render(fields, "prompt")
    assert says in refused.value.detail


# --- columns left aside -------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_an_ignored_column_of_content_is_a_loud_warning(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, form, ROWS)
    with caplog.at_level(logging.WARNING):
        read(path, prompt="instruction")
        (said,) = caplog.messages
        read(path, prompt="instruction", metadata=("input",))
    assert "the column 'input' holds something in 1 of 2 rows" in said
    assert 'set prompts.train.columns.prompt: "{{ instruction }}\\n\\n{{ input }}"' in said
    assert caplog.messages == [said]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("tools", "set prompts.train.columns.tools: tools"),
        ("System", "set prompts.train.columns.system: System"),
        ("history", "set prompts.train.columns.messages: history"),
        ("images", "reads text only"),
    ],
)
def test_the_warning_names_the_key_to_set(
    tmp_path: Path, name: str, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        read(jsonl(tmp_path, {"prompt": "Hi?", name: ["x"]}, {"prompt": "Ho?", name: []}))
    (said,) = caplog.messages
    assert f"{name!r} holds something in 1 of 2 rows" in said
    assert remedy in said


def test_a_number_of_turns_is_no_conversation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read(jsonl(tmp_path, {"prompt": "Hi?", "turns": 2}))
    assert not caplog.messages


# --- a prompt and a conversation ----------------------------------------------------------------

QUESTION, ANSWER = {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}


def test_a_conversation_beside_a_mapped_prompt_is_refused_unless_asked_for(
    tmp_path: Path,
) -> None:
    path = jsonl(tmp_path, {"ask": "other", "messages": [QUESTION, ANSWER]})
    with pytest.raises(InputError, match=r"row 1: columns\.prompt \(ask\) and the column 'messages'"
                       r" hold different prompts: set columns\.prefer"):  # fmt: skip
        read(path, prompt="ask")
    with pytest.raises(InputError, match="different prompts"):
        read(path, prompt="{{ ask }}", messages="messages")
    assert asked(read(path, prompt="ask", prefer="prompt")) == ["other"]
    assert asked(read(path, prompt="ask", prefer="messages")) == ["Q?"]
    assert asked(read(path, messages="messages")) == ["Q?"]


def test_the_same_prompt_twice_is_no_conflict(tmp_path: Path) -> None:
    rows = [{"prompt": " Q?", "messages": [QUESTION, ANSWER]}, {"prompt": "B?", "messages": None}]
    path = jsonl(tmp_path, *rows)
    tables = read(path, prompt="prompt", last_turn="reference")
    assert (asked(tables), tables.train["reference"].to_pylist()) == (["Q?", "B?"], ["A.", None])


def test_the_last_turn_is_a_reference_only_where_the_config_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = jsonl(tmp_path, {"messages": [QUESTION, ANSWER]})
    with caplog.at_level(logging.WARNING):
        tables = read(path)
    assert tables.train["reference"].to_pylist() == [None]
    assert tables.train["metadata"].to_pylist() == ["{}"]
    (said,) = caplog.messages
    assert "1 conversations end in an assistant's turn" in said
    assert "prompts.train.columns.last_turn" in said
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        read(path, last_turn="drop")  # who writes it knows it
    assert not caplog.messages


def test_a_system_column_leads_conversations_that_have_none(tmp_path: Path) -> None:
    own = {"role": "system", "content": "Own."}
    rows = [
        {"messages": [own, QUESTION], "sys": "Theirs."},
        {"messages": [QUESTION], "sys": "Theirs."},
        {"messages": [{**QUESTION, "content": "B?"}], "sys": " "},
        {"messages": [QUESTION], "sys": 7},
    ]
    tables = read(jsonl(tmp_path, *rows), system="sys")
    systems = [[turn["content"] for turn in one if turn["role"] == "system"]
               for one in tables.train["messages"].to_pylist()]  # fmt: skip
    assert systems == [["Own."], ["Theirs."], []]
    assert bad(tables)[:2] == ("sys", "wrong_type")


# --- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "columns", "field"),
    [
        ({"prompt": {"bytes": None, "path": "a.png"}}, {}, "prompt"),
        ({"prompt": "What?", "pic": {"bytes": "x", "path": "a.png"}},
         {"prompt": "{{ prompt }} {{ pic }}"}, "pic, prompt"),
        ({"messages": [{"role": "user", "content": [
            {"type": "text", "text": "What?"},
            {"type": "image_url", "image_url": {"url": "http://x"}}]}]}, {}, "messages"),
    ],
)  # fmt: skip
def test_images_are_refused_by_name(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str], field: str
) -> None:
    found = bad(read(jsonl(tmp_path, row), **columns))
    assert found[:2] == (field, "images")
    assert "reads text only" in found[2]


def test_parts_of_text_are_put_together(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "at?"}]
    rows = [{"messages": [{"role": "user", "content": parts}]}, {"prompt": [{**parts[0]}]}]
    assert asked(read(jsonl(tmp_path, *rows))) == ["What?", "Wh"]


def test_an_image_is_not_carried_along_in_the_metadata(tmp_path: Path) -> None:
    tables = read(jsonl(tmp_path, {"prompt": "Hi?", "pic": {"bytes": "x", "path": None}, "n": 1}))
    assert json.loads(tables.train["metadata"][0].as_py()) == {"n": 1}


def test_replies_in_rows_of_a_tree_are_no_prompts(tmp_path: Path) -> None:
    node = {"message_id": "1", "parent_id": None, "role": "prompter", "text": "Why?"}
    rows = [
        node,
        node | {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "So."},
        node | {"message_id": "3", "parent_id": "2", "text": "And then?"},
    ]
    tables = read(write(tmp_path, "parquet", rows), prompt="text")

    assert asked(tables) == ["Why?"]
    assert [(one["row"], one["field"], one["reason"]) for one in tables.quarantine.to_pylist()] == [
        (2, "role", "no_prompt"), (3, "parent_id", "no_prompt"),
    ]  # fmt: skip


def test_an_empty_list_of_turns_beside_a_prompt_says_nothing(tmp_path: Path) -> None:
    rows = [
        {"prompt": "one", "messages": []},
        {"prompt": None, "messages": [{"role": "user", "content": "two"}]},
    ]
    assert asked(read(write(tmp_path, "parquet", rows))) == ["one", "two"]


def test_texts_of_turns_with_a_lost_one_are_no_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": '["first", null]'}, {"prompt": "[null]"}]
    tables = read(jsonl(tmp_path, *rows))

    assert asked(tables) == ["[null]"]
    assert bad(tables)[:2] == ("prompt", "written_turns")
