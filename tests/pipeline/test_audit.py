"""The audit: what it finds, counts that add up, and a cleaned dataset that TRL takes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from prefloop.data.checks.repeats import find_repeats
from prefloop.data.checks.shapes import shapes
from prefloop.data.checks.text_hashes import conversation_hashes, text_hashes
from prefloop.data.errors import InputError
from prefloop.data.schemas import MESSAGES
from prefloop.pipeline.audit.audit_options import make_options
from prefloop.pipeline.audit.audit_page import audit_page
from prefloop.pipeline.audit.check import Audit, audit
from prefloop.pipeline.audit.fix import DROPPED_ROW, FIXED, write_fixed
from prefloop.pipeline.commands.app import app

LONG = "The quick brown fox jumps over the lazy dog near the old stone bridge, twice."


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


DIRTY = [
    pair("p1", "good answer", "bad"),  # 1
    pair("p1", "good answer", "bad"),  # 2 repeats 1
    pair("p1", "bad", "good answer"),  # 3 contradicts 1 and 2
    pair("p2", "same", "same"),  # 4
    pair("p2", "Same  ", "same"),  # 5 differs in form only
    pair("p3", "a", "b"),  # 6 to 8: a cycle
    pair("p3", "b", "c"),  # 7
    pair("p3", "c", "a"),  # 8
    pair("p3", "a", "d"),  # 9 outside the cycle
    pair("p4", "", "x"),  # 10
    pair("p5", "Ã© is wrong", "fine"),  # 11
    pair("p6", "x", "y"),  # 12
    pair("p6", "x", "y"),  # 13 repeats 12
    pair("What is the capital of the French Republic, and how old is it?", "Paris", "Rome"),  # 14
]


def counts(found: Audit) -> dict[str, int]:
    return {one.name: one.count for one in found.findings}


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_findings(tmp_path: Path, ending: str) -> None:
    against = tmp_path / "eval.jsonl"
    against.write_text(json.dumps({"prompt": DIRTY[13]["prompt"].upper()}))
    options = make_options(against=[f"capitals={against}"])
    path = write(tmp_path / f"data.{ending}", DIRTY)
    found = audit(path, options)
    assert (found.rows, found.pairs, dict(found.bad)) == (14, 13, {"empty_answer": 1})
    assert counts(found) == {
        "empty_answer": 1, "identical": 1, "identical_but_for_form": 1, "contradictory": 3,
        "circular": 3, "duplicate": 2, "overlap:capitals": 1, "mojibake": 1,
    }  # fmt: skip
    by_name = {one.name: one for one in found.findings}
    assert by_name["identical"].examples == (f"{path}:4",)
    assert by_name["duplicate"].examples[1] == f"{path}:13 repeats {path}:12"
    assert by_name["contradictory"].examples[2] == f"{path}:3 contradicts {path}:1"
    assert by_name["circular"].examples == tuple(f"{path}:{row}" for row in (6, 7, 8))
    assert by_name["mojibake"].severity == "warning"
    assert found.has_errors
    # p1 (three pairs), p2 and p6 (two), p3 (four); p5 and the capitals once.
    assert (found.prompts, found.prompts_with_several) == (6, 4)


@pytest.mark.parametrize("blank", ["instruction", "input", None])
def test_an_evaluation_set_is_joined_as_the_prompts_are(tmp_path: Path, blank: str | None) -> None:
    tasks = [
        {"instruction": "Translate into French.", "input": "The harbour is closed on Sundays."},
        {"instruction": "Name the largest of these towns.", "input": "Porto, Braga, Faro, Lagos"},
    ]
    tasks = [{key: "" if key == blank else text for key, text in one.items()} for one in tasks]
    rows = [{**one, "chosen": "yes, this", "rejected": "no, that"} for one in tasks]
    other = {"instruction": "Translate into French.", "input": "Nobody has seen the cat since May."}
    rows.append({**other, "chosen": "one", "rejected": "two"})
    data, against = tmp_path / "pairs.jsonl", tmp_path / "eval.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    against.write_text("\n".join(map(json.dumps, tasks)))
    found = audit(str(data), make_options(against=[f"held={against}"]))
    [overlap] = [one for one in found.findings if one.name == "overlap:held"]
    assert overlap.count == 2


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_answers_that_are_in_no_pair_are_counted(tmp_path: Path, ending: str) -> None:
    ranked = {"prompt": "Hi?", "answers": [{"answer": a, "rank": n} for n, a in enumerate("abcd")]}
    path = write(tmp_path / f"ranked.{ending}", [ranked])
    found = audit(path, make_options())
    [finding] = [one for one in found.findings if one.name == "answers_not_used"]
    assert (finding.count, finding.examples) == (1, (f"{path}:1: 2",))
    assert finding.what.startswith("2 answers")
    rows = [{"prompt": "Hi?", "response": a, "helpfulness": n} for n, a in enumerate("abc")]
    path = write(tmp_path / f"rated.{ending}", [*rows, {**rows[0], "prompt": "Ho?"}])
    options = make_options()
    found = audit(path, options)
    assert (found.rows, found.pairs, dict(found.bad)) == (4, 1, {"single_answer": 1})
    assert counts(found) == {"answers_not_used": 1, "single_answer": 1}
    assert not found.has_errors
    assert write_fixed(found, path, tmp_path / "out", options) == {
        "rows": 4, "kept": 1, "dropped": 1,
    }  # fmt: skip


def test_fix_adds_up_and_trl_takes_it(tmp_path: Path) -> None:
    import datasets
    import trl
    from trl.data_utils import is_conversational

    assert trl.DPOConfig  # the trainer's module has to be there
    path = write(tmp_path / "data.jsonl", [*DIRTY, {"prompt": "p7", "chosen": True}])
    options = make_options()
    found, out = audit(path, options), tmp_path / "out"
    assert write_fixed(found, path, out, options) == {"rows": 15, "kept": 5, "dropped": 10}
    kept = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert kept["row"] == [5, 9, 11, 12, 14]
    assert kept.column_names == FIXED.names
    assert is_conversational(kept[0])
    assert kept[1]["chosen"] == [{"role": "assistant", "content": "a"}]
    dropped = pq.read_table(out / "dropped")
    assert dropped.schema == DROPPED_ROW
    assert Counter(dropped["reason"].to_pylist()) == {
        "contradictory": 3, "identical": 1, "circular": 3, "empty_answer": 1, "duplicate": 1,
        "missing_column": 1,
    }  # fmt: skip
    rows = {row["row"]: row for row in dropped.to_pylist()}
    assert rows[13]["detail"] == f"the same as {path}:12"
    assert json.loads(rows[3]["content"])["chosen"] == "bad"
    assert json.loads((out / "audit.json").read_text())["fix"]["kept"] == 5
    # A clean dataset is left as it is.
    again = audit(str(out), options)
    assert {one.name for one in again.findings if one.severity == "error"} == set()
    assert again.rows == 5


def test_fix_never_overwrites_and_notices_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", DIRTY)
    options = make_options()
    found = audit(path, options)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").touch()
    with pytest.raises(InputError, match="is not empty"):
        write_fixed(found, path, full, options)
    write(tmp_path / "data.jsonl", DIRTY[1:])
    with pytest.raises(InputError, match="changed while it was read"):
        write_fixed(found, path, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out*")) == []


def test_near_duplicates_are_looked_for_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [pair(LONG, "a", "b"), pair(LONG + " Really.", "a", "b"),
                                        pair(LONG, "c", "d")])  # fmt: skip
    assert counts(audit(path)) == {}
    found = audit(path, make_options(near_duplicates=True))
    assert counts(found) == {"near_duplicate_prompt": 1}
    assert found.drops.tolist().count(0) == 2


def test_an_empty_file_and_only_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    found = audit(str(tmp_path / "empty.jsonl"))
    assert (found.rows, found.pairs, found.findings, found.lengths) == (0, 0, (), ())
    json.dumps(found.as_dict(), allow_nan=False)
    assert "Nothing found" in audit_page(found)
    only_bad = write(tmp_path / "bad.jsonl", [pair("p", "", "x")])
    found = audit(only_bad)
    assert (found.rows, found.pairs) == (1, 0)
    assert write_fixed(found, only_bad, tmp_path / "out", make_options())["kept"] == 0
    assert pq.read_table(tmp_path / "out" / "data").schema == FIXED


def test_the_page_escapes_what_comes_from_the_file(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    path = write(tmp_path / f"{'<b>x'}.jsonl", [{"prompt": evil, "chosen": 3, "rejected": evil},
                                              pair(evil, "yes", "no")])  # fmt: skip
    page = audit_page(audit(path))
    assert "<script" not in page
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page


def test_the_command(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", DIRTY)
    run = CliRunner().invoke
    done = run(app, ["audit", path, "--json", "--tokenizer", "embedded:policy"])
    found = json.loads(done.stdout)
    assert found["rows"] == 14
    assert set(found["lengths"]) == {"characters", "words", "tokens"}
    assert run(app, ["audit", path]).exit_code == 0
    assert run(app, ["audit", path, "--strict"]).exit_code == 1
    assert run(app, ["audit", path, "--html"]).stdout.startswith("<!doctype html>")
    out = str(tmp_path / "out")
    assert "rows kept" in run(app, ["audit", path, "--fix", out]).stdout
    same = run(app, ["audit", path, "--against", "x=a.jsonl", "--against", "x=b.jsonl"])
    assert isinstance(same.exception, InputError)


def test_a_dataset_without_a_pair_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    rows: list[dict[str, Any]] = [{"prompt": "p", "chosen": "", "rejected": "x"}] * 3
    paths = [
        str(tmp_path / "empty.jsonl"),
        write(tmp_path / "bad.jsonl", [*rows, pair("", "a", "b")]),
    ]
    for path, said in zip(
        paths, ["the file is empty", "3 are empty_answer, the first"], strict=True
    ):
        for more in ([], ["--json"], ["--html"]):
            done = CliRunner().invoke(app, ["audit", path, *more])
            assert isinstance(done.exception, InputError)
            assert f"{path}: 0 of " in str(done.exception)
            assert said in str(done.exception)
            assert "\n" not in str(done.exception)
    assert f"{paths[1]}:1, field 'chosen': " in str(done.exception)
    assert "columns found: prompt, chosen, rejected" in str(done.exception)


def test_scores_that_say_the_opposite_are_found(tmp_path: Path) -> None:
    row = {**pair("p", "a", "b"), "chosen_score": 1.0, "rejected_score": 2.0}
    other = {**pair("q", "a", "b"), "chosen_score": 2.0, "rejected_score": 1.0}
    [finding] = audit(write(tmp_path / "d.jsonl", [other, row])).findings
    assert (finding.name, finding.severity, finding.count) == ("scores_disagree", "warning", 1)
    assert finding.examples == (f"{tmp_path / 'd.jsonl'}:2",)


def test_what_an_audit_says_commands_no_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;x\x07\x9b"
    rows = [
        pair("p", "a", "b"),
        {**pair("p", "a", "b"), "chosen": [{"role": evil, "content": "x"}]},
    ]
    found = audit(write(tmp_path / "d.jsonl", rows))
    said = [text for one in found.findings for text in (one.name, one.what, *one.examples)]
    assert any("x1b" in text for text in said)
    assert all(text.isprintable() for text in said)


# The parts --------------------------------------------------------------------------------------


TEXTS = st.lists(st.text(max_size=12), min_size=1, max_size=20)


@settings(max_examples=100, deadline=None)
@given(texts=TEXTS)
@example(texts=["a", "b", ""])  # words of two texts side by side, and none at the end
@example(texts=["\x1c\x85a\x0bb "])  # white space to ``str.split``, some of it beyond ASCII
def test_shapes_count_characters_and_words(texts: list[str]) -> None:
    clean = [text.encode("utf-8", "ignore").decode() for text in texts]
    found = shapes(pa.array(clean, pa.string()))
    assert found.chars.tolist() == [len(text) for text in clean]
    of_ascii = [text for text in clean if text.isascii()]
    words = [int(one) for one, text in zip(found.words, clean, strict=True) if text.isascii()]
    assert words == [len(text.split()) for text in of_ascii]
    assert found.beyond_ascii.tolist() == [not text.isascii() for text in clean]


def test_hashes_tell_conversations_apart() -> None:
    def turns(*said: tuple[str, str]) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in said]

    talks = [
        turns(("user", "a"), ("assistant", "b"), ("user", "c")),
        turns(("user", "c"), ("assistant", "b"), ("user", "a")),
        turns(("user", "a")),
        turns(("system", "a")),
        turns(("user", "a"), ("user", "")),
        turns(("user", "a"), ("assistant", "b"), ("user", "c")),
    ]
    found = conversation_hashes(pa.array(talks, MESSAGES))
    assert len(set(found.tolist())) == 5
    assert found[0] == found[5]
    sliced = pa.array(["x", *(talk[0]["content"] for talk in talks)], pa.string()).slice(1)
    assert text_hashes(sliced)[0] == text_hashes(pa.array(["a"]))[0]


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12
    )
)
@example(rows=[(0, 0, 1), (0, 1, 2), (0, 2, 0), (0, 0, 1)])  # a pair of a cycle, repeated
@example(rows=[(0, 0, 1), (0, 1, 2), (0, 2, 0), (0, 1, 0)])  # a cycle but for a contradiction
def test_repeats_equal_a_search_of_all_rows(rows: list[tuple[int, int, int]]) -> None:
    import networkx as nx

    prompt, chosen, rejected = (np.array(column, np.uint64) for column in zip(*rows, strict=True))
    found = find_repeats(prompt, chosen, rejected)
    opposite = {(p, r, c) for p, c, r in rows if c != r}
    for at, (p, c, r) in enumerate(rows):
        assert found.identical[at] == (c == r)
        assert found.duplicate[at] == ((p, c, r) in rows[:at])
        assert found.contradictory[at] == ((p, c, r) in opposite)
        if found.contradictory[at]:
            assert rows[found.partner[at]] == (p, r, c)
        elif found.duplicate[at]:
            assert found.partner[at] == rows.index((p, c, r))
        else:
            assert found.partner[at] == -1
    for p in {row[0] for row in rows}:
        graph = nx.DiGraph(
            (c, r) for q, c, r in rows if q == p and c != r and (q, c, r) not in opposite
        )
        cycles = [part for part in nx.strongly_connected_components(graph) if len(part) > 1]
        for at, (q, c, r) in enumerate(rows):
            if q == p:
                within = any(c in part and r in part for part in cycles)
                expected = within and c != r and not found.contradictory[at]
                assert found.circular[at] == expected


def test_thoughts_in_answers_are_found(tmp_path: Path) -> None:
    thought = "<think>\nhm\n</think>\n\n"
    rows = [
        pair("1?", f"{thought}one", f"{thought}two"),
        pair("2?", f"{thought}one", "two"),
        pair("3?", "hm</think>one", "[THINK]hm[/THINK]two"),
        pair("4?", "<think>\nand so on", "two"),
        pair("5?", "Write `<think>` in front.", "The tags <think> and </think>."),
    ]
    found = audit(write(tmp_path / "pairs.jsonl", rows))
    by_name = {one.name: one for one in found.findings}
    assert by_name["thought_in_answer"].count == 4
    assert by_name["thought_in_one"].count == 2
    assert by_name["unclosed_thought"].count == 1
    assert by_name["unclosed_thought"].examples[0].endswith(":4")
    assert found.as_dict()["kept_by_fix"] == 4
