"""The last stage: the policy to keep against the starting policy, once, on held-out prompts that no
decision has seen (:mod:`prefloop.pipeline.run.final_split`).

It works in ``final/`` of the run directory, block by block as the evaluation of a round does, so a
kill loses a block and no more. What was judged is not judged again.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.run.context import RoundContext, RunContext
from prefloop.pipeline.run.final_split import final_dir, final_ids
from prefloop.pipeline.run.metrics import metrics_table
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.promotion import keeping
from prefloop.pipeline.run.round_jury import load_round_jury, with_labels_of
from prefloop.pipeline.run.run_dir import EVALUATION, RunDir, Stopwatch
from prefloop.pipeline.stages.evaluate import answer_heldout, heldout_sampling, is_untempered
from prefloop.pipeline.stages.likelihood.likelihood_figures import (
    Likely,
    MeasuredPolicy,
    likelihood_figures,
)
from prefloop.pipeline.stages.matches import match, match_figures, match_jury, voting
from prefloop.pipeline.stages.measures import answer_figures
from prefloop.pipeline.stages.prompts import write_blocks
from prefloop.training.config import EvaluateConfig

logger = logging.getLogger(__name__)


async def evaluate_final(config: RunConfig, context: RunContext, models: Models) -> None:
    """Judge the policy to keep on the final prompts, where there are any and a policy is kept."""
    run, settings = context.run, config.evaluate
    if not config.train or not settings.enabled or settings.final is None:
        return
    best = keeping(run).folder
    if best is None:
        logger.warning(
            "no round's policy is to be kept, so the final prompts (evaluate.final) are not used"
        )
        return
    within = _within(final_dir(run), context, best.index)
    if within.folder.metrics.exists(EVALUATION):
        return
    prompts = _prompts(run, settings, config.seed)
    if not len(prompts):
        logger.warning(
            "evaluate.final: no held-out prompt can be spared for it: hold out more "
            "(prompts.heldout, prompts.heldout_share)"
        )
        return
    if within.run.heldout.rows() != len(prompts):
        write_blocks(within.run.heldout, prompts, config.block_size)
    watch = Stopwatch()
    config = with_labels_of(config, best)
    table = await _figures(config, within, models, best.policy)
    within.folder.metrics.write(EVALUATION, table)
    run.note("final", best.index, watch.lap())


async def _figures(
    config: RunConfig, context: RoundContext, models: Models, policy: Path
) -> pa.Table:
    """Metrics of ``policy``, which the context's round trained, and of the starting policy."""
    assert config.evaluate.final is not None
    judges = config.evaluate.final.judges or config.evaluate.judges
    settings = config.evaluate.model_copy(update={"final": None, "limit": None, "judges": judges})
    final, new, start = context.run, context.index + 1, Path(models.start)
    answer = partial(answer_heldout, sample=config.sample, settings=settings, models=models)
    models.use_policy(str(start))
    await answer(_within(final, context, 0), policy=0)
    models.use_policy(str(policy))
    await answer(context, policy=new)
    evaluators = config.final_evaluators
    await match(context, new, 0, voting(config, evaluators, models.labelers))
    labelled = RunDir(final.root.parent).round(context.index)
    fitted = load_round_jury(config.label, labelled)
    jury = match_jury(config.label.jury, settings, evaluators, fitted)
    rows = match_figures(final, jury, new, 0, "start")
    rows += answer_figures(final, new, against=None)
    rows += answer_figures(final, 0, against="start")
    own = is_untempered(heldout_sampling(config.sample, settings))
    likely = Likely(models.scoring, settings.confidence, own)
    measured = MeasuredPolicy(new, policy, other=start, against="start", start=start)
    rows += await likelihood_figures(context, measured, likely)
    return metrics_table([{**row, "round": context.index} for row in rows])


def _within(final: RunDir, context: RunContext, index: int) -> RoundContext:
    """``context`` for round ``index`` in the directory of the final prompts."""
    return replace(context.round(index), run=final, folder=final.round(index))


def _prompts(run: RunDir, settings: EvaluateConfig, seed: int) -> pa.Table:
    heldout = run.heldout.table()
    ids = heldout["prompt_id"].to_pylist()
    drawn = final_ids(ids, settings.final, seed)
    return heldout.filter(pa.array([one in drawn for one in ids], pa.bool_()))
