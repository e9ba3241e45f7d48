"""Answers behind a prompt that they share: one sequence, in which each sees the prompt and itself.

Exact: a token has the position and sees the tokens that it would have and see in a sequence of its
prompt and its answer alone. The prompt is computed once.

Imports torch: import this module inside functions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prefloop.training.inputs.tokens import TokenIds


@dataclass(frozen=True)
class Bundle:
    """A prompt and answers to it."""

    prompt: TokenIds
    answers: tuple[TokenIds, ...]

    @property
    def packed(self) -> int:
        """Tokens of prompt and answers in one sequence."""
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def longest(self) -> int:
        """Tokens of prompt and longest answer."""
        return len(self.prompt) + max(map(len, self.answers))

    def apart(self) -> list[Bundle]:
        """A bundle for each answer."""
        return [Bundle(self.prompt, (answer,)) for answer in self.answers]


@dataclass(frozen=True)
class Batch:
    """Bundles as tensors: B sequences of L tokens, N answer tokens in the order of bundles and
    their answers."""

    ids: torch.Tensor
    """[B, L], with any token for padding, on the right."""
    positions: torch.Tensor
    """[B, L], of each token in the sequence of its prompt and its own answer."""
    part: torch.Tensor
    """[B, L], 0 for the prompt, n for the n-th answer, -1 for padding."""
    spots: tuple[torch.Tensor, torch.Tensor]
    """Row and column [N] of the token before each answer token."""
    tokens: torch.Tensor
    """Answer tokens [N]."""
    answer: torch.Tensor
    """[N], which answer each is of."""

    def mask(self, *, additive: torch.dtype | None = None) -> torch.Tensor:
        """Whether a token [B, 1, L, L] sees another; ``additive``: as what is added to scores."""
        part = self.part
        # Padding sees itself: a row that sees nothing is NaN in some kernels.
        sees = (part[:, :, None] == part[:, None, :]) | (part[:, None, :] == 0)
        sees = sees.tril()[:, None]
        if additive is None:
            return sees
        least = torch.finfo(additive).min
        return torch.zeros_like(sees, dtype=additive).masked_fill_(~sees, least)


def batch_of(bundles: Sequence[Bundle], device: torch.device) -> Batch:
    """``bundles`` as tensors on ``device``."""
    length = max(one.packed for one in bundles)
    ids = np.zeros((len(bundles), length), np.int64)  # 0: any valid id pads
    positions = np.zeros_like(ids)
    part = np.full_like(ids, -1)
    rows, columns, tokens, owners = [], [], [], []
    answers = 0
    for row, bundle in enumerate(bundles):
        asked = len(bundle.prompt)
        ids[row, :asked] = bundle.prompt
        positions[row, :asked] = np.arange(asked)
        part[row, :asked] = 0
        start = asked
        for number, answer in enumerate(bundle.answers, start=1):
            end = start + len(answer)
            ids[row, start:end] = answer
            positions[row, start:end] = asked + np.arange(len(answer))
            part[row, start:end] = number
            before = np.arange(start - 1, end - 1)
            before[:1] = asked - 1
            rows.append(np.full(len(answer), row))
            columns.append(before)
            tokens.append(answer)
            owners.append(np.full(len(answer), answers))
            start, answers = end, answers + 1
    flat = [np.concatenate(one).astype(np.int64) for one in (rows, columns, tokens, owners)]
    at = [torch.from_numpy(one).to(device) for one in (ids, positions, part, *flat)]
    return Batch(at[0], at[1], at[2], (at[3], at[4]), at[5], at[6])


def is_cheaper_packed(bundles: Sequence[Bundle], width: int) -> bool:
    """Whether a model ``width`` wide has clearly less to compute for ``bundles`` in one sequence
    each than for each answer behind its own copy of the prompt."""
    length = max(one.packed for one in bundles)
    if len(bundles) * length**2 > _LARGEST_MASK:
        return False
    packed = _work(len(bundles), length, width)
    answers = sum(len(one.answers) for one in bundles)
    return packed < _WORTHWHILE * _work(answers, max(one.longest for one in bundles), width)


_LARGEST_MASK = 1 << 28
"""Entries of a mask, at most."""
_WORTHWHILE = 0.95
"""A mask of its own makes attention a little slower."""


def _work(sequences: int, length: int, width: int) -> float:
    """Of a layer, in units that cancel: 24 h^2 for a token's matrices, 4 h L for its attention."""
    return sequences * length * (1 + length / (6 * width))
