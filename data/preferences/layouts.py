"""Which columns of a preference dataset hold what, told by their names.

A *direct* layout names the preferred answer; a *labelled* one has two answers and a label that
says which is preferred; a *scored* one has two answers with a score each; *completions* has
several answers in one row, rated or ranked (UltraFeedback, distilabel, Nectar). Where the answers
to a prompt are spread over rows, *single* has one a row (HelpSteer), *messages* are the nodes of
trees (OASST), and *trees* whole trees. *unlabelled* are two answers of which nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prefloop.data.errors import InputError
from prefloop.data.preferences.labels import (
    LABELS,
    PairLabel,
    SeenLabels,
    key_values,
    parse_labels,
)

Kind = Literal[
    "direct", "labelled", "scored", "completions", "unlabelled", "single", "messages", "trees"
]
GATHERED: tuple[Kind, ...] = ("single", "messages", "trees")
"""Kinds of layouts of which a row is not one set of answers to one prompt."""

_FROM_ZERO: Mapping[str, PairLabel] = {"0": "a", "1": "b"}
_ONE_IS_A: Mapping[str, PairLabel] = {"1": "a", "0": "b"}
_FROM_ZERO_TO_TIE: Mapping[str, PairLabel] = {"0": "a", "1": "b", "2": "tie"}
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
    ("response", "rejected_response"), ("messages", "rejected_messages"),  # ms-swift
)  # fmt: skip
_REJECTED_ALONE = ("messages", "rejected_response")
"""ms-swift's: a conversation with the preferred answer, and the text of the other one."""
_SCORES_OF_DIRECT = (
    ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"), ("chosen_avg_rating", "rejected_avg_rating"),
    ("rating_chosen", "rating_rejected"), ("chosen-rating", "rejected-rating"),
)  # fmt: skip
_SCORED = (
    ("answer_0", "answer_1", "score_0", "score_1"),  # WebGPT
    ("response_0", "response_1", "score_0", "score_1"),
    ("response_1", "response_2", "score_1", "score_2"),
    ("response_a", "response_b", "score_a", "score_b"),
    ("answer_a", "answer_b", "score_a", "score_b"),
)
_COMPLETIONS = (
    "completions",
    "answers",
    "generations",
    "responses",
    "candidates",
    "candidates_completions",
    "all_generated_responses",
)
"""Columns with a list of answers: texts, turns or objects."""
_RATINGS = ("ratings", "rating", "scores", "rewards", "all_rm_scores")
"""Columns with a list of numbers, one for each answer of a list: higher is better."""
RANKING = "ranking"
_RANKS = ("ranks", "rank", RANKING)
"""The same, and lower is better."""
_ORDERED = ("output",)
"""A list of answers, the best first (LLaMA-Factory's ranking)."""
_MODELS_OF_LISTS = ("generation_models", "generation_model", "candidate_policies", "model_names")
_MODELS_OF_CHOSEN = (
    ("chosen_model", "rejected_model"), ("chosen-model", "rejected-model"),
    ("chosen_policy", "rejected_policy"), ("policy", "rejected_policy"),
)  # fmt: skip
"""Columns that say who wrote the preferred and the other answer."""
_MODELS_OF_BOTH = (
    ("model_a", "model_b"), ("model_1", "model_2"), ("model1", "model2"),
    ("generator_1", "generator_2"),
)  # fmt: skip
"""Columns that say who wrote the first and the second answer, which of them is preferred or not."""
_MODELS_OF_SINGLES = ("model", "model_name", "generation_model", "generator", "policy")
_SINGLES = ("response", "completion", "answer", "output")
_RANK = "rank"
_RATINGS_OF_SINGLES = ("helpfulness", "score", "rating", "reward", "overall_score", _RANK)
UNPAIRED = ("label", "kto_tag")
"""Columns that say of a single answer whether it is a good one (as for KTO)."""
_TREE_NODES = ("message_id", "parent_id", "text", "role")
_KTO = "is unpaired data (as for KTO): single answers with labels hold no pair to compare"
_WITHOUT_PAIRS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("prompt", "completions", "labels"),
     "has the steps of one answer a row, each with a label (as for process reward models): steps "
     "are no answers, so there is no pair to compare"),
    (("completion", "label"), _KTO), (("messages", "label"), _KTO),
    (("conversations", "label"), _KTO), (("kto_tag",), _KTO),
    (("prompt", "completion"), "has one answer a row (as for SFT): there is no pair to compare"),
    (("messages",), "has one conversation a row (as for SFT): there is no pair to compare"),
    (("conversations",), "has one conversation a row (as for SFT): there is no pair to compare"),
)  # fmt: skip
_LABELLED: tuple[tuple[str, str, str, Mapping[str, PairLabel]], ...] = (
    ("human_ref_A", "human_ref_B", "labels", _ONE_IS_A),  # SHP
    ("response_0", "response_1", "better_response_id", _FROM_ZERO),  # PKU-SafeRLHF
    ("response1", "response2", "overall_preference", _SIGNED),  # HelpSteer3
    ("response_1", "response_2", "preference_strength", _SIGNED),  # HelpSteer2
    ("response 1", "response 2", "label", _FROM_ZERO_TO_TIE),  # Auto-J
)
_ARENA = ("winner_model_a", "winner_model_b", "winner_tie")
"""Of LMSYS's 55k comparisons: one of them is 1. Its prompts and answers are lists of texts, one a
turn, written as JSON."""
_ANSWERS = (
    ("output_1", "output_2"), ("response1", "response2"), ("response_1", "response_2"),
    ("output1", "output2"), ("answer_1", "answer_2"), ("response_a", "response_b"),
    ("answer_a", "answer_b"), ("output_a", "output_b"), ("answer_0", "answer_1"),
    ("conversation_a", "conversation_b"), ("a", "b"),
    ("response_A", "response_B"),  # JudgeBench
    ("response 1", "response 2"),  # Auto-J
)  # fmt: skip
LABEL_NAMES = ("label", "preference", "winner", "gold")
"""Names of a label's column in files of no known dataset."""
LABEL_COLUMNS = (*LABEL_NAMES, *(label for *_, label, _ in _LABELLED))
"""Names of columns that say which answer is preferred."""
_KEYS = ("prompt", "chosen", "rejected", "a", "b", "label", "answers", "ratings", "ranks")
_ROUNDS = ("conversation_a", "conversation_b"), "turn"
"""Columns of whole conversations, and the one that says how many rounds of them were judged."""
_ANNOTATOR = re.compile(r"annotator_?\d+")


