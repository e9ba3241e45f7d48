"""The reward model as a labeler: it scores each answer, and the higher score wins."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from prefloop.data.embedded import resolve_embedded
from prefloop.data.protocol import RequestRejected
from prefloop.labelers.base import Answer, Pair, Vote
from prefloop.labelers.config import RewardModelLabeler
from prefloop.labelers.scorers.score_votes import ScoredAnswer, bradley_terry_votes
from prefloop.labelers.scorers.sequence_scores import SequenceScorer


class RewardModel:
    """Votes by the scores of a sequence-classification model with one output.

    An answer that cannot be scored (longer than the model's context, refused by its chat
    template, a score that is not finite) makes the votes on its pairs invalid, with the reason in
    ``completion``.
    """

    def __init__(self, config: RewardModelLabeler, checkpoint: str | None = None) -> None:
        """``checkpoint``: the folder of the model; null: ``config.model`` is that folder.

        The model is loaded here. Raises ``LabelerError`` where there is no reward model in it.
        """
        self.name = config.name
        self._min_gap = config.min_gap
        self._scorer = SequenceScorer(
            checkpoint or resolve_embedded(config.model),
            device=config.device,
            dtype=config.dtype,
            batch_tokens=config.batch_tokens,
            max_length=config.max_length,
            trust_remote_code=config.trust_remote_code,
        )
        # Blocks are labelled at the same time, and the memory is there for one batch.
        self._one_at_a_time = threading.Lock()

    async def label(self, pairs: Sequence[Pair], *, block: str) -> list[Vote]:  # noqa: ARG002
        """One vote (order ``none``) for each pair. Each answer is scored once, however many pairs
        it is in, and its tokens are counted in the first vote about it. Scoring runs in a thread,
        so that engines are not kept waiting."""
        return await asyncio.to_thread(self._label, pairs)

    def _label(self, pairs: Sequence[Pair]) -> list[Vote]:
        return bradley_terry_votes(pairs, self.name, self._min_gap, self._score)

    def _score(self, asked: Sequence[tuple[Pair, Answer]]) -> list[ScoredAnswer]:
        encoded: list[list[int] | str] = []
        for pair, answer in asked:
            try:
                encoded.append(self._scorer.encode(pair.messages, answer.text))
            except RequestRejected as rejected:
                encoded.append(str(rejected))
        with self._one_at_a_time:
            scores = self._scorer.score([ids for ids in encoded if not isinstance(ids, str)])
        score = iter(scores.tolist())
        return [
            ScoredAnswer(ids, 0) if isinstance(ids, str) else ScoredAnswer(next(score), len(ids))
            for ids in encoded
        ]
