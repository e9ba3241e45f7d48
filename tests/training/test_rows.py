"""The door through which training reads files: what is mended, dropped and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefloop.data.conversations.conversation import plain
from prefloop.data.sources.turns import Unusable
from prefloop.training.errors import TrainingError
from prefloop.training.inputs.answers import read_answers
from prefloop.training.inputs.pairs import read_triples, token_pairs, tokenised, triples_in
from prefloop.training.inputs.reward_pairs import read_reward_pairs
from prefloop.training.inputs.rows import (
    Dropped,
    answer_rows,
    pair_rows,
    prompts_in,
    read_answer,
    read_label,
    read_prompt,
)
from prefloop.training.policy.checkpoints import load_tokenizer
from prefloop.training.policy.heldout import measurable
from tests.helpers.dpo_data import rows
from tests.helpers.engine_models import make_model

ASK = [{"role": "user", "content": "hi"}]
HELLO = [{"role": "assistant", "content": "hello"}]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("policy"), layers=1, width=64))


@pytest.mark.parametrize("ids", [[None] * 4, ["0"] * 4, ["a", "a", "b", "b"], [7, 7, 7, 7], None])
def test_the_prompt_itself_decides_whatever_the_ids_say(
    policy: Path, tmp_path: Path, ids: list[Any] | None
) -> None:
    columns = {
        "prompt": [user(f"Ask {n}.") for n in range(4)],
        "chosen": [said(f"good {n}") for n in range(4)],
        "rejected": [said(f"bad {n}") for n in range(4)],
    }
    more = {} if ids is None else {"prompt_id": ids}
    file = parquet(tmp_path / "t.parquet", **columns, **more)
    tokenizer = load_tokenizer(policy)
    pairs = token_pairs(read_triples([file]), tokenizer, max_length=500)
    for number, ids_of in enumerate(pairs.prompts):
        assert f"Ask {number}." in tokenizer.decode(ids_of)


@pytest.mark.parametrize(
    ("value", "turns"),
    [
        ("hi", ASK),
        ([{"role": "Human", "content": "hi"}], ASK),
        ([{"from": "human", "value": "hi"}], ASK),
        ([{"role": None, "content": None, "from": "human", "value": "hi"}], ASK),
        ([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], ASK),
        ({"role": "user", "content": "hi"}, ASK),
        ('[{"role": "user", "content": "hi"}]', ASK),
        ("[1] is a footnote", user("[1] is a footnote")),
        ("\n\nHuman: hi\n\nAssistant:", ASK),
        ("\n\nHuman: hi\n\nAssistant: hello\n\nHuman: bye", [*ASK, *HELLO, *user("bye")]),
        ([{"role": "tool", "content": "4"}], [{"role": "tool", "content": "4"}]),
    ],
)
def test_prompts_that_are_certain(value: Any, turns: Any) -> None:
    assert read_prompt(value) == turns


@pytest.mark.parametrize(
    "value",
    [None, "", "  ", [], 3, True, ["hi"], [None], [{}], [{"role": "user", "content": None}],
     [{"role": "narrator", "content": "hi"}], [{"content": "hi"}], [*ASK, *HELLO],
     [{"role": "system", "content": "Be brief."}], "Human: hi\n\nAssistant: Well"],
)  # fmt: skip
def test_prompts_that_are_not(value: Any) -> None:
    with pytest.raises(Unusable) as caught:
        read_prompt(value)
    assert (caught.value.field, caught.value.reason) == ("prompt", "unreadable")


@pytest.mark.parametrize(
    "value",
    ["hello", HELLO, HELLO[0], [*ASK, *HELLO], [{"from": "gpt", "value": "hello"}],
     "\n\nHuman: hi\n\nAssistant: hello"],
)  # fmt: skip
def test_answers_that_are_certain(value: Any) -> None:
    assert read_answer(value, "chosen", [{"role": "system", "content": "Be brief."}, *ASK]) == (
        "hello"
    )


@pytest.mark.parametrize(
    "value",
    [None, [], ASK, [*user("another question"), *HELLO], [*HELLO, *HELLO], 1, [None],
     [{"role": "assistant", "content": None}]],
)  # fmt: skip
def test_answers_that_are_not(value: Any) -> None:
    with pytest.raises(Unusable) as caught:
        read_answer(value, "chosen", ASK)
    assert (caught.value.field, caught.value.reason) == ("chosen", "unreadable")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "type", "text"]) | st.text(), inner
    ),
    max_leaves=8,
)  # fmt: skip


@given(anything)
@example("[" * 5000)
@example([{"role": "user", "content": []}])
def test_any_value_is_read_or_refused(value: Any) -> None:
    try:
        turns = read_prompt(value)
        text = read_answer(value, "chosen", turns)
    except Unusable:
        return
    assert all(isinstance(turn["content"], str) for turn in turns)
    assert isinstance(text, str)


@pytest.mark.parametrize(
    ("value", "label"),
    [(True, 1), (False, 0), (1, 1), (0, 0), (-1, -1), (1.0, 1), (-1.0, -1), ("true", 1),
     ("False", 0), (" FALSE ", 0), ("0", 0), ("-1", -1), (None, None), ("", None),
     (float("nan"), None)],
)  # fmt: skip
def test_labels(value: Any, label: int | None) -> None:
    assert read_label(value) == label


@pytest.mark.parametrize(
    "labels",
    [[True, False, None], [1, 0, None], [1, -1, None], ["true", "false", None], ["1", "-1", ""],
     [1.0, 0.0, None], ["True", "FALSE", None]],
)  # fmt: skip
def test_kto_reads_yes_and_no_however_they_are_written(tmp_path: Path, labels: list[Any]) -> None:
    file = parquet(
        tmp_path / "t.parquet", prompt=["a", "b", "c"], completion=["x", "y", "z"], label=labels
    )
    dropped = Dropped()
    found = [(row.text, row.good) for row in answer_rows([file], dropped)]
    assert found == [("x", True), ("y", False)]
    assert dropped.as_dict() == {"no_label": 1}


@pytest.mark.parametrize(
    ("labels", "named"),
    [([0, 1, 4], "row 3: label is 4"), ([1.0, 0.5, 0.0], r"row 2: label is 0\.5"),
     (["good", "bad", "good"], "row 1: label is 'good'"), ([1, 0, -1], "row 3: label is -1"),
     (["true", "maybe", "no"], "row 2: label is 'maybe'")],
)  # fmt: skip
def test_labels_that_say_something_else_are_refused(
    tmp_path: Path, labels: list[Any], named: str
) -> None:
    file = parquet(
        tmp_path / "t.parquet", prompt=["a", "b", "c"], completion=["x", "y", "z"], label=labels
    )
    with pytest.raises(TrainingError, match=rf"t\.parquet, {named}"):
        list(answer_rows([file], Dropped()))


def test_what_the_template_refuses_is_dropped_and_counted_by_every_method(
    policy: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(policy)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}" + tokenizer.chat_template
    )
    file = parquet(
        tmp_path / "t.parquet",
        prompt=[user("a"), [{"role": "system", "content": "s"}, *user("b")], None, user("c")],
        chosen=[said("x"), said("x"), said("x"), said("same")],
        rejected=[said("y"), said("y"), said("y"), said("same")],
    )
    expected = {"unreadable": 1, "unrenderable_chat": 1}
    dropped = Dropped()
    assert len(token_pairs(read_triples([file], dropped), tokenizer, max_length=99,
                           dropped=dropped)) == 1  # fmt: skip
    assert dropped.as_dict() == {**expected, "same_answer": 1}
    assert "System role not supported" in dropped.first["unrenderable_chat"]
    assert "t.parquet, row 2" in dropped.first["unrenderable_chat"]

    dropped = Dropped()
    data = read_answers([file], tokenizer, max_length=99, max_answers=None, seed=0, dropped=dropped)
    assert len(data) == 2
    assert dropped.as_dict() == {"unreadable": 1, "unrenderable_chat": 2}

    assert read_reward_pairs([file], tokenizer, max_length=99).dropped == {
        **expected, "same_answer": 1,
    }  # fmt: skip
    only = parquet(tmp_path / "o.parquet", **pq.read_table(file).slice(1, 1).to_pydict())
    with pytest.raises(TrainingError, match=r"none of the 1 pairs.*System role not supported"):
        token_pairs(read_triples([only]), tokenizer, max_length=99)


def test_null_columns_and_other_types_are_read_across_files(tmp_path: Path) -> None:
    ours = tmp_path / "ours.parquet"
    pq.write_table(pa.Table.from_pylist(rows(2)), ours)
    theirs = parquet(
        tmp_path / "theirs.parquet",
        prompt=["a", "b", None, "d"], chosen=["x"] * 4, rejected=["y", None, "y", "y"],
        p_chosen=[None, 0.5, 0.5, 75.0], margin=[None, "2", "3", "4"],
    )  # fmt: skip
    dropped = Dropped()
    table = read_triples([ours, theirs], dropped)
    assert table["p_chosen"].to_pylist() == [1.0, 1.0, 1.0]
    assert dropped.as_dict() == {"bad_p_chosen": 1, "unreadable": 2}
    empty = parquet(tmp_path / "e.parquet", prompt=["a"], chosen=[None], rejected=["y"])
    with pytest.raises(TrainingError, match=r"1 unreadable.*e\.parquet, row 1: chosen is not"):
        read_triples([empty])


def test_prompts_are_the_same_prompts_in_every_form(tmp_path: Path) -> None:
    text = parquet(
        tmp_path / "t.parquet", prompt=["hi", None], chosen=["x"] * 2, rejected=["y"] * 2
    )
    turns = parquet(tmp_path / "u.parquet", prompt=[ASK], chosen=[HELLO], rejected=[said("y")])
    assert prompts_in([text]) == prompts_in([turns])
    assert len(prompts_in([text])) == 1


def test_heldout_pairs_of_any_form_are_measured_or_named(policy: Path, tmp_path: Path) -> None:
    text = parquet(
        tmp_path / "t.parquet", prompt=["hi", None, "hi " * 999], chosen=["x"] * 3,
        rejected=["y"] * 3,
    )  # fmt: skip
    dropped = Dropped()
    assert list(map(plain, measurable(policy, [text], dropped)["prompt"].to_pylist())) == [ASK]
    assert dropped.as_dict() == {"context_overflow": 1, "unreadable": 1}
    bad = parquet(tmp_path / "b.parquet", prompt=[7], chosen=["x"], rejected=["y"])
    with pytest.raises(TrainingError, match=r"no held-out pair of .*b\.parquet.*row 1: prompt is"):
        measurable(policy, [bad], Dropped())


def test_a_token_without_an_embedding_is_named(policy: Path, tmp_path: Path) -> None:
    import numpy as np

    from prefloop.training.inputs.tokens import check_embedding
    from prefloop.training.policy.checkpoints import embeddings

    size = embeddings(policy)
    assert size is not None
    check_embedding(size, policy, [np.array([0, size - 1], np.int32), np.array([], np.int32)])
    with pytest.raises(TrainingError, match=f"token id {size} .* has {size} embeddings.*resize"):
        check_embedding(size, policy, [np.array([0, size], np.int32)])


def test_pairs_keep_their_rows(policy: Path, tmp_path: Path) -> None:
    file = parquet(
        tmp_path / "t.parquet", prompt=["a", "b", "c"], chosen=["x", "same", "z"],
        rejected=["y", "same", "y"],
    )  # fmt: skip
    table = triples_in([file], Dropped())
    _, kept = tokenised(table, load_tokenizer(policy), max_length=99, dropped=Dropped())
    assert kept == [0, 2]
    assert [row.chosen for row in pair_rows([file], Dropped())] == ["x", "same", "z"]


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_column_of_system_prompts_leads_the_prompt(tmp_path: Path, name: str) -> None:
    system = [{"role": "system", "content": "Be brief."}]
    columns = {name: ["Be brief.", None, " ", "Be brief."], "chosen": ["x"] * 4}
    path = parquet(
        tmp_path / "a.parquet",
        prompt=[ASK, ASK, ASK, [*system, *ASK]],
        rejected=["y"] * 4,
        **columns,
    )
    dropped = Dropped()
    found = [plain(row.prompt) for row in pair_rows([path], dropped)]
    assert found == [[*system, *ASK], ASK, ASK, [*system, *ASK]]
    single = parquet(
        tmp_path / "b.parquet",
        prompt=["hi"],
        completion=["x"],
        label=[True],
        **{name: ["Be brief."]},
    )
    assert [plain(row.prompt) for row in answer_rows([single], dropped)] == [[*system, *ASK]]
    assert not dropped.counts


@pytest.mark.parametrize("nothing", ["", " \n", "\u200b"])
def test_an_answer_without_text_is_none(tmp_path: Path, nothing: str) -> None:
    turns = parquet(
        tmp_path / "a.parquet",
        prompt=["a", "b", "c"],
        chosen=[said(nothing), said("x"), said("x")],
        rejected=[said("y"), said(nothing), said("y")],
    )
    dropped = Dropped()
    assert [row.prompt for row in pair_rows([turns], dropped)] == [user("c")]
    single = parquet(
        tmp_path / "b.parquet", prompt=["a", "b"], completion=[nothing, "x"], label=[False, True]
    )
    assert [row.text for row in answer_rows([single], dropped)] == ["x"]
    assert dropped.as_dict() == {"empty_answer": 3}


@pytest.mark.parametrize("text", ["nan", " None", "<NA>", '["hi", "and?"]'])
def test_what_stands_for_no_prompt_is_none(text: str) -> None:
    with pytest.raises(Unusable) as found:
        read_prompt(text)
    assert found.value.reason == "unreadable"
    assert read_answer(text, "chosen", ASK) == text


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "assistant", "content": "hello", "reasoning_content": "They greet."}],
        [{"role": "assistant", "content": "hello", "thinking": "They greet.", "reasoning": None}],
        [
            {"role": "assistant", "content": "They greet.", "channel": "analysis"},
            {"role": "assistant", "content": "hello", "channel": "final"},
        ],
        [*ASK, {"role": "assistant", "content": "hello", "reasoning": "They greet.\n"}],
        [{"role": "assistant", "content": "<think>\nThey greet.\n</think>\n\nhello",
          "reasoning_content": "They greet."}],
    ],
)  # fmt: skip
def test_what_was_thought_before_an_answer_is_learned_with_it(turns: list[dict[str, Any]]) -> None:
    assert read_answer(turns, "chosen", ASK) == "<think>\nThey greet.\n</think>\n\nhello"
    assert read_answer(json.dumps(turns), "chosen", ASK).startswith("<think>")


def test_what_was_thought_earlier_is_no_part_of_the_prompt() -> None:
    before = [*ASK, {"role": "assistant", "content": "hello", "reasoning_content": "They greet."}]
    assert read_prompt([*before, *ASK]) == [*ASK, *HELLO, *ASK]
