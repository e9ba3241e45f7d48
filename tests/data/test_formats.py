"""The same row reads the same from every file format, conversations written as text included."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prefloop.data.config import PromptsConfig, PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences import read_preferences
from prefloop.data.preferences.columns import OF_TOOLS
from prefloop.data.prompts.load import load_prompts

FORMATS = ("jsonl", "json", "parquet", "datasets")
Row = dict[str, Any]


def say(role: str, content: str | None) -> Row:
    return {"role": role, "content": content}


ASKED, YES, NO = say("user", "Hi?"), say("assistant", "Yes."), say("assistant", "No.")


def write(folder: Path, form: str, rows: list[Row]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rows.{form}"
    if form == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    elif form == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif form == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        import datasets

        datasets.Dataset(pa.Table.from_pylist(rows)).save_to_disk(str(path))
    return str(path)


def pairs_in(path: str) -> tuple[list[Row], list[tuple[Any, ...]]]:
    """The pairs, and of each bad row its place and what is wrong."""
    pairs, bad = [], []
    for batch in read_preferences(PromptSource(path=path)):
        assert all(batch.pairs[name].null_count == len(batch.pairs) for name in OF_TOOLS)
        pairs += batch.pairs.drop_columns(["source", "row", *OF_TOOLS]).to_pylist()
        bad += [(row["field"], row["reason"]) for row in batch.bad.to_pylist()]
    return pairs, bad


def prompts_in(path: str, **config: Any) -> tuple[list[Any], list[tuple[Any, ...]]]:
    tables = load_prompts(PromptsConfig(train=PromptSource(path=path), heldout_share=0.0), seed=0)
    bad = [(row["field"], row["reason"]) for row in tables.quarantine.to_pylist()]
    return tables.train["messages"].to_pylist(), bad


ODD = ["\u00a0", "\u200b", "\ufeff", "\x1c", "\x85", "\u2028", "\u3000", " ", "\n", "\t", "\u00ad",
       "Human:", "\n\nHuman: a", "\n\nAssistant: b", "\n\nAssistant:",
       "\n<extra_id_1>Assistant\n", "<extra_id_1>User\r\n", "[", "{", "]", "}", "array(",
       "[{'role': 'user', 'content': 'x'}]", '[{"from": "gpt", "value": "y"}]', "1", "NaN", "null",
       "a", "é"]  # fmt: skip
texts = st.lists(st.sampled_from(ODD), max_size=4).map("".join)
turns = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system", "gpt", "Human", "robot"]),
            "content": st.one_of(st.none(), texts, st.just("a")),
        }
    ),
    max_size=3,
)
of_texts = st.fixed_dictionaries({"prompt": texts, "chosen": texts, "rejected": texts})
of_turns = st.fixed_dictionaries(
    {
        "prompt": st.one_of(st.none(), st.just("a"), texts),
        "chosen": turns.map(lambda found: [say("user", "a"), *found]),
        "rejected": turns.map(lambda found: [say("user", "a"), *found]),
    }
)
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quick
@given(st.one_of(st.lists(of_texts, min_size=1, max_size=4),
                 st.lists(of_turns, min_size=1, max_size=4)))  # fmt: skip
@example([{"prompt": "a", "chosen": "\u00a0Human: b", "rejected": "\u2003c"}])
@example([{"prompt": "a", "chosen": "\u200b", "rejected": "c"}])
@example([{"prompt": None, "chosen": [ASKED, YES], "rejected": [ASKED, NO]}])
def test_preferences_read_the_same(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row]
) -> None:
    folder = tmp_path_factory.mktemp("formats")
    first = pairs_in(write(folder, "jsonl", rows))
    assert len(first[0]) + len(first[1]) == len(rows)
    for form in FORMATS[1:]:
        assert pairs_in(write(folder, form, rows)) == first, form
    if all(isinstance(value, str) for row in rows for value in row.values()):
        assert pairs_in(write(folder, "csv", rows)) == first


@quick
@given(st.lists(texts, min_size=1, max_size=4))
@example(["\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"])
@example(["\u00a0Human: a", "\ufeff"])
def test_prompts_read_the_same(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("formats")
    rows = [{"prompt": prompt, "n": str(number)} for number, prompt in enumerate(prompts)]
    first = prompts_in(write(folder, "jsonl", rows))
    for form in (*FORMATS[1:], "csv"):
        assert prompts_in(write(folder, form, rows)) == first, form


WRITERS = {
    "python": str,
    "json": json.dumps,
    "numpy": lambda turns: str(np.array(turns, dtype=object)),
    "numpy repr": lambda turns: repr(np.array(turns, dtype=object)),
}


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("writer", WRITERS)
def test_conversations_written_as_text_are_read(tmp_path: Path, form: str, writer: str) -> None:
    written = WRITERS[writer]
    odd = say("user", "It's {'a'} {'b'}\n\"c\" \\d é")
    row = {"chosen": written([odd, YES]), "rejected": written([odd, NO])}
    expected = {"prompt": [odd], "chosen": "Yes.", "rejected": "No."}
    assert pairs_in(write(tmp_path / "pairs", form, [row])) == ([expected], [])
    row = {"prompt": written([odd]), "chosen": written([YES]), "rejected": written([NO])}
    assert pairs_in(write(tmp_path / "three", form, [row])) == ([expected], [])
    for name in ("prompt", "messages"):
        rows = [{name: written([say("system", ""), odd]), "n": "1"}]
        assert prompts_in(write(tmp_path / name, form, rows)) == ([[odd]], [])


BOMB = "[{'role': 'user', 'content': " + "[" * 5000
REFUSED = {
    "cut": "[{'role': 'user', 'content': 'x'}, {'role': 'assistant', 'content': 'y]",
    "deep": BOMB + "]" * 5000 + "}]",
    "called": "[{'role': 'user', 'content': print('x')}]",
    "long": "[{'role': 'user', 'content': '" + "x" * (1 << 20) + "'}]",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_what_looks_like_turns_and_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    row = {"prompt": "a", "chosen": text, "rejected": "b"}
    assert pairs_in(write(tmp_path, "csv", [row])) == ([], [("chosen", "written_turns")])
    assert prompts_in(write(tmp_path, "jsonl", [{"prompt": text}])) == (
        [],
        [("prompt", "written_turns")],
    )


@pytest.mark.parametrize(
    "text", ["[1, 2]", "{'a': 1}", '{"role": "x"} is JSON', "[{'role': 'user'}] or so?", "[", "{}"]
)
def test_text_that_only_begins_like_turns_is_text(tmp_path: Path, text: str) -> None:
    row = {"prompt": text, "chosen": text, "rejected": "b"}
    expected = {"prompt": [say("user", text)], "chosen": text, "rejected": "b"}
    assert pairs_in(write(tmp_path, "csv", [row])) == ([expected], [])


def test_keys_of_two_kinds_of_turns_are_read_where_the_others_are_null(tmp_path: Path) -> None:
    mixed = [{"from": None, "value": None, "role": "user", "content": "x"}]
    other = [{"from": "human", "value": "y", "role": None, "content": None}]
    both = [{"from": "human", "value": "z", "role": "user", "content": "z"}]
    differ = [{"from": "gpt", "value": "z", "role": "user", "content": "z"}]
    rows = [{"messages": one} for one in (mixed, other, both, differ)]
    for form in FORMATS:
        found, bad = prompts_in(write(tmp_path / form, form, rows))
        assert found == [[say("user", text)] for text in "xyz"]
        assert bad == [("messages", "bad_messages")]


@pytest.mark.parametrize("content", ["", " \n", None, "\u200b"])
def test_a_system_turn_without_text_is_no_turn(tmp_path: Path, content: str | None) -> None:
    for form in FORMATS:
        rows = [{"messages": [say("system", content), ASKED]}]
        assert prompts_in(write(tmp_path / form, form, rows)) == ([[ASKED]], [])
        chosen, rejected = ([say("system", content), ASKED, one] for one in (YES, NO))
        path = write(tmp_path / f"{form}-2", form, [{"chosen": chosen, "rejected": rejected}])
        assert pairs_in(path) == ([{"prompt": [ASKED], "chosen": "Yes.", "rejected": "No."}], [])


def test_a_transcript_is_read_as_turns_by_prompts_too(tmp_path: Path) -> None:
    text = "\n\nHuman: Hi?\n\nAssistant: Yes.\n\nHuman: Why?\n\nAssistant:"
    path = write(tmp_path, "jsonl", [{"prompt": text}])
    assert prompts_in(path) == ([[ASKED, YES, say("user", "Why?")]], [])


def test_two_answers_in_a_row_are_not_joined(tmp_path: Path) -> None:
    for form in FORMATS:
        row = {"chosen": [ASKED, YES, YES], "rejected": [ASKED, NO]}
        path = write(tmp_path / form, form, [row])
        assert pairs_in(path) == ([], [("chosen", "consecutive_answers")])
    row = {"chosen": "Human: Hi?\n\nAssistant: a\n\nAssistant: b", "rejected": "Human: Hi?"}
    assert pairs_in(write(tmp_path, "csv", [row])) == ([], [("chosen", "consecutive_answers")])


def test_two_columns_of_one_name_are_refused_in_one_line(tmp_path: Path) -> None:
    table = pa.table([["p"], ["a"], ["b"], ["c"]], names=["prompt", "chosen", "chosen", "rejected"])
    pq.write_table(table, tmp_path / "d.parquet")
    turn = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], ["role", "role"])
    nested = pa.table({"prompt": pa.ListArray.from_arrays([0, 1], turn), "chosen": ["a"],
                       "rejected": ["b"]})  # fmt: skip
    pq.write_table(nested, tmp_path / "n.parquet")
    (tmp_path / "d.csv").write_text("prompt,chosen,chosen,rejected\np,a,b,c\n")
    for name, said in (("d.parquet", "chosen"), ("n.parquet", "role"), ("d.csv", "chosen")):
        for read in (pairs_in, prompts_in):
            with pytest.raises(InputError, match=rf"names a column twice \({said}\)") as caught:
                read(str(tmp_path / name))
            assert name in str(caught.value)
