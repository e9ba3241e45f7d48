"""Which columns of a preference dataset hold what, told by their names.

A *direct* layout names the preferred answer; a *labelled* one has two answers and a label that
says which is preferred; *completions* has several rated answers in one row (UltraFeedback).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from prefloop.data.errors import InputError
from prefloop.data.preferences.labels import LABELS, PairLabel, key_values, parse_labels

Kind = Literal["direct", "labelled", "completions"]

_FROM_ZERO: Mapping[str, PairLabel] = {"0": "a", "1": "b"}
_ONE_IS_A: Mapping[str, PairLabel] = {"1": "a", "0": "b"}
_SIGNED: Mapping[str, PairLabel] = {
    "-3": "a", "-2": "a", "-1": "a", "0": "tie", "1": "b", "2": "b", "3": "b",
}  # fmt: skip

_PROMPTS = ("prompt", "instruction", "question", "query", "context", "history", "input")
"""Names of a prompt's column, the first that is there wins; an ``input`` beside an
``instruction`` belongs to the prompt, as in Alpaca's layout."""
_SYSTEMS = ("system", "system_prompt")
_DIRECT = (("chosen", "rejected"), ("response_j", "response_k"))
_LABELLED: tuple[tuple[str, str, str, Mapping[str, PairLabel]], ...] = (
    ("human_ref_A", "human_ref_B", "labels", _ONE_IS_A),  # SHP
    ("response_0", "response_1", "better_response_id", _FROM_ZERO),  # PKU-SafeRLHF
    ("response1", "response2", "overall_preference", _SIGNED),  # HelpSteer3
    ("response_1", "response_2", "preference_strength", _SIGNED),  # HelpSteer2
)
_ANSWERS = (
    ("output_1", "output_2"), ("response1", "response2"), ("response_1", "response_2"),
    ("output1", "output2"), ("answer_1", "answer_2"), ("response_a", "response_b"),
    ("answer_a", "answer_b"), ("output_a", "output_b"), ("conversation_a", "conversation_b"),
    ("a", "b"),
)  # fmt: skip
_LABEL_NAMES = ("label", "preference", "winner", "gold")
LABEL_COLUMNS = (*_LABEL_NAMES, *(label for *_, label, _ in _LABELLED))
"""Names of columns that say which answer is preferred."""
_ANNOTATOR = re.compile(r"annotator_?\d+")


@dataclass(frozen=True)
class PreferenceColumns:
    """A user's own names. Either ``chosen`` and ``rejected``, or ``a``, ``b`` and ``label``.

    ``prompt`` may name several columns, whose texts are joined by a blank line. ``labels`` maps
    the label's text (``label_text``) to what it says; empty: ``LABELS``.
    """

    prompt: tuple[str, ...] = ()
    chosen: str | None = None
    rejected: str | None = None
    a: str | None = None
    b: str | None = None
    label: str | None = None
    labels: Mapping[str, PairLabel] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """Where a row's prompt, its two answers (preferred first, if direct) and its labels stand."""

    kind: Kind
    prompt: tuple[str, ...]
    """Empty where the prompt is the beginning of both conversations."""
    a: str
    b: str
    system: str | None = None
    label: tuple[str, ...] = ()
    """Several: annotators, of whom the relative majority decides."""
    labels: Mapping[str, PairLabel] = field(default_factory=dict)
    named: bool = False
    """Whether the meaning of the labels was named, by the user or a known dataset."""

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        names = [*self.prompt, *([self.system] if self.system else []), self.a, self.b, *self.label]
        return list(dict.fromkeys(names))


def find_layout(names: Iterable[str], own: PreferenceColumns | None = None) -> Layout | None:
    """The layout that the columns ``names`` have, or None.

    With ``own``, the layout is what the user says; None where a column of it is missing.
    """
    present = list(names)
    if own is not None and (own.chosen or own.a):
        return _own_layout(present, own)
    found = _known_layout(present, own.prompt if own else ())
    if found and own and own.labels and found.kind == "labelled":
        return Layout(
            "labelled", found.prompt, found.a, found.b, found.system, found.label, own.labels, True
        )
    return found


def parse_columns(text: str) -> PreferenceColumns:
    """``"prompt=instruction+input,a=left,b=right,label=winner"`` as columns.

    Raises :class:`InputError` for an unknown key or an incomplete set.
    """
    given = key_values(text, "--columns", ("prompt", "chosen", "rejected", "a", "b", "label"))
    prompt = tuple(name for name in given.pop("prompt", "").split("+") if name)
    for together in (("chosen", "rejected"), ("a", "b", "label")):
        missing = [key for key in together if key not in given]
        if missing and len(missing) < len(together):
            raise InputError(
                f"--columns {text}: {' and '.join(missing)} missing: "
                "give chosen and rejected, or a, b and label"
            )
    if "chosen" in given and "a" in given:
        raise InputError(f"--columns {text}: give chosen and rejected, or a, b and label, not both")
    return PreferenceColumns(
        prompt,
        chosen=given.get("chosen"),
        rejected=given.get("rejected"),
        a=given.get("a"),
        b=given.get("b"),
        label=given.get("label"),
    )


def named_columns(columns: str | None, labels: str | None) -> PreferenceColumns | None:
    """``--columns`` and ``--labels``. Raises ``InputError`` for what cannot be read."""
    own = parse_columns(columns) if columns else None
    if labels:
        own = replace(own or PreferenceColumns(), labels=parse_labels(labels))
    return own


def _own_layout(present: list[str], own: PreferenceColumns) -> Layout | None:
    prompt = own.prompt or _prompt(present)
    if own.chosen and own.rejected:
        layout = Layout("direct", prompt, own.chosen, own.rejected)
    elif own.a and own.b and own.label:
        labels = own.labels or LABELS
        layout = Layout(
            "labelled", prompt, own.a, own.b, None, (own.label,), labels, bool(own.labels)
        )
    else:
        return None
    return layout if set(layout.columns) <= set(present) else None


def _known_layout(present: list[str], prompt: tuple[str, ...]) -> Layout | None:
    there = set(present)
    if prompt and not set(prompt) <= there:
        return None
    prompt = prompt or _prompt(present)
    system = next((name for name in _SYSTEMS if name in there), None) if prompt else None
    for a, b in _DIRECT:
        if {a, b} <= there:
            return Layout("direct", prompt, a, b, system)
    if "completions" in there and prompt:
        return Layout("completions", prompt, "completions", "completions", system)
    for a, b, label, labels in _LABELLED:
        if {a, b, label} <= there:
            return Layout("labelled", prompt, a, b, system, (label,), labels, True)
    for a, b in _ANSWERS:
        if not {a, b} <= there:
            continue
        single = next((name for name in _LABEL_NAMES if name in there), None)
        labels_in = (single,) if single else tuple(filter(_ANNOTATOR.fullmatch, present))
        if labels_in:
            return Layout("labelled", prompt, a, b, system, labels_in, LABELS)
    return None


def _prompt(present: list[str]) -> tuple[str, ...]:
    if "instruction" in present and "input" in present and "prompt" not in present:
        return ("instruction", "input")
    first = next((name for name in _PROMPTS if name in present), None)
    return (first,) if first else ()
