"""What an audit finds: rows without a pair, suspect pairs, odd answers, other languages."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from prefloop.data.checks.against import EvaluationSet
from prefloop.data.checks.language import Languages
from prefloop.data.checks.oddities import ODDITIES, Severity
from prefloop.data.checks.repeats import Repeats
from prefloop.data.checks.thoughts import THOUGHT, UNCLOSED
from prefloop.data.preferences import PreferenceBatch
from prefloop.data.preferences.unread_columns import UnreadColumns
from prefloop.data.utf8 import shown

_EXAMPLES = 5
_EXAMPLE_CHARS = 160
_APART = {
    "prompts_differ": (
        "the conversations of chosen and rejected do not share their prompt",
        "two answers to different prompts cannot be compared: delete the rows",
    ),
    "empty_answer": ("an answer holds no text", "delete the rows"),
    "consecutive_answers": (
        "a conversation ends with two turns of the assistant's",
        "join them where they are one answer, or delete one",
    ),
    "written_turns": (
        "turns written out as text that cannot be read",
        "write the column as JSON (json.dumps), or the file as JSON Lines or Parquet",
    ),
    "tie": ("neither answer is preferred", "nothing to learn from: leave the rows out"),
    "single_answer": (
        "no other answer to the same prompt is there",
        "nothing to compare: leave the rows out, or let others answer (`sample.from`)",
    ),
}
"""Reasons of rows without a pair that are findings of their own; all others are unreadable."""
_HARMLESS = ("tie", "single_answer")
"""Of these, the reasons that are no fault of the row."""
_OF_UNREADABLE = "no pair can be read from the row"


@dataclass(frozen=True)
class Finding:
    """One thing found."""

    name: str
    count: int
    share: float
    """Of all rows."""
    severity: Severity
    """``error``: the rows teach something wrong or nothing; ``warning``: look at them; ``info``."""
    what: str
    remedy: str
    examples: tuple[str, ...]
    """``source:row``, with what is to be said about it."""
    dropped_by_fix: bool


@dataclass(frozen=True)
class Suspect:
    """Pairs that one check holds against the dataset."""

    name: str
    mask: npt.NDArray[np.bool_]
    """Of all pairs."""
    severity: Severity
    what: str
    remedy: str
    dropped_by_fix: bool = True
    to_partner: str = ""
    """What an example says of the pair that it repeats or contradicts, if it names it."""


@dataclass
class BadRows:
    """Rows without a pair, counted as they are read."""

    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """By reason, the first few."""
    columns: tuple[str, ...] = ()
    """Of the first row whose content shows them."""

    def add(self, batch: PreferenceBatch) -> None:
        """Count the rows of ``batch`` that hold no pair."""
        if not len(batch.bad):
            return
        self.reasons.update(batch.bad["reason"].to_pylist())
        self.columns = self.columns or _columns(batch.bad["content"][0].as_py())
        for row in batch.bad.slice(0, 10 * _EXAMPLES).to_pylist():
            of_reason = self.examples.setdefault(row["reason"], [])
            if len(of_reason) < _EXAMPLES:
                field_name = f", field {row['field']!r}" if row["field"] else ""
                of_reason.append(
                    f"{row['source']}:{row['row']}{field_name}: {row['detail'][:_EXAMPLE_CHARS]}"
                )

    def findings(self, rows: int) -> Iterator[Finding]:
        """A finding for each reason; ``rows`` are all that were read."""
        for reason, count in self.reasons.most_common():
            what, remedy = _APART.get(reason, (_OF_UNREADABLE, "mend the rows, or delete them"))
            yield Finding(
                name=reason if reason in _APART else f"unreadable:{reason}",
                count=count,
                share=count / rows,
                severity="info" if reason in _HARMLESS else "error",
                what=what,
                remedy=remedy,
                examples=tuple(self.examples.get(reason, ())),
                dropped_by_fix=True,
            )


def _columns(content: str) -> tuple[str, ...]:
    try:
        row = json.loads(content)
    except (ValueError, RecursionError):
        return ()
    return tuple(row) if isinstance(row, dict) else ()


@dataclass
class LeftOut:
    """Answers that came with a pair and are not in it, counted as they are read."""

    pairs: int = 0
    answers: int = 0
    examples: list[str] = field(default_factory=list)
    """The first few."""

    def add(self, batch: PreferenceBatch) -> None:
        """Count those of ``batch``."""
        places = np.flatnonzero(batch.left_out)
        self.pairs += len(places)
        self.answers += int(batch.left_out.sum())
        for place in places[: _EXAMPLES - len(self.examples)].tolist():
            row = batch.pairs.slice(place, 1).to_pylist()[0]
            self.examples.append(f"{row['source']}:{row['row']}: {batch.left_out[place]}")

    def findings(self, rows: int) -> Iterator[Finding]:
        """One, if there are any; ``rows`` are all that were read."""
        if self.answers:
            yield Finding(
                name="answers_not_used",
                count=self.pairs,
                share=self.pairs / rows,
                severity="info",
                what=f"{self.answers:,} answers are neither the best nor the worst of their lists, "
                "and in no pair",
                remedy="`prefloop label` compares every answer of a list",
                examples=tuple(self.examples),
                dropped_by_fix=False,
            )


def unread_findings(unread: UnreadColumns, rows: int) -> Iterator[Finding]:
    """One for each column that looks like a part of the prompt and is not read; ``rows`` are all
    that were read."""
    for name, count in unread.rows.items():
        yield Finding(
            name=f"unread_column:{shown(name)}",
            count=count,
            share=count / rows,
            severity="warning",
            what=f"the column {shown(name)!r} holds something, and no prompt has it",
            remedy=shown(unread.remedy(name)),
            examples=(unread.first[name],),
            dropped_by_fix=False,
        )


class Places(Sequence[str]):
    """``source:row`` of each pair."""

    def __init__(
        self, sources: Sequence[str], source: npt.NDArray[Any], row: npt.NDArray[Any]
    ) -> None:
        self._sources, self._source, self._row = sources, source, row

    def __getitem__(self, index: Any) -> Any:
        return f"{self._sources[self._source[index]]}:{self._row[index]}"

    def __len__(self) -> int:
        return len(self._row)


def pair_suspects(
    found: Mapping[str, npt.NDArray[Any]],
    repeats: Repeats,
    near: npt.NDArray[np.bool_],
    against: Sequence[EvaluationSet],
) -> Iterator[Suspect]:
    """What is wrong with pairs by themselves, with one another, and with evaluation sets.

    ``near`` are the pairs whose prompt nearly repeats an earlier one.
    """
    yield Suspect(
        "identical",
        repeats.identical,
        "error",
        "chosen and rejected are the same text",
        "delete the rows: their gradient is noise",
    )
    yield Suspect(
        "identical_but_for_form",
        found["same"] & ~repeats.identical,
        "warning",
        "chosen and rejected differ in letter case, white space or Unicode form only",
        "keep them only where the form is what is asked for",
        dropped_by_fix=False,
    )
    yield Suspect(
        "contradictory",
        repeats.contradictory,
        "error",
        f"{repeats.contradictions:,} pairs of answers are preferred both ways",
        "ask more annotators, or drop both: nobody knows which is right",
        to_partner="contradicts",
    )
    yield Suspect(
        "circular",
        repeats.circular,
        "error",
        f"{repeats.cycles:,} cycle{'s' if repeats.cycles > 1 else ''} of preferences (A over B, B "
        "over C, C over A)",
        "look for the wrong label among them, or drop all",
    )
    yield Suspect(
        "unclosed_thought",
        unclosed(found),
        "error",
        "an answer begins with a thought that never ends: there is no answer",
        "delete the rows, or sample them again with more tokens",
    )
    thinks = [(found[f"{side}_thoughts"] & THOUGHT) != 0 for side in ("chosen", "rejected")]
    yield Suspect(
        "thought_in_one",
        thinks[0] != thinks[1],
        "warning",
        "one answer of the pair has a thought in front of it and the other has none",
        "strip the thoughts, or compare answers of one kind: else training learns which it was",
        dropped_by_fix=False,
    )
    yield Suspect(
        "thought_in_answer",
        thinks[0] | thinks[1],
        "info",
        "an answer has a model's thought in front of it, which lengths and duplicates count too",
        "strip it, unless the policy is to learn to think like that",
        dropped_by_fix=False,
    )
    yield Suspect(
        "duplicate",
        repeats.duplicate,
        "warning",
        "an earlier row has the same pair",
        "delete the later rows: they count twice in training",
        to_partner="repeats",
    )
    yield Suspect(
        "scores_disagree",
        found["disputed"],
        "warning",
        "chosen has a lower score than rejected in the row's own columns",
        "look which of the two is wrong: the scores, or the order",
        dropped_by_fix=False,
    )
    for number, one in enumerate(against):
        yield Suspect(
            f"overlap:{one.name}",
            found["overlap"] == number,
            "error",
            f"the prompt is in the evaluation set {one.name}",
            "delete the rows, or results on that set mean nothing",
        )
    yield Suspect(
        "near_duplicate_prompt",
        near,
        "warning",
        "the prompt nearly repeats an earlier one",
        "keep one of each, unless the repetition is meant",
    )


def unclosed(found: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
    """Pairs with an answer that is an unfinished thought."""
    both = found["chosen_thoughts"] | found["rejected_thoughts"]
    return np.asarray((both & UNCLOSED) != 0)


def odd_suspects(oddities: npt.NDArray[np.uint16]) -> Iterator[Suspect]:
    """Pairs with odd answers; ``oddities`` has a bit for each of ODDITIES."""
    for bit, odd in enumerate(ODDITIES):
        mask = (oddities & np.uint16(1 << bit)) != 0
        yield Suspect(odd.name, mask, odd.severity, odd.what, odd.remedy, dropped_by_fix=False)


def findings_of(
    suspects: Iterable[Suspect], where: Places, partners: npt.NDArray[np.int64], *, rows: int
) -> Iterator[Finding]:
    """A finding for each suspicion that holds of any pair; ``rows`` are all that were read."""
    for one in suspects:
        places = np.flatnonzero(one.mask)
        if not len(places):
            continue
        yield Finding(
            name=one.name,
            count=len(places),
            share=len(places) / rows,
            severity=one.severity,
            what=one.what,
            remedy=one.remedy,
            examples=tuple(
                f"{where[place]} {one.to_partner} {where[partners[place]]}"
                if one.to_partner
                else where[place]
                for place in places[:_EXAMPLES]
            ),
            dropped_by_fix=one.dropped_by_fix,
        )


def language_findings(languages: Languages | None, rows: int) -> Iterator[Finding]:
    """Answers in another language than their prompt, by the sample that was looked at."""
    if languages and languages.either_differs:
        share = languages.either_differs / languages.judged
        yield Finding(
            name="other_language",
            count=languages.either_differs,
            share=languages.either_differs / rows,
            severity="info",
            what=f"in a sample of {languages.sample:,} pairs ({languages.judged:,} of them long "
            f"and clear enough), {100 * share:.1f} % have an answer in another language than the "
            f"prompt: chosen {languages.chosen_differs:,}, rejected {languages.rejected_differs:,}",
            remedy="look at them, unless translation is asked for",
            examples=tuple(languages.examples),
            dropped_by_fix=False,
        )
