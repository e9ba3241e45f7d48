"""From a raw row to a pair: every layout, and everything that can be wrong with a row.

This is the definition. ``prefloop.data.preferences.columns`` does the same for the regular rows of
a Parquet file, many at a time, and gives all other rows to this module.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefloop.data.conversations.reasoning import answer_alone
from prefloop.data.preferences.by_turns import pair_by_turns, verdict_of_flags
from prefloop.data.preferences.labels import LABELS, PairLabel, known_labels, read_label
from prefloop.data.preferences.layouts import (
    PROMPT_KEYS,
    RANKING,
    TIE_STATUS,
    WHOLE_CONVERSATIONS,
    Layout,
)
from prefloop.data.preferences.ratings import (
    RatedAnswer,
    answers_in,
    as_number,
    best_and_worst,
    by_scores,
    in_order,
    model_name,
    refuse_order,
)
from prefloop.data.preferences.transcripts import (
    WholeTurn,
    check_answer,
    check_prompt,
    check_unicode,
    split_answer,
)
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.rows import RawRow, bad
from prefloop.data.sources.tool_turns import (
    PROMPT_TURNS,
    TOOLS,
    full_turns,
    read_alike,
    tools_of,
    turns_json,
    with_calls,
)
from prefloop.data.sources.turns import Unusable, conversation_in, refuse_null_word, refuse_texts
from prefloop.data.utf8 import is_blank, is_null_word, is_text, listed, says_nothing, shown

_TO_FOLLOW = {"role": "assistant", "content": ""}
"""How a transcript ends whose answer stands elsewhere."""

PairRow = dict[str, Any]
"""A row of ``PREFERENCE``."""


@dataclass(frozen=True)
class Comparison:
    """Two answers to a prompt in the order in which the row has them, and which is preferred."""

    prompt: list[WholeTurn]
    """A turn that calls a tool, or answers a call, has what chat templates are given of it too."""
    first: str
    second: str
    verdict: PairLabel
    """``a``: the first."""

    def without_thoughts(self) -> Comparison:
        """The same of the answers alone; blank where there is a thought and no answer."""
        return replace(self, first=answer_alone(self.first), second=answer_alone(self.second))


def parse_pair(raw: RawRow, layout: Layout) -> PairRow | BadRow:
    """The pair in ``raw``: a row of ``PREFERENCE``.

    A bad row's reason is one of ``parse_comparison``'s, or ``tie`` (readable, but nothing is
    preferred).
    """
    found = parse_comparison(raw, layout)
    if isinstance(found, BadRow):
        return found
    if found.verdict == "tie":
        return bad(
            raw,
            (layout.label or (layout.a,))[0],
            "tie",
            "neither answer is preferred: no pair to learn from",
        )
    try:
        turns = prompt_turns(found.prompt, layout)
    except Unusable as problem:
        return bad(raw, problem.field, problem.reason, problem.detail)
    chosen, rejected = found.first, found.second
    if found.verdict == "b":
        chosen, rejected = rejected, chosen
    return {
        "row": raw.row,
        "source": raw.source,
        "prompt": read_alike(found.prompt),
        "chosen": chosen,
        "rejected": rejected,
        "prompt_turns": turns,
        "tools": tools_beside(raw, layout),
    }


def prompt_turns(prompt: Sequence[WholeTurn], layout: Layout) -> str | None:
    """The turns of a prompt as chat templates take them, as JSON; null where all are role and
    content. Raises :class:`Unusable`."""
    turns = turns_json(prompt)
    if turns is not None:
        check_unicode(turns, layout.prompt[0] if layout.prompt else layout.a)
    return turns


def tools_beside(raw: RawRow, layout: Layout) -> str | None:
    """What may be called in a row, as prompts have it; null also where a column of that name is
    about something else."""
    if TOOLS in layout.columns:
        return None
    said = raw.fields.get(TOOLS)
    asked = raw.fields.get(layout.prompt[0]) if layout.prompt else None
    if is_null(said) and isinstance(asked, Mapping):
        said = asked.get(TOOLS)  # beside the turns in one object, as in OpenAI's files
    try:
        tools = tools_of(said, TOOLS)
    except Unusable:
        return None
    return tools if tools is None or is_text(tools) else None


def parse_comparison(raw: RawRow, layout: Layout) -> Comparison | BadRow:
    """What ``raw`` says about two answers; of rated completions the best and the worst.

    A bad row's reason is ``missing_column``, ``null``, ``wrong_type``, ``empty`` (prompt),
    ``empty_answer``, ``not_utf8``, ``bad_messages``, ``prompts_differ``, ``bad_label``,
    ``labels_differ``, ``third_answer``, ``missing_rating`` or ``too_deep``.
    """
    try:
        return compare(raw.fields, layout)
    except Unusable as problem:
        return bad(raw, problem.field, problem.reason, problem.detail)
    except RecursionError:
        return bad(raw, None, "too_deep", "values are nested too deeply: flatten them")


def compare(fields: Mapping[str, Any], layout: Layout) -> Comparison:
    """As :func:`parse_comparison`. Raises :class:`Unusable` for what it gives as a bad row."""
    if layout.by_turns:
        names = (*layout.prompt, layout.a, layout.b)
        found = pair_by_turns({name: field_of(fields, name) for name in names})
        if layout.kind == "direct":
            return Comparison(*found, "a")
        flags = {name: field_of(fields, name) for name in layout.label}
        return Comparison(*found, verdict_of_flags(flags))
    if layout.kind == "completions":
        prompt = explicit_prompt(fields, layout)
        return Comparison(prompt, *best_and_worst(rated_answers(fields, layout), layout.a))
    _refuse_third(fields, layout)
    # A row whose prompt is null reads as in a file without that column.
    given = any(_is_given(fields.get(name)) for name in layout.prompt)
    may_hold_answers = layout.prompt in WHOLE_CONVERSATIONS
    explicit = explicit_prompt(fields, layout) if given and not may_hold_answers else None
    if explicit is not None:
        _refuse_turns_as_answers(fields, layout, explicit)
    rounds = as_number(fields.get(layout.rounds)) if layout.rounds else None
    before_a, a = _answer(fields, layout.a, rounds)
    before_b, b = _answer(fields, layout.b, rounds)
    if layout.shared and not before_b:
        before_b = before_a
    if given and may_hold_answers and not (before_a and before_b):
        explicit = explicit_prompt(fields, layout)
    null = layout.prompt[0] if layout.prompt else None
    prompt = _prompt_of(explicit, before_a, layout.a, null)
    if read_alike(prompt) != read_alike(_prompt_of(explicit, before_b, layout.b, null)):
        raise Unusable(
            layout.b,
            "prompts_differ",
            f"the turns before the answer differ from those in {layout.a!r}: the two answers "
            "cannot be compared; delete the row",
        )
    prompt = with_system(prompt, fields, layout)
    if layout.kind == "scored":
        scores = {name: field_of(fields, name) for name in layout.label}
        return Comparison(prompt, a, b, by_scores(scores))
    if layout.kind == "unlabelled":
        return Comparison(prompt, a, b, "tie")
    tied = layout.status is not None and fields.get(layout.status) == TIE_STATUS
    verdict = "a" if layout.kind == "direct" else _verdict(fields, layout)
    return Comparison(prompt, a, b, "tie" if tied else verdict)


def rated_answers(fields: Mapping[str, Any], layout: Layout) -> list[RatedAnswer]:
    """The answers of a layout of the kind ``completions``. Raises :class:`Unusable`."""
    value = field_of(fields, layout.a)
    if layout.ordered:
        return in_order(value, layout.a)
    if layout.ratings == RANKING and not layout.named:
        refuse_order(fields.get(RANKING), RANKING)
    return answers_in(
        value,
        layout.a,
        ratings=fields.get(layout.ratings) if layout.ratings else None,
        models=fields.get(layout.models[0]) if layout.models else None,
        ranked=layout.ranked,
    )


def answers_left_out(fields: Mapping[str, Any], layout: Layout) -> int:
    """How many answers a row that holds a pair has beyond the two of the pair."""
    listed = layout.beside or layout
    if listed.kind == "completions":
        value = fields.get(listed.a)
        return max(len(value) - 2, 0) if isinstance(value, list) else 0
    both = (fields.get(name) for name in (layout.a, layout.b))
    return sum(len(value) - 1 for value in both if isinstance(value, list) and several_texts(value))


def several_texts(value: Any) -> bool:
    """Whether ``value`` is a list of answers that are equally good or bad (RewardBench 2)."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def field_of(fields: Mapping[str, Any], name: str) -> Any:
    """The value of a column. Raises :class:`Unusable` where there is none."""
    if name not in fields:
        raise Unusable(
            name,
            "missing_column",
            f"the row has no {name!r}, only {listed(fields) or 'nothing'}: add it, "
            "or name the columns with --columns",
        )
    if is_null(fields[name]):
        raise Unusable(name, "null", "write the text, or delete the row")
    return fields[name]


