"""All answers that a row has to its prompt, with who wrote them and what is said of each.

An audit takes two of them for its pair; whoever labels them again takes all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefloop.data.conversations.reasoning import answer_alone
from prefloop.data.preferences.layouts import TIE_STATUS, UNPAIRED, Layout
from prefloop.data.preferences.pair_rows import (
    Comparison,
    answers_left_out,
    compare,
    explicit_prompt,
    field_of,
    is_null,
    parse_comparison,
    prompt_turns,
    rated_answers,
    several_texts,
    tools_beside,
    with_system,
)
from prefloop.data.preferences.ratings import RatedAnswer, as_number, as_rating, model_name, text_of
from prefloop.data.preferences.transcripts import (
    WholeTurn,
    check_answer,
    check_prompt,
    split_answer,
)
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.rows import RawRow, bad, finite, text_or_number
from prefloop.data.sources.tool_turns import PROMPT_TURNS, TOOLS, full_turns, read_alike
from prefloop.data.sources.turns import Turn, Unusable, conversation_in
from prefloop.data.sources.written import looks_like_list
from prefloop.data.utf8 import is_blank, is_text

_OF_VERDICT: Mapping[str, tuple[float, float]] = {
    "a": (1.0, 0.0), "b": (0.0, 1.0), "tie": (0.5, 0.5),
}  # fmt: skip


@dataclass(frozen=True)
class FoundAnswer:
    """One answer to a prompt."""

    text: str
    rating: float | None
    """Higher is better, among the answers of the set; null where nothing is said of it."""
    model: str | None
    """Who wrote it, where the data say so."""
    row: int
    """1-based row (line) of its source."""


@dataclass(frozen=True)
class AnswerSet:
    """Answers to one prompt that were given together."""

    source: str
    row: int
    prompt: list[Turn]
    answers: tuple[FoundAnswer, ...]
    left_out: int = 0
    """Answers without text."""
    absolute: bool = False
    """Whether ratings are scores of each answer, and not just an order."""
    ties: bool = True
    """Whether equal ratings say that neither answer is better."""
    reference: str | None = None
    metadata: str = "{}"
    """JSON object of the row's other columns."""
    tools: str | None = None
    """The tools that could be called, as prompts have them; null where the row has none."""
    turns: str | None = None
    """The prompt's turns as chat templates take them, as prompts have them; null where all are
    role and content."""


def parse_set(raw: RawRow, layout: Layout) -> AnswerSet | BadRow:
    """The answers in ``raw``; the reasons of a bad row are those of ``pair_rows``."""
    try:
        return _parse(raw, layout)
    except Unusable as problem:
        return bad(raw, problem.field, problem.reason, problem.detail)
    except RecursionError:
        return bad(raw, None, "too_deep", "values are nested too deeply: flatten them")


def parse_comparisons(raw: RawRow, layout: Layout) -> list[Comparison] | BadRow:
    """As ``parse_comparison``; of a row with lists of good and of bad answers (RewardBench 2) every
    good one against every bad one."""
    found = parse_comparison(raw, layout)
    if isinstance(found, BadRow) or not has_lists(raw, layout):
        return found if isinstance(found, BadRow) else [found]
    given = parse_set(raw, replace(layout, beside=None))
    if isinstance(given, BadRow):
        return given
    good, bad_ones = ([one.text for one in given.answers if one.rating == r] for r in (1.0, 0.0))
    return [Comparison(found.prompt, one, other, "a") for one in good for other in bad_ones]


def has_lists(raw: RawRow, layout: Layout) -> bool:
    """Whether a row has several answers that are equally good, or equally bad."""
    if layout.kind != "direct" or raw.fields.get(layout.status or "") == TIE_STATUS:
        return False
    return answers_left_out(raw.fields, replace(layout, beside=None)) > 0


@dataclass(frozen=True)
class AboutRow:
    """What a row says beside its prompt, its answers and their labels."""

    reference: str | None
    """An answer known to be good. One of the row's own answers is none: it would be given away."""
    tools: str | None
    """The tools that may be called, as prompts have them; null where it has none."""
    turns: str | None
    """The prompt's turns as chat templates take them, as prompts have them; null where all are
    role and content."""
    others: dict[str, Any]
    """Its other columns: none that the layout reads, so that no label is among them."""


def about_row(
    raw: RawRow, layout: Layout, prompt: Sequence[WholeTurn], answers: Iterable[str]
) -> AboutRow:
    """What ``raw`` says beside its ``prompt`` and its ``answers``. Raises :class:`Unusable`."""
    said = text_or_number(raw.fields.get("reference"))
    reference = None if said is None else answer_alone(said)
    tools, turns = tools_beside(raw, layout), prompt_turns(prompt, layout)
    used = {*layout.texts_and_labels, "reference"}
    used |= {name for name, read in ((TOOLS, tools), (PROMPT_TURNS, turns)) if read}
    others = {name: value for name, value in raw.fields.items() if name not in used}
    if (
        reference is None
        or is_blank(reference)
        or not is_text(reference)
        or reference.strip() in {answer_alone(one).strip() for one in answers}
    ):
        reference = None
    return AboutRow(reference, tools, turns, others)


