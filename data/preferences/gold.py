"""Pairs of answers with gold labels, to judge judges by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prefloop.data.config import PromptSource
from prefloop.data.conversations.conversation import conversation_of
from prefloop.data.errors import InputError
from prefloop.data.hashing import content_id, derive_seed, pair_id, prompt_id
from prefloop.data.preferences.answer_sets import about_row, parse_comparisons
from prefloop.data.preferences.labels import SeenLabels
from prefloop.data.preferences.layouts import GATHERED, Layout, PreferenceColumns, label_columns
from prefloop.data.preferences.pair_rows import Comparison
from prefloop.data.preferences.ratings import model_name
from prefloop.data.preferences.row_layouts import RowLayouts
from prefloop.data.preferences.unread_columns import UnreadColumns
from prefloop.data.protocol import Message
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.files import read_rows
from prefloop.data.sources.rows import RawRow, bad, counted
from prefloop.data.sources.tool_turns import read_alike
from prefloop.data.sources.turns import Unusable
from prefloop.data.utf8 import is_blank, listed

Gold = Literal["a", "b", "tie"]


@dataclass(frozen=True)
class GoldPair:
    """Two answers to a prompt, and which is better by the gold label. What a model thought before
    an answer is no part of it."""

    source: str
    row: int
    """1-based row of its source (blank lines and a header are no rows)."""
    messages: tuple[Message, ...]
    a: str
    b: str
    gold: Gold
    listed_first: Literal["a", "b"]
    """The answer that the row has first."""
    reference: str | None = None
    """The row's ``reference``, an answer known to be good; null where it is one of the row's own
    answers, which it would give away."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """The row's other columns, such as the constraints that a verifier checks."""
    of_row: int = 1
    """How many pairs its row has, this one among them: more than one where the row lists good and
    bad answers."""
    several_good: bool = False
    """Whether the row has several good answers."""
    models: tuple[str | None, str | None] | None = None
    """Who wrote a and b, where the row says so."""

    @property
    def prompt_id(self) -> str:
        """Hash of the prompt."""
        return prompt_id(self.messages)

    @property
    def a_id(self) -> str:
        """Hash of the prompt and the answer."""
        return content_id(self.prompt_id, self.a)

    @property
    def b_id(self) -> str:
        """Hash of the prompt and the answer."""
        return content_id(self.prompt_id, self.b)

    @property
    def pair_id(self) -> str:
        """Hash of both, whatever their order."""
        return pair_id(self.prompt_id, self.a_id, self.b_id)


def read_gold(
    source: PromptSource, columns: PreferenceColumns | None = None
) -> tuple[list[GoldPair], list[BadRow]]:
    """The pairs of ``source`` with gold labels, and the rows that hold none.

    Layouts are those of ``prefloop.data.preferences``: two answers with a label (or several
    annotators, of whom the majority is the gold label, and no majority a tie), or chosen and
    rejected; where these are lists (RewardBench 2), every good answer is a pair with every bad one.
    Which answer is a is drawn by hash, so that the gold label says nothing about it. Rows with
    equal answers (``identical``) and pairs that are there already (``duplicate``) are bad rows,
    each row once for a reason.

    Raises ``InputError`` for a source that cannot be read, has no known layout or no usable row,
    or whose labels may mean one thing or another.
    """
    found, refused = [], []
    labels, left = SeenLabels(), UnreadColumns()
    seen: dict[str, int] = {}
    for raw, layout in _with_layout(source, columns):
        if isinstance(raw, BadRow):
            refused.append(raw)
            continue
        layout.look(labels, raw.fields)
        left.look(raw, layout)
        lost: dict[str, BadRow] = {}
        for pair in _pairs(raw, layout):
            if isinstance(pair, BadRow):
                lost.setdefault(pair.reason, pair)
            elif pair.pair_id in seen:
                said = f"row {seen[pair.pair_id]} has the same pair"
                lost.setdefault("duplicate", bad(raw, None, "duplicate", said))
            else:
                seen[pair.pair_id] = raw.row
                found.append(pair)
        refused += lost.values()
    labels.check(source.path)
    left.warn(source.path)
    if not found:
        first = f": {refused[0]}" if refused else ""
        raise InputError(f"{source.path}: holds no pair with a gold label{first}")
    return found, refused


