"""Other labels in the place of a run's: votes, config and manifest changed together, or finished
by the next command where a kill came in between. What was there is kept."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefloop.data.shards import (
    ShardFolder,
    atomic_write_json,
    atomic_write_text,
    damaged,
    read_json_object,
)
from prefloop.data.storage.whole_files import link_files
from prefloop.pipeline.config import RunConfig, dump_config, validate_config
from prefloop.pipeline.redecide import Redecided, mark_undecided, redecide
from prefloop.pipeline.run.manifest import (
    labeler_hashes,
    models_of_labelers,
    new_manifest,
    read_manifest,
)
from prefloop.pipeline.run.run_dir import RunDir

logger = logging.getLogger(__name__)

BEFORE = "before-"
"""Beginning of the names of the folders in ``relabels/`` with the labels that a run had."""
_KEPT = (
    "config.yaml", "manifest.json", "prompts.json", "prompt/*.parquet", "dataset/**/*",
    "round-*/prompt/*.parquet", "round-*/candidate/*.parquet", "round-*/vote/*.parquet",
    "round-*/vote-kept/*",
    "round-*/decision/*.parquet", "round-*/triple/*.parquet", "round-*/jury.json",
    "round-*/written.json",
)  # fmt: skip
_REMEDY = "delete it and give the same `prefloop relabel ... --adopt` again"


def adopt(
    run: RunDir, source: RunDir, config: RunConfig, manifest: Mapping[str, Any]
) -> tuple[RunDir | None, list[Redecided]]:
    """Let the votes in ``source``, a relabelling of ``run``, be the run's, and ``config`` its
    config; ``manifest`` has the inputs and models that the votes were made with.

    The caller holds the lock. Returns where the labels of before are kept (null where there were
    none, or these are the run's already), and what became of the dataset.
    """
    # Of what the relabelling had, what a run watches too.
    inputs = _those_of(manifest["inputs"], labeler_hashes(config))
    models = _those_of(manifest["models"], models_of_labelers(config))
    if (
        _text(run.config) == dump_config(config)
        and _merged(run, config, inputs, models) == _merged(run, config, {}, {})
        and _same_votes(run, source)
    ):
        return None, []
    kept = keep_aside(run)
    settings = config.model_dump(mode="json")
    marker = {"name": source.root.name, "config": settings, "inputs": inputs, "models": models}
    atomic_write_json(run.adopting, marker)
    return kept, finish_adoption(run)


def _those_of(found: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    return {name: found[name] for name in names if name in found}


def _merged(
    run: RunDir, config: RunConfig, inputs: Mapping[str, str], models: Mapping[str, str]
) -> dict[str, Any]:
    """The run's manifest, with these inputs and models."""
    try:
        manifest = read_manifest(run)
    except FileNotFoundError:
        manifest = new_manifest(config.seed, {}, {})
    manifest["inputs"] |= inputs
    manifest["models"] |= models
    return manifest


def finish_adoption(run: RunDir) -> list[Redecided]:
    """Do what an adoption has left to do, if one was begun; the caller holds the lock."""
    if not run.adopting.exists():
        return []
    found = read_json_object(run.adopting, _REMEDY)
    try:
        source = RunDir(run.relabels / found["name"])
        config = validate_config(found["config"], str(run.adopting))
        inputs, models = dict(found["inputs"]), dict(found["models"])
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(run.adopting, str(error), _REMEDY) from None
    mark_undecided(run)
    for folder in run.rounds():
        _replace_votes(folder.votes, source.round(folder.index).votes)
        # Of a labelling that ended for its invalid votes: these labels are whole.
        shutil.rmtree(folder.votes_kept.folder, ignore_errors=True)
    atomic_write_json(run.manifest, _merged(run, config, inputs, models))
    atomic_write_text(run.config, dump_config(config))
    rounds = redecide(config, run)
    run.adopting.unlink()
    return rounds


def _replace_votes(ours: ShardFolder, theirs: ShardFolder) -> None:
    """Votes of blocks that nobody labelled again are of another labeler than the run's now."""
    found = theirs.indices()
    for index in found:
        table = theirs.read(index)
        if not ours.exists(index) or not ours.read(index).equals(table):
            ours.replace(index, table)
    ours.remove([index for index in ours.indices() if index not in found])


def keep_aside(run: RunDir) -> RunDir | None:
    """Keep the labels of a run, its decisions and dataset in a folder of ``relabels/``, if they are
    not there already; null where there are none."""
    rounds = run.rounds()
    if not any(folder.votes.indices() or folder.votes_kept.indices() for folder in rounds):
        return None
    folders = sorted(run.relabels.glob(f"{BEFORE}[0-9]*"))
    for folder in folders:
        if _text(run.config) == _text(folder / "config.yaml") and _same_votes(run, RunDir(folder)):
            return RunDir(folder)
    number = 1 + max((int(folder.name.removeprefix(BEFORE)) for folder in folders), default=0)
    target = run.relabels / f"{BEFORE}{number:03d}"
    partial = run.relabels / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for pattern in _KEPT:
        link_files(run.root, partial, pattern)
    partial.rename(target)
    logger.info("the labels of %s are kept in %s", run.root, target)
    return RunDir(target)


def _same_votes(one: RunDir, other: RunDir) -> bool:
    for folder in one.rounds():
        votes, theirs = folder.votes, other.round(folder.index).votes
        if folder.votes_kept.indices() or votes.indices() != theirs.indices():
            return False
        if not all(votes.read(at).equals(theirs.read(at)) for at in votes.indices()):
            return False
    return True


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
