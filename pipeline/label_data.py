"""`prefloop label`: pairs, lists and single answers that someone already has become a run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefloop.data.yaml_files import read_yaml
from prefloop.labelers.config import GivenLabeler, LabelConfig
from prefloop.pipeline.config import (
    POLICY,
    ConfigError,
    ConfigLike,
    Overrides,
    RunConfig,
    overrides_of,
    reason_of,
    set_key,
    validate_config,
)

_OF_ROUNDS = ("rounds", "train", "evaluate", "run_dir")
"""Keys of a whole config that have nothing to do with labels."""
_BESIDE_LABELERS = [key for key in LabelConfig.model_fields if key != "labelers"]


def label_config(
    judge: ConfigLike, source: Mapping[str, Any], out: str | Path, overrides: Overrides = ()
) -> RunConfig:
    """The config of a run that labels the answers in ``source`` (keys of ``sample.from``).

    ``judge`` is a labeler, ``labelers`` with engines, a jury and filters beside them, or the config
    of a run, of which only what has to do with labels counts. Labels of the data are kept as votes
    of a labeler ``given`` that decides nothing. Raises ``ConfigError``.
    """
    raw, origin = _read(judge)
    label = _label(raw, origin)
    labelers = label.get("labelers")
    if isinstance(labelers, list) and not any(_is_given(one) for one in labelers):
        names = {one.get("name") for one in labelers if isinstance(one, Mapping)}
        if GivenLabeler().name in names:
            raise ConfigError(
                f"{origin}: a labeler is named 'given', as the labels of the data are: give it "
                "another name"
            )
        label["labelers"] = [GivenLabeler().model_dump(mode="json"), *labelers]
    prompts = raw.get("prompts") if isinstance(raw.get("prompts"), Mapping) else {}
    kept = {key: one for key, one in (prompts or {}).items() if key not in ("train", "heldout")}
    sample = raw.get("sample") if isinstance(raw.get("sample"), Mapping) else {}
    asks_policy = any(
        isinstance(one, Mapping) and one.get("model") == POLICY for one in labelers or ()
    )
    whole = {
        **{key: one for key, one in raw.items() if key in RunConfig.model_fields},
        "run_dir": str(out),
        "label": label,
        "engines": {"default": {"type": "transformers"}} | (raw.get("engines") or {}),
        # Every prompt is labelled: none is held out, none dropped for being like another.
        "prompts": {"near_duplicates": {"enabled": False}, **kept, "heldout_share": 0.0},
        "sample": {
            "from": dict(source),
            "n": 0,
            "system_prompt": (sample or {}).get("system_prompt"),
        },
    }
    for key in _OF_ROUNDS:
        if key != "run_dir":
            whole.pop(key, None)
    if not asks_policy:
        whole.pop("policy", None)
    for key, value in overrides_of(overrides).items():
        set_key(whole, key, value)
    return validate_config(whole, origin)


def _read(judge: ConfigLike) -> tuple[dict[str, Any], str]:
    if isinstance(judge, RunConfig):
        return judge.model_dump(mode="json"), "config"
    if isinstance(judge, Mapping):
        return copy.deepcopy(dict(judge)), "judge"
    try:
        raw = read_yaml(Path(judge))
    except FileNotFoundError:
        raise ConfigError(
            f"{judge}: no such file: write a labeler into it, e.g. `type: judge` and `model: NAME`"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{judge}: {reason_of(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{judge}: must be a labeler (`type: judge`, ...) or hold `labelers`")
    return raw, str(judge)


def _label(raw: dict[str, Any], origin: str) -> dict[str, Any]:
    """The section ``label``, whatever form it is given in; its keys are taken out of ``raw``."""
    if "label" in raw:
        if not isinstance(raw["label"], Mapping):
            raise ConfigError(f"{origin}: label: must be a mapping with `labelers`")
        return dict(raw["label"])
    beside = {key: raw.pop(key) for key in _BESIDE_LABELERS if key in raw}
    if "labelers" in raw:
        return {"labelers": raw.pop("labelers"), **beside}
    labeler = {key: raw.pop(key) for key in list(raw) if key not in RunConfig.model_fields}
    if "type" not in labeler:
        raise ConfigError(
            f"{origin}: holds no labeler: write `type: judge` and `model: NAME`, or `labelers`"
        )
    return {"labelers": [labeler], **beside}


def _is_given(labeler: Any) -> bool:
    return isinstance(labeler, Mapping) and labeler.get("type") == "given"
