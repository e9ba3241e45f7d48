"""Answers of one policy to the held-out prompts of a config, outside of a run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.evaluate import answer_heldout
from prefloop.pipeline.stages.prompts import read_prompts


def answered(config: RunConfig, policy: str, out: Path, **evaluate: Any) -> RunDir:
    """Let ``policy`` answer, as an evaluation would that is set like ``evaluate``; what is in
    ``out`` is not done again. The answers are those of policy 0 there."""
    config = config.model_copy(update={"policy": policy})
    settings = config.evaluate.model_copy(update={"enabled": True, "limit": None, **evaluate})
    run = RunDir(out)
    context = RunContext.of(config, run)
    models = Models(config, cache=run.cache)

    async def answer() -> None:
        read_prompts(context, config.prompts, block_size=config.block_size)
        try:
            await answer_heldout(context.round(0), config.sample, settings, models, 0)
        finally:
            await models.release()

    with run.lock():
        asyncio.run(answer())
    return run
