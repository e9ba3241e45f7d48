"""The reward model as a labeler: it scores each answer, and the higher score wins."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Sequence

from prefloop.data.embedded import resolve_embedded
from prefloop.data.protocol import RequestRejected
from prefloop.labelers.base import Answer, Pair, Preference, Vote, vote_on
from prefloop.labelers.config import RewardModelLabeler
from prefloop.labelers.scorers.score_votes import Scored, unscored
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
        # Keyed by the prompt too: what is scored is a whole conversation.
        encoded: dict[tuple[str, str], list[int]] = {}
        scores: dict[tuple[str, str], Scored] = {}
        for pair in pairs:
            for answer in (pair.a, pair.b):
                key = _key(pair, answer)
                if key in encoded or key in scores:
                    continue
                try:
                    encoded[key] = self._scorer.encode(pair.messages, answer.text)
                except RequestRejected as rejected:
                    scores[key] = str(rejected)
        with self._one_at_a_time:
            found = self._scorer.score(list(encoded.values()))
        for key, score in zip(encoded, found.tolist(), strict=True):
            scores[key] = score if math.isfinite(score) else f"not_finite: the score is {score}"
        uncounted = {key: len(ids) for key, ids in encoded.items()}
        return [
            self._vote(
                pair,
                scores[_key(pair, pair.a)],
                scores[_key(pair, pair.b)],
                sum(uncounted.pop(_key(pair, answer), 0) for answer in (pair.a, pair.b)),
            )
            for pair in pairs
        ]

    def _vote(self, pair: Pair, of_a: Scored, of_b: Scored, tokens: int) -> Vote:
        if isinstance(of_a, str) or isinstance(of_b, str):
            return unscored(pair, self.name, of_a, of_b, prompt_tokens=tokens)
        preference, p_a = bradley_terry(of_a, of_b, min_gap=self._min_gap)
        return vote_on(
            pair,
            self.name,
            order="none",
            preference=preference,
            p_a=p_a,
            score_a=of_a,
            score_b=of_b,
            prompt_tokens=tokens,
        )


def bradley_terry(
    score_a: float, score_b: float, *, min_gap: float = 0.0
) -> tuple[Preference, float]:
    """The preference between two finite scores, and P(a preferred to b).

    P = sigma(score_a - score_b): Bradley and Terry 1952, with scores as log-strengths; the model
    behind equation 1 of Ouyang et al. 2022 (arXiv 2203.02155). Scores that differ by no more than
    ``min_gap`` are a tie, which has exactly 0.5.
    """
    gap = score_a - score_b
    if abs(gap) <= min_gap:
        return "tie", 0.5
    smaller = 1.0 / (1.0 + math.exp(min(abs(gap), 700.0)))  # exp overflows at 710
    return ("a", 1.0 - smaller) if gap > 0 else ("b", smaller)


def _key(pair: Pair, answer: Answer) -> tuple[str, str]:
    return pair.prompt_id, answer.candidate_id
