"""Several processes of one machine ask a server: they share what is kept and what is spent.

``executor: {type: ray, address: local}`` starts them.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prefloop.pipeline.config import RunConfig, validate_config
from prefloop.pipeline.engines.openai.ledger import ledger_at
from tests.helpers.runs import run_small
from tests.helpers.servers import Handler, faulty_server, good
from tests.pipeline.executors.ray_cluster import QUIET

pytest.importorskip("ray", reason="Ray is not installed (pip install 'prefloop[ray]')")
assert QUIET  # it is in the environment before Ray is imported
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900, method="thread")]

TOP = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.5}]
VERDICT = good(
    "A", seconds=0.3, logprobs={"content": [{"token": "A", "logprob": -0.1, "top_logprobs": TOP}]}
)
TOKENS = 15  # of an answer of ``good``


def reply(handler: Handler) -> None:
    """A verdict to a judge, and to others an answer of its own for each seed."""
    is_judged = "<answer_a>" in handler.body["messages"][-1]["content"]
    (VERDICT if is_judged else good(f"answer {handler.body['seed']}"))(handler)


def config(url: str, file: Path, *, workers: int) -> RunConfig:
    served = {"type": "openai", "base_url": url, "max_retries": 1, "max_concurrency": 1}
    judge = {"type": "judge", "judge": "pairwise", "engine": "judge", "model": "m", "orders": "one"}
    raw: dict[str, Any] = {
        "seed": 1, "policy": "m", "block_size": 1,
        "engines": {"default": served, "judge": served},
        "prompts": {"train": {"path": str(file)}, "heldout_share": 0,
                    "near_duplicates": {"enabled": False}},
        "sample": {"n": 2, "max_tokens": 8},
        "label": {"labelers": [judge]},
        "filter": {"filters": [], "strategy": {"type": "all"}},
    }  # fmt: skip
    if workers:
        raw["executor"] = {"type": "ray", "address": "local", "workers": workers}
    return validate_config(raw, "test")


def test_two_clients_ask_at_once_and_nothing_twice(tmp_path: Path) -> None:
    prompts, root = tmp_path / "prompts.jsonl", tmp_path / "run"
    prompts.write_text(
        "\n".join(json.dumps({"prompt": f"Number {n} is asked about."}) for n in range(16))
    )
    with faulty_server(reply) as server:
        run = run_small(root, config(server.url, prompts, workers=2))
        votes = run.round(0).votes.table()
        asked = Counter(json.dumps(body, sort_keys=True) for _, _, body in server.requests)
        assert server.most == 2  # each asks one at a time
        assert max(asked.values()) == 1
        assert len(votes) == 16
        # All of them kept their answers in one place, and wrote what they spent into one file.
        shutil.rmtree(run.round(0).votes.folder)
        run_small(root, config(server.url, prompts, workers=0))
        assert len(server.requests) == len(asked)
    assert run.round(0).votes.table().equals(votes)
    spent = [
        ledger_at(root / "cache" / f"{name}.spent.jsonl").settled.tokens
        for name in ("default", "judge")
    ]
    assert sum(spent) == TOKENS * len(asked)
