"""Prompts with tools through a whole run: asked with them, written with them, trained with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from prefloop.data.conversations.chat import render_tokens
from prefloop.data.conversations.conversation import as_sampled
from prefloop.pipeline.run.run_dir import EVALUATION
from prefloop.training.inputs.pairs import token_pairs, triples_in
from prefloop.training.inputs.rows import Dropped
from prefloop.training.policy.checkpoints import load_tokenizer
from tests.helpers.runs import dataset_rows, run_small, small_config
from tests.helpers.servers import Handler, faulty_server, says
from tests.helpers.tool_models import make_tool_model

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"function": {"name": "add", "arguments": {"a": 1}}}
BY_LETTERS = {"type": "verifier", "name": "v", "function": "tests.helpers.served:letters"}


def prompts(folder: Path, count: int) -> dict[str, Any]:
    """Every other prompt has a call and its result, and each has the tool."""
    rows = []
    for number in range(count):
        turns: list[dict[str, Any]] = [{"role": "user", "content": f"{number}?"}]
        if number % 2:
            turns += [
                {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
                {"role": "tool", "content": str(number)},
                {"role": "tool", "content": "no"},
            ]
        rows.append({"messages": turns, "tools": [TOOL]})
    path = folder / f"tools-{count}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    near = {"enabled": False}
    train = {"path": str(path), "columns": {"tools": "tools"}}
    return {"train": train, "heldout_share": 0.4, "near_duplicates": near}


def test_a_server_is_sent_tools_and_its_calls_are_answers(tmp_path: Path) -> None:
    def reply(handler: Handler) -> None:
        seed = handler.body["seed"]
        call = {"function": {"name": "add", "arguments": json.dumps({"a": seed})}}
        message = {"content": None, "tool_calls": [call]}
        choice = {"message": message, "finish_reason": "tool_calls"}
        usage = {"prompt_tokens": 9, "completion_tokens": 5}
        says({"choices": [choice], "usage": usage})(handler)

    with faulty_server(reply) as server:
        run = run_small(
            tmp_path / "run",
            small_config(
                policy="served",
                engines={"default": {"type": "openai", "base_url": server.url}},
                prompts=prompts(tmp_path, 6) | {"heldout_share": 0.0},
                label={"labelers": [BY_LETTERS]},
                filter={"filters": []},
                sample={"n": 2, "max_tokens": 8, "system_prompt": "Be brief."},
            ),
        )
        bodies = [body for _, _, body in server.requests]
    assert all(body["tools"] == [TOOL] for body in bodies)
    called = next(body["messages"] for body in bodies if len(body["messages"]) > 2)
    assert [turn["role"] for turn in called] == ["system", "user", "assistant", "tool", "tool"]
    ids = [call["id"] for call in called[2]["tool_calls"]]
    assert [turn["tool_call_id"] for turn in called[3:]] == ids
    assert len(set(ids)) == 2
    assert {call["function"]["arguments"] for call in called[2]["tool_calls"]} == {'{"a": 1}'}
    rows = [row for rows in dataset_rows(run).values() for row in rows]
    assert len(rows) == 6
    assert "| `prompt_turns` |" in run.card.read_text()
    for row in rows:
        assert json.loads(row["tools"]) == [TOOL]
        (call,) = json.loads(row["chosen"][0]["content"])
        assert call["name"] == "add"
        turns = row["prompt_turns"] and json.loads(row["prompt_turns"])
        assert (turns is None) == (len(row["prompt"]) == 2)
        assert turns is None or turns[2]["tool_calls"][0]["function"] == CALL["function"]


def test_training_and_its_measures_see_what_was_sampled(tmp_path: Path) -> None:
    policy = make_tool_model(tmp_path / "policy")
    config = small_config(
        policy=policy,
        prompts=prompts(tmp_path, 12),
        label={"labelers": [BY_LETTERS]},
        filter={"filters": []},
        sample={"n": 2, "max_tokens": 6},
        write={"test_share": 0.3, "unpaired": True},
        train={"batch_size": 2, "epochs": 1, "max_length": 250, "guards": {"enabled": False}},
        evaluate={"samples_per_prompt": 1, "max_tokens": 6},
    )
    run = run_small(tmp_path / "run", config)
    tokenizer = load_tokenizer(Path(policy))
    sampled = {
        row["prompt_id"]: render_tokens(tokenizer, as_sampled(row, None))
        for row in run.prompts.table().to_pylist()
    }
    files = sorted((run.dataset / "data").glob("*.parquet"))
    dropped = Dropped()
    pairs = token_pairs(triples_in(files, dropped), tokenizer, max_length=250, dropped=dropped)
    written = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert not dropped.counts
    assert [ids.tolist() for ids in pairs.prompts] == [sampled[row["prompt_id"]] for row in written]
    assert max(map(len, sampled.values())) > min(map(len, sampled.values())) + 20
    unpaired = pq.read_table(next((run.dataset / "unpaired").glob("train-*.parquet")))
    assert unpaired["tools"].null_count == 0
    names = {row["name"] for row in run.round(0).metrics.read(EVALUATION).to_pylist()}
    assert {"kl", "reward_margin"} <= names


def test_a_dataset_without_tools_has_no_columns_for_them(tmp_path: Path) -> None:
    run = run_small(tmp_path, small_config(write={"unpaired": True}))
    assert "prompt_turns" not in run.card.read_text()
    for file in (*(run.dataset / "data").glob("*"), *(run.dataset / "unpaired").glob("*")):
        assert not {"tools", "prompt_turns"} & set(pq.read_schema(file).names)
