"""Prompts that begin alike, as trees: what several share is computed once.

A judge's requests about one prompt share its rubric, the prompt and the first answer. As one
sequence, in which each token sees those before it in its own prompt only and has the position that
it has there, they take one forward pass of fewer tokens, and the same numbers come out but for
rounding. Where that is not clearly cheaper, or a model's attention cannot be told who sees whom
(``prefloop.training.policy.passes`` tries it), nothing is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import DynamicCache

from prefloop.pipeline.engines.kv_cache import GatheredCache, cache_keyword, is_plain
from prefloop.training.policy.passes import passes_of

PromptTokens = tuple[int, ...]
Tree = list[int]
"""Indices of prompts, in lexical order: each begins with what it shares with the one before."""

WORTHWHILE = 0.75
"""Sharing has to bring the cost down to this part; else batches stay as they are, to the last
bit."""
_LARGEST_MASK = 1 << 24
"""Entries of the masks of one forward pass, at most."""
PASS = 64
"""What a forward pass more costs, in tokens."""


@dataclass(frozen=True)
class Work:
    """What sequences cost a model of hidden states ``width`` wide, in tokens without attention."""

    width: int

    def __call__(self, length: int, sequences: int = 1) -> float:
        """24 h^2 for a token's matrices and 4 h L for its attention, a layer."""
        return sequences * length * (1 + length / (6 * self.width))


def shared_lengths(prompts: Sequence[PromptTokens], order: Sequence[int]) -> list[int]:
    """How many tokens each of ``order`` shares with the next, one less than either has at most: a
    prompt has a last token of its own."""
    return [_shared(prompts[one], prompts[other]) for one, other in pairwise(order)]


def _shared(one: PromptTokens, other: PromptTokens) -> int:
    low, high = 0, min(len(one), len(other)) - 1
    while low < high:  # slices compare fast, token by token is slow
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def trees_of(prompts: Sequence[PromptTokens], work: Work) -> list[Tree] | None:
    """``prompts`` (all different) in trees, or None where that is not worth while.

    A prompt joins the tree before it if that costs less than a tree of its own: what it shares
    is spared, but it sees, masked, all of the others.
    """
    if len(prompts) < 2:
        return None
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    trees, sizes = [[order[0]]], [len(prompts[order[0]])]
    for row, shared in zip(order[1:], shared_lengths(prompts, order), strict=True):
        size = sizes[-1] + len(prompts[row]) - shared
        if size**2 <= _LARGEST_MASK and work(size) - work(sizes[-1]) < work(len(prompts[row])):
            trees[-1].append(row)
            sizes[-1] = size
        else:
            trees.append([row])
            sizes.append(len(prompts[row]))
    apart = sum(work(len(prompt)) for prompt in prompts)
    return trees if sum(map(work, sizes)) <= WORTHWHILE * apart else None


def size_of(prompts: Sequence[PromptTokens], tree: Tree) -> int:
    """Tokens of the ``tree``."""
    return sum(len(prompts[row]) for row in tree) - sum(shared_lengths(prompts, tree))


def families_of(model: Any, prompts: Sequence[PromptTokens]) -> list[Tree] | None:
    """Which of ``prompts`` (all different) ``model`` had better compute in one batch, the smallest
    first; None where it makes little difference or the model cannot."""
    trees = trees_of(prompts, Work(width_of(model)))
    if trees is None or not can_share(model):
        return None
    return sorted(trees, key=lambda tree: (size_of(prompts, tree), prompts[tree[0]]))


@dataclass(frozen=True)
class Packed:
    """A tree as one sequence of T tokens."""

    rows: Tree
    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    sees: NDArray[np.bool_]
    """[T, T]"""
    paths: list[NDArray[np.int64]]
    """Where the tokens of each prompt stand."""

    @staticmethod
    def of(prompts: Sequence[PromptTokens], tree: Tree) -> Packed:
        """The ``tree`` of ``prompts``."""
        shared = [0, *shared_lengths(prompts, tree)]
        size = sum(len(prompts[row]) for row in tree) - sum(shared)
        ids, positions = np.zeros(size, np.int64), np.zeros(size, np.int64)
        sees = np.zeros((size, size), np.bool_)
        paths: list[NDArray[np.int64]] = []
        start = 0
        for row, common in zip(tree, shared, strict=True):
            end = start + len(prompts[row]) - common
            ids[start:end] = prompts[row][common:]
            positions[start:end] = np.arange(common, len(prompts[row]))
            before = paths[-1][:common] if paths else np.zeros(0, np.int64)
            sees[start:end, before] = True
            sees[start:end, start:end] = np.tri(end - start, dtype=np.bool_)
            paths.append(np.concatenate([before, np.arange(start, end)]))
            start = end
        return Packed(tree, ids, positions, sees, paths)

    def __len__(self) -> int:
        return len(self.ids)


