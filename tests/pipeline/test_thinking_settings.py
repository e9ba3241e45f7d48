"""What a config says about thinking reaches the requests of the policy and of each judge."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from prefloop.labelers.config import JudgeLabeler
from prefloop.labelers.factory import build_labeler
from prefloop.pipeline.config import ConfigError, validate_config
from tests.helpers.judging import ScriptedEngine, completion, make_pair
from tests.helpers.runs import run_small
from tests.helpers.served import asked
from tests.helpers.servers import Handler, faulty_server, good

SERVED = {"type": "openai", "max_retries": 0, "cache": False}
RAW = {"prompts": {"train": {"path": "embedded:prompts", "limit": 4}, "heldout_share": 0}}
VERIFIER = {"type": "verifier", "function": "tests.helpers.served:letters"}


def by_seed(handler: Handler) -> None:
    """Answers that differ."""
    good(f"an answer {handler.body['seed']}")(handler)


def test_the_policy_s_requests(tmp_path: Path) -> None:
    sample = {"n": 2, "max_tokens": 8, "thought_tokens": 30, "temperature": None,
              "chat_template_kwargs": {"enable_thinking": True}}  # fmt: skip
    with faulty_server(by_seed) as server:
        engine = SERVED | {"base_url": server.url, "reasoning_effort": "high"}
        config = validate_config(
            RAW | {"policy": "m", "engines": {"default": engine}, "sample": sample,
                   "label": {"labelers": [VERIFIER]}},
            "test",
        )  # fmt: skip
        run_small(tmp_path, config)
        assert len(asked(server)) == 8
        for _, _, body in server.requests:
            assert body["max_tokens"] == 38
            assert body["chat_template_kwargs"] == {"enable_thinking": True}
            assert body["reasoning_effort"] == "high"
            assert "temperature" not in body
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert "seed" in written


@pytest.mark.parametrize(
    "judge", ["pairwise", "pairwise_rationale", "listwise", "rating", "rating_rationale"]
)
def test_a_judge_s_requests(judge: str) -> None:
    settings: dict[str, Any] = {
        "thought_tokens": 500, "reasoning_effort": "low", "temperature": None,
        "chat_template_kwargs": {"enable_thinking": True},
    }  # fmt: skip
    engine = ScriptedEngine(lambda _: completion("A", A=0.9, B=0.1))
    labeler = build_labeler(JudgeLabeler(model="m", judge=judge, **settings), engine=engine, seed=0)
    asyncio.run(labeler.label([make_pair()], block="b"))
    assert engine.requests
    for request in engine.requests:
        assert request.thought_tokens == 500
        assert request.reasoning_effort == "low"
        assert request.chat_template_kwargs == {"enable_thinking": True}
        assert request.sampling.temperature is None


def test_a_method_that_weighs_by_the_temperature_has_to_know_it() -> None:
    raw = RAW | {
        "label": {"labelers": [VERIFIER]},
        "sample": {"temperature": None, "n": 4},
        "train": {"method": "grpo", "batch_size": 4, "gradient_accumulation": 1},
    }
    with pytest.raises(ConfigError, match=r"sample\.temperature"):
        validate_config(raw, "test")
