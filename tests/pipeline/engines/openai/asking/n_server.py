"""A server that gives ``n`` answers to one request, or does with ``n`` what other servers do."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.helpers.servers import Handler, status

PROMPT = 10
"""Tokens of any prompt."""


@dataclass
class Several:
    """Answers as vLLM does: the answer ``i`` of a request with seed ``s`` is drawn by ``s + i``, so
    that it says. Tests spoil single answers in ``choices``, or the whole."""

    honours: bool = True
    most: int = 1000
    """What it refuses more answers than."""
    refuses: str | None = None
    """What it says to a request for several."""
    code: int = 400
    tokens: str | None = "token_ids"
    """How it tells which tokens an answer has."""
    usage: bool = True
    spoils: dict[int, Any] = field(default_factory=dict)
    """What stands in the place of an answer, by its index, in a request for several."""
    order: int = 1
    """-1: the last answer comes first."""

    def __call__(self, handler: Handler) -> None:
        body = handler.body
        n = body.get("n", 1)
        if n > 1 and (self.refuses or n > self.most):
            said = self.refuses or f"'n' must be at most {self.most}"
            status(self.code, said)(handler)
            return
        handler.send(200, json.dumps(self.answer(body, n if self.honours else 1)))

    def answer(self, body: Any, n: int) -> dict[str, Any]:
        """All of it."""
        texts = [text_of(body.get("seed", 0) + index) for index in range(n)]
        choices = [self.choice(index, text, "prompt" in body) for index, text in enumerate(texts)]
        if n > 1:
            choices = [self.spoils.get(index, choice) for index, choice in enumerate(choices)]
        answer: dict[str, Any] = {
            "choices": [choice for choice in choices if choice != "lacks"][:: self.order]
        }
        if self.usage:
            answer["usage"] = {
                "prompt_tokens": PROMPT,
                "completion_tokens": sum(map(tokens_of, texts)),
            }
        return answer

    def choice(self, index: int, text: str, is_text: bool) -> dict[str, Any]:
        """One answer."""
        said = {"text": text} if is_text else {"message": {"role": "assistant", "content": text}}
        choice: dict[str, Any] = {"index": index, "finish_reason": "stop", **said}
        if self.tokens == "token_ids":
            choice["token_ids"] = list(range(tokens_of(text)))
        elif self.tokens == "logprobs":  # without the end token, as OpenAI's
            steps = [{"token": "x", "logprob": -0.5}] * (tokens_of(text) - 1)
            choice["logprobs"] = {"content": steps}
        return choice


def text_of(seed: int) -> str:
    """The answer that is drawn by ``seed``: one to four words."""
    return " ".join([f"seed {seed}."] * (1 + seed % 4))


def tokens_of(text: str) -> int:
    """Tokens of an answer, its end token included."""
    return len(text.split()) + 1
