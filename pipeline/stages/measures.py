"""What is measured on a policy by itself: its held-out answers, and how likely it finds texts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.conversation import as_sampled
from prefloop.data.protocol import Message
from prefloop.data.schemas import TRIPLE
from prefloop.data.shards import read_shard
from prefloop.labelers.statistics.diversity import distinct_n, repetitive_share, self_bleu
from prefloop.labelers.statistics.estimate import mean_estimate
from prefloop.labelers.statistics.winrate import win_rate
from prefloop.pipeline.run.context import RoundContext, RunContext
from prefloop.pipeline.run.run_dir import PolicyKey, RunDir
from prefloop.pipeline.stages.rendering import template_kwargs_of
from prefloop.pipeline.stages.write import split_files
from prefloop.training.policy.heldout import MOST_PAIRS, implicit_margins
from prefloop.training.policy.logprobs import Scorer, kl_estimate

logger = logging.getLogger(__name__)


def answer_figures(run: RunDir, policy: PolicyKey, *, against: str | None) -> list[dict[str, Any]]:
    """What a policy's held-out answers are like, without anyone's judgement."""
    columns = ["text", "tokens", "finish_reason", "reasoning_tokens"]
    answers = run.answers(policy).table(columns)
    if not len(answers):
        return []
    texts = answers["text"].to_pylist()
    figures = {
        "mean_tokens": float(np.mean(answers["tokens"].to_numpy())),
        "mean_chars": float(pc.mean(pc.utf8_length(answers["text"])).as_py()),
        "truncated_share": float(np.mean(pc.equal(answers["finish_reason"], "length").to_numpy())),
        "repetitive_share": repetitive_share(texts),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "self_bleu": self_bleu(texts),
        "mean_reasoning_tokens": _mean_reasoning_tokens(answers["reasoning_tokens"]),
    }
    return [
        {"name": name, "value": value, "n": len(texts), "against": against}
        for name, value in figures.items()
        if value is not None
    ]


def _mean_reasoning_tokens(tokens: pa.ChunkedArray) -> float | None:
    """The mean over all answers; null where none has a thought."""
    if tokens.null_count == len(tokens):
        return None
    return float(np.mean(tokens.fill_null(0).to_numpy()))


@dataclass(frozen=True)
class Likely:
    """How likely texts are measured: by ``score``, with intervals of this ``confidence``."""

    score: Scorer
    confidence: float
    untempered: bool
    """Whether held-out answers are drawn from the policy's own distribution; else only those that
    were drawn for KL are."""


def likelihood_figures(
    context: RoundContext, start: Path, reference: Path, likely: Likely, *, beta: float
) -> list[dict[str, Any]]:
    """KL to the starting policy on the new policy's answers, and rewards on held-out triples.

    ``reference`` is the reference policy of the round's training, and ``beta`` its weight.
    """
    new, confidence = context.folder.policy, likely.confidence
    rows = kl_figures(context, context.index + 1, new, start, likely, against="start")
    triples = _heldout_triples(context.run, context.index)
    if len(triples):
        margins = implicit_margins(
            new, reference, triples, beta,
            template_kwargs=template_kwargs_of(context, new), score=likely.score,
        )  # fmt: skip
        prompts = triples["prompt_id"].to_pylist()
        right = np.sign(margins) / 2 + 0.5
        rows += [
            {"name": "reward_margin", "estimate": mean_estimate(margins, prompts, confidence)},
            {"name": "reward_accuracy", "estimate": win_rate(right, prompts, confidence)},
        ]
    return rows


def kl_figures(
    context: RunContext, policy: int, new: Path, other: Path, likely: Likely, *, against: str
) -> list[dict[str, Any]]:
    """KL from ``new``, whose answers are those of ``policy``, to ``other``; none where it cannot be
    measured, which is said.

    The answers are the held-out ones where these are drawn from the policy's own distribution, and
    else those that were drawn from it for this.
    """
    conversations = _conversations(context)
    columns = ["prompt_id", "text", "finish_reason", "token_ids", "reasoning", "reasoning_tokens"]
    drawn = context.run.answers if likely.untempered else context.run.untempered
    answers = drawn(policy).table(columns)
    shown_prompts = [conversations[prompt] for prompt in answers["prompt_id"].to_pylist()]
    rows = answers.to_pylist()
    if not rows:
        logger.warning("no KL of policy %d: none of its answers is there to measure it on", policy)
        return []
    unknown = sum(row["token_ids"] is None and _thought(row) for row in rows)
    if unknown:
        logger.warning(
            "no KL of policy %d: it thought before %d of %d answers, and its engine does not tell "
            "the tokens; vLLM does, in this process or as a server with vllm_extensions: true",
            policy,
            unknown,
            len(rows),
        )
        return []
    # Of a policy that thought, the tokens that it sampled: its answer alone is not what it said.
    texts = [row["text"] if row["token_ids"] is None else row["token_ids"] for row in rows]
    complete = pc.equal(answers["finish_reason"], "stop").to_pylist()
    of_new, of_other = (
        likely.score(
            model,
            shown_prompts,
            texts,
            complete=complete,
            template_kwargs=context.template_kwargs,
        )
        for model in (new, other)
    )
    divergence = kl_estimate(of_new, of_other, answers["prompt_id"].to_pylist(), likely.confidence)
    return [{"name": "kl", "against": against, "estimate": divergence}]


def _thought(row: Mapping[str, Any]) -> bool:
    return row["reasoning"] is not None or bool(row["reasoning_tokens"])


def _conversations(context: RunContext) -> dict[str, tuple[Message, ...]]:
    heldout = context.run.heldout.table(["prompt_id", "messages", "turns", "tools"]).to_pylist()
    return {row["prompt_id"]: as_sampled(row, context.system_prompt) for row in heldout}


def _heldout_triples(run: RunDir, round_index: int) -> pa.Table:
    """The first triples that the round put in the test split; empty if there are none."""
    files = split_files(run, "test", round_index)
    columns = ["prompt", "chosen", "rejected", "prompt_id", "tools", "prompt_turns"]
    if not files:
        return TRIPLE.empty_table().select(columns)
    return read_shard(files[0], TRIPLE, columns).slice(0, MOST_PAIRS)
