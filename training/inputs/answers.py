"""Single answers with a label each, as token ids: what KTO and SFT are trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prefloop.data.hashing import content_id
from prefloop.data.protocol import RequestRejected
from prefloop.training.errors import TrainingError
from prefloop.training.inputs.pairs import digest_of
from prefloop.training.inputs.rendering import Rendering
from prefloop.training.inputs.rows import AnswerRow, Dropped, answer_rows
from prefloop.training.inputs.tokens import (
    OVERLONG,
    RenderedPrompts,
    TokenIds,
    answer_ids,
    end_token,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS = 1024


@dataclass(frozen=True)
class Answers:
    """N answers as token ids, and how many more were too long."""

    prompts: list[TokenIds]
    answers: list[TokenIds]
    labels: list[bool]
    """Whether the answer is one to write."""
    dropped_overlong: int

    def __len__(self) -> int:
        return len(self.prompts)

    def lengths(self) -> list[int]:
        """Tokens of prompt and answer of each row."""
        return [len(one) + len(two) for one, two in zip(self.prompts, self.answers, strict=True)]

    def take(self, rows: Sequence[int]) -> Answers:
        """Some of the rows, in the order of ``rows``."""
        return Answers(
            [self.prompts[row] for row in rows],
            [self.answers[row] for row in rows],
            [self.labels[row] for row in rows],
            self.dropped_overlong,
        )

    def digest(self) -> str:
        """Hash of all token ids and labels in their order."""
        return content_id(
            digest_of(self.prompts), digest_of(self.answers), np.array(self.labels).tobytes().hex()
        )


def read_answers(
    shards: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    max_answers: int | None,
    seed: int,
    good_only: bool = False,
    dropped: Dropped | None = None,
    rendering: Rendering | None = None,
) -> Answers:
    """The answers of ``shards``, shuffled by ``seed``; at most ``max_answers`` of them.

    Parquet of ``schemas.UNPAIRED``, or of triples: then chosen answers are good and rejected ones
    bad, each counted once for its prompt, and one that is as often chosen as rejected is left out.
    With ``good_only`` the others are left out too. An answer is dropped and counted if prompt and
    answer, end token included, exceed ``max_length`` tokens, if it cannot be read or the chat
    template refuses its prompt; ``dropped`` says which.

    Raises ``TrainingError`` where nothing is left.
    """
    dropped = Dropped() if dropped is None else dropped
    rows = _labelled(answer_rows(shards, dropped))
    if good_only:
        rows = [row for row in rows if row.good]
    if not rows:
        if dropped.counts:
            raise TrainingError(f"there are no answers to train on: {dropped.said()}")
        raise TrainingError(
            "there are no answers to train on: loosen the filters that dropped all pairs "
            "(prefloop status shows which), or sample more candidates per prompt"
        )
    drawn = np.random.default_rng(seed).permutation(len(rows))[:max_answers]
    end = end_token(tokenizer)
    rendering = rendering or Rendering()
    known = rendering.sampled_ids({row.candidate_id for row in rows if row.candidate_id}, tokenizer)
    prompt_of = RenderedPrompts(tokenizer, rendering.template_kwargs)
    prompts: list[TokenIds] = []
    answers: list[TokenIds] = []
    labels: list[bool] = []
    overlong = 0
    for start in range(0, len(drawn), _ROWS):
        part = [rows[row] for row in drawn[start : start + _ROWS]]
        encoded = answer_ids(tokenizer, (row.text for row in part), end, rendering.template_kwargs)
        asked = [{"answer": row.text, "answer_id": row.candidate_id} for row in part]
        for row, ids in zip(part, known.replace(encoded, asked, "answer"), strict=True):
            try:
                prompt = prompt_of(row.prompt)
            except RequestRejected as refused:
                dropped.add(refused.reason, row.where, refused.detail)
                continue
            length = len(prompt) + len(ids)
            if length > max_length:
                overlong += 1
                dropped.add(OVERLONG, row.where, f"{length} tokens are over {max_length}")
                continue
            prompts.append(prompt)
            answers.append(ids)
            labels.append(row.good)
    if not prompts and overlong == len(drawn):
        raise TrainingError(
            f"each of the {len(drawn)} answers is longer than {max_length} tokens: raise "
            "train.max_length (within the model's context) or lower sample.max_tokens"
        )
    if not prompts:
        raise TrainingError(f"none of the {len(drawn)} answers can be trained on: {dropped.said()}")
    return Answers(prompts, answers, labels, overlong)


def _labelled(rows: Iterable[AnswerRow]) -> list[AnswerRow]:
    """Each answer to a prompt once, with the label that it has more often, in order of arrival."""
    balance: dict[tuple[str, str], int] = {}
    first: dict[tuple[str, str], AnswerRow] = {}
    for row in rows:
        key = (repr(row.prompt), row.text)
        first.setdefault(key, row)
        balance[key] = balance.get(key, 0) + (1 if row.good else -1)
    return [replace(first[key], good=score > 0) for key, score in balance.items() if score != 0]
