"""Prompts in: every format, every kind of bad row with its place, and counts that add up."""

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefloop.data.checks.against import parse_against
from prefloop.data.config import Columns, NearDuplicates, OverlapSet, PromptsConfig, PromptSource
from prefloop.data.errors import InputError
from prefloop.data.hashing import prompt_id
from prefloop.data.prompts.load import PromptTables, load_prompts
from prefloop.data.quarantine import BadRow
from prefloop.data.schemas import DROPPED, PROMPT, QUARANTINE
from prefloop.data.sources.files import read_rows
from prefloop.data.sources.rows import RawRow
from tests.helpers.paths import PUBLIC

EXACT_ONLY = NearDuplicates(enabled=False)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_jsonl(folder: Path, rows: list[Any], name: str = "prompts.jsonl") -> Path:
    return write(folder, name, "".join(json.dumps(row) + "\n" for row in rows))


def load(path: Path | str, seed: int = 0, **config: Any) -> PromptTables:
    """All rows as train prompts, unless ``config`` (its keys, or the source's) says otherwise."""
    source = {key: config.pop(key) for key in PromptSource.model_fields if key in config}
    train = PromptSource(path=str(path), **source)
    return load_prompts(PromptsConfig(train=train, **{"heldout_share": 0, **config}), seed=seed)


def asked(tables: PromptTables) -> list[str]:
    return [row[-1]["content"] for row in tables.train["messages"].to_pylist()]


def only_bad_row(tables: PromptTables) -> dict[str, Any]:
    (row,) = tables.quarantine.to_pylist()
    return row


# --- formats ---------------------------------------------------------------------------------

ROWS = [{"prompt": "Say héllo.", "topic": "greeting"}, {"prompt": "Count\nto 3.", "topic": "sum"}]


def make_source(folder: Path, form: str) -> Path:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    table = 'prompt,topic\nSay héllo.,greeting\n"Count\nto 3.",sum\n'
    if form in ("parquet", "saved", "split", "directory"):
        import datasets

        dataset = datasets.Dataset.from_list(ROWS)
        path = folder / form
        if form == "parquet":
            path = folder / "prompts.parquet"
            pq.write_table(pa.Table.from_pylist(ROWS), path)
        elif form == "saved":
            dataset.save_to_disk(path)
        elif form == "split":
            datasets.DatasetDict(train=dataset, other=dataset.select([0])).save_to_disk(path)
        else:
            path.mkdir()
            write(path, "train.jsonl", lines)
            write(path, "test.jsonl", '{"prompt": "no", "topic": "no"}\n')
        return path
    name, content = {
        "jsonl": ("prompts.jsonl", lines),
        "bom": ("prompts.jsonl", "\ufeff" + lines),
        "crlf": ("prompts.jsonl", lines.replace("\n", "\r\n") + "\r\n"),
        "gz": ("prompts.jsonl.gz", gzip.compress(lines.encode())),
        "json": ("prompts.json", json.dumps(ROWS)),
        "wrapped": ("prompts.json", json.dumps({"version": 1, "tags": ["x"], "data": ROWS})),
        "csv": ("prompts.csv", table),
        "csv bom": ("prompts.csv", "\ufeff" + table),
        "csv gz": ("prompts.csv.gz", gzip.compress(table.encode())),
        "tsv": ("prompts.tsv", table.replace(",", "\t")),
    }[form]
    return write(folder, name, content)


@pytest.mark.parametrize(
    "form",
    ["jsonl", "bom", "crlf", "gz", "json", "wrapped", "csv", "csv bom", "csv gz", "tsv", "parquet",
     "saved", "split", "directory"],
)  # fmt: skip
def test_every_format_gives_the_same_prompts(tmp_path: Path, form: str) -> None:
    path = make_source(tmp_path, form)
    tables = load(path)
    assert tables.read == 2
    assert asked(tables) == ["Say héllo.", "Count\nto 3."]
    assert tables.train.schema.equals(PROMPT)
    first = tables.train.to_pylist()[0]
    assert first == {
        "prompt_id": prompt_id([{"role": "user", "content": "Say héllo."}]),
        "messages": [{"role": "user", "content": "Say héllo."}],
        "reference": None,
        "metadata": '{"topic": "greeting"}',
        "source": str(path),
        "row": 2 if "csv" in form or form == "tsv" else 1,
        "tools": None,
        "turns": None,
    }


def test_plain_text_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "prompts.txt", b"\xef\xbb\xbfone\r\n\n  \ntwo \xff\nthree")
    tables = load(path)
    assert asked(tables) == ["one", "three"]
    assert tables.train["row"].to_pylist() == [1, 5]
    bad = only_bad_row(tables)
    assert (bad["row"], bad["reason"], bad["content"]) == (4, "not_utf8", "two \\xff")


