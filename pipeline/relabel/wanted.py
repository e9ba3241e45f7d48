"""Who is to label a run's answers again: from a file, a judge's folder or the run's own config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.data.hashing import content_id
from prefloop.data.names import name_problem
from prefloop.data.utf8 import one_line
from prefloop.data.yaml_files import read_yaml
from prefloop.labelers.config import JudgeLabeler
from prefloop.labelers.judges.folder import judge_path
from prefloop.pipeline.config import (
    ConfigError,
    ConfigLike,
    RunConfig,
    reason_of,
    validate_config,
)
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.run.manifest import samplers
from prefloop.training.config import EvaluateConfig

_DEFAULT_URL = OpenAIEngine.model_fields["base_url"].default
_SECTIONS = ("label", "engines", "filter", "write")
"""What of a config has to do with labels and what is made of them."""


@dataclass(frozen=True)
class Asked:
    """How the command was given."""

    judge: ConfigLike | None = None
    """A YAML file of labelers or its contents, a judge's folder or name, or null: the labelers of
    the run, as their judges and models are now."""
    model: str | None = None
    """Of a judge that is given by its folder or name; null: that of the run's judge."""
    engine: str | None = None
    jury: bool = False
    """The run's labelers decide too, by the votes that they gave."""


@dataclass(frozen=True)
class Wanted:
    """Labels as they are to be."""

    name: str
    """What to call them where nobody says."""
    config: RunConfig
    """The run's config with these labels, filters and engines."""
    new: tuple[str, ...]
    """Labelers that are asked; the others' votes are the run's."""

    @property
    def alone(self) -> RunConfig:
        """``config`` as that of a directory in which nothing is sampled or trained."""
        config = self.config
        write = config.write.model_copy(update={"unpaired": config.writes_unpaired})
        changes = {"train": None, "rounds": 1, "evaluate": EvaluateConfig(), "write": write}
        return config.model_copy(update=changes)


def wanted_labels(config: RunConfig, asked: Asked) -> Wanted:
    """What ``asked`` comes to for a run with ``config``.

    A file holds one labeler, ``labelers`` (with ``jury``, ``engines`` and the like beside), or the
    sections of a run's config: of a whole config those that are about labels count. Engines that it
    does not name are the run's. Raises ``ConfigError`` and ``LabelerError``.
    """
    origin, name, sections, is_whole = _read(config, asked)
    base = config.model_dump(mode="json")
    label = dict(sections.get("label") or {})
    engines: Any = sections.get("engines") or {}
    if not isinstance(engines, dict) or not isinstance(label.get("labelers"), list | tuple):
        raise ConfigError(f"{origin}: `labelers` must be a list, and `engines` a mapping by name")
    labelers = [dict(one) for one in label["labelers"] if isinstance(one, Mapping)]
    if is_whole:  # what it leaves out is gone, but for what has sampled
        engines = {key: base["engines"][key] for key in samplers(config)} | engines
    else:
        engines = base["engines"] | _renamed(config, engines, labelers)
    if asked.jury:
        labelers = [*base["label"]["labelers"], *labelers]
    merged: dict[str, Any] = base | {
        "engines": engines,
        "label": base["label"] | label | {"labelers": labelers},
    }
    merged |= {key: sections[key] for key in ("filter", "write") if key in sections}
    before = {labeler.name for labeler in config.label.labelers}
    if asked.jury:
        named = [str(one.get("name") or one.get("type")) for one in labelers[len(before) :]]
        twice = sorted(before.intersection(named))
        if twice:
            raise ConfigError(
                f"{origin}: the labeler {twice[0]!r} is named like one of the run's, and --jury "
                "puts both together: give it another `name`"
            )
    found = validate_config(merged, origin)
    names = tuple(labeler.name for labeler in found.label.labelers)
    new = names[len(before) :] if asked.jury else names
    return Wanted(f"{name}-jury" if asked.jury else name, found, new)


