"""A run of a policy that thinks: what filters, datasets and training make of its thoughts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.engines.weights import load_tokenizer
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.run_dir import EVALUATION, RunDir
from prefloop.pipeline.run.status import collect_status
from prefloop.pipeline.stages.rendering import rendering_of
from prefloop.training.inputs.pairs import read_triples, token_pairs
from tests.helpers.runs import run_small, small_config
from tests.helpers.thinking_models import make_thinking_model

VERIFIER = {"type": "verifier", "function": "tests.helpers.served:letters"}
OFF = {"enable_thinking": False}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_thinking_model(tmp_path_factory.mktemp("policy"), opened=True)


def config(policy: str, folder: Path, **changes: Any) -> RunConfig:
    for name, words in (
        ("train", ("one", "two", "one more", "two more")),
        ("held", ("one", "two")),
    ):
        lines = [f"Which? {word} {name}" if name == "held" else f"Which? {word}" for word in words]
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    return small_config(**{
        "policy": policy,
        "prompts": {"train": {"path": str(folder / "train.txt")},
                    "heldout": {"path": str(folder / "held.txt")},
                    "near_duplicates": {"enabled": False}},
        "sample": {"n": 6, "temperature": 2.0, "max_tokens": 12, "thought_tokens": 40},
        "label": {"labelers": [VERIFIER]},
        "filter": {"filters": [{"type": "identical"}]},
        "write": {"test_share": 0.0},
        "train": {"learning_rate": 1e-4, "batch_size": 2},
        **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def kept(policy: str, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("kept")
    return run_small(folder / "run", config(policy, folder))


def test_the_thought_is_kept_apart(kept: RunDir) -> None:
    rows = kept.round(0).candidates.table().to_pylist()
    assert any(row["reasoning"] for row in rows)
    for row in rows:
        assert "<think>" not in row["text"]
        assert row["raw_text"].startswith("<think>\n")
        assert row["raw_text"].endswith(row["text"])
        assert len(row["token_ids"]) == row["tokens"] + row["reasoning_tokens"]
    assert collect_status(kept).state == "done"
    measured = kept.round(0).metrics.read(EVALUATION).to_pylist()
    figures = {row["name"]: row["value"] for row in measured if row["against"] is None}
    assert figures["mean_reasoning_tokens"] > 1


def test_the_dataset_has_thought_and_answer(kept: RunDir, tmp_path: Path) -> None:
    rows = load_dataset(str(kept.dataset), split="train", cache_dir=str(tmp_path))
    assert len(rows)
    for row in rows:
        for side in ("chosen", "rejected"):
            [turn] = row[side]
            assert turn["content"].startswith("<think>\n")
            assert row[f"{side}_reasoning"] in turn["content"]
            assert row[f"{side}_reasoning_tokens"] > 0


def test_training_learns_what_was_sampled(kept: RunDir, policy: str, tmp_path: Path) -> None:
    context = RunContext.of(config(policy, tmp_path), kept).round(0)
    rendering = rendering_of(context, [0], Path(policy))
    triples = read_triples(sorted((kept.dataset / "data").glob("train-*.parquet")))
    pairs = token_pairs(triples, load_tokenizer(policy), max_length=200, rendering=rendering)
    found = kept.round(0).candidates.table(["candidate_id", "token_ids"]).to_pylist()
    sampled = {row["candidate_id"]: row["token_ids"] for row in found}
    for row, chosen, rejected in zip(
        triples.to_pylist(), pairs.chosen, pairs.rejected, strict=True
    ):
        assert chosen.tolist() == sampled[row["chosen_id"]]
        assert rejected.tolist() == sampled[row["rejected_id"]]


def test_stripped_answers_are_trained_without_a_thought(
    policy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(policy, tmp_path, write={"test_share": 0.0, "reasoning": "strip"})
    run = run_small(tmp_path / "run", settings)
    assert "sample.chat_template_kwargs" in caplog.text
    rows = load_dataset(str(run.dataset), split="train", cache_dir=str(tmp_path / "cache"))
    assert not any("<think>" in row["chosen"][0]["content"] for row in rows)
    rendering = rendering_of(RunContext.of(settings, run).round(0), [0], Path(policy))
    assert rendering.template_kwargs == OFF
    tokenizer = load_tokenizer(policy)
    triples = read_triples(sorted((run.dataset / "data").glob("train-*.parquet")))
    pairs = token_pairs(triples, tokenizer, max_length=200, rendering=rendering)
    assert tokenizer.decode(pairs.prompts[0]).endswith("<think>\n\n</think>\n\n")
    # Asked not to think from the beginning, nothing has to be said.
    caplog.clear()
    quick = config(policy, tmp_path, write={"test_share": 0.0, "reasoning": "strip"},
                   sample={"n": 6, "temperature": 2.0, "max_tokens": 12,
                           "chat_template_kwargs": OFF})  # fmt: skip
    run = run_small(tmp_path / "quick", quick)
    assert "sample.chat_template_kwargs" not in caplog.text
    assert run.round(0).candidates.table()["reasoning"].null_count == len(
        run.round(0).candidates.table()
    )