def test_embedded_prompts_go_by_their_short_name() -> None:
    tables = load("embedded:prompts", limit=5)
    assert tables.read == 5
    assert set(tables.train["source"].to_pylist()) == {"embedded:prompts"}


def test_files_of_a_glob_or_of_a_directory_are_read_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        write_jsonl(tmp_path, [{"prompt": name}], name)
    write(tmp_path, "c.txt", "c.txt")
    assert asked(load(tmp_path / "*.jsonl")) == ["a.jsonl", "b.jsonl"]
    assert asked(load(tmp_path, format="jsonl")) == ["a.jsonl", "b.jsonl"]
    assert asked(load(tmp_path / "*")) == ["a.jsonl", "b.jsonl", "c.txt"]


def test_the_format_can_be_named_where_the_ending_tells_none(tmp_path: Path) -> None:
    path = write(tmp_path, "prompts.dat", '{"prompt": "one"}\n')
    with pytest.raises(InputError, match="set `format`"):
        load(path)
    assert asked(load(path, format="jsonl")) == ["one"]


def test_limit_counts_rows_read_bad_ones_included(tmp_path: Path) -> None:
    path = write(tmp_path, "p.jsonl", '{"prompt": "a"}\n{\n{"prompt": "b"}\n')
    tables = load(path, limit=2)
    assert (tables.read, len(tables.train), len(tables.quarantine)) == (2, 1, 1)


