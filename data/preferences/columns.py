"""The regular rows of an Arrow batch as pairs, without a Python object for each.

Only what is certainly right is taken here: text or ``{role, content}`` turns in direct columns.
Every other row is left to ``prefloop.data.preferences.pair_rows``, which says what is wrong with
it, if anything. For the rows taken, both give the same pair.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import Bools
from prefloop.data.preferences.layouts import TIE_STATUS, Layout
from prefloop.data.schemas import MESSAGES
from prefloop.data.sources.tool_turns import CHANNEL, PROMPT_TURNS, THOUGHTS, TOOLS
from prefloop.data.sources.turns import CONVERSATION_START, HEADER_MARK
from prefloop.data.utf8 import BLANK, NULL_WORD

Index = npt.NDArray[np.int64]
_OF_ANSWERS = ("tool_calls", "function_call", CHANNEL, *THOUGHTS)
"""What a turn may hold beside its content that the answer is then made of too."""
OF_TOOLS = (PROMPT_TURNS, TOOLS)
"""Columns that, where they hold something, are read beside every prompt."""
_HEADER_MARK = re.compile(re.escape(HEADER_MARK).encode())


@dataclass(frozen=True)
class RegularRows:
    """``regular`` [rows of the batch]: which rows were taken; the columns hold those, in order."""

    regular: Bools
    prompt: pa.Array
    """MESSAGES."""
    chosen: pa.Array
    rejected: pa.Array


def regular_rows(batch: pa.RecordBatch, layout: Layout) -> RegularRows | None:
    """The rows of ``batch`` that can be read column by column; None where its columns cannot.

    ``batch`` has valid UTF-8 and the columns of ``layout``.
    """
    if layout.kind != "direct" or layout.system or layout.history or len(layout.prompt) > 1:
        return None
    prompt = _normal(batch.column(layout.prompt[0])) if layout.prompt else None
    chosen, rejected = (_normal(batch.column(name)) for name in (layout.a, layout.b))
    if chosen is None or rejected is None or (layout.prompt and prompt is None):
        return None
    texts = [pa.types.is_string(column.type) for column in (chosen, rejected)]
    kept = np.ones(len(batch), dtype=bool)
    if layout.status:
        status = _normal(batch.column(layout.status))
        if status is None or not pa.types.is_string(status.type):
            return None
        kept = ~_mask(pc.equal(status, TIE_STATUS))
    for name in OF_TOOLS:
        if name in batch.schema.names and name not in layout.columns:
            kept &= ~_filled(batch.column(name))
    if all(texts) and prompt is not None:
        return _of_texts(prompt, chosen, rejected, kept)
    if not any(texts):
        return _of_conversations(prompt, chosen, rejected, kept)
    return None


def _normal(column: pa.Array) -> pa.Array | None:
    """Text as ``string`` and turns as ``MESSAGES``; None for other types."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if _is_text(kind):
        return column.cast(pa.string())
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return None
    turn = kind.value_type
    if not pa.types.is_struct(turn):
        return None
    names = [turn.field(index).name for index in range(turn.num_fields)]
    for role, content in (("role", "content"), ("from", "value")):
        if role in names and content in names:
            break
    else:
        return None
    if len({"role", "from"} & set(names)) + len({"content", "value"} & set(names)) > 2:
        return None
    if not all(_is_text(turn.field(name).type) for name in (role, content)):
        return None
    if any(_holds_something(column.values.field(name)) for name in _OF_ANSWERS if name in names):
        return None
    if names == ["role", "content"]:
        return column if kind == MESSAGES else column.cast(MESSAGES)
    turns = column.values
    fields = [pc.struct_field(turns, [name]).cast(pa.string()) for name in (role, content)]
    struct = pa.StructArray.from_arrays(fields, ["role", "content"], mask=pc.is_null(turns))
    lists = pa.ListArray.from_arrays(
        column.offsets.cast(pa.int32()), struct, mask=pc.is_null(column)
    )
    return lists if lists.type == MESSAGES else lists.cast(MESSAGES)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _holds_something(column: pa.Array) -> bool:
    return bool(_filled(column).any())


