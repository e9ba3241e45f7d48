"""Each recipe of docs/recipes/ is a config of examples/, and runs: at a tiny size, with the
embedded policy where it names a model, and a server of ours where it names a server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import prefloop
from prefloop.pipeline.run.run_dir import RunDir
from tests.helpers.markdown import fenced
from tests.helpers.paths import ROOT
from tests.helpers.servers import FaultyServer, Handler, faulty_server, good
from tests.project.hub_rows import (
    ALPACA,
    DISTILABEL,
    GSM8K,
    HH,
    TULU,
    ULTRAFEEDBACK,
    ULTRAFEEDBACK_BINARIZED,
    Rows,
)

PAGES = sorted((ROOT / "docs" / "recipes").glob("*.md"))
EXAMPLES = ROOT / "examples"
CONFIGS = {
    "alpaca": "alpaca-references.yaml",
    "delta-pairs": "delta-pairs.yaml",
    "distilabel": "recipes/from-distilabel.yaml",
    "hh": "recipes/hh-judge.yaml",
    "math": "recipes/math.yaml",
    "self-rewarding": "recipes/self-rewarding.yaml",
    "ultrafeedback": "recipes/ultrafeedback.yaml",
    "zephyr": "recipes/zephyr.yaml",
}
"""The config of each page."""
RUNS: dict[str, Rows] = {
    "alpaca": ALPACA,
    "delta-pairs": TULU,
    "distilabel": DISTILABEL,
    "math": GSM8K,
    "self-rewarding": TULU,
    "ultrafeedback": ULTRAFEEDBACK,
    "zephyr": ULTRAFEEDBACK_BINARIZED,
}
"""Those that are configs of a run, with rows as their datasets have them."""
SERVED = ("math", "self-rewarding")
"""Recipes whose policy has to solve a sum or to rate an answer, which the embedded one cannot: a
server answers for it. It cannot load what was trained, so there is one round, and nothing is
evaluated."""

OF_MANY = ("length_balance", "length_ratio", "margin")
"""Filters that say something of a thousand pairs, and drop all of six."""


def opinion(handler: Handler) -> None:
    """Answers like a model: judges by length, and else adds up wrong every other time."""
    text = str(handler.body["messages"][-1]["content"])
    if found := re.findall(r"<answer_([ab])>\n(.*?)\n</answer_[ab]>", text, re.S):
        (_, first), (_, second) = found
        best, other = ("A", "B") if len(first) > len(second) else ("B", "A")
        tokens = [{"token": best, "logprob": -0.1}, {"token": other, "logprob": -2.5}]
        good(best, logprobs={"content": [tokens[0] | {"top_logprobs": tokens}]})(handler)
    elif found := re.findall(r"<answer>\n(.*?)\n</answer>", text, re.S):
        aspects = ("instruction_following", "truthfulness", "honesty", "helpfulness")
        ratings = dict.fromkeys(aspects, 1 + len(found[0]) % 5)
        good(json.dumps({"rationale": "By its length.", **ratings}))(handler)
    else:
        seed = int(handler.body.get("seed", 0))
        number = re.search(r"\d+", text)
        result = int(number[0]) + 2 + seed % 2 if number else seed % 1000
        good(f"That is {'so ' * (seed % 4)}easy: \\boxed{{{result}}}.")(handler)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server(opinion) as running:
        yield running


def tiny(name: str, rows: Rows, server: FaultyServer, folder: Path) -> dict[str, Any]:
    """The recipe with other names of models, servers and files, and small numbers."""
    raw: dict[str, Any] = yaml.safe_load((EXAMPLES / CONFIGS[name]).read_text(encoding="utf-8"))
    source, heldout = folder / "rows.parquet", folder / "heldout.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows[:-2])), source)
    pq.write_table(pa.Table.from_pylist(list(rows[-2:])), heldout)
    prompts, sample = raw["prompts"], raw["sample"]
    for where, path in ((prompts.get("train"), source), (prompts.get("heldout"), heldout),
                        (sample.get("from"), source)):  # fmt: skip
        if where:
            where |= {"path": str(path), "limit": None}
    for engine, settings in raw["engines"].items():
        if settings["type"] == "openai" or name in SERVED:
            served = {"base_url": server.url, "api_key_env": "NO_KEY_OF_A_RECIPE"}
            raw["engines"][engine] = {"type": "openai", **served}
        else:
            raw["engines"][engine] = {"type": "transformers"}
    raw["policy"] = "embedded:policy"
    for member in sample.get("pool", ()):
        if raw["engines"][member["engine"]]["type"] == "transformers":
            member["model"] = "embedded:policy"
    sample |= {"max_tokens": 16, "prompts_per_round": None}
    if "n" in sample:
        sample["n"] = min(sample["n"], 4)
    filters = raw["filter"]["filters"]
    filters[:] = [each for each in filters if each["type"] not in OF_MANY]
    if "train" in raw:
        raw["train"] |= {"batch_size": 2, "max_length": 512, "gradient_checkpointing": False}
        if name in SERVED:
            raw |= {"rounds": 1, "evaluate": {"enabled": False}}
    return raw | {"run_dir": str(folder / "run")}


def test_each_page_has_its_config_and_each_recipe_its_page() -> None:
    assert [page.stem for page in PAGES] == sorted(CONFIGS)
    recipes = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.glob("recipes/*.yaml")}
    assert recipes <= set(CONFIGS.values())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_the_config_that_is_run(page: Path) -> None:
    config = (EXAMPLES / CONFIGS[page.stem]).read_text(encoding="utf-8")
    shown = [block.text for block in fenced(page) if block.language == "yaml"]
    assert yaml.safe_load(config) in map(yaml.safe_load, shown)
    assert f"examples/{CONFIGS[page.stem]}" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_runs(name: str, server: FaultyServer, tmp_path: Path) -> None:
    config = tiny(name, RUNS[name], server, tmp_path)
    run = prefloop.run(config, check=False)
    found = prefloop.status(run).rounds[0]
    assert found.triples > 0
    for row in run.load_dataset("train"):
        assert MADE[name](row, row["chosen"][0]["content"], row["rejected"][0]["content"])
    trained = RunDir(tmp_path / "run").round(0).policy.exists()
    assert trained == ("train" in config)
    evaluated = trained and config["evaluate"].get("enabled", True)
    assert evaluated == bool(found.win_rates)


def _rated(text: str) -> int:
    """What :func:`opinion` gives an answer."""
    return 1 + len(text) % 5


def _is_rated_higher(row: dict[str, Any], chosen: str, rejected: str) -> bool:
    return _rated(chosen) > _rated(rejected)


def _is_right(row: dict[str, Any], chosen: str, rejected: str) -> bool:
    number = re.search(r"\d+", row["prompt"][-1]["content"])
    assert number
    right = f"{{{int(number[0]) + 2}}}"
    return right in chosen and right not in rejected


MADE: dict[str, Callable[[dict[str, Any], str, str], bool]] = {
    "alpaca": lambda _, chosen, rejected: (
        chosen.startswith("I like") and not rejected.startswith("I like")
    ),
    "delta-pairs": lambda row, *_: (
        row["policy"].startswith("large") and row["rejected_policy"].startswith("small")
    ),
    "distilabel": _is_rated_higher,
    "math": _is_right,
    "self-rewarding": _is_rated_higher,
    "ultrafeedback": _is_rated_higher,
    "zephyr": lambda _, chosen, rejected: chosen.startswith("I like") and rejected == "No.",
}
"""What is so of every triple of a recipe, and would not be if its labels were turned round."""


def test_another_opinion_on_hh(server: FaultyServer, tmp_path: Path) -> None:
    source = tmp_path / "hh.parquet"
    pq.write_table(pa.Table.from_pylist(list(HH)), source)
    assert not prefloop.audit(source).has_errors
    judge = yaml.safe_load((EXAMPLES / CONFIGS["hh"]).read_text(encoding="utf-8"))
    judge["engines"]["judge"] |= {"base_url": server.url, "api_key_env": "NO_KEY_OF_A_RECIPE"}
    run = prefloop.label(source, judge, tmp_path / "run", overrides={"sample.from.limit": 6})
    rows = run.load_dataset("train")
    assert 0 < len(rows) <= 6
    assert all(row["chosen"][0]["content"].startswith("I like") for row in rows)


def test_what_distilabel_made_is_read(server: FaultyServer, tmp_path: Path) -> None:
    source = tmp_path / "distilabel.parquet"
    pq.write_table(pa.Table.from_pylist(list(DISTILABEL)), source)
    assert not prefloop.audit(source).has_errors
    run = prefloop.label(source, {"type": "given", "decides": True}, tmp_path / "run")
    rows = run.load_dataset("train")
    assert all(row["rejected"][0]["content"] == "No." for row in rows)
    assert {row["policy"].split("@")[0] for row in rows} == {"meta-llama/Meta-Llama-3-8B-Instruct"}
