"""Answers of a policy that thinks, as they are trained on and measured: with or without the thought
before them, behind the prompt as it was asked."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.conversations.reasoning import as_turn
from prefloop.pipeline.run.context import RoundContext
from prefloop.training.inputs.rendering import Rendering

logger = logging.getLogger(__name__)

TEXT_COLUMNS = ["text", "reasoning", "raw_text"]
"""Columns of candidates that the texts are made of."""


def answer_texts(candidates: pa.Table, *, with_thoughts: bool) -> pa.ChunkedArray:
    """One text for each of ``candidates`` (columns ``TEXT_COLUMNS``).

    ``with_thoughts``: of a policy that thought, what it wrote, marks and all; where its server took
    thought and answer apart, both in the form that most chat templates know.
    """
    if not with_thoughts or candidates["reasoning"].null_count == len(candidates):
        return candidates["text"]
    joined = [
        as_turn(row["reasoning"], row["text"]) if row["reasoning"] else row["text"]
        for row in candidates.select(TEXT_COLUMNS).to_pylist()
    ]
    return pc.coalesce(candidates["raw_text"], pa.chunked_array([pa.array(joined, pa.string())]))


def rendering_of(context: RoundContext, rounds: Iterable[int], policy: Path) -> Rendering:
    """How ``policy`` is to be trained on the answers of ``rounds``: on what was sampled, or, where
    the dataset holds no thoughts, as it answers without one."""
    folders = [context.run.round(index).candidates for index in rounds]
    files = (path for folder in folders for path in folder.paths())
    return Rendering(template_kwargs_of(context, policy), tuple(files))


def template_kwargs_of(context: RoundContext, policy: Path) -> dict[str, Any]:
    """Variables of the chat template for the prompts of the dataset's answers."""
    if context.keeps_thoughts:
        return dict(context.template_kwargs)
    return without_thoughts(context, policy)


def without_thoughts(context: RoundContext, policy: Path) -> dict[str, Any]:
    """The variables of sampling, and those with which the template of ``policy`` asks for an answer
    without a thought."""
    from prefloop.data.conversations.answer_edges import thinking_off
    from prefloop.training.policy.checkpoints import load_tokenizer

    return {**context.template_kwargs, **(thinking_off(load_tokenizer(policy)) or {})}


def warn_of_thoughts(context: RoundContext, policy: Path) -> None:
    """Say it where a policy is trained without the thoughts that the next round samples again."""
    if context.keeps_thoughts or without_thoughts(context, policy) == context.template_kwargs:
        return
    candidates = context.folder.candidates
    if any(part["reasoning"].null_count < len(part) for part in candidates.iter(["reasoning"])):
        logger.warning(
            "round %d: training learns to answer without a thought (write.reasoning: strip), and "
            "sampling lets the policy think: set sample.chat_template_kwargs to %s, or keep the "
            "thoughts",
            context.index,
            without_thoughts(context, policy),
        )