def _parse(raw: RawRow, layout: Layout) -> AnswerSet:
    fields = raw.fields
    if layout.kind == "single" and layout.a in layout.prompt:
        return _of_conversation(raw, layout)
    if layout.kind in ("completions", "single"):
        return _of_list(raw, layout, explicit_prompt(fields, layout))
    found = compare(fields, layout)
    models = [model_name(fields.get(name)) for name in layout.models] or [None, None]
    beside = _listed(raw, layout.beside, found.prompt) if layout.beside else None
    listed_too = beside and {found.first, found.second} <= {one.text for one in beside.answers}
    if beside and listed_too and not _says_otherwise(beside, found):
        return beside
    if layout.kind == "scored":
        ratings = [as_number(fields[name]) for name in layout.label]
    elif layout.kind == "unlabelled":
        ratings = [None, None]
    else:
        ratings = list(_OF_VERDICT[found.verdict])
    texts: list[tuple[str, float | None, str | None]] = []
    for name, text, rating, model in zip(
        (layout.a, layout.b), (found.first, found.second), ratings, models, strict=True
    ):
        value = fields[name]
        listed = several_texts(value) and not layout.by_turns
        every = [check_answer(one, name) for one in value] if listed else [text]
        texts += [(one, rating, model) for one in every]
    return AnswerSet(
        raw.source,
        raw.row,
        read_alike(found.prompt),
        tuple(FoundAnswer(*one, raw.row) for one in texts),
        left_out=len(beside.answers) - 2 if beside and listed_too else 0,
        absolute=layout.kind == "scored",
        ties=len(texts) == 2,
        **_about(raw, layout, found.prompt, [text for text, _, _ in texts]),
    )


def _says_otherwise(listed: AnswerSet, found: Comparison) -> bool:
    """Whether the list rates the answer that the row calls rejected above the chosen one: the pair
    is what was asked for, and the list may belong to other answers in another order."""
    ratings = {one.text: one.rating for one in listed.answers}
    first, second = ratings[found.first], ratings[found.second]
    return first is not None and second is not None and first < second


def _listed(raw: RawRow, layout: Layout, prompt: list[WholeTurn]) -> AnswerSet | None:
    """The list beside a pair, where it can be read and says what is better."""
    try:
        found = _of_list(raw, layout, prompt)
    except Unusable:
        return None
    return found if any(answer.rating is not None for answer in found.answers) else None


def _of_list(raw: RawRow, layout: Layout, prompt: list[WholeTurn]) -> AnswerSet:
    fields = raw.fields
    value = field_of(fields, layout.a)
    if layout.kind == "single" or (isinstance(value, str) and not looks_like_list(value)):
        entries = [_single(fields, value, layout)]
    else:
        entries = rated_answers(fields, layout)
    with_text = [one for one in entries if not _is_empty(one.value)]
    if not with_text:
        raise Unusable(layout.a, "empty_answer", "no answer holds text: delete the row")
    answers = [
        FoundAnswer(text_of(one.value, layout.a), one.rating, one.model, raw.row)
        for one in with_text
    ]
    return AnswerSet(
        raw.source,
        raw.row,
        read_alike(prompt),
        tuple(answers),
        left_out=len(entries) - len(answers),
        absolute=all(one.absolute for one in entries if one.rating is not None),
        # Good answers beside good ones, and bad beside bad, are not compared by unpaired data.
        ties=not (layout.kind == "single" and layout.ratings in UNPAIRED),
        **_about(raw, layout, prompt, [answer.text for answer in answers]),
    )


def _of_conversation(raw: RawRow, layout: Layout) -> AnswerSet:
    """The last turn of a whole conversation as the one answer to those before it."""
    value = field_of(raw.fields, layout.a)
    found = conversation_in(value, layout.a) or []
    before, answer = split_answer([turn for _, turn in full_turns(found, layout.a)], layout.a)
    rated = _single(raw.fields, answer, layout)
    prompt = check_prompt(with_system(before, raw.fields, layout), layout.a)
    return AnswerSet(
        raw.source,
        raw.row,
        read_alike(prompt),
        (FoundAnswer(answer, rated.rating, rated.model, raw.row),),
        absolute=rated.absolute,
        ties=layout.ratings not in UNPAIRED,
        **_about(raw, layout, prompt, [answer]),
    )


def _single(fields: Mapping[str, Any], value: Any, layout: Layout) -> RatedAnswer:
    said = fields.get(layout.ratings) if layout.ratings else None
    rating = as_rating(said)
    if rating is not None and layout.ranked:
        rating = -rating
    model = model_name(fields.get(layout.models[0])) if layout.models else None
    absolute = rating is not None and not layout.ranked and layout.ratings not in UNPAIRED
    return RatedAnswer(value, rating, model, absolute)


def _is_empty(value: Any) -> bool:
    return is_null(value) or value == [] or (isinstance(value, str) and is_blank(value))


def _about(
    raw: RawRow, layout: Layout, prompt: Sequence[WholeTurn], answers: Iterable[str]
) -> dict[str, Any]:
    """The same as fields of an :class:`AnswerSet`. Raises :class:`Unusable`."""
    found = about_row(raw, layout, prompt, answers)
    return {
        "reference": found.reference,
        "metadata": _json(found.others),
        "tools": found.tools,
        "turns": found.turns,
    }


def _json(values: Mapping[str, Any]) -> str:
    text = json.dumps(finite(values), ensure_ascii=False, default=str)
    return text if is_text(text) else json.dumps(finite(values), default=str)
