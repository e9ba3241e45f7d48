"""Files as they come: packed, too long, of another format than their name says, hostile."""

from __future__ import annotations

import gzip
import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefloop.data.config import OverlapSet, PromptsConfig, PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences import read_preferences
from prefloop.data.prompts.load import PromptTables, load_prompts
from prefloop.data.prompts.no_prompts import why_no_prompt
from prefloop.data.protocol import EngineFailed
from prefloop.data.quarantine import BadRow
from prefloop.data.sources import opening
from prefloop.data.sources.tool_turns import turns_of
from prefloop.data.sources.turns import conversation_in
from prefloop.data.utf8 import is_blank, listed, shown


def write(folder: Path, name: str, content: str | bytes) -> PromptSource:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return PromptSource(path=str(folder / name))


def load(source: PromptSource) -> PromptTables:
    return load_prompts(PromptsConfig(train=source, heldout_share=0.0), seed=0)


def asked(tables: PromptTables) -> list[str]:
    return [turns[-1]["content"] for turns in tables.train["messages"].to_pylist()]


ROWS = [{"prompt": "one"}, {"prompt": "two"}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", json.dumps(ROWS, indent=1), "8 rows.*row 1: .*; it looks like one JSON array"),
        ("p.jsonl", json.dumps(ROWS), "not_an_object.*it looks like one JSON array: set `format: "),
        ("p.jsonl", json.dumps({"rows": ROWS}, indent=1), "one JSON document over several lines"),
        ("p.jsonl", "", "; the file is empty"),
        ("p.jsonl", "prompt\none\n", "its lines are no JSON objects"),
        ("p.csv", "prompt,n\n,1\n,2\n", "as empty .2 rows.*row 2, field 'prompt': holds no text"),
    ],
)
def test_why_there_is_no_prompt(tmp_path: Path, name: str, content: str, said: str) -> None:
    source = write(tmp_path, name, content)
    tables = load(source)
    assert len(tables.train) == 0
    why = why_no_prompt(tables, PromptsConfig(train=source))
    assert re.search(said, why), why
    assert "\n" not in why


def test_files_are_read_as_what_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = "\n".join(map(json.dumps, ROWS))
    for name, content in (
        ("packed.jsonl", gzip.compress(lines.encode())),
        ("lines.json", lines),
        ("lines.json.gz", gzip.compress(lines.encode())),
        ("array.json", json.dumps(ROWS)),
        ("p.csv", "n,prompt\n1,one\n2,two\n"),
        ("one.csv", "prompt\none\ntwo\n"),
    ):
        assert asked(load(write(tmp_path, name, content))) == ["one", "two"], name
    assert not caplog.records
    for delimiter in (";", "\t", "|"):
        content = f'n{delimiter}prompt\n1{delimiter}one\n2{delimiter}"two"\n'
        with caplog.at_level(logging.WARNING):
            assert asked(load(write(tmp_path, "p.csv", content))) == ["one", "two"]
        assert repr(delimiter) in caplog.records[-1].getMessage()


@pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
def test_a_key_twice_in_an_object_is_a_bad_row(tmp_path: Path, name: str) -> None:
    rows = [
        '{"prompt": "one"}',
        '{"prompt": "a", "prompt": "b"}',
        '{"prompt": "c", "m": [{"k": 1, "k": 2}]}',
    ]
    text = "\n".join(rows) if name == "p.jsonl" else f"[{', '.join(rows)}]"
    tables = load(write(tmp_path, name, text))
    assert asked(tables) == ["one"]
    bad = tables.quarantine.to_pylist()
    assert [(row["row"], row["reason"]) for row in bad] == [(2, "key_twice"), (3, "key_twice")]
    assert ["'prompt'" in bad[0]["detail"], "'k'" in bad[1]["detail"]] == [True, True]


