"""What is measured on a policy's held-out answers by themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.labelers.statistics.diversity import distinct_n, repetitive_share, self_bleu
from prefloop.pipeline.run.run_dir import PolicyKey, RunDir


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
