"""A run that asks for several answers at once: the same triples after a break, nothing paid twice,
and each answer in the tables at what it cost."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.config import RunConfig, validate_config
from prefloop.pipeline.engines.openai.ledger import ledger_at
from tests.helpers.runs import dataset_rows, run_small
from tests.helpers.servers import Handler, faulty_server, status
from tests.pipeline.engines.openai.asking.n_server import PROMPT, Several, text_of

PRICES = {"price_per_million_prompt_tokens": 1e6, "price_per_million_completion_tokens": 2e6}
PROMPTS, N, VOTES = 6, 3, 3


class Policy(Several):
    """Answers to prompts, and verdicts of which each is drawn by its seed."""

    def answer(self, body: Any, n: int) -> dict[str, Any]:
        answer = super().answer(body, n)
        if "<answer_a>" in body["messages"][-1]["content"]:
            for choice in answer["choices"]:
                seed = body["seed"] + choice["index"]
                said = {"rationale": f"by {seed}", "verdict": "AB"[seed % 2]}
                choice["message"]["content"] = json.dumps(said)
        return answer


def config(url: str, file: Path, **engine: Any) -> RunConfig:
    served = {"type": "openai", "base_url": url, "max_retries": 0, "max_backoff_s": 0.02}
    judge = {
        "type": "judge", "judge": "pairwise_rationale", "engine": "judge", "model": "m",
        "votes": VOTES, "temperature": 0.7,
    }  # fmt: skip
    raw: dict[str, Any] = {
        "seed": 1, "policy": "m", "block_size": 2,
        "engines": dict.fromkeys(("default", "judge"), served | PRICES | engine),
        "prompts": {"train": {"path": str(file)}, "heldout_share": 0,
                    "near_duplicates": {"enabled": False}},
        "sample": {"n": N, "max_tokens": 8},
        "label": {"labelers": [judge], "max_invalid": None},
        "filter": {"filters": [], "strategy": {"type": "all"}},
    }  # fmt: skip
    return validate_config(raw, "test")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"Number {n} is asked about."}) for n in range(PROMPTS)]
    path.write_text("\n".join(lines))
    return path


def after(number: int, reply: Callable[[Handler], None]) -> Callable[[Handler], None]:
    """``reply`` to so many requests, and then none, as of a server that is gone."""
    lock, left = threading.Lock(), number

    def answer(handler: Handler) -> None:
        nonlocal left
        with lock:
            left -= 1
            is_gone = left < 0
        (status(503) if is_gone else reply)(handler)

    return answer


def test_the_same_triples_after_a_break_and_from_kept_answers(
    tmp_path: Path, prompts: Path
) -> None:
    one_at_a_time = {"n_per_request": 8, "max_concurrency": N}
    with faulty_server(Policy()) as server:
        whole = run_small(tmp_path / "whole", config(server.url, prompts, **one_at_a_time))
        asked = len(server.answered)
    root = tmp_path / "broken"
    answered = 0
    for number in (4, 9):
        with faulty_server(after(number, Policy())) as server:
            with pytest.raises(EngineFailed):
                run_small(root, config(server.url, prompts, **one_at_a_time))
            answered += len(server.answered)
    with faulty_server(Policy()) as server:
        run = run_small(root, config(server.url, prompts, **one_at_a_time))
        answered += len(server.answered)
    assert any(dataset_rows(whole).values())
    assert dataset_rows(run) == dataset_rows(whole)
    assert run.round(0).candidates.table().equals(whole.round(0).candidates.table())
    assert answered == asked


def test_prompts_are_paid_once_and_the_tables_hold_what_was_paid(
    tmp_path: Path, prompts: Path
) -> None:
    with faulty_server(Policy()) as server:
        apart = run_small(tmp_path / "apart", config(server.url, prompts))
        votes = apart.round(0).votes.rows()
        assert votes == PROMPTS * 3 * 2 * VOTES  # three pairs in both orders
        assert len(server.requests) == PROMPTS * N + votes
    with faulty_server(Policy()) as server:
        together = run_small(tmp_path / "together", config(server.url, prompts, n_per_request=8))
        assert len(server.requests) == PROMPTS + votes // VOTES
    for name, table, asked in (
        ("default", "candidates", PROMPTS),
        ("judge", "votes", votes // VOTES),
    ):
        rows = getattr(together.round(0), table).table(["prompt_tokens", "cost"])
        assert pc.sum(rows["prompt_tokens"]).as_py() == PROMPT * asked
        spent = ledger_at(together.root / "cache" / f"{name}.spent.jsonl").settled
        assert pc.sum(rows["cost"]).as_py() == pytest.approx(spent.cost)
    texts = together.round(0).candidates.table()["text"].to_pylist()
    seeds = [
        body["seed"] for _, _, body in server.requests if "Number" in body["messages"][0]["content"]
    ]
    assert {*texts} == {text_of(seed + at) for seed in seeds[:PROMPTS] for at in range(N)}
    assert {*together.round(0).votes.table()["preference"].to_pylist()} >= {"a", "b"}


def test_of_the_votes_that_came_together_those_are_valid_that_are(
    tmp_path: Path, prompts: Path
) -> None:
    """The second vote is withheld, and once more where it is asked for alone."""

    class Withholding(Policy):
        def answer(self, body: Any, n: int) -> dict[str, Any]:
            answer = super().answer(body, n)
            if "<answer_a>" in body["messages"][-1]["content"]:
                for choice in answer["choices"]:
                    if n == 1 or choice["index"] == 1:
                        choice["finish_reason"] = "content_filter"
            return answer

    with faulty_server(Withholding()) as server:
        run = run_small(tmp_path / "run", config(server.url, prompts, n_per_request=8))
    drawn = run.round(0).votes.table()["preference"].to_pylist()
    assert len(drawn) == PROMPTS * 3 * 2 * VOTES
    assert 3 * drawn.count("invalid") == len(drawn)
