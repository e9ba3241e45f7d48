"""`prefloop evaluate`: one policy against another on held-out prompts, without a run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefloop.data.hashing import json_hash
from prefloop.data.strict import fingerprint
from prefloop.labelers.jury.round_jury import RoundJury
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.run.answer_key import of_engines, of_labelers, of_settings
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.manifest import input_hashes
from prefloop.pipeline.run.metrics import metrics_table
from prefloop.pipeline.run.models import Models, checkpoint, revision
from prefloop.pipeline.run.round_jury import jury_on
from prefloop.pipeline.run.run_dir import RunDir, RunError
from prefloop.pipeline.stages.evaluate import answer_heldout
from prefloop.pipeline.stages.matches import match, match_figures, match_jury, voting
from prefloop.pipeline.stages.measures import Likely, answer_figures, kl_figures
from prefloop.pipeline.stages.prompts import read_prompts

AGAINST = "other"
"""The other policy, in the figures."""
_OTHER, _NEW = 0, 1


@dataclass(frozen=True)
class Evaluation:
    """One policy against another."""

    policy: str
    against: str
    folder: Path
    """Where answers and votes lie."""
    rows: list[dict[str, Any]]
    """Schema METRIC; ``against`` is "other" for what concerns the other policy or both."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        columns = ("name", "value", "low", "high", "n", "against", "labeler")
        return {
            "policy": self.policy,
            "against": self.against,
            "folder": str(self.folder),
            "figures": [{name: row[name] for name in columns} for row in self.rows],
        }


async def evaluate_policy(config: RunConfig, *, policy: str, against: str, out: Path) -> Evaluation:
    """Let both policies answer the held-out prompts of ``config``, and its labelers compare.

    Both get the same seeds, every labeler sees both orders as configured. What is there is not done
    again: answers and votes lie in a folder of ``out`` that is named after models, settings and the
    contents of the files that they name (prompts, judges, calibrations).
    Raises subclasses of ``PrefloopError``.
    """
    if config.sample.engine not in config.engines:  # nothing was to be sampled
        raise RunError(
            f"the config has no engine {config.sample.engine!r} to ask the policies with: add it "
            "to `engines`, or name another with sample.engine"
        )
    served = isinstance(config.engines[config.sample.engine], OpenAIEngine)
    if served:
        raise RunError(
            "sample.engine is an OpenAI-compatible server, which serves one policy: set it to vllm "
            "or transformers"
        )
    paths = {name: checkpoint(name, served=False) for name in (policy, against)}
    other = config.model_copy(update={"policy": against})
    about = {
        "models": [revision(paths[name]) for name in (policy, against)],
        "others": Models(other).revisions(),
        "inputs": input_hashes(config),
        "labelers": of_labelers(config.all_labelers),
        "engines": of_engines(config),
        "config": {
            key: of_settings(value)
            for key, value in fingerprint(config).items()
            if key in ("seed", "prompts", "sample", "label", "evaluate")
        },
    }
    run = RunDir(out / json_hash(about)[:12])
    models = Models(other, cache=run.cache, ledgers=out)
    context = RunContext.of(config, run)
    answer = partial(answer_heldout, context.round(0), config.sample, config.evaluate, models)
    with run.lock():
        try:
            read_prompts(
                context, config.prompts, block_size=config.block_size, given=config.sample.given
            )
            models.take_probes(run.heldout, config.sample.system_prompt)
            if not models.probes:
                raise RunError("there are no held-out prompts: set prompts.heldout in the config")
            await answer(_OTHER)
            models.use_policy(paths[policy])
            await answer(_NEW)
            await match(context, _NEW, _OTHER, voting(config, config.evaluators, models.labelers))
            async with models.scoring() as score:
                divergence = await asyncio.to_thread(
                    kl_figures,
                    context,
                    _NEW,
                    Path(paths[policy]),
                    Path(paths[against]),
                    Likely(score, config.evaluate.confidence),
                    against=AGAINST,
                )
        finally:
            await models.release()
        fitted = RoundJury()
        if not config.evaluate.judges:  # theirs is the mean
            votes = run.match_votes(_NEW, _OTHER)
            fitted = jury_on(config.label, votes, run.evaluation / "jury.json")
        jury = match_jury(config.label.jury, config.evaluate, config.evaluators, fitted)
        rows = match_figures(run, jury, _NEW, _OTHER, AGAINST)
        rows += answer_figures(run, _NEW, against=None)
        rows += answer_figures(run, _OTHER, against=AGAINST)
        rows += divergence
    table = metrics_table([{**row, "round": 0} for row in rows]).to_pylist()
    return Evaluation(policy, against, run.root, table)
