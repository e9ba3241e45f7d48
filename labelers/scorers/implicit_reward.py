"""A policy and its reference as a labeler: how much likelier training made an answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from prefloop.data.protocol import AnsweredPrompt, Likelihood, Likelihoods, RequestRejected
from prefloop.labelers.base import Answer, Pair, Vote
from prefloop.labelers.config import ImplicitRewardLabeler
from prefloop.labelers.scorers.score_votes import ScoredAnswer, bradley_terry_votes


class ImplicitReward:
    """Votes by the implicit rewards of answers, see ``ImplicitRewardLabeler``.

    An answer that has none (longer than the context of a model, refused by the chat template, or
    nothing at all: empty and cut off) makes the votes on its pairs invalid, with the reason in
    ``completion``.
    """

    def __init__(self, config: ImplicitRewardLabeler, likelihoods: Likelihoods) -> None:
        """``likelihoods``: those under the config's two models."""
        self.name = config.name
        self._config = config
        self._likelihoods = likelihoods
        # Blocks are labelled at the same time, and the memory is there for one batch.
        self._one_at_a_time = threading.Lock()

    async def label(self, pairs: Sequence[Pair], *, block: str) -> list[Vote]:  # noqa: ARG002
        """One vote (order ``none``) for each pair. Each answer is scored once, however many pairs
        it is in; what both models read for it is counted in the first vote about it. Scoring runs
        in a thread, so that engines are not kept waiting."""
        return await asyncio.to_thread(self._label, pairs)

    def _label(self, pairs: Sequence[Pair]) -> list[Vote]:
        return bradley_terry_votes(pairs, self.name, self._config.min_gap, self._score)

    def _score(self, asked: Sequence[tuple[Pair, Answer]]) -> list[ScoredAnswer]:
        answers = [
            AnsweredPrompt(pair.messages, answer.text, answer.complete) for pair, answer in asked
        ]
        with self._one_at_a_time:
            found = self._likelihoods(answers)
        return [self._scored(one) for one in found]

    def _scored(self, found: Likelihood | RequestRejected) -> ScoredAnswer:
        if isinstance(found, RequestRejected):
            return ScoredAnswer(str(found), 0)
        reward = self._config.beta * (found.policy - found.reference)
        if self._config.per_token:
            reward /= found.tokens
        return ScoredAnswer(reward, 2 * found.read)
