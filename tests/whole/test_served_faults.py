"""A run whose server misbehaves: what it costs, and that the same command goes on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.config import RunConfig
from tests.helpers.runs import JUDGE, run_small, small_config
from tests.helpers.served import asked
from tests.helpers.servers import Reply, faulty_server, good, says

TOP = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.5}]
LOGPROBS = {"content": [{"token": "A", "logprob": -0.1, "top_logprobs": TOP}]}
CHOICE = {"message": {"content": "A"}, "finish_reason": "stop", "logprobs": LOGPROBS}
EACH = 100
VERDICT = says({"choices": [CHOICE], "usage": {"prompt_tokens": 99, "completion_tokens": 1}})
POISON = says({"choices": [{"index": 0, "finish_reason": "length"}]})


def config(url: str, folder: Path, *, judged: bool, **engine: object) -> RunConfig:
    prompts = folder / "p.jsonl"
    words = ["red", "poison", "green", "stone", "river"]
    rows = [{"prompt": f"Write about {word}.", "constraints": []} for word in words]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    served = {"type": "openai", "base_url": url, "max_retries": 1, "max_backoff_s": 0.02, **engine}
    judge = {**JUDGE, "engine": "server", "model": "served", "orders": "one"}
    by_letters = {"type": "verifier", "name": "v", "function": "tests.helpers.served:letters"}
    sample = {"n": 3, "max_tokens": 8} | ({} if judged else {"engine": "server"})
    return small_config(
        engines={"default": {"type": "transformers"}, "server": served},
        prompts={"train": {"path": str(prompts)}, "heldout_share": 0.0},
        label={"labelers": [judge if judged else by_letters]},
        sample=sample,
        filter={"filters": []},
        **({} if judged else {"policy": "served"}),
    )


def answers(reply: Callable[[str, int], Reply]) -> Reply:
    """The reply that ``reply`` has for a prompt and a seed."""
    return lambda handler: reply(handler.body["messages"][-1]["content"], handler.body["seed"])(
        handler
    )


def test_a_poison_prompt_is_quarantined_with_its_reason_and_not_asked_for_again(
    tmp_path: Path,
) -> None:
    reply = answers(lambda text, seed: POISON if "poison" in text else good(f"Some words {seed}"))
    with faulty_server(reply) as server:
        settings = config(server.url, tmp_path, judged=False)
        run = run_small(tmp_path / "run", settings)
        [failed] = run.round(0).quarantine("sample").table().to_pylist()
        assert (failed["reason"], failed["row"]) == ("unparsable_answer", 2)
        assert "a choice without a message" in failed["detail"]
        assert len(set(run.round(0).candidates.table()["prompt_id"].to_pylist())) == 4
        before = len(asked(server))
        run_small(tmp_path / "run", settings)
        assert len(asked(server)) == before


def test_the_same_command_does_not_spend_the_budget_again(tmp_path: Path) -> None:
    with faulty_server(VERDICT) as server:
        settings = config(server.url, tmp_path, judged=True, max_total_tokens=1000)
        for _ in range(3):
            with pytest.raises(EngineFailed, match="budget reached"):
                run_small(tmp_path / "run", settings)
            assert 0 < EACH * len(server.requests) <= 1000
    with faulty_server(VERDICT) as server:
        raised = config(server.url, tmp_path, judged=True, max_total_tokens=100_000)
        run = run_small(tmp_path / "run", raised)
    assert run.round(0).votes.rows() > 0


def test_a_run_asks_a_server_that_does_not_count_and_says_half_a_character(tmp_path: Path) -> None:
    reply = answers(lambda _, seed: says({"choices": [bare(f"{seed} \ud83d")]}))
    with faulty_server(reply) as server:
        run = run_small(tmp_path / "run", config(server.url, tmp_path, judged=False))
    texts = run.round(0).candidates.table()["text"].to_pylist()
    assert len(texts) == 15
    assert all(text.endswith(" \ufffd") for text in texts)


def bare(text: str) -> dict[str, object]:
    """A choice with nothing beside its text."""
    return {"message": {"content": text}, "finish_reason": "eos"}
