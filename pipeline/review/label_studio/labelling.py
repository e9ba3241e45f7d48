"""What people see in Label Studio: the texts of a task, the interface, the instructions."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any
from xml.sax.saxutils import quoteattr

from prefloop.data.hashing import content_id
from prefloop.pipeline.review.definition import (
    ANSWER_A,
    ANSWER_B,
    PROMPT,
    REASON,
    VERDICT,
    VERDICTS,
)
from prefloop.pipeline.review.subjects import Subject, cut

PAIR, REVIEW = "pair_id", "review"
"""Data of a task that name what it is about; the interface does not show them."""
SHOWN = (PROMPT, ANSWER_A, ANSWER_B)
"""Data of a task that the interface shows."""


def task(subject: Subject, pushed: dict[str, Any], review_id: str) -> dict[str, Any]:
    """The pair as a task: nothing in it tells who wrote an answer or what anybody thinks of it."""
    data = texts_of(subject, pushed["answer_a_id"], pushed["answer_b_id"])
    return {"data": {**data, PAIR: subject.pair_id, REVIEW: review_id}}


def texts_of(subject: Subject, a: str, b: str) -> dict[str, str]:
    """What is shown of a pair whose candidates ``a`` and ``b`` stand as A and B."""
    return {
        PROMPT: _text(_conversation(subject.messages)),
        ANSWER_A: _text(subject.texts[a]),
        ANSWER_B: _text(subject.texts[b]),
    }


def hash_of(data: dict[str, Any]) -> str:
    """Names the texts that ``data`` of a task shows: what people answered was about these."""
    return content_id(*(repr(data.get(name)) for name in SHOWN))


def interface() -> str:
    """The labelling interface as XML: both answers side by side, and the question."""
    choices = "\n".join(
        f"    <Choice alias={quoteattr(name)} value={quoteattr(said)} hotkey={quoteattr(key)}/>"
        for key, (name, said) in zip("1234", VERDICTS.items(), strict=True)
    )
    return f"""<View>
  <Header value="Conversation"/>
  <View style="white-space: pre-wrap">
    <Text name="{PROMPT}" value="${PROMPT}" valueType="text"/>
  </View>
  <View style="display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; white-space: pre-wrap">
    <View>
      <Header value="Answer A"/>
      <Text name="{ANSWER_A}" value="${ANSWER_A}" valueType="text"/>
    </View>
    <View>
      <Header value="Answer B"/>
      <Text name="{ANSWER_B}" value="${ANSWER_B}" valueType="text"/>
    </View>
  </View>
  <Header value="Which answer is better?"/>
  <Choices name="{VERDICT}" toName="{PROMPT}" choice="single-radio" required="true">
{choices}
  </Choices>
  <TextArea name="{REASON}" toName="{PROMPT}" placeholder="Why? (optional)" rows="2"
            maxSubmissions="1" editable="true"/>
</View>
"""


def instructions(guidelines: str) -> str:
    """The guidelines (Markdown) as HTML for the project's instructions, as they are written."""
    return f'<div style="white-space: pre-wrap">{escape(guidelines)}</div>\n'


def _conversation(messages: Sequence[dict[str, str]]) -> str:
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"[{turn['role']}] {turn['content']}" for turn in messages)


def _text(text: str) -> str:
    return cut(text.replace("\x00", "\N{SYMBOL FOR NULL}"))  # databases refuse the character