@dataclass(frozen=True)
class PreferenceColumns:
    """A user's own names. Either ``chosen`` and ``rejected``, or ``a``, ``b`` and ``label``, or
    ``answers``.

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
    answers: str | None = None
    """Instead of two answers: a column with a list of them."""
    ratings: str | None = None
    """Column with a list of numbers, one for each of ``answers``: higher is better."""
    ranks: str | None = None
    """The same, and lower is better."""


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
    """Whether the meaning of the labels, or of ranks, was named, by the user or a known dataset."""
    status: str | None = None
    """Column that marks ties of a direct layout."""
    scores: tuple[str, str] | None = None
    """Columns of a direct layout that say how good each answer is: checked, not relied on."""
    ratings: str | None = None
    """Column with the ratings of a list of answers, or of the one answer of a row."""
    ranked: bool = False
    """Whether lower ratings are better."""
    ordered: bool = False
    """Whether a list of answers has the best first."""
    history: str | None = None
    """Column with the questions and answers before the prompt."""
    rounds: str | None = None
    """Column that says how many questions of the conversations the label is about: the answers are
    those to the last of them (MT-bench has two rounds in every row, and judges either)."""
    by_turns: bool = False
    """Whether prompt and answers are lists of texts, one for each turn, and the ``label`` columns
    say yes or no: the first answer, the second, a tie."""
    models: tuple[str, ...] = ()
    """Columns that say who wrote the answers: of two, or of a list."""
    rivals: tuple[str, ...] = ()
    """Columns that by their names could hold the label as well."""
    more: str | None = None
    """The column of a third answer, which is not read."""
    shared: bool = False
    """Whether the second answer, a text, replies to the turns before the first one."""
    beside: Layout | None = None
    """Where a direct layout's two answers are taken from a list in the row: that list."""

    def look(self, labels: SeenLabels, fields: Mapping[str, Any]) -> None:
        """Take a row's labels in where the file itself has to show what they mean."""
        from_zero = self.labels is _FROM_ZERO_TO_TIE
        if self.more is not None and fields.get(self.more):
            return  # the row is refused: its label may be about the third answer
        if self.kind == "labelled" and (from_zero or not self.named):
            labels.look_at_answers(self.a, self.b)
            for name in self.label:
                labels.look(fields.get(name), name, from_zero=from_zero)

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        return [*self.texts_and_labels, *filter(None, [self.rounds, self.more]), *self.rivals]

    @property
    def texts_and_labels(self) -> list[str]:
        """The columns of which a row's prompt, answers and labels are made."""
        single = [self.system, self.status, self.ratings, self.history]
        names = [*self.prompt, *filter(None, single), self.a, self.b, *self.label]
        names += [*(self.scores or ()), *self.models, *(self.beside.columns if self.beside else ())]
        return list(dict.fromkeys(names))

    @property
    def answers(self) -> tuple[str, ...]:
        """The columns without which a row has no answers or no label."""
        return (self.a, self.b, *(self.label if len(self.label) == 1 else ()))