def is_null(value: Any) -> bool:
    """Null, or what pandas writes for it: NaN in JSON, in columns of numbers."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_given(value: Any) -> bool:
    return not is_null(value) and not (isinstance(value, str) and is_null_word(value))


def _answer(
    fields: Mapping[str, Any], name: str, rounds: float | None
) -> tuple[list[WholeTurn], str]:
    """The turns before an answer (none where the column holds the answer alone), and it. Of a
    conversation, those up to the answer to question number ``rounds``; null: to the last."""
    value = field_of(fields, name)
    if several_texts(value):
        value = value[0]  # of several good or bad answers, any may be compared
    turns = conversation_in(value, name)
    if turns is not None:
        said = [turn for _, turn in full_turns(turns, name)]
        asked = [place for place, turn in enumerate(said) if turn["role"] == "user"]
        if rounds is not None and 1 <= rounds < len(asked):
            said = said[: asked[int(rounds)]]
        return split_answer(said, name)
    return [], check_answer(_text(value, name), name)


def _refuse_third(fields: Mapping[str, Any], layout: Layout) -> None:
    """Raise :class:`Unusable` where a third answer stands beside the two: a label or a score may be
    its, and it would be left out without a word."""
    third = fields.get(layout.more) if layout.more else None
    if is_null(third) or third == [] or (isinstance(third, str) and is_blank(third)):
        return
    raise Unusable(
        str(layout.more),
        "third_answer",
        f"is an answer beside {layout.a!r} and {layout.b!r}: write all of them as a list in one "
        "column, responses, with their ratings in another, or name two and their label with "
        "--columns prompt=..,a=..,b=..,label=..",
    )


def _refuse_turns_as_answers(
    fields: Mapping[str, Any], layout: Layout, prompt: Sequence[WholeTurn]
) -> None:
    """Raise :class:`Unusable` where both lists of answers begin with what was asked: they are
    conversations, and their first text is no answer."""
    asked = prompt[-1]["content"].strip()
    lists: list[Any] = [fields.get(name) for name in (layout.a, layout.b)]
    if all(several_texts(one) and len(one) > 1 and one[0].strip() == asked for one in lists):
        raise Unusable(
            layout.a,
            "bad_messages",
            "is a list of texts that begins with the prompt, as that of the other answer does: "
            "write turns as {role, content}, or the answer alone",
        )


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        kind = type(value).__name__
        raise Unusable(
            name, "wrong_type", f"is of type {kind} where text is needed: quote it, or delete it"
        )
    return value


def explicit_prompt(fields: Mapping[str, Any], layout: Layout) -> list[WholeTurn]:
    """The prompt of its own columns. Several columns are joined, blank ones left out."""
    name = layout.prompt[0]
    if len(layout.prompt) == 1:
        value = field_of(fields, name)
    else:
        parts = [fields.get(column) for column in layout.prompt]
        texts = [
            _text(part, column)
            for part, column in zip(parts, layout.prompt, strict=True)
            if not is_null(part)
        ]
        value = "\n\n".join(text for text in texts if not is_blank(text))
    if isinstance(value, Mapping):
        value = next((value[key] for key in PROMPT_KEYS if value.get(key) is not None), value)
    found = conversation_in(value, name)
    if found is not None:
        turns = [turn for _, turn in full_turns(found, name)]
        if isinstance(value, str) and turns and turns[-1] == _TO_FOLLOW:
            turns.pop()
        turns = with_calls(turns, fields.get(PROMPT_TURNS))
    else:
        turns = [{"role": "user", "content": _text(value, name)}]
        refuse_null_word(turns[0]["content"], name)
        refuse_texts(turns[0]["content"], name)
    if layout.history is not None:
        turns = [*earlier_turns(fields.get(layout.history), layout.history), *turns]
    return check_prompt(with_system(turns, fields, layout), name)


def with_system(
    turns: list[WholeTurn], fields: Mapping[str, Any], layout: Layout
) -> list[WholeTurn]:
    """``turns`` behind the system prompt of its own column, unless they have one. Raises
    :class:`Unusable`."""
    system = fields.get(layout.system) if layout.system else None
    if is_null(system) or (isinstance(system, str) and says_nothing(system)):
        return turns
    if not isinstance(system, str):
        kind = type(system).__name__
        raise Unusable(
            str(layout.system), "wrong_type", f"is of type {kind} where text is needed: quote it"
        )
    if not turns or turns[0]["role"] == "system":
        return turns
    check_unicode(system, str(layout.system))
    return [{"role": "system", "content": system}, *turns]


def earlier_turns(value: Any, name: str) -> list[WholeTurn]:
    """The turns of a list of questions with their answers. Raises :class:`Unusable`."""
    if is_null(value) or value == "" or value == []:
        return []
    turns: list[WholeTurn] = []
    for both in value if isinstance(value, list) else [None]:
        if not (isinstance(both, list) and len(both) == 2 and several_texts(both)):
            raise Unusable(
                name,
                "bad_messages",
                "is no list of [question, answer]: mend it, or name the columns with --columns",
            )
        turns += [{"role": "user", "content": both[0]}, {"role": "assistant", "content": both[1]}]
    return turns


def _prompt_of(
    explicit: list[WholeTurn] | None, before: list[WholeTurn], name: str, null: str | None
) -> list[WholeTurn]:
    """What an answer replies to: the turns before it in its own column, unless the prompt's
    column ends with these very turns and so says the same or more (a system turn). ``null`` is the
    prompt's column where it holds none."""
    said = read_alike(before)
    if explicit is not None and read_alike(explicit)[len(explicit) - len(said) :] == said:
        return explicit
    if not before and null is not None:
        raise Unusable(null, "null", "write the prompt, or delete the row")
    if not before:
        raise Unusable(
            name,
            "missing_column",
            "there is no prompt, neither in a column of its own nor before the answer: name its "
            "column with --columns prompt=NAME,chosen=NAME,rejected=NAME",
        )
    return before


