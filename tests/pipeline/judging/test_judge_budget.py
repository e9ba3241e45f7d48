"""What judge-eval may spend holds for its folder, whatever setting of the judge was changed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.judging.gold_eval import JudgeEvalOptions, judge_eval
from tests.helpers.servers import faulty_server, says

TOP = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.5}]
LOGPROBS = {"content": [{"token": "A", "logprob": -0.1, "top_logprobs": TOP}]}
CHOICE = {"message": {"content": "A"}, "finish_reason": "stop", "logprobs": LOGPROBS}
EACH = 100
VERDICT = says({"choices": [CHOICE], "usage": {"prompt_tokens": 99, "completion_tokens": 1}})


def judge(path: Path, url: str, name: str, **engine: Any) -> Path:
    served = {"type": "openai", "base_url": url, "max_total_tokens": 1000, **engine}
    labeler = {"type": "judge", "name": name, "engine": "server", "model": "m",
               "judge": "pairwise_short"}  # fmt: skip
    path.write_text(yaml.safe_dump({"engines": {"server": served}, "labelers": [labeler]}))
    return path


def test_a_changed_judge_does_not_spend_the_budget_again(tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    rows = [{"prompt": f"Number {n}?", "chosen": f"{n} it is.", "rejected": "No."}
            for n in range(30)]  # fmt: skip
    gold.write_text("\n".join(map(json.dumps, rows)))

    def evaluate(*judges: Path) -> None:
        options = JudgeEvalOptions(judges=judges, out=tmp_path / "out")
        with pytest.raises(EngineFailed, match="of max_total_tokens 1000 used"):
            asyncio.run(judge_eval(str(gold), options))

    with faulty_server(VERDICT) as server:
        evaluate(judge(tmp_path / "a.yaml", server.url, "a"))
        first = len(server.requests)
        assert 5 <= first <= 1000 // EACH
        evaluate(judge(tmp_path / "a.yaml", server.url, "a", reasoning_effort="low"))
        evaluate(judge(tmp_path / "b.yaml", server.url, "b", top_logprobs=5))
        assert len(server.requests) == first
