"""What an answer or a vote that is kept outside a run depends on, so that it is never taken for
another's: settings, and the contents of files behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prefloop.data.strict import fingerprint
from prefloop.labelers.config import (
    JudgeLabeler,
    LabelerConfig,
    OwnModelLabeler,
    VerifierLabeler,
)
from prefloop.labelers.judges.folder import judge_revision, question_revision
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.run.manifest import digest, function_code

_HARMLESS = {
    "api_key_env", "max_concurrency", "timeout_s", "max_retries", "max_backoff_s",
    "requests_per_minute", "tokens_per_minute", "max_total_tokens", "max_cost", "cache",
    "cache_dir", "gpu_memory_utilization", "block_wait_s", "enable_sleep_mode", "replicas",
    "gpus", "cpus", "accelerator_type", "mode", "batch",
}  # fmt: skip
"""Keys of an engine that change how an answer gets there, and not what it is."""

_HOW_FUNCTIONS_RUN = {"timeout_s", "processes"}
"""Keys of a verifier that change how its function is called, and not what it says."""


def of_settings(settings: Any) -> Any:
    """Settings as they are dumped, without what reaches into no answer and no vote."""
    if isinstance(settings, Mapping):
        left_out = _HOW_FUNCTIONS_RUN if settings.get("type") == "verifier" else set()
        return {key: of_settings(one) for key, one in settings.items() if key not in left_out}
    return [of_settings(one) for one in settings] if isinstance(settings, list) else settings


def of_engines(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The engines' settings that reach into what they answer, by name. Of servers, their addresses
    do: another may have another model under the same name."""
    found = {}
    for name, engine in config.engines.items():
        found[name] = {k: value for k, value in fingerprint(engine).items() if k not in _HARMLESS}
        if isinstance(engine, OpenAIEngine) and engine.endpoints:
            found[name]["endpoints"] = sorted(set(engine.addresses))
    return found


def of_labelers(
    labelers: Iterable[LabelerConfig], *, calibrated: bool = True
) -> dict[str, dict[str, str]]:
    """Hashes of the files that decide what each labeler says, by its name: the judge's folder, the
    module of a verifier's function and, if votes are ``calibrated``, the calibration.

    Raises ``LabelerError`` for a judge that cannot be read.
    """
    return {labeler.name: _files_of(labeler, calibrated) for labeler in labelers}


def _files_of(labeler: LabelerConfig, calibrated: bool) -> dict[str, str]:
    if isinstance(labeler, JudgeLabeler):
        found = {
            "judge": judge_revision(labeler.judge), "question": question_revision(labeler.judge)
        }  # fmt: skip
        if calibrated and labeler.calibration is not None:
            found["calibration"] = digest([labeler.calibration.expanduser()])
        return found
    if isinstance(labeler, OwnModelLabeler):
        if calibrated and labeler.calibration is not None:
            return {"calibration": digest([labeler.calibration.expanduser()])}
        return {}
    if isinstance(labeler, VerifierLabeler) and labeler.function:
        return {"code": function_code(labeler.function)}
    return {}
