"""Verdicts of a judge given in a file, as votes on pairs with gold labels.

Three kinds of tables are read, and every verdict finds its pair by what it is about, never by its
place in the file:

* LLMBar's evaluator files: the pair's own columns and ``results`` with a winner for each order;
* votes of prefloop (``pair_id``, ``a_id``, ``b_id``, ``preference``);
* any other: the pair's own columns, or ``row`` (1-based, of the file with gold labels), and
  ``verdict`` (1 or 2 for the answer that the row has first or second, or tie; a and b and others as
  in ``prefloop.data.preferences``). Optional: ``p_first`` (probability that the first is better),
  ``swapped`` (whether the second was shown first) and ``judge`` (name, of several in a file).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError
from prefloop.data.hashing import prompt_id
from prefloop.data.preferences.gold import GoldPair
from prefloop.data.preferences.layouts import (
    LABEL_COLUMNS,
    LABELS,
    Layout,
    PreferenceColumns,
    find_layout,
)
from prefloop.data.preferences.pair_rows import label_text, parse_comparison
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.files import read_rows
from prefloop.data.sources.rows import RawRow, bad
from prefloop.labelers.base import Order, Preference, Vote, votes_table

_SWAPS = {"swap = False": False, "swap = True": True}
_VOTE_KEYS = ("pair_id", "a_id", "b_id", "preference")
_EXAMPLES = 3


@dataclass
class VerdictFile:
    """The votes of each judge in a file."""

    votes: dict[str, pa.Table]
    """Schema VOTE, by judge."""
    refused: Counter[str] = field(default_factory=Counter)
    """Rows that are no verdict on a pair with a gold label, by reason."""
    examples: list[str] = field(default_factory=list)


def read_verdicts(
    path: str, gold: Sequence[GoldPair], columns: PreferenceColumns | None = None
) -> VerdictFile:
    """The verdicts in ``path`` on the pairs of ``gold``; the judge is named after the file.

    Raises ``InputError`` where the file cannot be read, its columns hold no verdicts, or none is
    about a pair of ``gold``.
    """
    reader = _Reader(Path(path).name.split(".")[0], gold, columns)
    for row in read_rows(PromptSource(path=path)):
        reader.read(row)
    if not reader.votes:
        first = f", e.g. {reader.found.examples[0]}" if reader.found.examples else ""
        raise InputError(
            f"{path}: no verdict on any of the {len(gold):,} pairs with gold labels{first}: check "
            "that the file is about the same pairs"
        )
    reader.found.votes = {name: votes_table(votes) for name, votes in reader.votes.items()}
    return reader.found


class _Reader:
    def __init__(
        self, name: str, gold: Sequence[GoldPair], columns: PreferenceColumns | None
    ) -> None:
        self._name = name
        self._by_id = {pair.pair_id: pair for pair in gold}
        self._by_row = {pair.row: pair for pair in gold}
        self._by_texts = {(pair.prompt_id, *sorted((pair.a, pair.b))): pair for pair in gold}
        self._columns = columns
        self._labels = [*LABEL_COLUMNS, *([columns.label] if columns and columns.label else [])]
        self.found = VerdictFile({})
        self.votes: dict[str, list[Vote]] = {}

    def read(self, row: RawRow | BadRow) -> None:
        """Take in one row."""
        if isinstance(row, BadRow):
            self._refuse(row)
            return
        kind = self._kind(row.fields)
        if kind is None:
            raise InputError(
                f"{row.source}, row {row.row}: has no `results`, no `preference` and no `verdict`, "
                f"only {', '.join(map(str, row.fields))}: see `prefloop judge-eval --help`"
            )
        for vote in kind(row):
            if isinstance(vote, BadRow):
                self._refuse(vote)
            else:
                self.votes.setdefault(vote.labeler, []).append(vote)

    def _kind(
        self, fields: Mapping[str, Any]
    ) -> Callable[[RawRow], Iterator[Vote | BadRow]] | None:
        if all(name in fields for name in _VOTE_KEYS):
            return self._of_vote
        if "results" in fields:
            return self._of_llmbar
        return self._of_plain if "verdict" in fields else None

    def _refuse(self, row: BadRow) -> None:
        self.found.refused[row.reason] += 1
        if len(self.found.examples) < _EXAMPLES:
            self.found.examples.append(str(row))

    def _of_vote(self, row: RawRow) -> Iterator[Vote | BadRow]:
        pair = self._by_id.get(str(row.fields["pair_id"]))
        if pair is None:
            yield bad(row, "pair_id", "other_pair", "no pair with a gold label has this id")
            return
        said, flipped = row.fields["preference"], row.fields["a_id"] == pair.b_id
        if said not in ("a", "b", "tie", "invalid"):
            yield bad(row, "preference", "bad_verdict", "is none of a, b, tie, invalid")
            return
        preference: Preference = _other(said) if flipped else said
        order: Any = row.fields.get("order") or "none"
        p_a = row.fields.get("p_a")
        yield Vote(
            **_ids(pair),
            labeler=str(row.fields.get("labeler") or self._name),
            order={"ab": "ba", "ba": "ab"}.get(order, order) if flipped else order,
            preference=preference,
            p_a=1 - p_a if flipped and p_a is not None else p_a,
            prompt_tokens=int(row.fields.get("prompt_tokens") or 0),
            completion_tokens=int(row.fields.get("completion_tokens") or 0),
            cost=float(row.fields.get("cost") or 0.0),
        )

    def _of_llmbar(self, row: RawRow) -> Iterator[Vote | BadRow]:
        place = self._place(row)
        if isinstance(place, BadRow):
            yield place
            return
        results = row.fields["results"]
        if not isinstance(results, list) or not all(isinstance(one, Mapping) for one in results):
            yield bad(row, "results", "bad_verdict", "is no list of results")
            return
        for result in results:
            for key, swapped in _SWAPS.items():
                if isinstance(result.get(key), Mapping):
                    # The winner is about the row's own order, however the two were shown.
                    verdict = _verdict(result[key].get("winner"))
                    yield self._vote(row, place, verdict, swapped=swapped)

    def _of_plain(self, row: RawRow) -> Iterator[Vote | BadRow]:
        place = self._place(row)
        if isinstance(place, BadRow):
            yield place
            return
        given, p_first = row.fields["verdict"], _number(row.fields.get("p_first"))
        verdict = _verdict(given)
        if verdict == "invalid" and given is not None and str(given).strip().lower() != "invalid":
            known = ", ".join(LABELS)
            yield bad(row, "verdict", "bad_verdict", f"{str(given)[:80]!r} is none of {known}")
            return
        swapped = row.fields.get("swapped")
        if isinstance(swapped, str):
            swapped = {"true": True, "1": True, "false": False, "0": False}.get(swapped.lower())
        yield self._vote(row, place, verdict, swapped=swapped, p_first=p_first)

    def _place(self, row: RawRow) -> tuple[GoldPair, bool] | BadRow:
        """The pair that a row is about, and whether the row's first answer is its a."""
        # The label is not asked for: a file with verdicts may well leave it out.
        layout = find_layout([*row.fields, *self._labels], self._columns)
        if layout is None and "row" in row.fields:
            number = row.fields["row"]
            pair = self._by_row.get(int(number)) if str(number).isdigit() else None
            if pair is None:
                return bad(row, "row", "other_pair", "no pair with a gold label has this row")
            return pair, pair.listed_first == "a"
        if layout is None:
            return bad(
                row, None, "missing_column",
                "holds neither the pair nor `row`: name its columns with --columns",
            )  # fmt: skip
        found = parse_comparison(row, _without_label(layout))
        if isinstance(found, BadRow):
            return found
        texts = sorted((found.first, found.second))
        pair = self._by_texts.get((prompt_id(found.prompt), *texts))
        if pair is None:
            return bad(row, None, "other_pair", "no pair with a gold label has these texts")
        return pair, found.first == pair.a

    def _vote(
        self,
        row: RawRow,
        place: tuple[GoldPair, bool],
        verdict: Preference,
        *,
        swapped: bool | None,
        p_first: float | None = None,
    ) -> Vote | BadRow:
        pair, first_is_a = place
        preference = verdict if first_is_a else _other(verdict)
        p_a = p_first if first_is_a or p_first is None else 1 - p_first
        if p_a is not None and not (
            0 <= p_a <= 1
            and (p_a >= 0.5 or preference != "a")
            and (p_a <= 0.5 or preference != "b")
        ):
            return bad(
                row, "p_first", "bad_verdict",
                f"{p_first} does not fit the verdict: is it the probability of the first answer?",
            )  # fmt: skip
        order: Order = "none"
        if swapped is not None:
            order = "ab" if swapped != first_is_a else "ba"
        name = str(row.fields.get("judge") or self._name)
        return Vote(**_ids(pair), labeler=name, order=order, preference=preference, p_a=p_a)


def _number(value: Any) -> float | None:
    """A probability as it stands in the file; what is no number is out of range, so refused."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return -1.0


def _ids(pair: GoldPair) -> dict[str, Any]:
    ids = {name: getattr(pair, name) for name in ("pair_id", "prompt_id", "a_id", "b_id")}
    return {**ids, "round": 0}


def _verdict(value: Any) -> Preference:
    text = label_text(value)
    return LABELS[text] if text is not None and text in LABELS else "invalid"


def _other(said: Preference) -> Preference:
    others: dict[Preference, Preference] = {"a": "b", "b": "a"}
    return others.get(said, said)


def _without_label(layout: Layout) -> Layout:
    """The same pair of answers, whatever its labels say: only the texts are asked for."""
    return replace(layout, kind="direct") if layout.kind == "labelled" else layout
