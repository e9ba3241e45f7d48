"""The one reader of YAML: what people write by hand, read strictly.

A key that stands twice would silently win over the first, and aliases can make a few lines into
gigabytes: both are refused, as is what nests deeper than any config.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from prefloop.data.utf8 import one_line

MAX_BYTES = 4_000_000
"""Larger files are no config."""
MAX_DEPTH = 50
MAX_VALUES = 100_000
"""Values in a document, each alias counted with all that it stands for."""


class YamlError(ValueError):
    """Text that is no YAML we read; the message is one line, with the line and column at fault."""


def read_yaml(path: Path) -> Any:
    """What the file holds. Raises ``OSError`` where it cannot be read, :class:`YamlError` where it
    is no YAML."""
    with path.open("rb") as handle:
        data = handle.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise YamlError(f"longer than {MAX_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise YamlError(f"line {line}: not UTF-8 text: save the file as UTF-8") from None
    return parse_yaml(text)


def parse_yaml(text: str) -> Any:
    """The one document in ``text``. Raises :class:`YamlError`."""
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        said = f"{error.context or ''} {error.problem or ''}"
        raise YamlError(place + one_line(said)[:300] + _hint(said)) from None
    except yaml.YAMLError as error:
        raise YamlError(one_line(str(error))[:300]) from None
    except YamlError:
        raise
    except RecursionError:
        raise YamlError(f"nested deeper than {MAX_DEPTH} levels") from None
    except (ValueError, OverflowError, TypeError, LookupError, AttributeError) as error:
        # What PyYAML raises for tags and values that do not fit, as for dates that are none.
        raise YamlError(f"a value that is none of its type: {one_line(str(error))[:300]}") from None


def _hint(problem: str) -> str:
    if "'\\t'" in problem:
        return ": indent with blanks, not with tabs"
    return ""


class _Loader(yaml.SafeLoader):
    """Refuses keys that stand twice, deep nesting, and aliases that multiply."""

    # Of its own: a library that is imported with vLLM has the shared ones read dates as texts.
    yaml_constructors = yaml.SafeLoader.yaml_constructors | {
        "tag:yaml.org,2002:timestamp": yaml.SafeLoader.construct_yaml_timestamp
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            meant = self.anchors.get(event.anchor)
            if meant is not None and id(meant) not in self._sizes:  # not complete yet
                raise YamlError(f"line {line}: an alias of what it stands in")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise YamlError(
                f"line {event.start_mark.line + 1}: nested deeper than {MAX_DEPTH} levels"
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and self._size(node) > MAX_VALUES:
            raise YamlError(f"line {line}: more than {MAX_VALUES:,} values, aliases written out")
        return node

    def _size(self, node: yaml.Node) -> int:
        """Values in ``node``; those of its parts are known where it is complete."""
        if id(node) in self._sizes:
            return self._sizes[id(node)]
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        else:
            parts = node.value if isinstance(node, yaml.SequenceNode) else []
        size = 1 + sum(self._sizes.get(id(part), 1) for part in parts)
        self._sizes[id(node)] = size
        return size

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise YamlError(f"line {line}: a list or mapping cannot be a key")
            if key in first:
                name = one_line(str(key))
                raise YamlError(
                    f"line {line}: the key {name!r} stands a second time (first in line "
                    f"{first[key]}): keep one of the two"
                )
            first[key] = line
        return super().construct_mapping(node, deep=deep)
