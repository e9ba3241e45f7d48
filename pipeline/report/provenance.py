"""How a run was made, as the report tells it: settings, inputs, and rows that could not be used."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from prefloop.data.shards import ShardFolder
from prefloop.data.yaml_files import YamlError, read_yaml
from prefloop.pipeline.report.redact import redact
from prefloop.pipeline.run.run_dir import RunDir

_TRAIN_FACTS = (
    "preset", "method", "loss", "online", "online_steps", "beta", "learning_rate", "batch_size",
    "gradient_accumulation", "epochs", "reference", "data", "precision", "guard",
    "early",
)  # fmt: skip


def training_facts(notes: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """What each round was trained with: the settings without which it cannot be repeated."""
    rounds = {int(note["round"]): note for note in notes if note.get("stage") == "train"}
    facts = []
    for name in _TRAIN_FACTS:
        values = [_fact(rounds[index], name) for index in sorted(rounds)]
        if any(value is not None for value in values):
            facts.append((name, [_plain(value) for value in values]))
    if facts:
        facts.insert(0, ("round", [str(index) for index in sorted(rounds)]))
    return facts


def _fact(note: Mapping[str, Any], name: str) -> Any:
    """A setting that the round's method has; null for others."""
    if name in ("loss", "online", "online_steps") and note.get("method", "dpo") != "dpo":
        return None
    if name == "online_steps" and not note.get("online"):
        return None
    return note.get(name)


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict) and "guard" in value:
        return f"{value['guard']} at step {value['step']}, kept step {value['restored_step']}"
    if isinstance(value, dict) and "kept_step" in value:
        return f"kept step {value['kept_step']}" + (", stopped early" if value["stopped"] else "")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def shown_config(run: RunDir) -> str | None:
    """The run's config without secrets, as YAML; null where it cannot be read."""
    try:
        raw = read_yaml(run.config)
    except (OSError, YamlError):
        return None
    return yaml.safe_dump(redact(raw), sort_keys=False, allow_unicode=True)


def shown_manifest(run: RunDir) -> str | None:
    """The run's manifest without secrets, as JSON; null where it cannot be read."""
    try:
        raw = json.loads(run.manifest.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return json.dumps(redact(raw), indent=2, ensure_ascii=False)


def quarantine_examples(run: RunDir, most: int = 12) -> list[dict[str, Any]]:
    """The first quarantined row of each reason: enough to see what is wrong with the input."""
    folders: list[ShardFolder] = [run.quarantine]
    for each in run.rounds():
        stages = sorted((each.root / "quarantine").glob("*"))
        folders += [each.quarantine(path.name) for path in stages]
    columns = ["stage", "round", "source", "row", "reason", "detail"]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for folder in folders:
        for table in folder.iter(columns=columns):
            for row in table.to_pylist():
                found.setdefault((row["stage"], row["reason"]), redact(row))
            if len(found) >= most:
                return list(found.values())[:most]
    return list(found.values())