def _read(config: RunConfig, asked: Asked) -> tuple[str, str, dict[str, Any], bool]:
    """Where the labelers stand, a name for them, the sections of a config that they come to, and
    whether that is a whole run's."""
    judge = asked.judge
    is_folder = isinstance(judge, str | Path) and not Path(judge).is_file()
    if not is_folder and (asked.model or asked.engine):
        raise ConfigError(
            "--model and --engine are for a judge that is given by its folder or name: write them "
            "into the labeler"
        )
    if judge is None:
        dumped = config.model_dump(mode="json")
        return "config.yaml", "again", {key: dumped[key] for key in _SECTIONS}, True
    if isinstance(judge, RunConfig):
        sections = _of_config(judge)
        return "judge", _named_after(sections), sections, True
    if isinstance(judge, Mapping):
        sections, is_whole = _sections(dict(judge), "judge")
        return "judge", _named_after(sections), sections, is_whole
    path = Path(judge)
    if path.is_file():
        sections, is_whole = _sections(_mapping(path), str(path))
        return str(path), _file_name(path.stem), sections, is_whole
    if path.suffix in (".yaml", ".yml"):
        raise ConfigError(f"{path}: no such file")
    judge_path(str(judge))
    model, engine = _model_of(config, asked)
    labeler = {
        "type": "judge", "name": _file_name(path.resolve().name), "judge": str(judge),
        "model": model, "engine": engine,
    }  # fmt: skip
    return str(judge), labeler["name"], {"label": {"labelers": [labeler]}}, False


def _mapping(path: Path) -> dict[str, Any]:
    try:
        raw = read_yaml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {reason_of(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a labeler (`type: judge`, ...) or hold `labelers`")
    return raw


def _sections(raw: dict[str, Any], origin: str) -> tuple[dict[str, Any], bool]:
    if "prompts" in raw:
        return _of_config(validate_config(raw, origin)), True
    if "label" in raw:
        unknown = [str(key) for key in raw if key not in _SECTIONS]
        if unknown:
            raise ConfigError(
                f"{origin}: {one_line(unknown[0])}: has nothing to do with labels; valid here: "
                f"{', '.join(_SECTIONS)}"
            )
        if not isinstance(raw["label"], dict):
            raise ConfigError(f"{origin}: label: must be a mapping that holds `labelers`")
        return raw, False
    engines = raw.pop("engines", None)
    label = raw if "labelers" in raw else {"labelers": [raw]}
    return {"label": label, "engines": engines}, False


def _of_config(config: RunConfig) -> dict[str, Any]:
    """Its sections about labels; which pairs have votes is as in the run, where it does not say."""
    whole = config.model_dump(mode="json")
    if "pairs" not in config.label.model_fields_set:
        del whole["label"]["pairs"]
    return {key: whole[key] for key in _SECTIONS}


def _named_after(sections: Mapping[str, Any]) -> str:
    """After the labelers, where there is no file that has a name."""
    labelers = (sections.get("label") or {}).get("labelers") or ()
    names = [one.get("name") or one.get("type") for one in labelers if isinstance(one, Mapping)]
    return _file_name("+".join(map(str, names)))


def _file_name(name: str) -> str:
    return "relabelled" if name_problem(name) else name


def _model_of(config: RunConfig, asked: Asked) -> tuple[str, str]:
    """Model and engine of a judge that is given without them: those of the run's judges, where
    they agree."""
    judges = [one for one in config.label.labelers if isinstance(one, JudgeLabeler)]
    models, engines = {one.model for one in judges}, {one.engine for one in judges}
    if asked.model is None and len(models) != 1:
        raise ConfigError(
            f"--judge {asked.judge}: the run has {len(models)} models that judge: say which with "
            "--model"
        )
    if asked.engine is None and len(engines) > 1:
        raise ConfigError(
            f"--judge {asked.judge}: the run's judges use several engines: say which with --engine"
        )
    return asked.model or min(models), asked.engine or min(engines, default="default")


def _addresses(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the servers of an engine are, as its raw settings say."""
    endpoints = settings.get("endpoints")
    listed = [one for one in endpoints if isinstance(one, Mapping)] if endpoints else []
    found = sorted(str(one.get("base_url")) for one in listed)
    return tuple(found) or (str(settings.get("base_url", _DEFAULT_URL)),)


def _renamed(
    config: RunConfig, engines: Mapping[str, Any], labelers: list[dict[str, Any]]
) -> dict[str, Any]:
    """``engines``, those of other servers than the run's under names of their own: answers and
    what is spent are kept by an engine's name."""
    found: dict[str, Any] = {}
    for name, settings in engines.items():
        served = isinstance(settings, Mapping) and settings.get("type") == "openai"
        urls = _addresses(settings) if served else ()
        ours = config.engines.get(name)
        # Servers of one model may come and go: where one is the same, the model is.
        is_same = isinstance(ours, OpenAIEngine) and bool({*ours.addresses} & {*urls})
        new = name if not urls or is_same else f"{name}-{content_id(*urls)[:6]}"
        found[new] = settings
        for labeler in labelers if new != name else ():
            if labeler.get("engine", "default") == name:
                labeler["engine"] = new
            writer = labeler.get("criteria")
            if isinstance(writer, Mapping) and writer.get("engine", "default") == name:
                labeler["criteria"] = {**writer, "engine": new}
    return found
