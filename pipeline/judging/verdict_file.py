"""Verdicts of a judge given in a file, as votes on pairs with gold labels.

These kinds of tables are read, and every verdict finds its pair by what it is about, never by its
place in the file:

* LLMBar's evaluator files: the pair's own columns and ``results``, the last of which has a winner
  for each order;
* votes of prefloop (``pair_id``, ``a_id``, ``b_id``, ``preference``);
* what AlpacaEval, MT-Bench and JudgeBench write (``prefloop.pipeline.judging.given.games``);
  MT-Bench's name their pair by ``question_id``, ``turn`` and the two models;
* any other: the pair's own columns, or ``row`` (1-based, among the rows of the file with gold
  labels), and ``verdict`` (1 or 2 for the answer that the row has first or second, or tie; a and b
  and others as in ``prefloop.data.preferences``). Optional: ``p_first`` (probability that the first
  is better), ``swapped`` (whether the second was shown first) and ``judge`` (name, of several in a
  file).
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
from prefloop.data.preferences.answer_sets import has_lists
from prefloop.data.preferences.gold import GoldPair
from prefloop.data.preferences.labels import (
    PairLabel,
    SeenLabels,
    known_labels,
    label_text,
    labels_of_verdicts,
    read_label,
)
from prefloop.data.preferences.layouts import (
    GATHERED,
    LABEL_COLUMNS,
    Layout,
    PreferenceColumns,
    find_layout,
)
from prefloop.data.preferences.pair_rows import parse_comparison
from prefloop.data.preferences.ratings import model_name
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.files import read_rows
from prefloop.data.sources.rows import RawRow, bad, counted
from prefloop.labelers.base import Order, Preference, Vote, votes_table
from prefloop.pipeline.judging.delimiter import delimiter_hint
from prefloop.pipeline.judging.given.games import (
    NoVerdict,
    Tool,
    check_preferences,
    is_weighted,
    judge_of,
    opposite,
    read_games,
    swapped_flag,
    tool_of,
)

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
    path: str,
    gold: Sequence[GoldPair],
    columns: PreferenceColumns | None = None,
    layout: Layout | None = None,
) -> VerdictFile:
    """The verdicts in ``path`` on the pairs of ``gold``; the judge is named after the file.

    ``layout`` is that of the file with gold labels. Verdicts mean what the labels of ``columns``
    say, or else the usual. Raises ``InputError`` where the file cannot be read, its columns hold no
    verdicts, none is about a pair of ``gold``, or they may mean one thing or another.
    """
    classes = (*LABEL_COLUMNS, "verdict")
    rows = list(counted(read_rows(PromptSource(path=path), classes=classes)))
    labels = _labels(path, rows, columns, layout)
    reader = _Reader(Path(path).name.split(".")[0], gold, columns, layout, labels)
    reader.weighted = is_weighted(_preferences(rows))
    for row in rows:
        reader.read(row)
    if not reader.votes:
        first = f", e.g. {reader.found.examples[0]}" if reader.found.examples else ""
        raise InputError(
            f"{path}: no verdict on any of the {len(gold):,} pairs with gold labels{first}: check "
            "that the file is about the same pairs"
        )
    reader.found.votes = {name: votes_table(votes) for name, votes in reader.votes.items()}
    return reader.found


def _labels(
    path: str,
    rows: Sequence[RawRow | BadRow],
    columns: PreferenceColumns | None,
    layout: Layout | None,
) -> Mapping[str, PairLabel]:
    """What the verdicts of a file mean, which all of them together tell."""
    own = columns.labels if columns else {}
    seen = SeenLabels()
    for row in rows:
        if isinstance(row, RawRow) and not _is_vote(row.fields):
            for name, verdict in _given(row.fields):
                seen.look(verdict, name)
    if not own:
        seen.check(path)
        check_preferences(_preferences(rows), path)
    of_gold = layout.labels if layout and layout.named else {}
    return labels_of_verdicts(seen.words, own, of_gold, path)


def _preferences(rows: Sequence[RawRow | BadRow]) -> list[Any]:
    """AlpacaEval's, of the whole file."""
    return [
        row.fields["preference"]
        for row in rows
        if isinstance(row, RawRow) and _tool_of(row.fields) == "alpaca_eval"
    ]


def _tool_of(fields: Mapping[str, Any]) -> Tool | None:
    ours = _is_vote(fields) or "results" in fields or "verdict" in fields
    return None if ours else tool_of(fields)


def _is_vote(fields: Mapping[str, Any]) -> bool:
    return all(name in fields for name in _VOTE_KEYS)


