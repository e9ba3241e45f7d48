"""Rows in the layouts of public datasets, as configs and recipes name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TOPICS = ("lanterns", "rivers", "bread", "chess", "bees", "glass", "maps", "snow")

Rows = Sequence[dict[str, Any]]


def question(topic: str) -> str:
    """One that no other is nearly the same as."""
    return f"Tell me something about {topic}."


def answer(topic: str) -> str:
    """One to it."""
    return f"I like {topic}."


def _turns(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]


ULTRAFEEDBACK_BINARIZED: Rows = [
    {
        "prompt": question(topic),
        "prompt_id": f"{number:064x}",
        "messages": _turns(question(topic), answer(topic)),
        "chosen": _turns(question(topic), answer(topic)),
        "rejected": _turns(question(topic), "No."),
        "score_chosen": 8.0,
        "score_rejected": 3.0,
    }
    for number, topic in enumerate(TOPICS)
]
ULTRAFEEDBACK: Rows = [
    {
        "source": "evol_instruct",
        "instruction": question(topic),
        "models": ["a", "b"],
        "completions": [{"response": answer(topic)}, {"response": "No."}],
    }
    for topic in TOPICS
]
TULU: Rows = [
    {
        "id": f"set_{number}",
        "messages": _turns(question(topic), answer(topic)),
        "source": "set",
    }
    for number, topic in enumerate(TOPICS)
]
ALPACA: Rows = [
    {
        "instruction": "Summarise the text." if number % 2 else f"Say something about {topic}.",
        "input": f"A long text about {topic}, and what they are good for." if number % 2 else "",
        "output": answer(topic),
        "text": "Below is an instruction ...",
    }
    for number, topic in enumerate(TOPICS)
]
GSM8K: Rows = [
    {
        "question": f"Ann has {number + 2} boxes of {topic} and finds 2 more. How many has she?",
        "answer": f"She has {number + 2} + 2 = <<{number + 2}+2={number + 4}>>{number + 4}.\n"
        f"#### {number + 4}",
    }
    for number, topic in enumerate(TOPICS)
]
HH: Rows = [
    {
        "chosen": f"\n\nHuman: {question(topic)}\n\nAssistant: {answer(topic)}",
        "rejected": f"\n\nHuman: {question(topic)}\n\nAssistant: No.",
    }
    for topic in TOPICS
]
DISTILABEL: Rows = [
    {
        "instruction": question(topic),
        "topic": topic,
        "generations": [answer(topic), "No."],
        "generation_models": ["meta-llama/Meta-Llama-3-8B-Instruct", "other"],
        "ratings": [5, 2],
        "rationales": ["It answers.", "It does not."],
    }
    for topic in TOPICS
]
"""As its tasks TextGeneration and UltraFeedback leave them."""