# --- sources that cannot be read ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("none.jsonl", None, "no such file"),
        ("none/deeper/none", None, "no such file"),
        ("*.jsonl", None, "no file matches"),
        ("p.json", "[1,", "not valid JSON.*format: jsonl"),
        ("p.json", '{"prompt": "a"}{"prompt": "b"}', "not valid JSON.*format: jsonl"),
        ("p.json", '{"a": [{}], "a": [{}]}', "the key 'a' twice"),
        ("p.jsonl", b"\x28\xb5\x2f\xfd..", "Zstandard: unpack it"),
        ("p.csv", b"PK\x03\x04..", "spreadsheet: unpack it, or save it as CSV"),
        ("p.jsonl", "{}".encode("utf-16-le"), "UTF-16 or no text"),
        ("p.txt", b"PAR1...", "set `format: parquet`"),
        ("p.json", '{"a": [{}], "b": [{}]}', "one such array; it has 2"),
        ("p.json", "3", "one such array; it has none"),
        ("p.csv", "a,a\n1,2\n", "row 1: the header names a column twice"),
        ("p.parquet", "PAR1 garbage", "cannot be read"),
        ("p.jsonl.gz", b"no gzip", "cannot be read"),
        ("p.txt", "one\n".encode("utf-16"), "is UTF-16"),
    ],
)
def test_an_unusable_source_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str | bytes | None, complaint: str
) -> None:
    path = tmp_path / name
    if content is not None:
        write(tmp_path, name, content)
    with pytest.raises(InputError, match=complaint) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_archive_says_how_far_it_was_read(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": str(random.Random(i).random())}) + "\n" for i in range(5000)]
    whole = gzip.compress("".join(lines).encode())
    path = write(tmp_path, "p.jsonl.gz", whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot be read behind row \d+"):
        load(path)


def test_a_missing_split_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no split 'nope': set `split` to one of train, other"):
        load(make_source(tmp_path, "split"), split="nope")
    with pytest.raises(InputError, match="nope"):
        load(make_source(tmp_path, "directory"), split="nope")


def test_a_name_that_is_no_file_is_looked_up_as_a_hub_dataset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> Any:
        assert (name, config, split, streaming) == ("org/set", None, "train_sft", True)
        yield {"prompt": "from the hub"}
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    tables = load("org/set", split="train_sft", limit=1)
    assert tables.train.to_pylist()[0]["source"] == "org/set"
    with pytest.raises(InputError, match=r"org/set: .* behind row 1: reset by peer: .* connection"):
        load("org/set", split="train_sft")


# --- bad rows -------------------------------------------------------------------------------------

USER = {"role": "user", "content": "hi"}
BAD_LINES = [
    (b'{"prompt": "x"', None, "broken_json"),
    (b"[1]", None, "not_an_object"),
    (b'"text"', None, "not_an_object"),
    (b'{"prompt": "caf\xe9"}', None, "not_utf8"),
    (b'{"prompt": "\\ud800"}', "prompt", "not_utf8"),
    (b'{"prompt": "x", "tag": "\\udc80"}', "tag", "not_utf8"),
    (b'{"prompt": "x", "answer": "\\udc80"}', "answer", "not_utf8"),
    (b'{"text": "x"}', "prompt", "missing_column"),
    (b"{}", "prompt", "missing_column"),
    (b'{"prompt": null}', "prompt", "null"),
    (b'{"messages": null}', "messages", "null"),
    (b'{"prompt": ""}', "prompt", "empty"),
    (b'{"prompt": " \\n\\u00a0"}', "prompt", "empty"),
    (b'{"prompt": 3}', "prompt", "wrong_type"),
    (b'{"prompt": true}', "prompt", "wrong_type"),
    (b'{"prompt": {"a": 1}}', "prompt", "wrong_type"),
    (b'{"prompt": ["one", "two"]}', "prompt", "wrong_type"),
    (b'{"prompt": "x", "answer": 3}', "answer", "wrong_type"),
    (b'{"messages": "x"}', "messages", "wrong_type"),
    (b'{"messages": []}', "messages", "empty"),
    (b'{"messages": ["x"]}', "messages", "bad_messages"),
    (b'{"messages": [{"role": "tool", "content": "x"}]}', "messages", "bad_messages"),
    (b'{"messages": [{"role": ["user"], "content": "x"}]}', "messages", "bad_messages"),
    (b'{"messages": [{"role": "user"}]}', "messages", "bad_messages"),
    (b'{"messages": [{"role": "user", "content": [1]}]}', "messages", "bad_messages"),
    (b'{"messages": [{"role": "user", "content": " "}]}', "messages", "empty"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "messages", "not_utf8"),
    (b'{"messages": [{"role": "system", "content": "x"}]}', "messages", "bad_messages"),
    (b'{"messages": [{"role": "assistant", "content": "x"}]}', "messages", "bad_messages"),
    (b'{"prompt": "a long prompt ' + b"x" * 100 + b'"}', "prompt", "too_long"),
    (b'{"prompt": "x", "deep": ' + b"[" * 5000 + b"]" * 5000 + b"}", None, "broken_json"),
]


@pytest.mark.parametrize(("line", "field", "reason"), BAD_LINES)
def test_a_bad_line_is_quarantined_with_its_place(
    tmp_path: Path, line: bytes, field: str | None, reason: str
) -> None:
    good = b'{"prompt": "good", "answer": "fine"}\n'
    path = write(tmp_path, "p.jsonl", good + line + b"\n" + good.replace(b"good", b"last"))
    config: dict[str, Any] = {"columns": {"reference": "answer"}, "max_chars": 100}
    tables = load(path, **config)
    assert asked(tables) == ["good", "last"]
    bad = only_bad_row(tables)
    assert tables.quarantine.schema.equals(QUARANTINE)
    assert bad["content"]
    assert bad["detail"]
    assert {key: bad[key] for key in ("stage", "round", "source", "row", "field", "reason")} == {
        "stage": "prompts", "round": 0, "source": str(path), "row": 2, "field": field,
        "reason": reason,
    }  # fmt: skip
    with pytest.raises(InputError) as caught:
        load(path, on_bad_row="fail", **config)
    message = str(caught.value)
    assert message.startswith(f"{path}, row 2")
    assert reason in message
    assert field is None or repr(field) in message


def test_bytes_that_are_no_text_are_kept_escaped(tmp_path: Path) -> None:
    tables = load(write(tmp_path, "p.jsonl", b'{"prompt": "caf\xe9"}\n'))
    assert only_bad_row(tables)["content"] == '{"prompt": "caf\\xe9"}'
    tables = load(write(tmp_path, "p.json", b'[{"prompt": "caf\xe9"}, {"prompt": "b"}]'))
    bad = only_bad_row(tables)
    assert (bad["row"], bad["field"], bad["reason"]) == (1, "prompt", "not_utf8")
    assert bad["content"] == '{"prompt": "caf\\xe9"}'


def test_bad_csv_records_cost_no_other_row(tmp_path: Path) -> None:
    content = b'prompt,topic\na,1\nb\n"two\nlines",2\n\xff,3\n"c"d,4\n\n,5\nlast,6\n"open,7\n8,9\n'
    tables = load(write(tmp_path, "p.csv", content))
    assert asked(tables) == ["a", "two\nlines", "last"]
    assert tables.train["row"].to_pylist() == [2, 4, 10]
    bad = tables.quarantine.to_pylist()
    assert [(row["row"], row["field"], row["reason"], row["content"]) for row in bad] == [
        (3, None, "wrong_field_count", "b\n"),
        (6, "prompt", "not_utf8", '{"prompt": "\\xff", "topic": "3"}'),
        (7, None, "broken_csv", '"c"d,4\n'),
        (9, "prompt", "empty", '{"prompt": "", "topic": "5"}'),
        (11, None, "broken_csv", '"open,7\n8,9\n'),
    ]
    assert tables.read == 8


def test_csv_fields_may_be_long(tmp_path: Path) -> None:
    text = "x" * 300_000
    assert asked(load(write(tmp_path, "p.csv", f"prompt\n{text}\n"))) == [text]


def test_bytes_that_are_no_text_in_parquet_cost_one_row(tmp_path: Path) -> None:
    binary = pa.array([b"a", b"caf\xe9", b"c"], pa.binary())
    strings = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"n": [1, 2, 3], "prompt": strings}), path)
    tables = load(path)
    assert asked(tables) == ["a", "c"]
    bad = only_bad_row(tables)
    assert (bad["row"], bad["field"], bad["reason"]) == (2, "prompt", "not_utf8")
    assert bad["content"] == "caf\\xe9"