def _verdict(fields: Mapping[str, Any], layout: Layout) -> PairLabel:
    """The label, or the relative majority of the annotators; no majority is a tie."""
    votes = Counter(_label(fields, name, layout) for name in layout.label)
    (first, most), *others = votes.most_common(2)
    for rival in layout.rivals:
        said = _said(fields.get(rival), fields, layout)
        if said is not None and said != first:
            raise Unusable(
                layout.label[0],
                "labels_differ",
                f"{shown(repr(fields[layout.label[0]])[:80])} says another answer than the column "
                f"{rival!r} does, {shown(repr(fields[rival])[:80])}: name the one that is meant "
                "with --columns prompt=..,a=..,b=..,label=..",
            )
    return "tie" if others and others[0][1] == most else first


def _label(fields: Mapping[str, Any], name: str, layout: Layout) -> PairLabel:
    value = field_of(fields, name)
    said = _said(value, fields, layout)
    if said is not None:
        return said
    raise Unusable(
        name,
        "bad_label",
        f"the label {shown(repr(value)[:80])} is none of {known_labels(layout.labels)}: say what "
        "it means with --labels",
    )


def _said(value: Any, fields: Mapping[str, Any], layout: Layout) -> PairLabel | None:
    """What ``value`` says as a label; None where that is not known."""
    said = read_label(value, layout.labels, layout.a, layout.b)
    if said is None:
        said = _model_named(value, fields, layout)
    number = as_number(value)
    if said is None and layout.labels is LABELS and number is not None and 1 < number < 2:
        said = "a" if number < 1.5 else "b"  # AlpacaEval's weighted preferences
    return said


def _model_named(value: Any, fields: Mapping[str, Any], layout: Layout) -> PairLabel | None:
    """The answer whose writer, and not the other's, ``value`` names."""
    named, writers = model_name(value), [model_name(fields.get(one)) for one in layout.models]
    if named is None or writers.count(named) != 1:
        return None
    return "a" if writers[0] == named else "b"
