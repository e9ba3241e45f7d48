"""Prompts of several sources: shares drawn by seed, duplicates across them, counts that add up."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prefloop.data.config import NearDuplicates, PromptsConfig
from prefloop.data.errors import InputError
from prefloop.data.prompts.load import PromptTables, load_prompts
from prefloop.pipeline.config import ConfigError, load_config
from tests.data.test_formats import write


def source(folder: Path, name: str, count: int, **more: Any) -> dict[str, Any]:
    rows = [{"prompt": f"{name} number {n}?"} for n in range(count)]
    return {"path": write(folder / name, "jsonl", rows), **more}


def read(*sources: dict[str, Any], seed: int = 0, **more: Any) -> PromptTables:
    settings = {"heldout_share": 0, "near_duplicates": NearDuplicates(enabled=False), **more}
    tables = load_prompts(PromptsConfig(train=list(sources), **settings), seed=seed)
    parts = (tables.train, tables.heldout, tables.quarantine, tables.dropped)
    assert tables.read == sum(map(len, parts))
    return tables


def asked(tables: PromptTables) -> list[str]:
    return [turns[-1]["content"] for turns in tables.train["messages"].to_pylist()]


def kept(tables: PromptTables) -> dict[str, int]:
    names = [Path(path).parent.name for path in tables.train["source"].to_pylist()]
    return dict(Counter(names))


def test_sources_follow_each_other_and_a_prompt_of_both_is_of_the_first(tmp_path: Path) -> None:
    one, two = source(tmp_path, "one", 3), source(tmp_path, "two", 2)
    path = Path(two["path"])
    path.write_text(path.read_text() + '\n{"prompt": "one number 1?"}\n')
    tables = read(one, two)
    assert asked(tables) == [f"one number {n}?" for n in range(3)] + ["two number 0?",
                                                                    "two number 1?"]  # fmt: skip
    (dropped,) = tables.dropped.to_pylist()
    assert (dropped["reason"], dropped["source"]) == ("exact_duplicate", two["path"])
    assert dropped["detail"] == tables.train["prompt_id"][1].as_py()


def test_weights_are_kept_and_drawn_by_seed(tmp_path: Path) -> None:
    big, small = source(tmp_path, "big", 90, weight=2.0), source(tmp_path, "small", 30, weight=1)
    whole, sized = source(tmp_path, "whole", 4, limit=3), source(tmp_path, "sized", 50, size=7)
    tables = read(big, small, whole, sized)
    assert kept(tables) == {"big": 60, "small": 30, "whole": 3, "sized": 7}
    reasons = Counter(tables.dropped["reason"].to_pylist())
    assert reasons == {"not_drawn": 30 + 43}
    details = set(tables.dropped["detail"].to_pylist())
    assert details == {
        "prompts.train.0.weight takes 60 of 90 prompts",
        "prompts.train.3.size takes 7 of 50 prompts",
    }
    assert asked(read(big, small, whole, sized)) == asked(tables)
    assert asked(read(big, small, whole, sized, seed=1)) != asked(tables)


def test_a_share_is_of_what_is_left_behind_the_held_out_ones(tmp_path: Path) -> None:
    one, two = source(tmp_path, "one", 80, weight=1), source(tmp_path, "two", 40, weight=1)
    tables = read(one, two, heldout_share=0.25)
    numbers = kept(tables)
    assert numbers["one"] == numbers["two"]
    left = Counter(tables.dropped["reason"].to_pylist())["not_drawn"]
    assert 10 < len(tables.heldout) == 120 - left - sum(numbers.values())


def test_a_size_beyond_the_source_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(read(source(tmp_path, "one", 3, size=9)).train) == 3
    assert caplog.messages == ["prompts.train.0.size is 9, and only 3 prompts are left of it"]


def test_a_weight_without_prompts_is_an_error(tmp_path: Path) -> None:
    again = source(tmp_path, "one", 3, weight=1)
    with pytest.raises(InputError, match=r"prompts\.train\.1: no prompt of .* is left"):
        read(again, again)


def test_an_error_names_the_source(tmp_path: Path) -> None:
    wrong = source(tmp_path, "two", 2, columns={"prompt": "ask"})
    with pytest.raises(InputError, match=r"prompts\.train\.1: no row has the column 'ask'"):
        read(source(tmp_path, "one", 2), wrong)


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ({"train": {"pth": "x"}}, r"prompts\.train\.pth: unknown key, did you mean 'path'"),
        ({"train": [{"path": "x"}, {"path": "y", "wieght": 2}]},
         r"prompts\.train\.1\.wieght: unknown key, did you mean 'weight'"),
        ({"train": []}, r"prompts\.train: .*at least 1 item"),
        ({"train": [{"path": "x", "size": 1, "weight": 1}]}, r"prompts\.train\.0: has a size and"),
        ({"train": {"path": "x"}, "heldout": {"path": "y", "size": 3}}, "heldout has a size"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_their_keys(prompts: dict[str, Any], says: str) -> None:
    label = {"labelers": [{"type": "verifier"}]}
    with pytest.raises(ConfigError, match=says) as refused:
        load_config({"prompts": prompts, "label": label})
    assert "source" not in str(refused.value).partition(":")[0]


def test_a_list_comes_back_from_the_config_that_is_written(tmp_path: Path) -> None:
    one, two = source(tmp_path, "one", 2, weight=1), source(tmp_path, "two", 2, weight=3)
    label = {"labelers": [{"type": "verifier"}]}
    config = load_config({"prompts": {"train": [one, two]}, "label": label})
    again = load_config(config, ["prompts.train.1.weight=2"])
    assert [each.weight for each in again.prompts.train_sources.values()] == [1, 2]
    assert list(again.prompts.train_sources) == ["prompts.train.0", "prompts.train.1"]
    (single,) = load_config({"prompts": {"train": one}, "label": label}).prompts.train_sources
    assert single == "prompts.train"
