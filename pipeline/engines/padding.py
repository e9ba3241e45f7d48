"""Prompts of very different lengths, computed apart.

In one batch all are padded to the longest: one prompt of 1,500 tokens among 63 of 50 makes the
model read twenty times as many tokens as there are. Where decoding apart costs less than that, a
batch is cut; else it stays as it is, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from prefloop.pipeline.engines.prefixes import PASS, WORTHWHILE, PromptTokens, Work

BatchRow = TypeVar("BatchRow")


def cut_by_length(
    rows: Sequence[BatchRow], prompts: Sequence[PromptTokens], work: Work, passes: int
) -> Iterator[Sequence[BatchRow]]:
    """``rows`` in the batches that cost least.

    ``prompts``: that of each row, the shortest first; rows of one prompt share its reading.
    ``passes``: forward passes of a batch at most, one for each new token.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    costs = np.array([work(int(length)) for length in lengths])
    is_new = [at == 0 or prompt != prompts[at - 1] for at, prompt in enumerate(prompts)]
    number = np.cumsum(is_new)
    spared = np.where(is_new[1:], number[:-1] * (costs[-1] - costs[:-1]), 0.0)
    if not len(spared):
        yield rows
        return
    whole, at = number[-1] * costs[-1], int(spared.argmax())
    if spared[at] <= max(PASS * passes, (1 - WORTHWHILE) * whole):
        yield rows
        return
    for part in (slice(at + 1), slice(at + 1, None)):
        yield from cut_by_length(rows[part], prompts[part], work, passes)
