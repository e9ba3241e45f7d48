"""Preference datasets in every layout people keep them in, and what is wrong with their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences import (
    PREFERENCE,
    PreferenceColumns,
    parse_columns,
    parse_labels,
    read_preferences,
)
from prefloop.data.schemas import QUARANTINE
from tests.helpers.paths import PUBLIC
from tests.helpers.runs import run_small, small_config


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def read(path: Path, **more: Any) -> tuple[list[dict], list[dict]]:
    """All pairs and all bad rows, each batch checked for its schemas."""
    pairs, bad = [], []
    for batch in read_preferences(PromptSource(path=str(path)), **more):
        assert batch.pairs.schema == PREFERENCE
        assert batch.bad.schema == QUARANTINE
        pairs += batch.pairs.to_pylist()
        bad += batch.bad.to_pylist()
    return pairs, bad


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


ASKED = [say("user", "Hi?")]
YES, NO = say("assistant", "Yes."), say("assistant", "No.")
HH = "\n\nHuman: Hi?\n\nAssistant: "
LAYOUTS = {
    "strings": {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."},
    "turns": {"prompt": ASKED, "chosen": [YES], "rejected": [NO]},
    "conversations": {"chosen": [*ASKED, YES], "rejected": [*ASKED, NO]},
    "both": {"prompt": "Hi?", "chosen": [*ASKED, YES], "rejected": [*ASKED, NO], "score": 1.5},
    "from and value": {
        "chosen": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}],
        "rejected": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "No."}],
    },
    "transcripts": {"chosen": HH + "Yes.", "rejected": HH + "No."},
    "question": {"question": "Hi?", "response_j": "Yes.", "response_k": "No."},
    "labelled 1": {"input": "Hi?", "output_1": "Yes.", "output_2": "No.", "label": 1},
    "labelled 2": {"input": "Hi?", "output_1": "No.", "output_2": "Yes.", "label": 2},
    "winner": {"question": "Hi?", "answer_a": "No.", "answer_b": "Yes.", "winner": "model_b"},
    "SHP": {"history": "Hi?", "human_ref_A": "Yes.", "human_ref_B": "No.", "labels": 1},
    "SafeRLHF": {"prompt": "Hi?", "response_0": "No.", "response_1": "Yes.",
                 "better_response_id": 1},
    "annotators": {
        "instruction": "Hi?", "input": "", "response1": "Yes.", "response2": "No.",
        "annotator1": 1, "annotator2": 2, "annotator3": 1,
    },
    "UltraFeedback": {
        "instruction": "Hi?",
        "completions": [
            {"response": "Maybe.", "annotations": {"help": {"Rating": "3"}}},
            {"response": "No.", "annotations": {"help": {"Rating": "1"}, "truth": {"Rating": "2"}}},
            {"response": "Yes.", "annotations": {"help": {"Rating": "5"}}},
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts(tmp_path: Path, layout: str, ending: str) -> None:
    row = LAYOUTS[layout]
    path = write(tmp_path / f"data.{ending}", [row, row])
    expected = [
        {"row": number, "source": str(path), "prompt": ASKED, "chosen": "Yes.", "rejected": "No.",
         "prompt_turns": None, "tools": None}
        for number in (1, 2)
    ]  # fmt: skip
    assert read(path) == (expected, [])


def test_longer_conversations_keep_their_turns(tmp_path: Path) -> None:
    before = [say("system", "Be brief."), *ASKED, YES, say("user", "Why?")]
    row = {"chosen": [*before, say("assistant", "So.")], "rejected": [*before, NO]}
    for ending in ("jsonl", "parquet"):
        [pair], bad = read(write(tmp_path / f"data.{ending}", [row]))
        assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (before, "So.", "No.")
        assert bad == []
    talk = "\n\nHuman: Hi?\n\nAssistant: Yes.\n\nHuman: Why?\n\nAssistant: "
    row = {"chosen": talk + "So.\n\nReally.", "rejected": talk + "No."}
    [pair], _ = read(write(tmp_path / "talk.jsonl", [row]))
    assert pair["prompt"] == before[1:]
    assert pair["chosen"] == "So.\n\nReally."


BROKEN = [
    ({"prompt": "Hi?", "chosen": True, "rejected": "No."}, "wrong_type", "chosen"),
    ({"prompt": "Hi?", "chosen": 3, "rejected": "No."}, "wrong_type", "chosen"),
    ({"prompt": "Hi?", "chosen": "Yes.", "rejected": None}, "null", "rejected"),
    ({"prompt": "Hi?", "chosen": " \n", "rejected": "No."}, "empty_answer", "chosen"),
    ({"prompt": "Hi?", "chosen": "Yes."}, "missing_column", None),
    ({"prompt": "", "chosen": "Yes.", "rejected": "No."}, "empty", "prompt"),
    ({"chosen": [*ASKED, YES], "rejected": [say("user", "Ho?"), NO]}, "prompts_differ", "rejected"),
    ({"chosen": [*ASKED, YES], "rejected": ASKED}, "bad_messages", "rejected"),
    ({"chosen": [{"role": "robot", "content": "x"}], "rejected": [YES]}, "bad_messages", "chosen"),
    ({"prompt": "Hi?", "chosen": "Yes.", "rejected": "\ud800"}, "not_utf8", "rejected"),
    ({"input": "Hi?", "output_1": "a", "output_2": "b", "label": "left"}, "bad_label", "label"),
    ({"input": "Hi?", "output_1": "a", "output_2": "b", "label": 0}, "tie", "label"),
    ({"instruction": "Hi?", "completions": [{"response": "a"}]}, "missing_rating", "completions"),
]  # fmt: skip


def test_every_bad_row_has_its_reason_and_takes_no_other_with_it(tmp_path: Path) -> None:
    good = LAYOUTS["strings"]
    lines = [
        json.dumps(good),
        *(json.dumps(row) for row, *_ in BROKEN),
        "{broken",
        json.dumps(good),
    ]
    path = tmp_path / "data.jsonl"
    path.write_bytes("\n".join(lines).encode() + b'\n{"prompt": "\xff"}')
    pairs, bad = read(path)
    assert [pair["row"] for pair in pairs] == [1, len(lines)]
    found = [(row["row"], row["reason"], row["field"]) for row in bad]
    expected = [(number, *about) for number, (_, *about) in enumerate(BROKEN, 2)]
    at = len(lines)
    assert found == [*expected, (at - 1, "broken_json", None), (at + 1, "not_utf8", None)]
    assert all(row["detail"] and row["content"] and row["stage"] == "audit" for row in bad)


def test_parquet_takes_good_rows_by_columns_and_finds_the_bad_ones(tmp_path: Path) -> None:
    rows = [
        LAYOUTS["strings"],
        {"prompt": "Hi?", "chosen": "", "rejected": "No."},
        {"prompt": HH + "Yes.\n\nHuman: Why?", "chosen": "So.", "rejected": "No."},
        {"prompt": None, "chosen": "Yes.", "rejected": "No."},
        LAYOUTS["strings"],
    ]
    by_column = read(write(tmp_path / "data.parquet", rows), batch_rows=2)
    by_row = read(write(tmp_path / "data.jsonl", rows))
    for ours, theirs in zip(by_column, by_row, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert {**one, "source": ""} == {**other, "source": ""}
    assert [pair["row"] for pair in by_column[0]] == [1, 3, 5]
    assert by_column[0][1]["prompt"] == [*ASKED, YES, say("user", "Why?")]


def test_names_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"q": "Hi?", "more": "Now.", "x": "No.", "y": "Yes.",
                                         "best": "Y"}])  # fmt: skip
    columns = parse_columns("prompt=q+more,a=x,b=y,label=best")
    with_labels = PreferenceColumns(
        columns.prompt, a="x", b="y", label="best", labels=parse_labels("a=x,b=y")
    )
    [pair], _ = read(path, columns=with_labels)
    assert pair["prompt"] == [say("user", "Hi?\n\nNow.")]
    assert pair["chosen"] == "Yes."
    with pytest.raises(InputError, match="no row has a known layout; columns found: q, more"):
        read(path)


@pytest.mark.parametrize(
    ("function", "text", "said"),
    [
        (parse_columns, "prompt", "cannot read 'prompt'"),
        (parse_columns, "chosen=a", "rejected missing"),
        (parse_columns, "chosen=a,rejected=b,a=c,b=d,label=e", "not both"),
        (parse_labels, "a=1", "say which label prefers a and which b"),
        (parse_labels, "a=1,b=1", "two meanings"),
    ],
)
def test_mistakes_in_names(function: Any, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        function(text)


def test_labels_0_and_1_alone_are_not_guessed(tmp_path: Path) -> None:
    rows = [{"input": "Hi?", "output_1": "a", "output_2": "b", "label": label} for label in (0, 1)]
    path = write(tmp_path / "d.jsonl", rows)
    with pytest.raises(InputError, match="say which with --labels"):
        read(path)
    pairs, _ = read(path, columns=PreferenceColumns(labels=parse_labels("a=0,b=1")))
    assert [pair["chosen"] for pair in pairs] == ["a", "b"]


def test_a_run_and_a_datasets_folder(tmp_path: Path) -> None:
    import datasets

    run = run_small(tmp_path / "run", small_config())
    pairs, bad = read(run.root)
    rows = [row for path in sorted((run.dataset / "data").glob("*.parquet"))
            for row in pq.read_table(path).to_pylist()]  # fmt: skip
    assert bad == []
    assert [(one["prompt"], [say("assistant", one["chosen"])]) for one in pairs] == [
        (row["prompt"], row["chosen"]) for row in rows
    ]
    datasets.Dataset.from_list([LAYOUTS["strings"]]).save_to_disk(str(tmp_path / "saved"))
    [pair], _ = read(tmp_path / "saved")
    assert pair["chosen"] == "Yes."


def test_pandalm() -> None:
    pairs, bad = read(PUBLIC / "pandalm" / "testset-v1.json")
    reasons = [row["reason"] for row in bad]
    assert len(pairs) + len(bad) == 999
    assert reasons.count("wrong_type") == 6
    assert reasons.count("empty_answer") == 54


@pytest.mark.parametrize(("name", "rows", "longer"), [("Natural", 100, 56), ("Manual", 46, 8)])
def test_llmbar(name: str, rows: int, longer: int) -> None:
    pairs, bad = read(PUBLIC / "llmbar" / f"{name}.json")
    assert (len(pairs), bad) == (rows, [])
    assert sum(len(pair["chosen"]) > len(pair["rejected"]) for pair in pairs) == longer


ANSWER = "Yes."
OTHERS = {
    "argilla": {"system": "", "instruction": "Hi?", "chosen_response": "Yes.",
                "rejected_response": "No.", "chosen_avg_rating": 5.0, "rejected_avg_rating": 2.0},
    "orca": {"system": None, "question": "Hi?", "chosen": "Yes.", "rejected": "No.",
             "status": "swapped"},
    "Nectar": {"prompt": "\n\nHuman: Hi?\n\nAssistant: ", "answers": [
        {"answer": "Maybe.", "rank": 2.0}, {"answer": "Yes.", "rank": 1.0},
        {"answer": "No.", "rank": 7.0}]},
    "StackExchange": {"question": "Hi?", "answers": [
        {"text": "No.", "pm_score": 0, "selected": True}, {"text": "Yes.", "pm_score": 4,
                                                           "selected": False}]},
    "WebGPT": {"question": {"dataset": "eli5", "id": "a", "full_text": "Hi?"}, "answer_0": "No.",
               "answer_1": "Yes.", "score_0": -0.5, "score_1": 0.5},
    "preferred_output": {"input": {"messages": ASKED, "tools": None}, "preferred_output": [YES],
                         "non_preferred_output": [NO]},
    "RewardBench 2": {"prompt": "Hi?", "chosen": ["Yes."], "rejected": ["No.", "Never.", "Nil."]},
    "JudgeBench": {"pair_id": "x", "original_id": 7, "source": "mmlu-pro-law", "question": "Hi?",
                   "response_model": "gpt-4o", "response_A": "No.", "response_B": "Yes.",
                   "label": "B>A"},
    "JudgeBench in brackets": {"question": "Hi?", "response_A": "Yes.", "response_B": "No.",
                               "label": "[[A>>B]]"},
    "Auto-J": {"scenario": "chitchat", "label": 0, "prompt": "Hi?", "response 1": "Yes.",
               "response 2": "No."},
    "LLaMA-Factory": {"conversations": [{"from": "human", "value": "Hi?"}],
                      "chosen": {"from": "gpt", "value": "Yes."},
                      "rejected": {"from": "gpt", "value": "No."}},
    "axolotl": {"messages": ASKED, "chosen": YES, "rejected": NO},
    "messages beside whole conversations": {"messages": [*ASKED, YES], "chosen": [*ASKED, YES],
                                            "rejected": [*ASKED, NO]},
}  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("layout", OTHERS, ids=str)
def test_layouts_of_published_sets(tmp_path: Path, layout: str, ending: str) -> None:
    pairs, bad = read(write(tmp_path / f"data.{ending}", [OTHERS[layout]]))
    found = [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in pairs]
    assert (found, bad) == ([(ASKED, "Yes.", "No.")], [])


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rows_that_prefer_nothing_are_ties(tmp_path: Path, ending: str) -> None:
    rows = [
        {**OTHERS["orca"], "status": "tie"},
        {**OTHERS["WebGPT"], "score_0": 0.5},
        {**OTHERS["StackExchange"], "answers": [{"text": "a", "pm_score": 1}] * 2},
    ]
    for number, row in enumerate(rows):
        pairs, bad = read(write(tmp_path / f"{number}.{ending}", [row]))
        assert (pairs, [one["reason"] for one in bad]) == ([], ["tie"])
    row = {**OTHERS["WebGPT"], "score_0": None}
    assert read(write(tmp_path / f"null.{ending}", [row]))[1][0]["field"] == "score_0"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Hi?", "completion": "Yes.", "label": True}, "is unpaired data"),
        ({"messages": [*ASKED, YES]}, "one conversation a row"),
        ({"prompt": "Hi?", "completion": "Yes."}, "no pair to compare"),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_what_holds_no_pairs_says_what_it_is(
    tmp_path: Path, row: dict, said: str, ending: str
) -> None:
    with pytest.raises(InputError, match=f"{said}.*; columns found: "):
        read(write(tmp_path / f"d.{ending}", [row]))


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize(
    "names", [("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating")]
)
def test_scores_that_dispute_a_pair_are_marked(
    tmp_path: Path, names: tuple[str, str], ending: str
) -> None:
    scores = [(5.0, 1.0), (1.0, 5.0), (None, 5.0), (2.0, 2.0)]
    texts = [("Hi?", "Yes."), ("Hi?", "Yes."), ("Hi?", ""), ("{'a': 1}", "Yes.")]
    rows = [
        {
            "prompt": prompt,
            "chosen": chosen,
            "rejected": "No.",
            **dict(zip(names, both, strict=True)),
        }
        for (prompt, chosen), both in zip(texts, scores, strict=True)
    ]
    path = tmp_path / f"d.{ending}"
    if ending == "csv":
        lines = [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
        path.write_text("\n".join([",".join(rows[0]), *lines]))
    else:
        write(path, rows)
    [batch] = read_preferences(PromptSource(path=str(path)))
    assert batch.disputed.tolist() == [False, True, False]
    assert len(batch.pairs) == 3


def test_a_prompt_may_end_in_what_a_tool_gave_back(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "[call]"},
             {"role": "tool", "content": "2"}]  # fmt: skip
    row = {"prompt": asked, "chosen": [{"role": "assistant", "content": "two"}],
           "rejected": [{"role": "assistant", "content": "three"}]}  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row))
    pairs, bad = read(path)
    assert [pair["prompt"] for pair in pairs] == [asked]
    assert not bad
