"""Which values a sweep tries, and what each makes of the config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from prefloop.data.hashing import json_hash
from prefloop.data.names import name_problem
from prefloop.data.yaml_files import YamlError, parse_yaml
from prefloop.pipeline.config import (
    ConfigError,
    ConfigLike,
    Overrides,
    RunConfig,
    flatten,
    load_config,
    overrides_of,
)

SECTIONS = ("train", "filter")
"""Of the config, whose keys reach into nothing that was sampled or labelled."""
MOST = 256
Swept = Sequence[str] | Mapping[str, Sequence[Any]]
"""Keys and their values: ``["train.beta=0.03,0.1"]``, read as YAML, or a mapping of lists."""


@dataclass(frozen=True)
class Trial:
    """One combination of the values."""

    settings: dict[str, Any]
    config: RunConfig

    @property
    def label(self) -> str:
        """For people, and as the name of its folder where it can be one."""
        return ",".join(f"{key}={value_text(value)}" for key, value in self.settings.items())

    @property
    def folder(self) -> str:
        """The name of its folder."""
        if name_problem(self.label) is None:
            return self.label
        keys = "+".join(key.rpartition(".")[2] for key in self.settings)
        return f"{keys[:40]}-{json_hash(self.settings)[:12]}"


def read_swept(swept: Swept) -> dict[str, list[Any]]:
    """The values of each key. Raises ``ConfigError`` for what is none, or cannot be swept."""
    if isinstance(swept, Mapping):
        found = {
            str(key): list(values) if isinstance(values, list | tuple) else [values]
            for key, values in swept.items()
        }
    else:
        found = {}
        for one in swept:
            key, values = _parse(one)
            if key in found:
                raise ConfigError(f"--sweep {key} is given twice: give all its values at once")
            found[key] = values
    for key, values in found.items():
        if key.partition(".")[0] not in SECTIONS or "." not in key:
            raise ConfigError(
                f"--sweep {key}: a sweep samples and labels once, and trains with each value: only "
                "keys of train and filter can be swept (train.beta, filter.strategy); for another, "
                "give each value a run of its own with --set and --run-dir"
            )
        if not values:
            raise ConfigError(f"--sweep {key}: has no values: write it as {key}=1,2,3")
        twice = next((one for at, one in enumerate(values) if one in values[:at]), None)
        if twice is not None:
            raise ConfigError(f"--sweep {key}: has {value_text(twice)} twice")
    if not found:
        raise ConfigError("nothing to sweep: give --sweep KEY=VALUE,VALUE")
    return found


def trials(
    config: ConfigLike, overrides: Overrides, swept: Swept, root: Path
) -> tuple[RunConfig, list[Trial]]:
    """The config of what is shared, in ``root``, and every combination of the values, in
    ``root/sweep``. All are validated here, before anything is done.

    Raises ``ConfigError``, also where a value changes what is sampled or labelled.
    """
    values = read_swept(swept)
    common = overrides_of(overrides)
    if any(key in common for key in values):
        raise ConfigError(f"{next(key for key in values if key in common)} is set and swept")
    shared = load_config(config, common | {"run_dir": str(root)})
    if shared.train is None:
        raise ConfigError("a sweep trains with each value: add a `train:` section to the config")
    if not shared.evaluate.enabled:
        raise ConfigError("a sweep compares by the evaluation: set evaluate.enabled: true")
    _require_offline(shared, "the config")
    combinations = list(product(*values.values()))
    if len(combinations) > MOST:
        raise ConfigError(f"the values make {len(combinations)} combinations: {MOST} are the most")
    before = flatten(shared.model_dump(mode="json"))
    found = []
    for combination in combinations:
        settings = dict(zip(values, combination, strict=True))
        label = Trial(settings, shared).label
        try:
            tried = load_config(config, common | settings | {"run_dir": str(root)})
        except ConfigError as error:
            raise ConfigError(f"--sweep {label}: {error}") from None
        _require_offline(tried, f"--sweep {label}")
        after = flatten(tried.model_dump(mode="json"))
        other = [
            key
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key) and key.partition(".")[0] not in SECTIONS
        ]
        if other:
            raise ConfigError(f"--sweep {label}: changes {other[0]} too, which is shared")
        found.append(Trial(settings, tried))
    return shared, [
        Trial(
            one.settings,
            one.config.model_copy(update={"run_dir": str(root / "sweep" / one.folder)}),
        )
        for one in found
    ]


def _require_offline(config: RunConfig, origin: str) -> None:
    """Raise ``ConfigError`` where the answers of ``config`` are its own policy's."""
    if config.train is not None and config.train.on_policy:
        what = "train.online" if config.train.online else f"train.method {config.train.method}"
        raise ConfigError(
            f"{origin}: {what} samples while it trains, so there are "
            "no answers to share: give each value a run of its own with --set and --run-dir"
        )


def _parse(text: str) -> tuple[str, list[Any]]:
    key, separator, listed = text.partition("=")
    if not separator or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"--sweep {text}: write it as key=value,value, e.g. train.beta=0.03,0.1")
    try:
        values = parse_yaml(f"[{listed}]")
    except YamlError as error:
        raise ConfigError(f"--sweep {text}: {error}") from None
    return key.strip(), list(values)


def value_text(value: Any) -> str:
    """A value for people; a section that has nothing but a type is that type."""
    if isinstance(value, Mapping) and list(value) == ["type"]:
        value = value["type"]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