def _filled(column: pa.Array) -> Bools:
    """Which values are there, and are no empty list."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return _mask(pc.greater(pc.list_value_length(column), 0))
    return _mask(pc.is_valid(column))


def _of_texts(prompt: pa.Array, chosen: pa.Array, rejected: pa.Array, kept: Bools) -> RegularRows:
    regular = kept & _plain_text(chosen) & _plain_text(rejected)
    if pa.types.is_string(prompt.type):
        regular &= _plain_prompt(prompt)
        asked = _as_user_turn(_filter(prompt, regular))
    else:
        regular &= _Turns(prompt).prompts
        asked = _filter(prompt, regular)
    return RegularRows(regular, asked, _filter(chosen, regular), _filter(rejected, regular))


def _of_conversations(
    prompt: pa.Array | None, chosen: pa.Array, rejected: pa.Array, kept: Bools
) -> RegularRows | None:
    a, b = _Turns(chosen), _Turns(rejected)
    regular = kept & a.answered & b.answered & (a.lengths == b.lengths)
    alone = a.lengths == 1
    if prompt is not None and pa.types.is_list(prompt.type):
        # Turns in both places may say the same in two ways: that is for the other reader.
        regular &= alone & _Turns(prompt).prompts
        asked = _filter(prompt, regular)
    else:
        if prompt is not None:
            regular &= _plain_text(prompt)
        if prompt is None or not alone.any():
            regular &= ~alone & _same_before(a, b, regular & ~alone)
            asked = a.before(regular)
        elif alone.all():
            regular &= _plain_prompt(prompt)
            asked = _as_user_turn(_filter(prompt, regular))
        else:
            return None
    return RegularRows(regular, asked, a.answers(regular), b.answers(regular))


class _Turns:
    """The turns of a column of conversations, and what they say about each row."""

    def __init__(self, lists: pa.Array) -> None:
        self._turns = lists.values
        self._offsets: Index = lists.offsets.to_numpy().astype(np.int64)
        self.lengths: Index = np.diff(self._offsets)
        valid = _mask(pc.is_valid(lists)) & (self.lengths > 0)
        self.contents = self._turns.field("content")
        self.roles = self._turns.field("role")
        user, assistant, system = (
            _mask(pc.equal(self.roles, role)) for role in ("user", "assistant", "system")
        )
        good = (
            (user | assistant | system) & _has_text(self.contents) & _mask(pc.is_valid(self._turns))
        )
        wrong = np.concatenate([[0], np.cumsum(~good)])
        valid &= wrong[self._offsets[1:]] == wrong[self._offsets[:-1]]
        self._last = np.where(valid, self._offsets[1:] - 1, 0)
        self.prompts: Bools = valid & _at(user, self._last)
        """A conversation that an assistant can answer."""
        asked = np.maximum(self._last - 1, 0)
        self.answered: Bools = (
            valid & _at(assistant, self._last) & ((self.lengths == 1) | _at(user, asked))
        )
        """A conversation that ends with one turn of the assistant's."""

    def answers(self, rows: Bools) -> pa.Array:
        """The last turn's text of each of ``rows``."""
        return self.contents.take(pa.array(self._last[rows]))

    def before(self, rows: Bools) -> pa.Array:
        """The turns before the last of each of ``rows``: MESSAGES."""
        counts = self.lengths[rows] - 1
        turns = pa.array(_ranges(self._offsets[:-1][rows], counts))
        struct = pa.StructArray.from_arrays(
            [self.roles.take(turns), self.contents.take(turns)], ["role", "content"]
        )
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, struct).cast(MESSAGES)

    def starts(self, rows: Bools) -> Index:
        """Place of the first turn of each of ``rows``."""
        return self._offsets[:-1][rows]


def _same_before(a: _Turns, b: _Turns, rows: Bools) -> Bools:
    """Of ``rows``, whose lengths are equal, those with equal turns before the last."""
    counts = a.lengths[rows] - 1
    places = [pa.array(_ranges(turns.starts(rows), counts)) for turns in (a, b)]
    equal = np.ones(int(counts.sum()), dtype=bool)
    for one, other in ((a.roles, b.roles), (a.contents, b.contents)):
        equal &= _mask(pc.equal(one.take(places[0]), other.take(places[1])))
    differing = np.concatenate([[0], np.cumsum(~equal)])
    ends = np.cumsum(counts)
    same = np.zeros(len(rows), dtype=bool)
    same[rows] = differing[ends] == differing[ends - counts]
    return same


def _ranges(starts: Index, counts: Index) -> Index:
    """``starts[i], starts[i] + 1, ...`` (``counts[i]`` of them), one after the other."""
    ends = np.cumsum(counts)
    found: Index = np.arange(ends[-1] if len(ends) else 0) + np.repeat(
        starts - (ends - counts), counts
    )
    return found


def _at(mask: Bools, places: Index) -> Bools:
    return mask[places] if len(mask) else np.zeros(len(places), dtype=bool)


def _plain_text(column: pa.Array) -> Bools:
    """Text that is not blank and cannot be a conversation."""
    begins = _mask(pc.match_substring_regex(column, CONVERSATION_START))
    plain: Bools = _has_text(column) & ~begins
    # A search of all texts in one piece is many times faster than one of each.
    texts = column.buffers()[2]
    if texts is not None and _HEADER_MARK.search(memoryview(texts)):
        plain &= ~_mask(pc.match_substring(column, HEADER_MARK))
    return plain


def _plain_prompt(column: pa.Array) -> Bools:
    return _plain_text(column) & ~_mask(pc.match_substring_regex(column, NULL_WORD))


def _has_text(column: pa.Array) -> Bools:
    return ~_mask(pc.fill_null(pc.match_substring_regex(column, BLANK), True))


def _mask(flags: pa.Array) -> Bools:
    """As numpy; null is False."""
    found: Bools = pc.fill_null(flags, False).to_numpy(zero_copy_only=False)
    return found


def _filter(column: Any, rows: Bools) -> pa.Array:
    return column if rows.all() else column.filter(pa.array(rows))


def _as_user_turn(texts: pa.Array) -> pa.Array:
    roles = pa.repeat("user", len(texts))
    turns = pa.StructArray.from_arrays([roles, texts], ["role", "content"])
    offsets = pa.array(np.arange(len(texts) + 1), pa.int32())
    return pa.ListArray.from_arrays(offsets, turns).cast(MESSAGES)
