"""Prompts in: every format, every kind of bad row, and counts that always add up."""

import gzip
import json
import stat
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import Columns, NearDuplicates, OverlapSet, PromptsConfig, PromptSource
from data.errors import InputError
from data.prompts import PromptTables, load_prompts
from data.schemas import DROPPED, PROMPT, QUARANTINE

FIXTURES = Path(__file__).parent.parent.parent / "shared" / "fixtures"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="public fixtures are not here")


def load(path: Path, *, near: bool = False, **more: object) -> PromptTables:
    source_keys = {"columns", "format", "split", "limit"}
    source = {key: value for key, value in more.items() if key in source_keys}
    rest = {"heldout_share": 0.0} | {k: v for k, v in more.items() if k not in source_keys}
    config = PromptsConfig(
        train=PromptSource(path=str(path), **source),
        near_duplicates=NearDuplicates(enabled=near),
        **rest,
    )
    tables = load_prompts(config, seed=0)
    parts = (tables.train, tables.heldout, tables.quarantine, tables.dropped)
    assert tables.read == sum(map(len, parts))
    assert [part.schema for part in parts] == [PROMPT, PROMPT, QUARANTINE, DROPPED]
    return tables


def texts(table: pa.Table) -> list[str]:
    return [messages[-1]["content"] for messages in table["messages"].to_pylist()]


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = [{"prompt": "Name a colour.", "level": 1}, {"prompt": "Name a fish, please.", "level": 2}]


def write_as(kind: str, folder: Path) -> Path:
    path = folder / f"prompts.{kind}"
    if kind == "jsonl":
        return write_lines(path, *ROWS)
    if kind == "jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in ROWS).encode()))
    elif kind == "json":
        path.write_text(json.dumps({"data": ROWS}))
    elif kind == "csv":
        path.write_text('\ufeffprompt,level\nName a colour.,1\n"Name a fish, please.",2\n')
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "txt":
        path.write_text("Name a colour.\n\nName a fish, please.\n")
    elif kind == "disk":
        import datasets

        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet", "txt", "disk"])
def test_every_format_gives_the_same_prompts(kind: str, tmp_path: Path) -> None:
    tables = load(write_as(kind, tmp_path))
    assert texts(tables.train) == ["Name a colour.", "Name a fish, please."]
    if kind != "txt":
        levels = [json.loads(m)["level"] for m in tables.train["metadata"].to_pylist()]
        assert [str(level) for level in levels] == ["1", "2"]


def test_a_folder_of_data_files_is_read_by_datasets(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", *ROWS)
    assert len(load(tmp_path).train) == 2


def test_conversations_keep_system_and_turns_and_give_a_reference(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Name a tree."},
    ]
    sharegpt = [{"from": "human", "value": "Name a bird."}, {"from": "gpt", "value": "A wren."}]
    path = write_lines(
        tmp_path / "p.jsonl",
        {"messages": [*turns, {"role": "assistant", "content": "Oak."}]},
        {"messages": sharegpt},
    )
    first, second = load(path).train.to_pylist()
    assert first["messages"] == turns
    assert first["reference"] == "Oak."
    assert second["messages"] == [{"role": "user", "content": "Name a bird."}]
    assert second["reference"] == "A wren."


def test_columns_are_mapped_and_the_id_is_carried_along(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"q": "Name a tree.", "a": "Oak.", "k": 7, "x": 1})
    columns = Columns(prompt="q", reference="a", id="k", metadata=())
    [row] = load(path, columns=columns).train.to_pylist()
    assert (row["reference"], json.loads(row["metadata"])) == ("Oak.", {"id": 7})
    assert (row["source"], row["row"]) == (str(path), 1)


BAD = {
    '{"prompt": "cut off': ("broken_json", None),
    '["a list"]': ("not_an_object", None),
    '{"other": 1}': ("missing_column", "prompt"),
    '{"prompt": ""}': ("empty", "prompt"),
    '{"prompt": "  \\n"}': ("empty", "prompt"),
    '{"prompt": null}': ("null", "prompt"),
    '{"prompt": 17}': ("wrong_type", "prompt"),
    '{"prompt": ["a", "b"]}': ("wrong_type", "prompt"),
    '{"prompt": "lone \\ud800 surrogate"}': ("not_utf8", "prompt"),
    '{"messages": "text"}': ("wrong_type", "messages"),
    '{"messages": []}': ("bad_messages", "messages"),
    '{"messages": [{"role": "king", "content": "x"}]}': ("bad_messages", "messages[0]"),
    '{"messages": [{"role": "user", "content": null}]}': ("bad_messages", "messages[0]"),
    '{"messages": [{"role": "system", "content": "x"}]}': ("bad_messages", "messages"),
}


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_a_bad_row_is_quarantined_with_file_row_field_and_reason(line: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "Name a tree."}}\n{line}\n{{"prompt": "Name a bird."}}\n')
    tables = load(path)
    assert len(tables.train) == 2
    [bad] = tables.quarantine.to_pylist()
    reason, field = BAD[line]
    assert (bad["source"], bad["row"], bad["field"], bad["reason"]) == (str(path), 2, field, reason)
    assert bad["detail"]
    assert bad["content"].replace("\\\\", "\\").startswith(line[:10])
    with pytest.raises(InputError, match=r"p\.jsonl: row 2.*" + reason) as caught:
        load(path, on_bad_row="fail")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_utf8_cost_one_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "Name a tree."}\n{"prompt": "caf\xe9"}\n{"prompt": "Go on."}\n')
    tables = load(path)
    assert texts(tables.train) == ["Name a tree.", "Go on."]
    [bad] = tables.quarantine.to_pylist()
    assert (bad["row"], bad["reason"]) == (2, "not_utf8")
    assert "caf\\xe9" in bad["content"]
    csv_path = tmp_path / "p.csv"
    csv_path.write_bytes(b"prompt\nName a tree.\ncaf\xe9\nGo on.\n")
    tables = load(csv_path)
    assert texts(tables.train) == ["Name a tree.", "Go on."]
    assert tables.quarantine["reason"].to_pylist() == ["not_utf8"]


