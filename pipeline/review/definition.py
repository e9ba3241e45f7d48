"""What a review looks like in Argilla: fields, questions, metadata, guidelines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from prefloop.data.prompts.criteria import Criterion
from prefloop.pipeline.review.by_criterion.criterion_questions import criterion_questions

Mode = Literal["blind", "assisted"]
"""``blind``: nothing tells what the labelers think. ``assisted``: their decision is suggested."""

PROMPT, ANSWER_A, ANSWER_B = "prompt", "answer_a", "answer_b"
VERDICT, REASON = "verdict", "reason"
VERDICTS = {"a": "A is better", "b": "B is better", "tie": "Tie", "both_bad": "Both bad"}
"""What a person can say, by the value that is kept."""

SHOWN_TO_ALL = ("round", "length_a", "length_b")
"""Metadata that say nothing about the labelers."""
NUMBERS = ("p_chosen", "margin", "agreement")
"""Metadata about the decision."""


def settings(
    *,
    guidelines: str,
    mode: Mode,
    overlap: int,
    labelers: Sequence[str],
    decided: bool,
    criteria: Sequence[Criterion] = (),
) -> Any:
    """The settings (``argilla.Settings``) of a review.

    Text is shown as it is, never as Markdown or HTML: it comes from a model. In blind mode nothing
    that tells the decision is on the server: it lets people filter and sort by what it does not
    show them. ``decided`` is whether the pairs have decisions of labelers, and ``labelers`` are
    those whose verdicts can be filtered by. ``criteria`` are asked about behind the verdict.
    """
    import argilla as rg

    metadata = [
        rg.IntegerMetadataProperty("round"),
        rg.IntegerMetadataProperty("length_a", title="Characters of A"),
        rg.IntegerMetadataProperty("length_b", title="Characters of B"),
    ]
    if mode == "assisted":
        metadata += [
            rg.TermsMetadataProperty("policy_a", title="Policy of A"),
            rg.TermsMetadataProperty("policy_b", title="Policy of B"),
            rg.TermsMetadataProperty("decision", title="Decision"),
            *(rg.FloatMetadataProperty(name) for name in NUMBERS if decided),
            *(
                rg.TermsMetadataProperty(verdict_name(name), title=f"Verdict of {name}")
                for name in labelers
            ),
        ]
    return rg.Settings(
        guidelines=guidelines,
        fields=[
            rg.ChatField(PROMPT, title="Conversation", use_markdown=False),
            rg.TextField(ANSWER_A, title="Answer A", use_markdown=False),
            rg.TextField(ANSWER_B, title="Answer B", use_markdown=False),
        ],
        questions=[
            rg.LabelQuestion(VERDICT, labels=VERDICTS, title="Which answer is better?"),
            *(
                rg.LabelQuestion(one.name, labels=dict(one.labels), title=one.title, required=False)
                for one in criterion_questions(criteria)
            ),
            rg.TextQuestion(REASON, title="Why? (optional)", required=False),
        ],
        metadata=metadata,
        distribution=rg.TaskDistribution(min_submitted=overlap),
        allow_extra_metadata=False,
    )


def verdict_name(labeler: str) -> str:
    """Name of the metadata with a labeler's verdict (Argilla takes a-z, 0-9, _ and -)."""
    return "verdict_" + "".join(
        letter if letter.isalnum() and letter.isascii() else "_" for letter in labeler.lower()
    )
