"""How varied the answers of a policy are: training on preferences tends to narrow them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

REPEATED = 3
"""An answer is repetitive where a run of four words occurs so often."""
_RUN = 4


def distinct_n(answers: Sequence[str], n: int) -> float | None:
    """Distinct n-grams of words among all n-grams of ``answers``; null where there is none.

    Li et al. 2016 (arXiv 1510.03055, section 5.3), there called distinct-1 and distinct-2. It falls
    with the amount of text, so only equal numbers of answers to the same prompts compare.
    """
    grams = Counter(gram for answer in answers for gram in _grams(answer, n))
    return len(grams) / grams.total() if grams else None


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