def find_layout(
    names: Iterable[str], own: PreferenceColumns | None = None, *, unlabelled: bool = False
) -> Layout | None:
    """The layout that the columns ``names`` have, or None.

    With ``own``, the layout is what the user says; None where a column of it is missing.
    ``unlabelled``: answers of which nothing says which is better will do.
    """
    present = list(names)
    if own is not None and (own.chosen or own.a or own.answers):
        return _own_layout(present, own)
    prompt = own.prompt if own else ()
    found = _known_layout(present, prompt)
    if found is None and unlabelled:
        found = _unlabelled_layout(present, prompt)
    if found and found.kind in ("labelled", "scored", "unlabelled"):
        found = replace(found, more=_third(found.b, present))
    if found and own and own.labels and found.kind == "labelled":
        return replace(found, labels=own.labels, named=True)
    return found


def label_columns(own: PreferenceColumns | None) -> tuple[str, ...]:
    """The columns in which a label may stand, by their usual names or the user's."""
    return (*LABEL_COLUMNS, *(filter(None, (own.label,)) if own else ()))


def models_of_pair(names: Iterable[str]) -> tuple[str, ...]:
    """The two columns that say who wrote the first and the second answer; none where there are not
    both."""
    return _both((*_MODELS_OF_CHOSEN, *_MODELS_OF_BOTH), set(names))


def _both(known: Iterable[tuple[str, str]], names: Collection[str]) -> tuple[str, ...]:
    """The first of the ``known`` pairs of columns that is among ``names``; none where none is."""
    return next((both for both in known if both[0] in names and both[1] in names), ())


def steps_in(names: Iterable[str]) -> str | None:
    """What a dataset with these columns is, where its rows hold the steps of an answer."""
    known, words = _WITHOUT_PAIRS[0]
    return words if set(known) <= set(names) else None


def why_no_pairs(names: Iterable[str]) -> str | None:
    """What a known dataset with these columns is and what to do, if it holds no pairs."""
    there = set(names)
    return next((words for known, words in _WITHOUT_PAIRS if set(known) <= there), None)


