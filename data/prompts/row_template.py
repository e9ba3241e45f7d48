"""A prompt written as a template over a row's columns: ``"{{ instruction }}\\n\\n{{ input }}"``.

The template is Jinja in a sandbox, and only the part of Jinja that is sure to end and to stay
small: loops over what the row holds, conditions, comparisons, filters that do not multiply their
text. There are no assignments, macros or imports, and no filter that draws at random, so a prompt
is a function of its row alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prefloop.data.errors import InputError
from prefloop.data.sources.turns import Unusable, refuse_image
from prefloop.data.utf8 import is_blank, listed, one_line

LONGEST = 4 << 20
"""Characters of a rendered prompt."""
MOST_STEPS = 1_000_000
"""Times that the loops of a template may go round, all together."""
ROW = "row"
"""In a template: all columns by name, for those whose names are no words of Jinja's."""
_DEEPEST = 3
_MARKS = ("{{", "{%", "{#")
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items",
    "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "replace", "reverse", "round", "select", "selectattr", "sort", "string", "striptags", "sum",
    "title", "tojson", "trim", "truncate", "unique", "upper", "wordcount",
)  # fmt: skip
_METHODS = (
    "strip", "lstrip", "rstrip", "lower", "upper", "title", "capitalize", "startswith", "endswith",
    "split", "splitlines", "removeprefix", "removesuffix", "find", "count", "get", "keys", "values",
    "items",
)  # fmt: skip
_NODES = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Tuple,
    nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.Getattr, nodes.Getitem, nodes.Slice,
    nodes.Filter, nodes.Test, nodes.If, nodes.CondExpr, nodes.For, nodes.Compare, nodes.Operand,
    nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.Concat, nodes.Add, nodes.Sub,
    nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Call,
)  # fmt: skip
_BLANK_LINES = re.compile(r"\A(?:[ \t]*\r?\n)+")
_COUNTED = "_counted"


@lru_cache(maxsize=256)
def is_template(text: str) -> bool:
    """Whether ``text`` is a template, and no column's name."""
    return any(mark in text for mark in _MARKS)


class RowTemplate:
    """A template, compiled, with the columns that it names."""

    def __init__(self, source: str) -> None:
        """Raises ``InputError`` for a template that cannot be read, or that uses what there is no
        use for in a prompt."""
        environment = _Environment()
        try:
            tree = environment.parse(source)
            _check(tree)
            self.columns = tuple(sorted(_columns_of(tree)))
            for loop in list(tree.find_all(nodes.For)):
                loop.iter = nodes.Filter(
                    loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno
                )
            self._template = jinja2.Template.from_code(
                environment, environment.compile(tree), environment.globals
            )
        except (jinja2.TemplateError, RecursionError) as error:
            raise InputError(f"the template {source!r}: {one_line(str(error))}") from None
        self._environment = environment
        if not self.columns:
            raise InputError(
                f"the template {source!r}: names no column, so all prompts would be one: write "
                "columns as {{ name }}"
            )

    def render(self, fields: Mapping[str, Any], field: str) -> str:
        """The prompt of a row with these fields, without empty lines around it; null and NaN are
        empty. ``field`` is what errors call it. Raises :class:`Unusable`."""
        values = {name: _without_nulls(value) for name, value in fields.items()}
        self._environment.steps = MOST_STEPS
        try:
            stream = self._template.generate({ROW: values, **values})
            text = "".join(_bounded(stream))
        except Unusable as problem:
            raise Unusable(field, problem.reason, problem.detail) from None
        except jinja2.UndefinedError as error:
            raise Unusable(
                field,
                "missing_column",
                f"{one_line(str(error))}; the row has {listed(fields) or 'nothing'}: name one of "
                "them in the template, or write {{ name | default('') }} where rows may lack it",
            ) from None
        except Exception as error:  # noqa: BLE001  # filters raise whatever they meet in a value
            raise Unusable(
                field, "template", f"{type(error).__name__}: {one_line(str(error))}"
            ) from None
        if all(_is_empty(values.get(name, "")) for name in self.columns):
            raise Unusable(
                field, "empty", f"{listed(self.columns)}: no column of the template holds anything"
            )
        return _BLANK_LINES.sub("", text).rstrip()


