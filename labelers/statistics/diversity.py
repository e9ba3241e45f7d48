"""How varied the answers of a policy are: training on preferences tends to narrow them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

REPEATED = 3
"""An answer is repetitive where a run of four words occurs at least this often."""
COMPARED = 64
"""Answers that self-BLEU compares at most: its time grows with the square of their number."""
_RUN = 4


def distinct_n(answers: Sequence[str], n: int) -> float | None:
    """Distinct n-grams of words among all n-grams of ``answers``; null where there is none.

    Li et al. 2016 (arXiv 1510.03055, section 5.3), there called distinct-1 and distinct-2. It falls
    with the amount of text, so only equal numbers of answers to the same prompts compare.
    """
    grams = Counter(gram for answer in answers for gram in _grams(answer, n))
    return len(grams) / grams.total() if grams else None


def self_bleu(answers: Sequence[str]) -> float | None:
    """Mean BLEU-4 of each of the first ``COMPARED`` answers against the others; null for fewer
    than two.

    Zhu et al. 2018 (arXiv 1802.01886, section 3.2): 0 where no answer shares four words in
    sequence with another, 1 where all are the same. It rises with the number of answers, so only
    equal numbers compare. Smoothing is method 1 of Chen and Cherry 2014, in nltk.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    texts = [answer.casefold().split() for answer in answers[:COMPARED]]
    if len(texts) < 2:
        return None
    smoothing = SmoothingFunction().method1
    scores = [
        float(sentence_bleu(texts[:at] + texts[at + 1 :], text, smoothing_function=smoothing))
        for at, text in enumerate(texts)
    ]
    return sum(scores) / len(scores)


def repetitive_share(answers: Sequence[str]) -> float:
    """Share of ``answers`` in which a run of four words occurs at least three times.

    Raises ``ValueError`` for no answers.
    """
    if not answers:
        raise ValueError("the share of repetitive answers needs at least one answer")
    return sum(map(is_repetitive, answers)) / len(answers)


def is_repetitive(answer: str) -> bool:
    """Whether a run of four words occurs at least three times; case makes no difference."""
    return max(Counter(_grams(answer, _RUN)).values(), default=0) >= REPEATED


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.casefold().split()
    return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