def test_a_csv_row_with_too_many_fields_is_quarantined(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("prompt,level\nName a tree.,1\nName, a, bird,2\n")
    tables = load(path)
    assert len(tables.train) == 1
    assert tables.quarantine["reason"].to_pylist() == ["wrong_field_count"]


def test_an_id_that_stands_for_two_prompts_is_quarantined(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "p.jsonl",
        {"id": 1, "prompt": "Name a tree."},
        {"id": 1, "prompt": "Name a bird."},
        {"prompt": "Name a bush."},
    )
    tables = load(path, columns=Columns(id="id"))
    assert tables.quarantine["reason"].to_pylist() == ["duplicate_id", "missing_id"]
    assert tables.quarantine["row"].to_pylist() == [2, 3]


def test_a_wrong_column_mapping_is_refused_at_once_with_the_columns_there_are(
    tmp_path: Path,
) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"instruction": "Name a tree.", "output": "Oak."})
    with pytest.raises(InputError, match=r"instruction, output.*prompts\.train\.columns\.prompt"):
        load(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.jsonl", None, "no such file"),
        ("p.json", b"{broken", "not valid JSON"),
        ("p.json", b'"text"', "must be a list"),
        ("p.parquet", b"PAR1 no", "Parquet"),
        ("p.jsonl.gz", b"not gzip", "cannot be read"),
        ("p.unknown", b"x", "set `format`"),
    ],
)
def test_an_unusable_file_is_one_clear_line(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_one_clear_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", *ROWS)
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        with pytest.raises(InputError, match="Permission denied"):
            load(path)
    else:
        pytest.skip("this user may read any file")
    finally:
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)


def test_duplicates_and_overlaps_are_dropped_with_what_they_repeat(tmp_path: Path) -> None:
    story = "Write a short story about a fox who finds a lantern in the deep dark wood"
    path = write_lines(
        tmp_path / "p.jsonl",
        {"prompt": story},
        {"prompt": story + " "},
        {"prompt": story.upper() + "!"},
        {"prompt": "Explain how tides work to a child of seven who lives near the sea"},
        {"prompt": "List five uses of a brick in the garden of a very old house"},
        {"prompt": "Describe the taste of an orange without naming any fruit"},
    )
    held = write_lines(
        tmp_path / "h.jsonl",
        {"prompt": "Explain how tides work to a child of seven who lives near the sea"},
    )
    benchmark = write_lines(
        tmp_path / "b.jsonl",
        {"prompt": "list five uses of a brick in the garden of a very  old house"},
    )
    tables = load(
        path,
        near=True,
        heldout=PromptSource(path=str(held)),
        exclude_overlap=(OverlapSet(name="bench", source=PromptSource(path=str(benchmark))),),
    )
    assert {row["row"]: row["reason"] for row in tables.dropped.to_pylist()} == {
        2: "exact_duplicate", 3: "near_duplicate", 4: "overlap:heldout", 5: "overlap:bench",
    }  # fmt: skip
    assert [row["detail"] for row in tables.dropped.to_pylist() if row["row"] == 3] == [
        f"repeats {path}:1"
    ]
    assert len(tables.train) == 2
    assert len(tables.heldout) == 1


def test_the_held_out_share_is_drawn_by_prompt_and_repeats(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", *({"prompt": f"Count to {i}."} for i in range(400)))
    tables = load(path, heldout_share=0.25)
    assert 70 <= len(tables.heldout) <= 130
    assert not set(texts(tables.train)) & set(texts(tables.heldout))
    assert load(path, heldout_share=0.25).heldout.equals(tables.heldout)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.one_of(
            st.text(max_size=12).map(lambda text: json.dumps({"prompt": text})),
            st.sampled_from(['{"prompt": "a b c"}', "{", "[]", '{"prompt": 1}', '{"x": "y"}']),
        ),
        min_size=1,
        max_size=25,
    )
)
def test_rows_in_are_rows_out(rows: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("rows") / "p.jsonl"
    path.write_text('{"prompt": "There is one good row."}\n' + "\n".join(rows) + "\n")
    tables = load(path, near=True, heldout_share=0.3)
    assert tables.read == 1 + len(rows)


@needs_fixtures
def test_public_prompt_sets_are_read() -> None:
    ifeval = load(FIXTURES / "ifeval" / "input_data.jsonl", near=True)
    assert ifeval.read == 541
    assert not len(ifeval.quarantine)
    instructions = json.loads(ifeval.train["metadata"][0].as_py())["instruction_id_list"]
    assert instructions[0] == "punctuation:no_comma"
    natural = load(FIXTURES / "llmbar" / "Natural.json", columns=Columns(prompt="input"))
    assert natural.read == 100
    with pytest.raises(InputError, match="turns"):
        load(FIXTURES / "fastchat" / "mt_bench_question.jsonl")
    vicuna = load(FIXTURES / "fastchat" / "vicuna_question.jsonl", columns=Columns(prompt="turns"))
    assert set(vicuna.quarantine["reason"].to_pylist()) == {"wrong_type"}
