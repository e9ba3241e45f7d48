"""Labels as people keep them: a row for each label, or a column for each annotator."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences.labels import label_text
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.files import read_rows
from prefloop.data.sources.rows import RawRow, bad, counted
from prefloop.data.utf8 import is_null_word, shown
from prefloop.labelers.statistics.agreement import MISSING, MOST_LABELS, Ratings
from prefloop.pipeline.judging.delimiter import delimiter_hint

_EXAMPLES = 3
_DECIMAL_COMMA = re.compile(r"-?[0-9]{1,15},[0-9]{1,15}")
_PLAIN_NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d{1,15})?")  # and so no id such as 007

_MAY_BE_LABELS = ("None", "N/A")
"""Of the words for a missing value, those that people choose too."""


@dataclass
class Labels:
    """A table of labels as it was read: one label at most for each item and annotator."""

    given: dict[str, dict[str, str]] = field(default_factory=dict)
    """Label by item and annotator."""
    annotators: dict[str, None] = field(default_factory=dict)
    """In the order in which they occur."""
    rows: int = 0
    missing: int = 0
    """Labels that are null or empty."""
    repeated: int = 0
    """Labels given again as they were."""
    conflicts: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    """Item and annotator with different labels: such labels count as missing."""
    bad: Counter[str] = field(default_factory=Counter)
    """Rows that cannot be read, by reason."""
    examples: list[str] = field(default_factory=list)
    """The first of those, as one line each."""
    contents: list[str] = field(default_factory=list)
    """The same, as they were read."""
    prompts: dict[str, str] = field(default_factory=dict)
    """What each item is about, where a column says so."""
    spellings: dict[str, str] = field(default_factory=dict)
    """How a label was first written."""

    @property
    def conflict_lines(self) -> list[str]:
        """The first conflicts, as one line each."""
        return [
            f"item {item}, annotator {annotator}: {' and '.join(sorted(labels))}"
            for (item, annotator), labels in islice(self.conflicts.items(), _EXAMPLES)
        ]

    def add(self, item: str, annotator: str, label: str | None) -> None:
        """One cell of the table; a null label is a missing one."""
        self.annotators.setdefault(annotator)
        labels = self.given.setdefault(item, {})
        if label is None:
            self.missing += 1
        elif annotator not in labels:
            labels[annotator] = label
        elif labels[annotator] == label and (item, annotator) not in self.conflicts:
            self.repeated += 1
        else:
            self.conflicts.setdefault((item, annotator), {labels[annotator]}).add(label)

    def place(self, item: str, prompt: str) -> None:
        """Note what an item is about. Raises ``ValueError`` where it was about something else."""
        if self.prompts.setdefault(item, prompt) != prompt:
            raise ValueError(f"item {item} was about {self.prompts[item]} before")

    def refuse(self, row: BadRow) -> None:
        """Count a row that cannot be read."""
        self.bad[row.reason] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(str(row))
            self.contents.append(row.content)


@dataclass(frozen=True)
class LabelColumns:
    """What the columns of a table of labels hold.

    A long table has a row for each label: ``item``, ``annotator``, ``label``. A wide one has a row
    for each item and the columns ``annotators``; ``item`` may be null, and the row is the item.
    ``prompt``: what items are about, where several may be about the same.
    """

    item: str | None = None
    annotator: str | None = None
    label: str | None = None
    annotators: Sequence[str] = ()
    prompt: str | None = None

    @property
    def names(self) -> list[str]:
        """All columns that the table must have."""
        names = list(self.annotators) or [one for one in (self.annotator, self.label) if one]
        return [*names, *(one for one in (self.item, self.prompt) if one)]


def read_labels(path: str, columns: LabelColumns) -> Labels:
    """The labels in a file (any that prompts are read from).

    Raises ``InputError`` for columns that are not there, and for a file without labels.
    """
    wide = bool(columns.annotators)
    if wide and (columns.annotator or columns.label):
        raise InputError(
            "--annotators is for a column an annotator, --annotator and --label for a row a label: "
            "give one or the other"
        )
    if not wide and not (columns.item and columns.annotator and columns.label):
        raise InputError(
            f"{path}: say which columns hold what: --item, --annotator and --label for a row a "
            "label, or --annotators with the names of the columns for one column an annotator"
        )
    labels = Labels()
    for row in counted(read_rows(PromptSource(path=path))):
        labels.rows += 1
        if isinstance(row, BadRow):
            labels.refuse(row)
            continue
        absent = [name for name in columns.names if name not in row.fields]
        if absent and labels.rows == 1:
            raise InputError(
                f"{path}: has no column {absent[0]!r}: it has {', '.join(map(str, row.fields))}"
                + delimiter_hint(row.fields)
            )
        if absent:
            labels.refuse(bad(row, absent[0], "missing_column", "add it, with null for no label"))
            continue
        try:
            for item, annotator, label in _cells(row, columns):
                if columns.prompt is not None:
                    _place(labels, item, row, columns.prompt)
                word = None if _is_missing(label) else label_text(label)
                if word is not None:
                    labels.spellings.setdefault(word, _spelled(label, word))
                labels.add(item, annotator, word)
        except _NotALabel as error:
            labels.refuse(bad(row, error.field, error.reason, error.detail))
    if not any(labels.given.values()):
        why = f", e.g. {labels.examples[0]}" if labels.examples else ""
        raise InputError(
            f"{path}: holds no label: check the columns ({labels.rows} rows read{why})"
            + delimiter_hint(labels.contents)
        )
    return labels


class _NotALabel(Exception):
    def __init__(self, field: str, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.field, self.reason, self.detail = field, reason, detail


def _cells(row: RawRow, columns: LabelColumns) -> Iterator[tuple[str, str, Any]]:
    """The labels in one row: item, annotator, label as it stands there."""
    item, annotator, label = columns.item, columns.annotator, columns.label
    if item is None:
        of_item: str | None = f"{row.source}:{row.row}"
    else:
        of_item = _word(row.fields[item], item)
    if of_item is None:
        raise _NotALabel(str(item), "no_item", "is empty: every label is about an item")
    if columns.annotators:
        cells = [(name, row.fields[name]) for name in columns.annotators]
    else:
        assert annotator is not None
        assert label is not None
        who = _word(row.fields[annotator], annotator)
        if who is None:
            raise _NotALabel(annotator, "no_annotator", "is empty: every label is somebody's")
        cells = [(who, row.fields[label])]
    for name, value in cells:
        if isinstance(value, list | dict):
            column = name if columns.annotators else str(label)
            raise _NotALabel(
                column, "not_a_label", "is a list or an object: a label is text or a number"
            )
        yield of_item, name, value


def _is_missing(label: Any) -> bool:
    return isinstance(label, str) and is_null_word(label) and label.strip() not in _MAY_BE_LABELS


def _place(labels: Labels, item: str, row: RawRow, column: str) -> None:
    prompt = _word(row.fields[column], column)
    if prompt is None:
        raise _NotALabel(column, "no_prompt", "is empty: with --prompt every item is about one")
    try:
        labels.place(item, prompt)
    except ValueError as error:
        raise _NotALabel(column, "another_prompt", f"{error}: an item has one prompt") from None


def _spelled(label: Any, word: str) -> str:
    """``label`` as a table shows it: text as it was written, unless it stands for more."""
    text = label.strip() if isinstance(label, str) else word
    return text if text.casefold() == word else word


def _word(value: Any, column: str) -> str | None:
    """An item or annotator as text: 1, 1.0 and "1" are the same one; null where missing."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)  # as a float, ids beyond 2**53 would become those of their neighbours
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, str):
        text = value.strip()
        return _numeral(text) if text else None
    raise _NotALabel(column, "not_a_label", "is a list or an object: write text or a number")