def parse_columns(text: str) -> PreferenceColumns:
    """``"prompt=instruction+input,a=left,b=right,label=winner"`` as columns.

    Raises :class:`InputError` for an unknown key or an incomplete set.
    """
    given = key_values(text, "--columns", _KEYS)
    prompt = tuple(name for name in given.pop("prompt", "").split("+") if name)
    for together in (("chosen", "rejected"), ("a", "b", "label")):
        missing = [key for key in together if key not in given]
        if missing and len(missing) < len(together):
            raise InputError(
                f"--columns {text}: {' and '.join(missing)} missing: "
                "give chosen and rejected, or a, b and label"
            )
    kinds = [key for key in ("chosen", "a", "answers") if key in given]
    if len(kinds) > 1:
        raise InputError(
            f"--columns {text}: give chosen and rejected, or a, b and label, or answers, not both"
        )
    numbers = [key for key in ("ratings", "ranks") if key in given]
    if (numbers and "answers" not in given) or len(numbers) > 1:
        raise InputError(f"--columns {text}: give ratings or ranks, and with them answers")
    return PreferenceColumns(
        prompt,
        chosen=given.get("chosen"),
        rejected=given.get("rejected"),
        a=given.get("a"),
        b=given.get("b"),
        label=given.get("label"),
        answers=given.get("answers"),
        ratings=given.get("ratings"),
        ranks=given.get("ranks"),
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
    elif own.answers:
        layout = Layout(
            "completions", prompt, own.answers, own.answers, named=True,
            ratings=own.ratings or own.ranks, ranked=own.ranks is not None,
        )  # fmt: skip
    else:
        return None
    others = [name for name in present if name not in layout.columns]
    system = next((name for name in _SYSTEMS if name in others), None)
    earlier = "history" if "history" in others and prompt else None
    rounds = _rounds(layout.a, layout.b, others)
    layout = replace(layout, system=system, history=earlier, rounds=rounds)
    if layout.kind == "direct":
        layout = _with_words_on_chosen(layout, others)
    return layout if set(layout.columns) <= set(present) else None


def _known_layout(present: list[str], prompt: tuple[str, ...]) -> Layout | None:
    there = set(present)
    if prompt and not set(prompt) <= there:
        return None
    if {*_TREE_NODES} <= there:
        return Layout(
            "messages", ("message_id", "parent_id", "role"), "text", "text", ratings="rank",
            ranked=True, models=tuple(there & {"model_name"}),
        )  # fmt: skip
    if "message_tree_id" in there and "prompt" in there and "chosen" not in there:
        return Layout("trees", ("prompt",), "prompt", "prompt", ratings="rank", ranked=True)
    prompt = prompt or _prompt(present)
    system = next((name for name in _SYSTEMS if name in there), None)
    earlier = "history" if "history" in there and "history" not in prompt and prompt else None
    models = _both(_MODELS_OF_BOTH, there)
    listed = _listed_layout(present, prompt)
    for a, b in _DIRECT:
        if {a, b} <= there:
            layout = Layout("direct", prompt, a, b, system, history=earlier, beside=listed)
            return _with_words_on_chosen(layout, there)
    if {*_REJECTED_ALONE} <= there:
        layout = Layout("direct", (), *_REJECTED_ALONE, system, shared=True)
        return _with_words_on_chosen(layout, there)
    if listed and (listed.ratings or listed.a in _COMPLETIONS[:2]):
        return replace(listed, system=system, history=earlier)
    if {"prompt", "response_a", "response_b", *_ARENA} <= there:
        return Layout(
            "labelled", ("prompt",), "response_a", "response_b", None, _ARENA, named=True,
            models=models, by_turns=True,
        )  # fmt: skip
    for a, b, label, labels in _LABELLED:
        if {a, b, label} <= there:
            return Layout(
                "labelled", prompt, a, b, system, (label,), labels, True, history=earlier,
                models=models,
            )  # fmt: skip
    for a, b, *of_each in _SCORED:
        if {a, b, *of_each} <= there and not there & {*LABEL_NAMES}:
            return Layout(
                "scored", prompt, a, b, system, tuple(of_each), named=True, history=earlier,
                models=models,
            )  # fmt: skip
    for a, b in _ANSWERS:
        if not {a, b} <= there:
            continue
        named = [name for name in LABEL_NAMES if name in there]
        labels_in = tuple(named[:1] or filter(_ANNOTATOR.fullmatch, present))
        if labels_in:
            return Layout(
                "labelled", prompt, a, b, system, labels_in, LABELS, history=earlier, models=models,
                rounds=_rounds(a, b, there), rivals=tuple(named[1:]),
            )  # fmt: skip
    rating = next((name for name in _RATINGS_OF_SINGLES if name in there), None)
    answer = next((name for name in _SINGLES if name in there), None)
    if rating and answer and prompt:
        writer = next((name for name in _MODELS_OF_SINGLES if name in there), None)
        return Layout(
            "single", prompt, answer, answer, system, ratings=rating, ranked=rating == _RANK,
            history=earlier,
            models=(writer,) if writer else (),
        )  # fmt: skip
    if listed:
        return replace(listed, system=system, history=earlier)
    others = any({a, b} <= there for a, b in _ANSWERS)  # beside them, output is a reference
    if "instruction" in prompt and there & {*_ORDERED} and not others:
        return Layout("completions", prompt, *2 * _ORDERED, system, ordered=True, history=earlier)
    return None


def _with_words_on_chosen(layout: Layout, names: Collection[str]) -> Layout:
    """A direct layout with the columns among ``names`` that say more of its answers: that they were
    a tie, how good each is, and who wrote it."""
    return replace(
        layout,
        status="status" if "status" in names else None,
        scores=next(
            (both for both in _SCORES_OF_DIRECT if both[0] in names and both[1] in names), None
        ),
        models=_both(_MODELS_OF_CHOSEN, names),
    )


def _listed_layout(present: list[str], prompt: tuple[str, ...]) -> Layout | None:
    """A list of answers, and what is said about each."""
    there = set(present)
    answers = next((name for name in _COMPLETIONS if name in there), None)
    if answers is None or not prompt:
        return None
    ratings = next((name for name in (*_RATINGS, *_RANKS) if name in there), None)
    if answers == "completions" and ratings is None and "labels" in there:
        return None  # steps of one answer (see ``_WITHOUT_PAIRS``)
    models = next((name for name in _MODELS_OF_LISTS if name in there), None)
    return Layout(
        "completions", prompt, answers, answers, ratings=ratings, ranked=ratings in _RANKS,
        models=(models,) if models else (),
    )  # fmt: skip


def _unlabelled_layout(present: list[str], prompt: tuple[str, ...]) -> Layout | None:
    """Answers of which nothing says which is better: two of them, or one a row."""
    there = set(present)
    if prompt and not set(prompt) <= there:
        return None
    prompt = prompt or _prompt(present)
    if not prompt:
        return None
    system = next((name for name in _SYSTEMS if name in there), None)
    earlier = "history" if "history" in there and "history" not in prompt else None
    for a, b in _ANSWERS:
        if {a, b} <= there:
            models = _both(_MODELS_OF_BOTH, there)
            return Layout(
                "unlabelled", prompt, a, b, system, history=earlier, models=models,
                rounds=_rounds(a, b, there),
            )  # fmt: skip
    answer = next((name for name in _SINGLES if name in there), None)
    if answer is None and prompt in WHOLE_CONVERSATIONS:
        answer = prompt[0]  # a conversation with its answer, as for SFT or KTO
    if answer is None:
        return None
    return single_of(Layout("single", prompt, answer, answer, system, history=earlier), there)


def single_of(layout: Layout, names: Collection[str]) -> Layout:
    """The layout of a row that has one answer, and no list of them, in a column of ``layout``, with
    all that the columns ``names`` say of it."""
    of_each = (*UNPAIRED, *_RATINGS_OF_SINGLES)
    ratings = next((name for name in of_each if name in names), None)
    writer = next((name for name in _MODELS_OF_SINGLES if name in names), None)
    return replace(
        layout,
        kind="single",
        ordered=False,
        ratings=ratings,
        ranked=ratings == _RANK,
        models=(writer,) if writer else (),
    )


def _third(b: str, names: Collection[str]) -> str | None:
    """The column among ``names`` that goes on counting behind that of the second answer, ``b``."""
    following = {"1": "2", "2": "3", "b": "c", "B": "C"}.get(b[-1])
    third = f"{b[:-1]}{following}"
    return third if len(b) > 1 and following and third in names else None


def _rounds(a: str, b: str, names: Collection[str]) -> str | None:
    answers, rounds = _ROUNDS
    return rounds if (a, b) == answers and rounds in names else None


def _prompt(present: list[str]) -> tuple[str, ...]:
    if "instruction" in present and "input" in present and "prompt" not in present:
        return ("instruction", "input")
    first = next((name for name in _PROMPTS if name in present), None)
    return (first,) if first else ()
