"""How many tokens prompts and judges' questions have, before any of them is sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from prefloop.data.conversations.conversation import as_sampled, characters_of
from prefloop.data.embedded import resolve_embedded
from prefloop.data.prompts.criteria import Criterion
from prefloop.labelers.config import JudgeLabeler, WrittenCriteria
from prefloop.labelers.judges.folder import Judge
from prefloop.labelers.judges.rubric.asked_criteria import criteria_for

CHARACTERS_PER_TOKEN = 4.0
"""Where no tokenizer is at hand."""
TEMPLATE_TOKENS = 8
"""Tokens that a chat template adds to each message."""

_TOKENIZED = 200  # texts from which a tokenizer's characters per token are measured


Rubric = tuple[Criterion, ...] | None
"""The criteria of a prompt; null where it has none that can be read."""


def rubrics_of(labeler: JudgeLabeler, judge: Judge, prompts: pa.Table) -> list[Rubric]:
    """What a judge with a rubric asks about the answers to each prompt; where criteria are written,
    so many as may be."""
    if labeler.writer is not None:
        likely = tuple(
            Criterion(text=f"A statement about the answer that is true or false, {number}.")
            for number in range(1, labeler.writer.most + 1)
        )
        return [likely] * len(prompts)
    found: list[Rubric] = []
    for metadata in prompts["metadata"].to_pylist():
        try:
            found.append(criteria_for(labeler, judge, json.loads(metadata)))
        except ValueError:  # it is not asked about these
            found.append(None)
    return found


class TokenCounter:
    """Estimates tokens by a model's characters per token, measured where its tokenizer is here."""

    def __init__(self, system_prompt: str | None) -> None:
        self._system_prompt = system_prompt
        self.ratios: dict[str, float] = {}
        """Characters per token by model, of those that were measured."""

    def of_prompts(self, prompts: pa.Table, model: str) -> list[float]:
        """Tokens of each prompt as the policy is shown it."""
        shown = [as_sampled(row, self._system_prompt) for row in prompts.to_pylist()]
        texts = [characters_of(turns) for turns in shown]
        ratio = self._characters_per_token(model, texts)
        return [
            len(text) / ratio + TEMPLATE_TOKENS * len(turns)
            for text, turns in zip(texts, shown, strict=True)
        ]

    def of_questions(
        self,
        judge: Judge,
        prompts: pa.Table,
        questions: Sequence[int],
        model: str,
        rubrics: Sequence[Rubric] | None = None,
    ) -> float:
        """Mean tokens of a judge's question without the answers, over all ``questions``; with the
        ``rubrics`` of the prompts where the judge has such."""
        texts, weights, turns = [], [], 0
        of_prompts = rubrics or [None] * len(prompts)
        for row, number, rubric in zip(prompts.to_pylist(), questions, of_prompts, strict=True):
            asked = judge.blank(as_sampled(row, self._system_prompt), row["reference"], rubric)
            texts.append("".join(turn["content"] for turn in asked))
            weights.append(number)
            turns = len(asked)
        if not sum(weights):
            return 0.0
        ratio = self._characters_per_token(model, texts)
        characters = sum(len(text) * weight for text, weight in zip(texts, weights, strict=True))
        return characters / sum(weights) / ratio + TEMPLATE_TOKENS * turns

    def of_writing(self, judge: Judge, prompts: pa.Table, writer: WrittenCriteria) -> float:
        """Mean tokens of the questions for the criteria of prompts."""
        texts = [
            judge.ask_for_criteria(
                as_sampled(row, self._system_prompt), row["reference"], writer.most
            )[0]["content"]
            for row in prompts.to_pylist()
        ]
        characters = sum(map(len, texts)) / max(len(texts), 1)
        return characters / self._characters_per_token(writer.model, texts) + TEMPLATE_TOKENS

    def _characters_per_token(self, model: str, texts: Sequence[str]) -> float:
        tokenizer = _local_tokenizer(model)
        if tokenizer is None:
            return CHARACTERS_PER_TOKEN
        if model not in self.ratios:
            sample = [text for text in texts[:_TOKENIZED] if text]
            encoded = tokenizer.encode_batch(sample, add_special_tokens=False)
            tokens = sum(len(one.ids) for one in encoded)
            self.ratios[model] = sum(map(len, sample)) / tokens if tokens else CHARACTERS_PER_TOKEN
        return self.ratios[model]


@cache
def _local_tokenizer(model: str) -> Any:
    """The tokenizer of a checkpoint folder, or null where there is none on this machine."""
    file = Path(resolve_embedded(model)) / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))