def passes_over(prompts: Sequence[PromptTokens], work: Work) -> list[list[Packed]] | None:
    """The trees of ``prompts``, those of each forward pass together, or None where it costs less,
    padding counted, to compute each prompt alone."""
    trees = trees_of(prompts, work)
    if trees is None:
        return None
    packed = sorted((Packed.of(prompts, tree) for tree in trees), key=len)
    passes: list[list[Packed]] = [[]]
    for one in packed:
        now = passes[-1]
        padding = len(now) * (len(one) - len(now[-1])) if now else 0
        if now and (padding > PASS or (len(now) + 1) * len(one) ** 2 > _LARGEST_MASK):
            passes.append([])
        passes[-1].append(one)
    cost = sum(work(len(part[-1]), len(part)) + PASS for part in passes)
    alone = work(max(map(len, prompts)), len(prompts)) + PASS
    return passes if cost <= WORTHWHILE * alone else None


@dataclass(frozen=True)
class Inputs:
    """Trees as tensors, [B, T]; padding on the right."""

    ids: torch.Tensor
    positions: torch.Tensor
    sees: torch.Tensor
    """[B, 1, T, T]"""

    @staticmethod
    def of(trees: Sequence[Packed], device: torch.device) -> Inputs:
        """``trees`` on ``device``."""
        size = max(map(len, trees))
        ids, positions = (np.zeros((len(trees), size), np.int64) for _ in range(2))
        sees = np.zeros((len(trees), 1, size, size), np.bool_)
        sees[:, 0, range(size), range(size)] = True  # what sees nothing is NaN in some kernels
        for row, tree in enumerate(trees):
            end = len(tree)
            ids[row, :end], positions[row, :end] = tree.ids, tree.positions
            sees[row, 0, :end, :end] = tree.sees
        return Inputs(*(torch.from_numpy(one).to(device) for one in (ids, positions, sees)))

    def mask(self, additive: torch.dtype | None) -> torch.Tensor:
        """As the attention takes it; ``additive``: as what is added to its scores."""
        if additive is None:
            return self.sees
        least = torch.finfo(additive).min
        return torch.zeros_like(self.sees, dtype=additive).masked_fill_(~self.sees, least)


class SharedPrefill:
    """The forward passes over prompts that share."""

    def __init__(self, model: Any, prompts: Sequence[PromptTokens], copies: Sequence[int]) -> None:
        """Row i of what comes out is of ``prompts[copies[i]]``."""
        self._model = model
        self._lengths = [len(prompt) for prompt in prompts]
        self._rows_of: list[list[int]] = [[] for _ in prompts]
        for row, prompt in enumerate(copies):
            self._rows_of[prompt].append(row)
        self._count = len(copies)
        self._passes = passes_over(prompts, Work(width_of(model)))
        self.pays = self._passes is not None and can_share(model)

    def run(self, capacity: int | None) -> tuple[torch.Tensor, DynamicCache | None]:
        """Logits (float32, [row, vocabulary]) behind each row's prompt, and a cache of
        ``capacity`` positions with each prompt on its own, padded on the left."""
        assert self._passes is not None
        passes, device = passes_of(self._model), self._model.device
        assert passes.head is not None
        width = max(self._lengths)
        kept = capacity and GatheredCache(self._model, self._count, width, capacity)
        logits: torch.Tensor | None = None
        keyword = cache_keyword(passes.model.base_model)
        eager = passes.model.config.get_text_config()._attn_implementation == "eager"
        for trees in self._passes:
            inputs = Inputs.of(trees, device)
            cache = DynamicCache(config=passes.model.config) if kept else None
            hidden = passes.model.base_model(
                inputs.ids,
                attention_mask=inputs.mask(passes.model.dtype if eager else None),
                position_ids=inputs.positions,
                use_cache=cache is not None,
                **{keyword: cache},
            ).last_hidden_state
            rows, of, places = self._destinations(trees, width, device)
            last = passes.head.layer(hidden[of, places[:, -1]])
            if logits is None:
                logits = last.new_empty((self._count, last.shape[-1]), dtype=torch.float32)
            logits[rows] = passes.head.logits(last)
            if kept:
                kept.take(rows, cache, of, places)
        assert logits is not None
        return logits, kept.cache if kept else None

    def _destinations(
        self, trees: Sequence[Packed], width: int, device: torch.device
    ) -> tuple[torch.Tensor, ...]:
        """The rows that ``trees`` fill, the tree of each [row], and where its tokens stand there
        [row, position]: padded on the left with the tree's first token, which the mask hides."""
        rows, of, places = [], [], []
        for number, tree in enumerate(trees):
            for prompt, path in zip(tree.rows, tree.paths, strict=True):
                for row in self._rows_of[prompt]:
                    rows.append(row)
                    of.append(number)
                    places.append(np.pad(path, (width - len(path), 0)))
        found = (np.array(rows), np.array(of), np.stack(places))
        return tuple(torch.from_numpy(one).to(device) for one in found)


def can_share(model: Any) -> bool:
    """Whether ``model`` keeps plain keys and values, and its attention to a mask of one's own."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not is_plain(inner):
        return False
    passes = passes_of(model)
    return passes.head is not None and passes.apart is None


def width_of(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[1])
