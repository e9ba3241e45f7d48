"""Answers to one prompt that are spread over rows: one rated answer a row, or trees of messages.

All such rows of a source are kept until its end, because the answers to one prompt may stand
anywhere in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prefloop.data.hashing import prompt_id
from prefloop.data.preferences.answer_sets import AnswerSet, FoundAnswer, parse_set
from prefloop.data.preferences.layouts import Layout
from prefloop.data.preferences.pair_rows import is_null
from prefloop.data.preferences.ratings import as_number, model_name
from prefloop.data.preferences.transcripts import check_prompt
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.rows import RawRow, bad
from prefloop.data.sources.turns import ROLES, Turn, Unusable
from prefloop.data.utf8 import is_blank, is_text

Gathered = AnswerSet | BadRow


@dataclass(frozen=True)
class _Node:
    """A message of a tree."""

    row: RawRow
    parent: str | None
    role: str
    text: str
    rank: float | None
    model: str | None


class Gatherer:
    """Takes rows in, and gives the sets of answers in them."""

    def __init__(self) -> None:
        self.rows = 0
        """Rows taken in."""
        self._bad: list[BadRow] = []
        self._singles: dict[tuple[str, str | None, str | None], AnswerSet] = {}
        self._nodes: dict[str, _Node] = {}
        self._sets: list[AnswerSet] = []

    def add(self, raw: RawRow, layout: Layout) -> None:
        """Take in a row of a layout of one of ``layouts.GATHERED``."""
        self.rows += 1
        try:
            if layout.kind == "single":
                self._add_single(parse_set(raw, layout))
            elif layout.kind == "messages":
                self._add_node(raw)
            else:
                self._sets += _sets_of_tree(raw)
        except Unusable as problem:
            self._bad.append(bad(raw, problem.field, problem.reason, problem.detail))
        except RecursionError:
            self._bad.append(bad(raw, None, "too_deep", "the tree is too deep: flatten it"))

    def all(self) -> Iterator[Gathered]:
        """The sets, and the rows that cannot be read, in the order of their first rows."""
        sets = [*self._singles.values(), *self._sets]
        everything: list[Gathered] = [*sets, *self._sets_of_nodes(), *self._bad]
        return iter(sorted(everything, key=lambda one: (one.source, one.row)))

    def _add_single(self, found: AnswerSet | BadRow) -> None:
        if isinstance(found, BadRow):
            self._bad.append(found)
            return
        # Answers to other tools, or behind other calls, are answers to another prompt.
        key = (prompt_id(found.prompt), found.tools, found.turns)
        first = self._singles.setdefault(key, found)
        if first is not found:
            self._singles[key] = replace(
                first,
                answers=(*first.answers, *found.answers),
                left_out=first.left_out + found.left_out,
                absolute=first.absolute and found.absolute,
                ties=first.ties and found.ties,
            )

    def _add_node(self, raw: RawRow) -> None:
        name, parent = raw.fields.get("message_id"), raw.fields.get("parent_id")
        if not isinstance(name, str) or not name:
            raise Unusable("message_id", "null", "the message has no id: write it")
        if name in self._nodes:
            raise Unusable("message_id", "duplicate_id", "an earlier message has this id")
        node = _node(raw, raw.fields, None if is_null(parent) or not parent else str(parent))
        if node is not None:
            self._nodes[name] = node

    def _sets_of_nodes(self) -> Iterator[Gathered]:
        replies: dict[str, list[_Node]] = {}
        for node in self._nodes.values():
            if node.role == "assistant" and node.parent is not None:
                replies.setdefault(node.parent, []).append(node)
        for parent, answers in replies.items():
            turns = self._turns(parent)
            if turns is None:
                for node in answers:
                    yield bad(node.row, "parent_id", "no_parent", "no message has this id")
                continue
            try:
                yield _set_of(answers[0].row, turns, answers)
            except Unusable as problem:
                yield bad(answers[0].row, problem.field, problem.reason, problem.detail)

    def _turns(self, name: str | None) -> list[Turn] | None:
        """The conversation up to and with the message ``name``; None where part of it is lost."""
        turns: list[Turn] = []
        met: set[str] = set()
        while name is not None:
            node = self._nodes.get(name)
            if node is None or name in met:
                return None
            met.add(name)
            turns.append({"role": node.role, "content": node.text})
            name = node.parent
        return turns[::-1]


def _node(raw: RawRow, fields: Mapping[str, Any], parent: str | None) -> _Node | None:
    """The message in ``fields``; None for one that was deleted. Raises :class:`Unusable`."""
    if fields.get("deleted") is True:
        return None
    role, text = fields.get("role"), fields.get("text")
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise Unusable("role", "bad_messages", "is neither prompter nor assistant: mend it")
    if not isinstance(text, str) or is_blank(text):
        raise Unusable("text", "empty", "the message holds no text: delete it")
    if not is_text(text):
        raise Unusable("text", "not_utf8", "holds bytes or escapes that are no Unicode text")
    rank = as_number(fields.get("rank"))
    model = model_name(fields.get("model_name"))
    return _Node(raw, parent, known, text, None if rank is None else -rank, model)


def _set_of(raw: RawRow, turns: list[Turn], answers: list[_Node]) -> AnswerSet:
    """The replies to one message."""
    found = (FoundAnswer(node.text, node.rank, node.model, node.row.row) for node in answers)
    return AnswerSet(raw.source, raw.row, check_prompt(turns, "text"), tuple(found))


def _sets_of_tree(raw: RawRow) -> list[AnswerSet]:
    """The replies to each message of a prompter's in one tree. Raises :class:`Unusable`."""
    root = raw.fields.get("prompt")
    if not isinstance(root, dict):
        raise Unusable("prompt", "wrong_type", "is no tree of messages with `replies`: mend it")
    found: list[AnswerSet] = []
    open_nodes: list[tuple[Mapping[str, Any], list[Turn]]] = [(root, [])]
    while open_nodes:
        fields, before = open_nodes.pop()
        node = _node(raw, fields, None)
        if node is None:
            continue
        turns = [*before, {"role": node.role, "content": node.text}]
        replies = fields.get("replies") or []
        if not isinstance(replies, list) or not all(isinstance(one, dict) for one in replies):
            raise Unusable("prompt", "wrong_type", "has `replies` that are no list of messages")
        open_nodes += [(one, turns) for one in reversed(replies)]
        nodes = [_node(raw, one, None) for one in replies]
        answers = [one for one in nodes if one is not None and one.role == "assistant"]
        if node.role == "user" and answers:
            found.append(_set_of(raw, turns, answers))
    if not found:
        raise Unusable("prompt", "no_answer", "no message of the tree has a reply")
    return found