def gold_layout(source: PromptSource, columns: PreferenceColumns | None = None) -> Layout | None:
    """The layout that ``read_gold`` reads ``source`` by."""
    rows = _with_layout(source, columns)
    return next((layout for row, layout in rows if isinstance(row, RawRow)), None)


def _with_layout(
    source: PromptSource, columns: PreferenceColumns | None
) -> Iterable[tuple[RawRow | BadRow, Layout]]:
    layouts = RowLayouts(columns)
    usual: Layout | None = None
    for row in counted(read_rows(source, classes=label_columns(columns))):
        # Bad rows may come before the first that shows the layout, and need none.
        layout = usual if isinstance(row, BadRow) else layouts.of(row.fields)
        if isinstance(row, RawRow) and usual is None:
            if layout is None or layout.kind in GATHERED:
                raise InputError(
                    f"{row.source}, row {row.row}: no known layout; columns found: "
                    f"{listed(row.fields) or 'none'}: name them with --columns "
                    "prompt=NAME,a=NAME,b=NAME,label=NAME (or chosen=NAME,rejected=NAME)"
                )
            usual = layout
        if layout is None or layout.kind in GATHERED:
            layout = usual
        yield row, layout or _NO_LAYOUT


_NO_LAYOUT = Layout("direct", (), "", "")


def _pairs(raw: RawRow, layout: Layout) -> Iterator[GoldPair | BadRow]:
    found = parse_comparisons(raw, layout)
    if isinstance(found, BadRow):
        yield found
        return
    answers = [one.first for one in found], [one.second for one in found]
    several = len(set(answers[0])) > 1
    # The same answer twice in a list is one answer.
    for one in {(one.first, one.second): one for one in found}.values():
        pair = _pair(raw, layout, one, {text for texts in answers for text in texts})
        if isinstance(pair, BadRow) or len(found) == 1:
            yield pair
            continue
        of_row = len({*answers[0]}) * len({*answers[1]})
        yield replace(pair, of_row=of_row, several_good=several)


def _pair(raw: RawRow, layout: Layout, found: Comparison, answers: set[str]) -> GoldPair | BadRow:
    """``answers``: all that the row has."""
    found = found.without_thoughts()
    for name, text in ((layout.a, found.first), (layout.b, found.second)):
        if is_blank(text):
            said = "is a thought without an answer behind it: delete the row"
            return bad(raw, name, "empty_answer", said)
    if found.first == found.second:
        return bad(raw, layout.b, "identical", "both answers are the same text: delete the row")
    try:
        about = about_row(raw, layout, found.prompt, answers)
    except Unusable as problem:
        return bad(raw, problem.field, problem.reason, problem.detail)
    messages = tuple(conversation_of(read_alike(found.prompt), about.turns, about.tools))
    texts = sorted((found.first, found.second))
    first_is_a = bool(derive_seed(prompt_id(messages), *texts) % 2) == (found.first == texts[0])
    gold: Gold = found.verdict
    if not first_is_a and gold != "tie":
        gold = "b" if gold == "a" else "a"
    a, b = (found.first, found.second) if first_is_a else (found.second, found.first)
    named = [model_name(raw.fields.get(name)) for name in layout.models]
    if not first_is_a:
        named.reverse()
    return GoldPair(
        raw.source,
        raw.row,
        messages,
        a,
        b,
        gold,
        listed_first="a" if first_is_a else "b",
        reference=about.reference,
        metadata=about.others,
        models=(named[0], named[1]) if len(named) == 2 else None,
    )