def test_one_id_for_two_prompts_is_bad_and_for_one_prompt_a_duplicate(tmp_path: Path) -> None:
    rows = [
        {"key": 7, "prompt": "a"}, {"key": "7", "prompt": "b"}, {"key": 7, "prompt": "a "},
        {"key": 8, "prompt": "c"}, {"key": None, "prompt": "d"}, {"key": 1.5, "prompt": "e"},
        {"key": True, "prompt": "f"}, {"prompt": "g"},
    ]  # fmt: skip
    tables = load(write_jsonl(tmp_path, rows), columns={"id": "key"})
    assert asked(tables) == ["a", "c"]
    assert [json.loads(text) for text in tables.train["metadata"].to_pylist()] == [
        {"id": 7}, {"id": 8},
    ]  # fmt: skip
    assert [(bad["row"], bad["field"], bad["reason"]) for bad in tables.quarantine.to_pylist()] == [
        (2, "key", "duplicate_id"), (5, "key", "null"), (6, "key", "wrong_type"),
        (7, "key", "wrong_type"), (8, "key", "missing_column"),
    ]  # fmt: skip
    assert tables.dropped["row"].to_pylist() == [3]


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"prompt": "question"}, "prompts.train.columns.prompt"),
        ({"reference": "gold"}, "prompts.train.columns.reference"),
        ({"id": "key"}, "prompts.train.columns.id"),
        ({"metadata": ["topic", "level"]}, "prompts.train.columns.metadata.1"),
    ],
)
def test_a_column_that_no_row_has_is_a_wrong_mapping(
    tmp_path: Path, columns: dict[str, Any], named: str
) -> None:
    path = write_jsonl(tmp_path, [{"prompt": "a", "topic": "b"}, {"prompt": "c"}])
    with pytest.raises(InputError, match=named) as caught:
        load(path, columns=columns)
    assert "columns found: prompt, topic" in str(caught.value)


# --- conversations, references, metadata -------------------------------------------------------


def test_conversations_keep_their_turns(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And 2+2?"},
    ]
    shared = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    path = write_jsonl(
        tmp_path,
        [
            {"messages": turns, "prompt": "not this"},
            {"messages": None, "prompt": "this"},
            {"messages": shared},
            {"prompt": [{"role": "user", "content": "as TRL has it"}]},
        ],
    )
    tables = load(path, near_duplicates=EXACT_ONLY)
    assert tables.train["messages"].to_pylist() == [
        turns,
        [{"role": "user", "content": "this"}],
        [{"role": "user", "content": "Hi"}],
        [{"role": "user", "content": "as TRL has it"}],
    ]
    assert tables.train["reference"].to_pylist() == [None] * 4
    assert set(tables.train["metadata"].to_pylist()) == {"{}"}


def test_the_reference_column_wins_over_the_last_turn(tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "from the turn"}
    rows = [
        {"messages": [{"role": "user", "content": str(i)}, answer], "gold": gold}
        for i, gold in enumerate(["from the column", None, ""])
    ]
    tables = load(
        write_jsonl(tmp_path, rows),
        columns={"reference": "gold", "last_turn": "reference"},
    )
    assert tables.train["reference"].to_pylist() == [
        "from the column", "from the turn", "from the turn",
    ]  # fmt: skip


def test_metadata_is_what_is_left_or_what_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path, "p.jsonl", '{"prompt": "a", "x": [1, {"y": "é"}], "n": NaN, "key": "k1"}\n'
    )
    whole = load(path, columns={"id": "key"}).train["metadata"].to_pylist()
    assert whole == ['{"x": [1, {"y": "é"}], "n": null, "id": "k1"}']
    assert load(path, columns={"metadata": ["n"]}).train["metadata"].to_pylist() == ['{"n": null}']
    assert load(path, columns={"metadata": []}).train["metadata"].to_pylist() == ["{}"]


