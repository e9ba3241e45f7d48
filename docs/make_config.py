"""Writes docs/config.md from the config models, so that it cannot disagree with them.

python docs/make_config.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, JsonValue
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from prefloop.pipeline.config import RunConfig  # noqa: E402

HEAD = """\
# The config in full

One YAML file, validated whole before anything is spent; unknown keys are refused with the nearest
valid one. `--set a.b=value` overrides a key on the command line, and an item of a list by name
(`--set label.labelers.judge.weight=2`). This page is made from the code by `docs/make_config.py`.
"""


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The config models that an annotation mentions, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found = [model for part in get_args(annotation) for model in models_in(part)]
    return list(dict.fromkeys(found))


def type_name(annotation: Any) -> str:
    """An annotation as a reader of YAML would put it."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation is JsonValue:
        return "any value"
    if origin is Annotated:
        return type_name(parts[0])
    if origin in (Union, UnionType):
        return " or ".join(type_name(part) for part in parts)
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin is not None:
        inner = ", ".join("..." if part is Ellipsis else type_name(part) for part in parts)
        return f"{origin.__name__}[{inner}]"
    return "null" if annotation is NoneType else str(annotation.__name__)


def default_of(field: FieldInfo) -> str:
    """The default as YAML would write it."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    if models_in(field.annotation) and not isinstance(value, int | str):
        return ""
    return (
        f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"
    )


def title_of(model: type[BaseModel]) -> str:
    """The heading of a model's table."""
    tag = model.model_fields.get("type")
    return model.__name__ + (f" (`type: {tag.default}`)" if tag else "")


def anchor_of(model: type[BaseModel]) -> str:
    """What a link to the heading of a model's table ends in."""
    return re.sub(r"[^a-z0-9_ -]", "", title_of(model).lower()).replace(" ", "-")


def section(model: type[BaseModel], seen: list[type[BaseModel]]) -> str:
    """A table of the model's keys; models met on the way are added to ``seen``."""
    lines = [
        f"## {title_of(model)}",
        "",
        (model.__doc__ or "").split("\n\n")[0].replace("\n", " "),
        "",
    ]
    lines += ["| key | default | meaning |", "| --- | --- | --- |"]
    for name, field in model.model_fields.items():
        if name == "type":
            continue
        inner = models_in(field.annotation)
        seen += [found for found in inner if found not in seen]
        links = ", ".join(f"[{m.__name__}](#{anchor_of(m)})" for m in inner[:4])
        text = " ".join((field.description or "").split())
        kind = "" if inner else f"*{type_name(field.annotation)}.* "
        see = f" See {links}{' and others below' if len(inner) > 4 else ''}." if inner else ""
        lines.append(
            f"| `{field.alias or name}` | {default_of(field)} | {kind}{text}{see} |".replace(
                "||", "or"
            )
        )
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    seen: list[type[BaseModel]] = [RunConfig]
    parts = [HEAD]
    for model in seen:  # grows while it is read
        parts.append(section(model, seen))
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "docs" / "config.md").write_text(page(), encoding="utf-8")