def _numeral(text: str) -> str:
    return _word(float(text), "") or text if _PLAIN_NUMBER.fullmatch(text) else text


def ratings_of(source: str, labels: Labels, levels: Sequence[str] = ()) -> Ratings:
    """The labels as numbers; those in conflict are missing.

    ``levels`` are the labels in ascending order; without them labels that are all numbers have
    theirs. Raises ``InputError`` for a label that is none of ``levels``, and for more than
    MOST_LABELS different ones.
    """
    for (item, annotator), _ in labels.conflicts.items():
        labels.given[item].pop(annotator, None)
    used = sorted({label for given in labels.given.values() for label in given.values()})
    if not used and labels.conflicts:
        item, annotator = next(iter(labels.conflicts))
        raise InputError(
            f"{source}: no label is left: each of the {len(labels.conflicts):,} was given twice "
            f"and differently, the first for item {shown(item)} by {shown(annotator)}: check which "
            "columns are the item's and the annotator's"
        )
    if len(used) > MOST_LABELS:
        raise InputError(
            f"{source}: {len(used):,} different labels ({', '.join(used[:5])}, ...): agreement is "
            f"about at most {MOST_LABELS} categories: check the label column, or round its numbers"
        )
    words, values, ordered = _in_order(source, used, levels)
    names = [labels.spellings.get(word, word) for word in words]
    place = {name: index for index, name in enumerate(words)}
    annotators = list(labels.annotators)
    column = {name: index for index, name in enumerate(annotators)}
    codes = np.full((len(labels.given), len(annotators)), MISSING, np.int8)
    for row, given in enumerate(labels.given.values()):
        for annotator, label in given.items():
            codes[row, column[annotator]] = place[label]
    prompts = [labels.prompts[item] for item in labels.given] if labels.prompts else None
    return Ratings(tuple(annotators), tuple(names), codes, values, ordered, prompts=prompts)


def _in_order(source: str, used: list[str], levels: Sequence[str]) -> tuple[list[str], Any, bool]:
    """The labels in ascending order where they have one, and the numbers behind them."""
    numbers: dict[str, float] = {}
    # Decimal commas, where all have one; among whole numbers "1,2" may be two labels.
    commas = bool(used) and all(_DECIMAL_COMMA.fullmatch(label) for label in used)
    for label in used:
        try:
            value = float(label.replace(",", ".") if commas else label)
        except ValueError:
            break
        if not math.isfinite(value):
            break
        numbers[label] = value
    numeric = len(numbers) == len(used)
    if levels:
        order = [label_text(level) or level for level in levels]
        unknown = [label for label in used if label not in order]
        if unknown:
            raise InputError(
                f"{source}: the label {unknown[0]!r} is not among --levels {','.join(levels)}: "
                "name every label, in ascending order"
            )
        values = np.array([float(label) for label in order]) if _all_numbers(order) else None
        return order, values, True
    if numeric:
        order = sorted(used, key=lambda label: numbers[label])
        return order, np.array([numbers[label] for label in order]), True
    return used, None, False


def _all_numbers(words: Sequence[str]) -> bool:
    try:
        return all(math.isfinite(float(word)) for word in words)
    except ValueError:
        return False