def test_what_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefloop.data.sources import files

    for module in (opening, files):
        monkeypatch.setattr(module, "LONGEST_LINE", 4_000)
    monkeypatch.setattr(opening, "LONGEST_DOCUMENT", 9_000)
    long = json.dumps({"prompt": "x" * 5_000})
    content = f'{{"prompt": "one"}}\n{long}\n{{"prompt": "two"}}\n{long}'
    tables = load(write(tmp_path, "p.jsonl", content))
    assert asked(tables) == ["one", "two"]
    assert tables.train["row"].to_pylist() == [1, 3]
    assert tables.quarantine["reason"].to_pylist() == ["too_long", "too_long"]
    assert max(map(len, tables.quarantine["content"].to_pylist())) <= 1_000
    with pytest.raises(InputError, match="line 2: is longer than"):
        load(write(tmp_path, "p.csv", f"prompt\n{'x' * 5_000}\n"))
    quoted = "prompt\n" + '"' + "x\n" * 3_000
    assert load(write(tmp_path, "q.csv", quoted)).quarantine["reason"][0].as_py() == "broken_csv"
    with pytest.raises(InputError, match="too long for one JSON document"):
        load(write(tmp_path, "p.json", f"[{long},{long}]"))


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_header_without_end_is_one_short_line(tmp_path: Path, form: str) -> None:
    names = [f"column{number}" for number in range(20_000)] + ["x" * 5_000]
    path = tmp_path / f"d.{form}"
    if form == "csv":
        path.write_text(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")
    else:
        pq.write_table(pa.table([["1"]] * len(names), names=names), path)
    source = PromptSource(path=str(path))
    for read in (load, lambda one: list(read_preferences(one))):
        with pytest.raises(InputError, match="column19 and 19,981 more") as caught:
            read(source)
        assert len(str(caught.value)) < 1_500


@pytest.mark.parametrize(
    "text",
    [
        "Human: a" + "\n" * 1_000_000 + "x",
        "Human:" * 200_000,
        "Human: " + "\n\nAssistant" * 100_000,
        "[" + " " * 1_000_000,
        "[{'" + "role': " * 150_000,
        " \n" * 500_000,
        "array(" * 200_000,
    ],
)
def test_a_long_text_is_looked_through_once(text: str) -> None:
    begun = time.perf_counter()
    found = conversation_in(text, "prompt")
    if found is not None:
        turns_of(found, "prompt")
    is_blank(text)
    # A second look at each character would take hours.
    assert time.perf_counter() - begun < 20


def test_prompts_that_are_all_held_out_say_so(tmp_path: Path) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    source, copy = write(tmp_path, "a.jsonl", rows), write(tmp_path, "b.jsonl", rows)
    other = write(tmp_path, "c.jsonl", json.dumps({"prompt": "Something else."}) + "\n")

    def said(**changes: Any) -> str:
        config = PromptsConfig(train=source, **changes)
        tables = load_prompts(config, seed=0)
        assert len(tables.train) == 0
        return why_no_prompt(tables, config)

    assert "prompts.train and prompts.heldout are the same" in said(heldout=source)
    assert "b.jsonl) has the prompts of prompts.train" in said(heldout=copy)
    assert "name other prompts in prompts.heldout, or leave it out" in said(heldout=copy)
    overlap = OverlapSet(name="bench", source=copy)
    assert "one of prompts.exclude_overlap.bench" in said(exclude_overlap=(overlap,), heldout=other)


def test_messages_command_no_terminal(tmp_path: Path) -> None:
    evil = "\x1b[31m\x07\r\n\u202e\x9b\u2028"
    assert shown(f"a{evil}é") == "a\\x1b[31m\\x07\\r\\n\\u202e\\x9b\\u2028é"
    assert listed([evil]).isprintable()
    assert str(InputError("a\x1b[31m\nb\u202e")) == "a\\x1b[31m\nb\\u202e"
    assert str(EngineFailed("a\x1b[31m", "\x9b")) == "a\\x1b[31m (\\x9b)"
    row = BadRow(evil, 1, evil, "reason", evil, evil)
    assert str(row).isprintable()
    for name, content in (
        ("a.jsonl", json.dumps({evil: evil})),
        ("b.csv", f'"{evil}"\nx\n'),
        ("c.json", json.dumps({evil: [{}], f"{evil}b": [{}]})),
        ("d.jsonl", json.dumps({"messages": [{"role": evil, "content": "x"}]})),
        ("e.jsonl", f'{{"{json.dumps(evil)[1:-1]}": 1, "{json.dumps(evil)[1:-1]}": 1}}'),
    ):
        source = write(tmp_path, name, content)
        try:
            said = why_no_prompt(load(source), PromptsConfig(train=source))
        except InputError as error:
            said = str(error)
        assert said.isprintable(), said
        assert "u001b" in said or "x1b" in said, said