def test_metadata_of_parquet_types_becomes_json(tmp_path: Path) -> None:
    import datetime

    row = {"prompt": "a", "day": datetime.date(2026, 1, 2), "raw": b"\xff"}
    path = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist([row]), path)
    (text,) = load(path).train["metadata"].to_pylist()
    assert json.loads(text) == {"day": "2026-01-02", "raw": "\\xff"}


# --- duplicates, overlaps, held-out prompts ----------------------------------------------------

LONG = "Write a long story about a fox who finds an old lantern under the bridge at night"


def reasons(tables: PromptTables) -> list[tuple[int, str]]:
    assert tables.dropped.schema.equals(DROPPED)
    return [(row["row"], row["reason"]) for row in tables.dropped.to_pylist()]


def test_duplicates_of_each_kind(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    rows = [
        {"prompt": LONG}, {"prompt": f" {LONG}\n"}, {"prompt": LONG.upper()},
        {"prompt": LONG + " please"}, {"messages": [system, {"role": "user", "content": LONG}]},
        {"prompt": LONG}, {"prompt": "Something else entirely."},
    ]  # fmt: skip
    path = write_jsonl(tmp_path, rows)
    tables = load(path)
    assert tables.train["row"].to_pylist() == [1, 5, 7], "another system prompt: another prompt"
    assert reasons(tables) == [
        (2, "exact_duplicate"), (3, "near_duplicate"), (4, "near_duplicate"),
        (6, "exact_duplicate"),
    ]  # fmt: skip
    first = tables.train["prompt_id"].to_pylist()[0]
    assert set(tables.dropped["detail"].to_pylist()) == {first}
    exact = load(path, near_duplicates=EXACT_ONLY)
    assert exact.train["row"].to_pylist() == [1, 3, 4, 5, 7]


def test_heldout_prompts_win_over_train_prompts(tmp_path: Path) -> None:
    train = [
        {"prompt": LONG.lower()}, {"prompt": "unrelated"}, {"prompt": "Please do this. " + LONG},
        {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"},
                      {"role": "user", "content": LONG}]},
    ]  # fmt: skip
    heldout = [{"prompt": LONG}, {"prompt": LONG + " now"}, {"prompt": LONG}, {"prompt": ""}]
    tables = load(
        write_jsonl(tmp_path, train),
        heldout=PromptSource(path=str(write_jsonl(tmp_path, heldout, "heldout.jsonl"))),
    )
    assert asked(tables) == ["unrelated"]
    assert [row[0]["content"] for row in tables.heldout["messages"].to_pylist()] == [LONG]
    assert reasons(tables) == [
        (2, "near_duplicate"), (3, "exact_duplicate"), (1, "overlap:heldout"),
        (3, "overlap:heldout"), (4, "overlap:heldout"),
    ]  # fmt: skip
    assert set(tables.dropped["detail"].to_pylist()) == set(tables.heldout["prompt_id"].to_pylist())
    assert tables.read == 8


def talk(*turns: str) -> dict[str, Any]:
    """A conversation out of ``"role: content"``."""
    parts = [turn.partition(": ") for turn in turns]
    return {"messages": [{"role": role, "content": content} for role, _, content in parts]}


SHORT_TURNS = ("user: fox fox", "system: rain", "user: bridge fox fox bridge fox")


@pytest.mark.parametrize(
    ("train", "dropped"),
    [
        (SHORT_TURNS, True),
        ([f"{turn}\n" for turn in SHORT_TURNS], True),
        ((SHORT_TURNS[0].replace("fox fox", "Fox  FOX"), *SHORT_TURNS[1:]), True),
        ((SHORT_TURNS[0], "system: old", SHORT_TURNS[2]), True),
        ((SHORT_TURNS[0], "assistant: rain", SHORT_TURNS[2]), True),
        (("system: rain", SHORT_TURNS[0], SHORT_TURNS[2]), True),
        ((*SHORT_TURNS[:2], "user: bridge fox fox bridge fox fox"), True),
        (("user: fox fox", "system: rain", "user: old old rain"), False),
        (("user: old rain", "system: rain", SHORT_TURNS[2]), False),
    ],
)
@pytest.mark.parametrize("near", [True, False])
def test_a_conversation_is_in_one_split_whatever_its_turns(
    tmp_path: Path, train: Sequence[str], dropped: bool, near: bool
) -> None:
    heldout = write_jsonl(tmp_path, [talk(*SHORT_TURNS)], "heldout.jsonl")
    tables = load(
        write_jsonl(tmp_path, [{"prompt": "an anchor"}, talk(*train)]),
        heldout=PromptSource(path=str(heldout)),
        near_duplicates=NearDuplicates(enabled=near),
    )
    assert reasons(tables) == ([(2, "overlap:heldout")] if dropped else [])
    if dropped:
        held = tables.heldout["prompt_id"].to_pylist()
        assert tables.dropped["detail"].to_pylist() == held


