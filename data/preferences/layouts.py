"""Which columns of a preference dataset hold what, told by their names.

A *direct* layout names the preferred answer; a *labelled* one has two answers and a label that
says which is preferred; a *scored* one has two answers with a score each; *completions* has
several rated or ranked answers in one row (UltraFeedback, Nectar): the best and the worst count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from prefloop.data.errors import InputError
from prefloop.data.preferences.labels import LABELS, PairLabel, key_values, parse_labels

Kind = Literal["direct", "labelled", "scored", "completions"]

_FROM_ZERO: Mapping[str, PairLabel] = {"0": "a", "1": "b"}
_ONE_IS_A: Mapping[str, PairLabel] = {"1": "a", "0": "b"}
_SIGNED: Mapping[str, PairLabel] = {
    "-3": "a", "-2": "a", "-1": "a", "0": "tie", "1": "b", "2": "b", "3": "b",
}  # fmt: skip

_PROMPTS = ("prompt", "instruction", "question", "query", "context", "history", "input",
            "conversations", "messages")  # fmt: skip
"""Names of a prompt's column, the first that is there wins; an ``input`` beside an
``instruction`` belongs to the prompt, as in Alpaca's layout."""
WHOLE_CONVERSATIONS = (("conversations",), ("messages",))
"""Prompts of these names may hold an answer as well: they count where the answers stand alone."""
PROMPT_KEYS = ("messages", "full_text")
"""Where the prompt stands in a column of objects (OpenAI's files, WebGPT)."""
TIE_STATUS = "tie"
"""What a column ``status`` says of a row whose chosen and rejected were rated alike."""
_SYSTEMS = ("system", "system_prompt")
_DIRECT = (
    ("chosen", "rejected"), ("response_j", "response_k"), ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
)  # fmt: skip
_SCORES_OF_DIRECT = (
    ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"), ("chosen_avg_rating", "rejected_avg_rating"),
    ("rating_chosen", "rating_rejected"),
)  # fmt: skip
_SCORED = (
    ("answer_0", "answer_1", "score_0", "score_1"),  # WebGPT
    ("response_0", "response_1", "score_0", "score_1"),
    ("response_1", "response_2", "score_1", "score_2"),
    ("response_a", "response_b", "score_a", "score_b"),
    ("answer_a", "answer_b", "score_a", "score_b"),
)
_COMPLETIONS = ("completions", "answers")
_WITHOUT_PAIRS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("message_id", "parent_id"),
     "holds messages of trees (as OASST): make pairs of the replies to one message by their ranks"),
    (("message_tree_id", "prompt"),
     "holds trees of messages (as OASST): make pairs of the replies to one message by their ranks"),
    (("completion", "label"),
     "is unpaired data (as for KTO): single answers with labels hold no pair to compare"),
    (("response", "helpfulness"),
     "has one rated answer a row (as HelpSteer): join two rows of one prompt into response_1, "
     "response_2, score_1 and score_2"),
    (("prompt", "completion"), "has one answer a row (as for SFT): there is no pair to compare"),
    (("messages",), "has one conversation a row (as for SFT): there is no pair to compare"),
    (("conversations",), "has one conversation a row (as for SFT): there is no pair to compare"),
)  # fmt: skip
_LABELLED: tuple[tuple[str, str, str, Mapping[str, PairLabel]], ...] = (
    ("human_ref_A", "human_ref_B", "labels", _ONE_IS_A),  # SHP
    ("response_0", "response_1", "better_response_id", _FROM_ZERO),  # PKU-SafeRLHF
    ("response1", "response2", "overall_preference", _SIGNED),  # HelpSteer3
    ("response_1", "response_2", "preference_strength", _SIGNED),  # HelpSteer2
)
_ANSWERS = (
    ("output_1", "output_2"), ("response1", "response2"), ("response_1", "response_2"),
    ("output1", "output2"), ("answer_1", "answer_2"), ("response_a", "response_b"),
    ("answer_a", "answer_b"), ("output_a", "output_b"), ("answer_0", "answer_1"),
    ("conversation_a", "conversation_b"), ("a", "b"),
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
    status: str | None = None
    """Column that marks ties of a direct layout."""
    scores: tuple[str, str] | None = None
    """Columns of a direct layout that say how good each answer is: checked, not relied on."""

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        single = [name for name in (self.system, self.status) if name]
        names = [*self.prompt, *single, self.a, self.b, *self.label, *(self.scores or ())]
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


def why_no_pairs(names: Iterable[str]) -> str | None:
    """What a known dataset with these columns is and what to do, if it holds no pairs."""
    there = set(names)
    return next((words for known, words in _WITHOUT_PAIRS if set(known) <= there), None)


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
            scores = next((both for both in _SCORES_OF_DIRECT if set(both) <= there), None)
            status = "status" if "status" in there else None
            return Layout("direct", prompt, a, b, system, status=status, scores=scores)
    rated = next((name for name in _COMPLETIONS if name in there), None)
    if rated and prompt:
        return Layout("completions", prompt, rated, rated, system)
    for a, b, label, labels in _LABELLED:
        if {a, b, label} <= there:
            return Layout("labelled", prompt, a, b, system, (label,), labels, True)
    for a, b, *of_each in _SCORED:
        if {a, b, *of_each} <= there and not there & {*_LABEL_NAMES}:
            return Layout("scored", prompt, a, b, system, tuple(of_each), named=True)
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