def _given(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The verdicts in a row that is no vote of prefloop, and the fields that they are in."""
    if "results" in fields:
        yield from (("results", result.get("winner")) for _, result in _winners(fields["results"]))
    elif "verdict" in fields:
        yield "verdict", fields["verdict"]


def _winners(results: Any) -> list[tuple[bool, Mapping[str, Any]]]:
    """Whether the answers were swapped, and what came of it. The steps of an evaluator (metrics, a
    reference, first verdicts) stand before its verdict, which is the last."""
    last = results[-1] if isinstance(results, list) and results else None
    if not isinstance(last, Mapping):
        return []
    found = [(swapped, last.get(key)) for key, swapped in _SWAPS.items()]
    return [(swapped, one) for swapped, one in found if isinstance(one, Mapping)]


class _Reader:
    def __init__(
        self,
        name: str,
        gold: Sequence[GoldPair],
        columns: PreferenceColumns | None,
        layout: Layout | None,
        labels: Mapping[str, PairLabel],
    ) -> None:
        self._name = name
        self._by_id = {pair.pair_id: pair for pair in gold}
        self._by_row = {pair.row: pair for pair in gold}
        self._lists = {pair.row for pair in gold if pair.of_row > 1}
        self._files = len({pair.source for pair in gold})
        self.weighted = False
        self._by_question = {
            key: pair for pair in gold if (key := _question(pair.metadata, pair.models))
        }
        self._by_texts = {(pair.prompt_id, *sorted((pair.a, pair.b))): pair for pair in gold}
        self._columns = columns
        self._layout = layout
        self._labels = labels
        own = [columns.label] if columns and columns.label else []
        self._label_columns = [*LABEL_COLUMNS, *own]
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
                f"{row.source}, row {row.row}: has no `results`, no `preference` and no `verdict` "
                "(nor `judgments`, nor `g1_winner`), "
                f"only {', '.join(map(str, row.fields))}: see `prefloop judge-eval --help`"
                + delimiter_hint(row.fields)
            )
        for vote in kind(row):
            if isinstance(vote, BadRow):
                self._refuse(vote)
            else:
                self.votes.setdefault(vote.labeler, []).append(vote)

    def _kind(
        self, fields: Mapping[str, Any]
    ) -> Callable[[RawRow], Iterator[Vote | BadRow]] | None:
        if _is_vote(fields):
            return self._of_vote
        if "results" in fields:
            return self._of_llmbar
        if "verdict" in fields:
            return self._of_plain
        return self._of_tool if tool_of(fields) else None

    def _refuse(self, row: BadRow) -> None:
        self.found.refused[row.reason] += 1
        if len(self.found.examples) < _EXAMPLES:
            self.found.examples.append(str(row))

    def _of_vote(self, row: RawRow) -> Iterator[Vote | BadRow]:
        pair = self._by_id.get(str(row.fields["pair_id"]))
        if pair is None:
            yield bad(row, "pair_id", "other_pair", "no pair with a gold label has this id")
            return
        if row.fields["a_id"] not in (pair.a_id, pair.b_id):
            yield bad(row, "a_id", "other_pair", "the pair has no answer with this id")
            return
        said, flipped = row.fields["preference"], row.fields["a_id"] == pair.b_id
        if said not in ("a", "b", "tie", "invalid"):
            yield bad(row, "preference", "bad_verdict", "is none of a, b, tie, invalid")
            return
        order: Any = row.fields.get("order") or "none"
        if order not in ("ab", "ba", "none"):
            yield bad(row, "order", "bad_verdict", "is none of ab, ba, none")
            return
        p_a = _number(row.fields.get("p_a"))
        if p_a is not None and not 0 <= p_a <= 1:
            yield bad(row, "p_a", "bad_verdict", "is no probability")
            return
        preference: Preference = opposite(said) if flipped else said
        yield Vote(
            **_ids(pair),
            labeler=str(row.fields.get("labeler") or self._name),
            order={"ab": "ba", "ba": "ab"}.get(order, order) if flipped else order,
            preference=preference,
            p_a=1 - p_a if flipped and p_a is not None else p_a,
            prompt_tokens=int(_amount(row.fields.get("prompt_tokens"))),
            completion_tokens=int(_amount(row.fields.get("completion_tokens"))),
            cost=_amount(row.fields.get("cost")),
        )

    def _of_llmbar(self, row: RawRow) -> Iterator[Vote | BadRow]:
        place = self._place(row)
        if isinstance(place, BadRow):
            yield place
            return
        found = _winners(row.fields["results"])
        if not found:
            yield bad(row, "results", "bad_verdict", "does not end with a verdict")
        for swapped, result in found:
            # The winner is about the row's own order, however the two were shown.
            verdict = self._verdict(row, "results", result.get("winner"))
            if isinstance(verdict, BadRow):
                yield verdict
            else:
                yield self._vote(row, place, verdict, swapped=swapped)

    def _of_plain(self, row: RawRow) -> Iterator[Vote | BadRow]:
        place = self._place(row)
        if isinstance(place, BadRow):
            yield place
            return
        verdict = self._verdict(row, "verdict", row.fields["verdict"])
        if isinstance(verdict, BadRow):
            yield verdict
            return
        try:
            swapped = swapped_flag(row.fields.get("swapped"), "swapped")
        except NoVerdict:
            yield bad(row, "swapped", "bad_verdict", "is neither true nor false")
            return
        p_first = _number(row.fields.get("p_first"))
        yield self._vote(row, place, verdict, swapped=swapped, p_first=p_first)

    def _of_tool(self, row: RawRow) -> Iterator[Vote | BadRow]:
        tool = tool_of(row.fields)
        place = self._of_question(row) if tool == "mt_bench" else self._place(row)
        if isinstance(place, BadRow):
            yield place
            return
        own = self._columns.labels if self._columns else {}
        try:
            games = read_games(tool or "alpaca_eval", row.fields, own, weighted=self.weighted)
        except NoVerdict as problem:
            yield bad(row, problem.field, "bad_verdict", str(problem))
            return
        name = judge_of(row.fields)
        for game in games:
            yield self._vote(
                row, place, game.said, swapped=game.swapped, p_first=game.p_first, judge=name
            )

    def _of_question(self, row: RawRow) -> tuple[GoldPair, bool] | BadRow:
        models = model_name(row.fields["model_1"]), model_name(row.fields["model_2"])
        key = _question(row.fields, models)
        pair = self._by_question.get(key) if key else None
        if pair is None or pair.models is None:
            return bad(
                row, "question_id", "other_pair",
                "no pair with a gold label has this question, turn and two models",
            )  # fmt: skip
        return pair, models[0] == pair.models[0]

    def _verdict(self, row: RawRow, name: str, value: Any) -> Preference | BadRow:
        """What a verdict says about the row's answers; one that was not given is invalid."""
        text = label_text(value)
        if text in (None, "invalid", "none", "null") and not isinstance(value, list | dict):
            return "invalid"
        layout = find_layout([*row.fields, *self._label_columns], self._columns) or self._layout
        columns = (layout.a, layout.b) if layout else ("a", "b")
        said = read_label(value, self._labels, *columns)
        if said is None:
            return bad(
                row, name, "bad_verdict",
                f"{str(value)[:80]!r} is none of {known_labels(self._labels)}: say what it means "
                "with --labels (a=1|x names two labels)",
            )  # fmt: skip
        return said

    def _place(self, row: RawRow) -> tuple[GoldPair, bool] | BadRow:
        """The pair that a row is about, and whether the row's first answer is its a."""
        # The label is not asked for: a file with verdicts may well leave it out.
        layout = find_layout([*row.fields, *self._label_columns], self._columns)
        if layout is not None and (layout.kind in GATHERED or layout.ordered):
            layout = None  # one answer is no pair
        if layout is None and "row" in row.fields:
            if self._files > 1:
                return bad(
                    row, "row", "other_pair",
                    "the gold labels are in several files: give the pair's own columns",
                )  # fmt: skip
            number = label_text(row.fields["row"]) or ""
            if number.isdecimal() and int(number) in self._lists:
                return bad(
                    row, "row", "other_pair",
                    "this row has several pairs with gold labels: give the pair's own columns",
                )  # fmt: skip
            pair = self._by_row.get(int(number)) if number.isdecimal() else None
            if pair is None:
                return bad(row, "row", "other_pair", "no pair with a gold label has this row")
            return pair, pair.listed_first == "a"
        if layout is None:
            return bad(
                row, None, "missing_column",
                "holds neither the pair nor `row`: name its columns with --columns",
            )  # fmt: skip
        if has_lists(row, layout):
            return bad(row, layout.a, "other_pair", "has several answers: a verdict is about two")
        found = parse_comparison(row, _without_label(layout))
        if isinstance(found, BadRow):
            return found
        found = found.without_thoughts()
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
        judge: str | None = None,
    ) -> Vote | BadRow:
        pair, first_is_a = place
        preference = verdict if first_is_a else opposite(verdict)
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
        name = judge or str(row.fields.get("judge") or self._name)
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


def _amount(value: Any) -> float:
    """What a vote was charged; nothing where the file does not say."""
    number = _number(value) or 0.0
    return number if 0 < number < 1e9 else 0.0


def _question(
    fields: Mapping[str, Any], models: tuple[str | None, str | None] | None
) -> tuple[Any, ...] | None:
    """What MT-Bench knows a comparison by; null where it is not said."""
    question = label_text(fields.get("question_id"))
    if question is None or models is None or None in models:
        return None
    return question, label_text(fields.get("turn")) or "1", frozenset(models)


def _without_label(layout: Layout) -> Layout:
    """The same pair of answers, whatever its labels say: only the texts are asked for."""
    return replace(layout, kind="direct") if layout.kind == "labelled" else layout