def test_what_is_named_as_held_out_is_not_trained_on_though_it_was_a_repeat_there(
    tmp_path: Path,
) -> None:
    heldout = [{"prompt": LONG + " now"}, {"prompt": LONG + " then"}]
    tables = load(
        write_jsonl(tmp_path, [{"prompt": LONG + " then"}, {"prompt": LONG + " again"}]),
        heldout=PromptSource(path=str(write_jsonl(tmp_path, heldout, "heldout.jsonl"))),
        overlap_threshold=1.0,
        near_duplicates=NearDuplicates(threshold=0.8),
    )
    assert len(tables.heldout) == 1
    assert asked(tables) == [LONG + " again"]
    assert reasons(tables) == [(2, "near_duplicate"), (1, "overlap:heldout")]


@pytest.mark.parametrize(
    "row", [talk(*SHORT_TURNS), {"turns": ["fox fox", "bridge fox fox bridge fox"]}]
)
def test_a_conversation_of_an_evaluation_set_is_not_trained_on_whatever_its_turns(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    path = write_jsonl(tmp_path, [row], "eval.jsonl")
    columns = Columns(prompt="turns") if "turns" in row else Columns()
    known = OverlapSet(name="known", source=PromptSource(path=str(path), columns=columns))
    train = write_jsonl(tmp_path, [talk(*SHORT_TURNS), {"prompt": "an anchor"}])
    tables = load(train, exclude_overlap=(known,))
    assert reasons(tables) == [(1, "overlap:known")]
    assert tables.dropped["detail"].to_pylist() == ["fox fox\nbridge fox fox bridge fox"]


def test_evaluation_sets_are_kept_out_by_name(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path, [{"prompt": "keep me"}, {"prompt": LONG}, {"prompt": "1+1 = ?"}])
    turns = write_jsonl(
        tmp_path, [{"turns": ["first", "Go on."]}, {"turns": ["other", LONG]}], "bench.jsonl"
    )
    sums = write_jsonl(tmp_path, [{"prompt": "1+1 = ?"}], "sums.jsonl")
    sets = (
        OverlapSet(name="bench", source=PromptSource(path=str(turns),
                                                     columns=Columns(prompt="turns"))),
        OverlapSet(name="sums", source=PromptSource(path=str(sums))),
    )  # fmt: skip
    tables = load(train, exclude_overlap=sets)
    assert asked(tables) == ["keep me"]
    assert reasons(tables) == [(2, "overlap:bench"), (3, "overlap:sums")]
    assert tables.dropped["detail"].to_pylist() == [LONG, "1+1 = ?"]


def test_an_evaluation_set_with_a_bad_row_is_refused(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path, [{"prompt": "a"}])
    path = write_jsonl(tmp_path, [{"prompt": "b"}, {"question": "c"}], "eval.jsonl")
    known = OverlapSet(name="eval", source=PromptSource(path=str(path)))
    with pytest.raises(InputError, match=r"eval.jsonl, row 2, field 'prompt': missing_column"):
        load(train, exclude_overlap=(known,))


@pytest.mark.parametrize(
    "row",
    [
        {"turns": [LONG, "Go on."]},
        {"turns": [{"role": "user", "content": LONG}]},
        {"turns": 2, "prompt": LONG},
        {"prompt": LONG, "messages": None},
        {"prompt": [LONG]},
        {"messages": [{"role": "user", "content": LONG}], "prompt": "Something else entirely."},
        {"instruction": LONG, "input": "", "output": "One night"},
        {"question": LONG, "answer": "One night"},
    ],
)
def test_evaluation_sets_are_read_alike_by_prompts_and_by_an_audit(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    path = write_jsonl(tmp_path, [row], "eval.jsonl")
    train = write_jsonl(tmp_path, [{"prompt": LONG}, {"prompt": "keep me"}])
    known = OverlapSet(name="eval", source=PromptSource(path=str(path)))
    assert reasons(load(train, exclude_overlap=(known,))) == [(1, "overlap:eval")]
    against = parse_against(f"eval={path}")
    assert against.find([LONG]) is not None
    assert against.find(["keep me"]) is None


def test_named_columns_of_an_evaluation_set_are_used_and_no_others(tmp_path: Path) -> None:
    rows = [{"text": LONG, "prompt": "keep me"}, {"prompt": "Something else entirely."}]
    path = write_jsonl(tmp_path, rows, "eval.jsonl")
    train = write_jsonl(tmp_path, [{"prompt": LONG}, {"prompt": "keep me"}])
    source = PromptSource(path=str(path), columns=Columns(prompt="text"), limit=1)
    known = OverlapSet(name="eval", source=source)
    assert asked(load(train, exclude_overlap=(known,))) == ["keep me"]
    known = OverlapSet(name="eval", source=source.model_copy(update={"limit": None}))
    with pytest.raises(InputError, match=r"eval.jsonl, row 2, field 'text': missing_column"):
        load(train, exclude_overlap=(known,))


def test_an_evaluation_set_without_a_known_column_says_which_there_are(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [{"task": "a"}], "eval.jsonl")
    with pytest.raises(InputError, match=r"eval.jsonl, row 1: has none of the columns .* task"):
        parse_against(f"eval={path}")


def test_the_heldout_share_is_drawn_by_prompt_and_seed(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} {i * i}"} for i in range(2000)]
    path = write_jsonl(tmp_path, rows)
    config = {"heldout_share": 0.2, "near_duplicates": EXACT_ONLY, "overlap_threshold": 1.0}
    tables = load(path, **config)
    held = set(tables.heldout["prompt_id"].to_pylist())
    assert 330 < len(held) < 470
    assert not held & set(tables.train["prompt_id"].to_pylist())
    assert tables.heldout["row"].to_pylist() == sorted(tables.heldout["row"].to_pylist())
    again = load(write_jsonl(tmp_path, rows[::-1], "reversed.jsonl"), **config)
    assert set(again.heldout["prompt_id"].to_pylist()) == held
    other = load(path, seed=1, **config)
    assert set(other.heldout["prompt_id"].to_pylist()) != held


@pytest.mark.parametrize(("count", "share", "heldout"), [(2, 0.001, 1), (2, 0.99, 1), (1, 0.5, 0)])
def test_a_small_share_still_holds_one_out(
    tmp_path: Path, count: int, share: float, heldout: int
) -> None:
    rows = [{"prompt": text} for text in ("red", "blue fish")[:count]]
    tables = load(write_jsonl(tmp_path, rows), heldout_share=share)
    assert (len(tables.train), len(tables.heldout)) == (count - heldout, heldout)


# --- invariants -----------------------------------------------------------------------------------

words = st.sampled_from(["fox", "bridge", "old", "rain", "2", "+"])
texts = st.lists(words, min_size=1, max_size=8).map(" ".join)
values = texts | st.none() | st.text(max_size=5) | st.integers() | st.lists(texts, max_size=2)
turn = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "x"]),
                              "content": texts | st.none()})  # fmt: skip
