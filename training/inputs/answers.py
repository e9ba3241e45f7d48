"""Single answers with a label each, as token ids: what KTO and SFT are trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from prefloop.data.hashing import content_id
from prefloop.training.errors import TrainingError
from prefloop.training.inputs.pairs import answer_of, digest_of
from prefloop.training.inputs.tokens import TokenIds, answer_ids, end_token, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS = 1024
_ANSWERS = {"chosen", "rejected"}


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
) -> Answers:
    """The answers of ``shards``, shuffled by ``seed``; at most ``max_answers`` of them.

    Parquet of ``schemas.UNPAIRED``, or of triples: then chosen answers are good and rejected ones
    bad, each counted once for its prompt, and one that is as often chosen as rejected is left out.
    With ``good_only`` the others are left out too. An answer is dropped and counted if prompt and
    answer, end token included, exceed ``max_length`` tokens.

    Raises ``TrainingError`` where nothing is left.
    """
    rows = _labelled(row for shard in shards for row in _rows(shard))
    if good_only:
        rows = [row for row in rows if row[2]]
    if not rows:
        raise TrainingError(
            "there are no answers to train on: loosen the filters that dropped all pairs "
            "(prefloop status shows which), or sample more candidates per prompt"
        )
    drawn = np.random.default_rng(seed).permutation(len(rows))[:max_answers]
    end = end_token(tokenizer)
    seen: dict[str, TokenIds] = {}
    prompts: list[TokenIds] = []
    answers: list[TokenIds] = []
    labels: list[bool] = []
    for start in range(0, len(drawn), _ROWS):
        part = [rows[row] for row in drawn[start : start + _ROWS]]
        for (messages, _, label), ids in zip(
            part, answer_ids(tokenizer, (text for _, text, _ in part), end), strict=True
        ):
            key = repr(messages)
            prompt = seen.get(key)
            if prompt is None:
                prompt = seen[key] = prompt_ids(tokenizer, messages)
            if len(prompt) + len(ids) <= max_length:
                prompts.append(prompt)
                answers.append(ids)
                labels.append(label)
    if not prompts:
        raise TrainingError(
            f"each of the {len(drawn)} answers is longer than {max_length} tokens: raise "
            "train.max_length (within the model's context) or lower sample.max_tokens"
        )
    return Answers(prompts, answers, labels, len(drawn) - len(prompts))


def _rows(shard: Path) -> Iterable[tuple[list[dict[str, str]], str, bool]]:
    """(prompt, answer, label) of each answer of a shard; two for a triple."""
    names = pq.read_schema(shard).names
    single = "completion" in names
    wanted = {"prompt", "prompt_id"} | ({"completion", "label"} if single else _ANSWERS)
    table = pq.read_table(shard, columns=[name for name in names if name in wanted])
    for batch in table.to_batches(max_chunksize=_ROWS):
        for row in batch.to_pylist():
            if single:
                yield row["prompt"], answer_of(row, "completion"), bool(row["label"])
            else:
                yield row["prompt"], answer_of(row, "chosen"), True
                yield row["prompt"], answer_of(row, "rejected"), False


def _labelled(
    rows: Iterable[tuple[list[dict[str, str]], str, bool]],
) -> list[tuple[list[dict[str, str]], str, bool]]:
    """Each answer to a prompt once, with the label that it has more often, in order of arrival."""
    balance: dict[tuple[str, str], int] = {}
    prompts: dict[str, Any] = {}
    for messages, text, label in rows:
        key = repr(messages)
        prompts.setdefault(key, messages)
        balance[key, text] = balance.get((key, text), 0) + (1 if label else -1)
    return [(prompts[key], text, score > 0) for (key, text), score in balance.items() if score != 0]
