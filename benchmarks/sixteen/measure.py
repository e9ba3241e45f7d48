"""How good and how far from the start a policy's answers to the prompts are."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.answering import answered
from benchmarks.sixteen.setting import Setting
from prefloop.labelers.scorers.sequence_scores import SequenceScorer
from prefloop.pipeline.config import load_config
from prefloop.training.policy.logprobs import answer_logprobs


@dataclass(frozen=True)
class Measured:
    """Of P prompts and K answers to each."""

    rewards: list[list[float]]
    """[P][K]"""
    kl: list[list[float]]
    """[P][K] log p(answer) under the policy less that under the start, in nats."""
    texts: list[list[str]]
    tokens: float
    """Mean length of an answer."""

    @property
    def reward(self) -> tuple[float, float]:
        """Mean and half of its interval."""
        return estimate(np.array(self.rewards))

    @property
    def divergence(self) -> tuple[float, float]:
        """KL(policy || start), nats an answer, and half of its interval."""
        return estimate(np.array(self.kl))


def estimate(rows: NDArray[np.float64]) -> tuple[float, float]:
    """Mean of [P, K] and half of its interval (95 %) for answers drawn anew to the same prompts.

    The prompts are what they are, so only the spread within each counts: the variance of the mean
    of P means of K, with P (K - 1) degrees of freedom.
    """
    prompts, answers = rows.shape
    error = float(np.sqrt((rows.var(1, ddof=1) / answers).sum())) / prompts
    return float(rows.mean()), float(stats.t.ppf(0.975, prompts * (answers - 1))) * error


def measure(name: str, policy: str, setting: Setting) -> Measured:
    """Let ``policy`` answer; what was measured by this name before is read."""
    out = setting.out / "measured" / f"{name.lower().replace(' ', '-')}-{setting.seed}"
    kept = out.with_suffix(".json")
    if kept.exists():
        return Measured(**json.loads(kept.read_text("utf-8")))
    raw = setting.config() | {"rounds": 1}
    heldout = raw["prompts"]["train"]
    other = setting.out / "another.jsonl"
    other.write_text(json.dumps({"prompt": "What else is there?"}) + "\n", encoding="utf-8")
    raw["prompts"] = raw["prompts"] | {"train": {"path": str(other)}, "heldout": heldout}
    run = answered(
        load_config(raw), policy, out,
        samples_per_prompt=setting.measured, temperature=1.0, max_tokens=setting.tokens,
    )  # fmt: skip
    found = _figures(run.answers(0).table().to_pylist(), run.heldout.table().to_pylist(), setting,
                     policy)  # fmt: skip
    kept.write_text(json.dumps(asdict(found)), encoding="utf-8")
    return found


def _figures(
    answers: list[dict[str, Any]], prompts: list[dict[str, Any]], setting: Setting, policy: str
) -> Measured:
    asked = {row["prompt_id"]: row["messages"] for row in prompts}
    place = {messages[-1]["content"]: row for row, messages in asked.items()}
    order = [place[prompt] for prompt in setting.asked]
    rows = sorted(answers, key=lambda row: order.index(row["prompt_id"]))
    conversations = [asked[row["prompt_id"]] for row in rows]
    texts = [row["text"] for row in rows]
    scorer = SequenceScorer(str(setting.reward), device="cpu")
    pairs = zip(conversations, texts, strict=True)
    rewards = scorer.score([scorer.encode(*pair) for pair in pairs])
    whole = [row["finish_reason"] == "stop" for row in rows]
    new, start = (
        answer_logprobs(Path(one), conversations, texts, complete=whole)
        for one in (policy, setting.model)
    )
    shape = len(order), setting.measured
    return Measured(
        rewards.reshape(shape).tolist(), (new - start).reshape(shape).tolist(),
        np.array(texts, dtype=object).reshape(shape).tolist(),
        float(np.mean([row["tokens"] for row in rows])),
    )  # fmt: skip