rows_of_any_kind = st.lists(
    st.fixed_dictionaries({"prompt": values}, optional={"id": st.integers(0, 9), "x": st.floats()})
    | st.fixed_dictionaries({"messages": st.lists(turn, max_size=3)})
    | st.integers(),
    min_size=1,
    max_size=20,
)


@settings(max_examples=80, deadline=None)
@given(rows_of_any_kind, rows_of_any_kind | st.none(), st.sampled_from([0.0, 0.3]))
# Stood in both files, word for word, and its turns were too short to tell.
@example([talk(*SHORT_TURNS)], [talk(*SHORT_TURNS)], 0.0)
def test_every_row_is_in_one_table_and_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Any],
    heldout: list[Any] | None,
    share: float,
) -> None:
    folder = tmp_path_factory.mktemp("prompts")
    rows = [{"prompt": "an anchor"}, *rows]
    config = {"heldout_share": share}
    if heldout is not None:
        path = write_jsonl(folder, [{"prompt": "another"}, *heldout], "heldout.jsonl")
        config["heldout"] = PromptSource(path=str(path))
    path = write_jsonl(folder, rows)
    tables = load(path, **config)
    assert tables.read == len(rows) + (0 if heldout is None else len(heldout) + 1)
    parts = (tables.train, tables.heldout, tables.quarantine, tables.dropped)
    places = []
    for part in parts:
        own = list(zip(part["source"].to_pylist(), part["row"].to_pylist(), strict=True))
        assert own == sorted(own), "heldout.jsonl sorts before prompts.jsonl, as it is read"
        places += own
    assert len(places) == len(set(places)) == tables.read
    ids = tables.train["prompt_id"].to_pylist() + tables.heldout["prompt_id"].to_pylist()
    assert len(ids) == len(set(ids))
    for row in tables.train.to_pylist() + tables.heldout.to_pylist():
        assert row["prompt_id"] == prompt_id(row["messages"])
        assert row["messages"][-1]["role"] == "user"
        assert isinstance(json.loads(row["metadata"]), dict)
    assert load(path, **config) == tables


short_turns = st.tuples(st.sampled_from(["system", "user", "assistant"]), texts).map(": ".join)
talks = st.builds(lambda first, last: talk(*first, last),
                  st.lists(short_turns, max_size=4), texts.map("user: {}".format))  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(talks, max_size=6), st.lists(talks, max_size=4), st.booleans(), st.booleans())
