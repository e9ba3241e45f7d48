"""How the policy of a run is asked when it is trained and measured: as it was when it answered."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefloop.pipeline.run.context import RoundContext
from prefloop.training.inputs.rendering import Rendering

logger = logging.getLogger(__name__)


def rendering_of(context: RoundContext, rounds: Iterable[int], policy: Path) -> Rendering:
    """How ``policy`` is to be trained on the answers of ``rounds``: on what was sampled, or, where
    the dataset holds no thoughts, as it answers without one."""
    if not context.keeps_thoughts:
        return Rendering(without_thoughts(context, policy))
    folders = [context.run.round(index).candidates for index in rounds]
    shards = (folder.path(block) for folder in folders for block in folder.indices())
    return Rendering(context.template_kwargs, tuple(shards))


def template_kwargs_of(context: RoundContext, policy: Path) -> dict[str, Any]:
    """Variables of the chat template for the prompts of the dataset's answers."""
    if context.keeps_thoughts:
        return dict(context.template_kwargs)
    return without_thoughts(context, policy)


def without_thoughts(context: RoundContext, policy: Path) -> dict[str, Any]:
    """The variables of sampling, and those with which the template of ``policy`` asks for an answer
    without a thought."""
    from prefloop.data.chat import thinking_off
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
