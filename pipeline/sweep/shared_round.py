"""The answers and votes that all values of a sweep share: made once, in the run directory of the
config, and linked into a run directory for each value."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from prefloop.data.shards import (
    atomic_write_json,
    atomic_write_text,
    read_json_object,
)
from prefloop.data.storage.begun_folder import begin_folder
from prefloop.data.storage.whole_files import link_files
from prefloop.pipeline.checking.run_check import check_before
from prefloop.pipeline.config import RunConfig, dump_config
from prefloop.pipeline.loop import take_up
from prefloop.pipeline.run.manifest import as_begun, digest, read_manifest
from prefloop.pipeline.run.run_dir import RunDir, RunError
from prefloop.pipeline.stages.evaluate import answer_heldout, answer_opponent
from prefloop.pipeline.stages.invalid_votes import asks_again
from prefloop.pipeline.stages.label import label_round
from prefloop.pipeline.stages.prompts import draw_prompts
from prefloop.pipeline.stages.sample import sample_round
from prefloop.pipeline.sweep.swept import Trial

_SHARED = (
    "prompts.json", "prompt/*.parquet", "heldout/*.parquet", "quarantine/*.parquet",
    "dropped/*.parquet", "given.json", "given/*.parquet", "round-000/prompt/*.parquet",
    "round-000/candidate/*.parquet", "round-000/vote/*.parquet",
    "round-000/quarantine/*/*.parquet", "evaluation/answers-000/*.parquet",
    "evaluation/answers-opponent/*.parquet",
)  # fmt: skip
"""What does not depend on how a policy is trained."""
ORIGIN = "shared.json"
"""In the run directory of a value: whose answers and votes it has, and which."""


async def share_round(config: RunConfig, run: RunDir, *, check: bool) -> None:
    """Sample and label the first round of ``config`` in ``run``, and let the starting policy answer
    the held-out prompts, as far as that is not done. `prefloop run` can go on with the same run."""
    with run.lock():
        config, models, context = take_up(config, run)
        first = context.round(0)
        try:
            if check:
                await check_before(config, run, models)
            blocks = draw_prompts(
                first,
                per_round=config.sample.prompts_per_round,
                per_leg=None,
                block_size=config.block_size,
            )
            await answer_opponent(first, config.sample, config.evaluate, models)
            await answer_heldout(first, config.sample, config.evaluate, models, 0)
            await sample_round(
                first, config.sample, models, blocks, with_references=config.uses_references
            )
            anew = asks_again(first.folder, config.label)
            labelers = partial(models.labelers, config.label.labelers, anew=anew)
            await label_round(first, config.label, labelers)
        finally:
            await first.executor.aclose()
            await models.release()


def open_trial(shared: RunDir, trial: Trial) -> RunDir:
    """The run directory of ``trial``, with the answers and votes of ``shared``.

    Raises ``RunError`` where it has those of before, and ``shared`` was labelled again since.
    """
    run = RunDir(Path(trial.config.run_dir))
    now = _digest(shared)
    if run.config.exists():
        remedy = f"delete {run.root}, which is then trained anew"
        try:
            origin = read_json_object(run.root / ORIGIN, remedy)
        except FileNotFoundError:
            raise RunError(f"{run.root} is no part of a sweep: {remedy}") from None
        if origin.get("digest") != now:
            raise RunError(
                f"{run.root} was trained on other answers or votes than {shared.root} has now: "
                f"{remedy}"
            )
        return run
    partial_root = begin_folder(run.root)
    for pattern in _SHARED:
        link_files(shared.root, partial_root, pattern)
    begun = RunDir(partial_root)
    origin = {"run": str(shared.root.resolve()), "digest": now, "settings": trial.settings}
    atomic_write_json(partial_root / ORIGIN, origin)
    manifest: dict[str, Any] = read_manifest(shared)
    atomic_write_json(begun.manifest, manifest | {"shared_from": str(shared.root.resolve())})
    # Which pairs have votes is what the shared round began with.
    label = as_begun(trial.config, shared).label
    atomic_write_text(begun.config, dump_config(trial.config.model_copy(update={"label": label})))
    partial_root.rename(run.root)  # at once: a folder that is there is whole
    return run


def _digest(run: RunDir) -> str:
    folder = run.round(0)
    return digest([folder.prompts.folder, folder.candidates.folder, folder.votes.folder])