@example([talk(*SHORT_TURNS)], [talk(*SHORT_TURNS)], True, True)
def test_no_conversation_is_in_two_splits(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Any],
    repeated: list[Any],
    near: bool,
    named: bool,
) -> None:
    folder = tmp_path_factory.mktemp("splits")
    known = write_jsonl(folder, [{"prompt": "another"}, *repeated], "known.jsonl")
    source = PromptSource(path=str(known))
    train = write_jsonl(folder, [{"prompt": "an anchor"}, *rows, *repeated])
    config: dict[str, Any] = {"near_duplicates": NearDuplicates(enabled=near)}
    config |= {"heldout": source} if named else {
        "exclude_overlap": (OverlapSet(name="known", source=source),), "heldout_share": 0.4,
    }  # fmt: skip
    tables = load(train, overlap_threshold=1.0, **config)

    def said(rows: list[Any]) -> set[tuple[str, ...]]:
        return {tuple(turn["content"] for turn in row if turn["role"] == "user") for row in rows}

    trained_on = said(tables.train["messages"].to_pylist())
    assert not trained_on & said(tables.heldout["messages"].to_pylist())
    assert not trained_on & said([row["messages"] for row in repeated])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["jsonl", "json", "csv", "txt"]))
@example(b'{"prompt": "\\ud800", "x": "\\udc80"}', "jsonl")
@example(b"[" * 100_000, "json")
@example(b'[{"prompt": "a", "\xff": 1}]', "json")
@example(b"\xff,prompt\n1\n2,a\n", "csv")
@example(b'prompt\n"open\n', "csv")
@example(b"prompt\ra\r\0", "csv")
@example(b"\xff\xfea\0", "txt")
def test_no_file_makes_the_reader_fall_over(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, ending: str
) -> None:
    path = write(tmp_path_factory.mktemp("any"), f"p.{ending}", content)
    try:
        tables = load(path)
    except InputError:
        return
    parts = (tables.train, tables.heldout, tables.quarantine, tables.dropped)
    assert tables.read == sum(map(len, parts))


# --- real prompt sets -----------------------------------------------------------------------------


def test_ifeval_is_read_whole() -> None:
    tables = load(PUBLIC / "ifeval" / "input_data.jsonl", columns={"id": "key"})
    assert tables.read == 541
    assert len(tables.quarantine) == 0
    assert len(tables.train) + len(tables.dropped) == 541
    metadata = json.loads(tables.train["metadata"].to_pylist()[0])
    assert metadata["id"] == 1000
    assert metadata["instruction_id_list"][0] == "punctuation:no_comma"


def test_llmbar_is_read_whole() -> None:
    tables = load(PUBLIC / "llmbar" / "Natural.json", columns={"prompt": "input"})
    assert tables.read == 100
    assert len(tables.quarantine) == 0
    assert {"output_1", "output_2", "label"} <= set(
        json.loads(tables.train["metadata"].to_pylist()[0])
    )


def test_fastchat_turns_are_no_prompt_and_say_so() -> None:
    path = PUBLIC / "fastchat" / "mt_bench_question.jsonl"
    tables = load(path, columns={"prompt": "turns"})
    assert (tables.read, len(tables.train), len(tables.quarantine)) == (80, 0, 80)
    bad = tables.quarantine.to_pylist()[0]
    assert (bad["row"], bad["field"], bad["reason"]) == (1, "turns", "wrong_type")
    assert "list of {role, content}" in bad["detail"]


def test_mt_bench_is_kept_out_of_train_prompts(tmp_path: Path) -> None:
    path = PUBLIC / "fastchat" / "mt_bench_question.jsonl"
    turns = [row.fields["turns"] for row in read_rows(PromptSource(path=str(path)))
             if isinstance(row, RawRow)]  # fmt: skip
    train = [{"prompt": f"{first}\nThanks!"} for first, _ in turns]
    train.append({"prompt": "Write a limerick."})
    known = OverlapSet(
        name="mt_bench", source=PromptSource(path=str(path), columns=Columns(prompt="turns"))
    )
    tables = load(write_jsonl(tmp_path, train), exclude_overlap=(known,))
    dropped = [reason for _, reason in reasons(tables)]
    assert asked(tables)[-1] == "Write a limerick."
    assert dropped.count("overlap:mt_bench") >= 75


def test_a_bad_row_reads_as_one_clear_line() -> None:
    row = BadRow("p.jsonl", 3, "prompt", "null", "write the prompt as a string", "{}")
    assert str(row) == "p.jsonl, row 3, field 'prompt': null: write the prompt as a string"
