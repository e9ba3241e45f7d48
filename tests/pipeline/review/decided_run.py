"""A run that is decided and written, made without a model: what reviews are of."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prefloop.pipeline.config import dump_config
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.filter import filter_round
from prefloop.pipeline.stages.write import write_round
from tests.helpers.runs import small_config
from tests.helpers.synthetic_run import write_run

CONFIG = small_config(filter={"filters": []})


def decided_run(root: Path, *, test_share: float = 0.1) -> RunDir:
    """One round of two blocks."""
    run = write_run(root, rounds=1, blocks=2, trained=False)
    run.config.write_text(dump_config(CONFIG))
    context = RunContext.of(CONFIG, run).round(0)
    context.folder.forget_decisions()
    asyncio.run(filter_round(context, CONFIG.label, CONFIG.filter))
    asyncio.run(write_round(context, test_share=test_share, unpaired=False))
    return run