@lru_cache(maxsize=64)
def row_template(source: str) -> RowTemplate:
    """The template ``source``, compiled once. Raises ``InputError``."""
    return RowTemplate(source)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja without what could run for ever, or away in memory."""

    intercepted_binops = frozenset(["%"])

    def __init__(self) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, autoescape=False, finalize=_as_text)
        self.steps = MOST_STEPS
        self.globals.clear()
        filters = {name: self.filters[name] for name in _FILTERS}
        own = {"replace": _replace, "join": _join, "tojson": _to_json, _COUNTED: self._counted}
        self.filters = {**filters, **own}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, str):
            raise jinja2.TemplateRuntimeError("% is for numbers: put texts together with ~")
        return super().call_binop(context, operator, left, right)

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.steps -= 1
            if self.steps < 0:
                raise jinja2.TemplateRuntimeError(
                    f"its loops go round more than {MOST_STEPS:,} times"
                )
            yield value


def _check(tree: nodes.Template) -> None:
    """Refuse what a template over a row has no use for. Raises ``TemplateSyntaxError``."""
    for node in [tree, *tree.find_all(nodes.Node)]:
        what = type(node).__name__
        if isinstance(node, nodes.Operand | nodes.Keyword | nodes.Pair):
            continue
        if not isinstance(node, _NODES):
            raise _refused(f"{what} has no place in a prompt: use values, if, for", node)
        if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
            raise _refused(f"no filter {node.name!r} here: {', '.join(_FILTERS)}", node)
        if isinstance(node, nodes.Call) and not (
            isinstance(node.node, nodes.Getattr) and node.node.attr in _METHODS
        ):
            raise _refused(f"only these methods can be called: {', '.join(_METHODS)}", node)
        if isinstance(node, nodes.For) and node.recursive:
            raise _refused("a loop may not be recursive", node)
    _check_depth(tree, 0)


def _check_depth(node: nodes.Node, depth: int) -> None:
    depth += isinstance(node, nodes.For)
    if depth > _DEEPEST:
        raise _refused(f"loops are nested more than {_DEEPEST} deep", node)
    for child in node.iter_child_nodes():
        _check_depth(child, depth)


def _refused(why: str, node: nodes.Node) -> jinja2.TemplateSyntaxError:
    return jinja2.TemplateSyntaxError(why, node.lineno or 1)


def _columns_of(tree: nodes.Template) -> set[str]:
    """The columns that a template names, as variables or as ``row["..."]``."""
    found = meta.find_undeclared_variables(tree)
    for item in tree.find_all(nodes.Getitem):
        of_row = isinstance(item.node, nodes.Name) and item.node.name == ROW
        if of_row and isinstance(item.arg, nodes.Const) and isinstance(item.arg.value, str):
            found.add(item.arg.value)
    for attribute in tree.find_all(nodes.Getattr):
        if isinstance(attribute.node, nodes.Name) and attribute.node.name == ROW:
            found.add(attribute.attr)
    return found - {ROW}


def _as_text(value: Any) -> Any:
    """What ``{{ value }}`` writes. Python's way of writing a list is no prompt."""
    if isinstance(value, jinja2.Undefined | str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    refuse_image(value, "", "a value of the template ")
    raise jinja2.TemplateRuntimeError(
        f"a value is of type {type(value).__name__}, no text: write its parts "
        "({{ name[0] }}, {% for one in name %}), or {{ name | tojson }}"
    )


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _replace(text: Any, old: str, new: str) -> str:
    said = str(text)
    _check_length(len(said) + said.count(old) * len(new))
    return said.replace(old, new)


def _join(values: Iterable[Any], separator: str = "") -> str:
    parts = [str(_as_text(value)) for value in values]
    _check_length(sum(map(len, parts)) + len(parts) * len(separator))
    return separator.join(parts)


def _check_length(length: int) -> None:
    if length > LONGEST:
        raise jinja2.TemplateRuntimeError(f"the prompt is longer than {LONGEST:,} characters")


def _bounded(pieces: Iterator[str]) -> Iterator[str]:
    length = 0
    for piece in pieces:
        length += len(piece)
        _check_length(length)
        yield piece


def _without_nulls(value: Any) -> Any:
    """``value`` with empty text for null and for NaN, as which pandas writes it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _is_empty(value: Any) -> bool:
    return is_blank(value) if isinstance(value, str) else value in ([], {})
