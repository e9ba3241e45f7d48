"""A model's forward passes over a batch whose rows come and go.

All sequences of the batch end at one column of its cache, that of the newest token, and begin where
their lengths say: prompts stand left-padded, positions and mask are kept in step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from prefloop.pipeline.engines.kv_cache import (
    SeatedCache,
    arguments_of,
    cache_keyword,
    in_place_cache,
)
from prefloop.pipeline.engines.prefixes import PromptTokens, SharedPrefill


class Stepper:
    """Forward passes over the rows of ``batches``: the first are there from the start, later ones
    wait for places of rows that have ended.

    With one batch nothing waits, and its cache is the one that its prompts were read into.
    """

    def __init__(
        self, model: PreTrainedModel, batches: Sequence[Sequence[PromptTokens]], budget: int
    ) -> None:
        """``budget``: new tokens of a row, at most."""
        self._reader = _Reader(model)
        self._batches = deque(batches)
        self.waiting = sum(map(len, batches))
        self._width = max(len(prompt) for batch in batches for prompt in batch)
        self._capacity = self._width + budget if budget > 1 else None
        self._longest = self._width + budget - 1
        self._cache: DynamicCache | None = None
        self._seated: SeatedCache | None = None
        self._unseated: deque[PromptTokens] = deque()
        self._read: _Read | None = None  # of the batch that the unseated are of

    def begin(self) -> torch.Tensor:
        """Logits (float32, [row, vocabulary]) of the first token of the first batch's rows."""
        device = self._reader.device
        self._first, self._end = 0, self._width
        if len(self._batches) > 1:
            rows = len(self._batches[0])
            assert self._capacity is not None, "rows of one token have no turns"
            self._seated = SeatedCache(self._reader.model, rows, self._width, self._capacity)
            self._cache = self._seated.cache
            self._starts = torch.zeros(rows, dtype=torch.long, device=device)
            self._positions = torch.zeros((rows, 1), dtype=torch.long, device=device)
            return self.seat(torch.arange(rows, device=device))
        [prompts] = self._batches
        self.waiting = 0
        logits, self._cache = self._reader.read(prompts, self._capacity)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self._starts, self._positions = self._width - lengths, lengths[:, None] - 1
        return logits

    def seat(self, places: torch.Tensor) -> torch.Tensor:
        """Have rows that wait, as many as there are ``places`` (rows of the batch), take these;
        logits of their first tokens. The others of the batch are to be rows that go on."""
        assert self._seated is not None
        found = []
        for part, read in self._next(len(places)):
            taken, places = places[: len(part)], places[len(part) :]
            of = torch.tensor([read.row_of[prompt] for prompt in part], device=taken.device)
            self._seated.seat(taken, read.cache, of)
            lengths = torch.tensor([len(prompt) for prompt in part], device=taken.device)
            self._starts[taken] = self._end - lengths
            self._positions[taken] = lengths[:, None] - 1
            found.append(read.logits[of])
        self._show_needed()
        # Memory is touched only as far as it is used; each copy has as many steps to pay for it.
        if self._end > 2 * self._needed:
            self._move()
        return torch.cat(found)

    @property
    def is_full(self) -> bool:
        """Whether there is no column left for a token of rows as long as they may be: before the
        next one, rows that have ended have to go."""
        return self._end == self._capacity

    def advance(self, tokens: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
        """Logits of the next token, after dropping all rows but ``keep`` (if given)."""
        if keep is not None:
            self._drop(keep)
        if self.is_full:
            self._show_needed()
            self._move()
        self._end += 1
        # A row that has ended, and is in its place still, stands beyond no position there is.
        self._positions = (self._positions + 1).clamp(max=self._longest)
        columns = torch.arange(self._first, self._end, device=tokens.device)
        mask = (columns >= self._starts[:, None]).long()
        return self._reader.forward(tokens[:, None], mask, self._positions, self._cache)

    def _next(self, number: int) -> Iterator[tuple[Sequence[PromptTokens], _Read]]:
        """The prompts of the next ``number`` rows, with what was read with each of them."""
        self.waiting -= number
        while number:
            if not self._unseated:
                self._unseated = deque(self._batches.popleft())
                self._read = self._reader.read_once(self._unseated)
            assert self._read is not None
            part = [self._unseated.popleft() for _ in range(min(number, len(self._unseated)))]
            number -= len(part)
            yield part, self._read
        if not self._unseated:
            self._read = None  # frees its cache

    def _drop(self, keep: torch.Tensor) -> None:
        self._starts, self._positions = self._starts[keep], self._positions[keep]
        if self._seated is not None:
            self._show_needed()
        assert self._cache is not None
        self._cache.reorder_cache(keep)  # what is shown stands at the front then
        self._starts -= self._first
        self._end -= self._first
        self._first = 0

    def _show_needed(self) -> None:
        assert self._seated is not None
        self._first = int(self._starts.min())
        self._seated.show(self._first)

    @property
    def _needed(self) -> int:
        """Columns of the batch's rows, and of a prompt while some wait."""
        return max(self._end - self._first, self._width if self.waiting else 0)

    def _move(self) -> None:
        """To the front, as far as may be."""
        assert self._seated is not None
        moved = self._end - self._needed
        assert moved > 0, "rows that have ended hold the first column"
        self._end -= moved
        self._first -= moved
        self._starts -= moved
        self._seated.move(self._end)


@dataclass(frozen=True)
class _Read:
    """Prompts that were read, each once."""

    row_of: dict[PromptTokens, int]
    logits: torch.Tensor
    """Of the first token, float32, [row, vocabulary]."""
    cache: DynamicCache


class _Reader:
    """Calls the model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        self._last_only = _last_logit_only(model)
        self._keyword = cache_keyword(model)

    def read_once(self, prompts: Collection[PromptTokens]) -> _Read:
        """Read ``prompts``, of several alike one."""
        row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        logits, cache = self.read(list(row_of), max(map(len, row_of)))
        assert cache is not None
        return _Read(row_of, logits, cache)

    def read(
        self, prompts: Sequence[PromptTokens], capacity: int | None
    ) -> tuple[torch.Tensor, DynamicCache | None]:
        """Logits (float32, [row, vocabulary]) behind ``prompts``, and a cache of ``capacity``
        positions (null: none) with these padded on the left."""
        # Samples of one prompt share its prefill: the cache rows are copied instead.
        index = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        copies = [index[prompt] for prompt in prompts]
        shared = SharedPrefill(self.model, list(index), copies)
        if shared.pays:
            return shared.run(capacity)
        width = max(map(len, index))
        ids = np.zeros((len(index), width), dtype=np.int64)
        mask = np.ones((len(index), width), dtype=np.int64)
        for row, prompt in enumerate(index):
            ids[row, width - len(prompt) :] = prompt
            mask[row, : width - len(prompt)] = 0
        seen = torch.from_numpy(mask).to(self.device)
        positions = (seen.cumsum(1) - 1).clamp(min=0)
        cache = in_place_cache(self.model, capacity) if capacity else None
        logits = self.forward(torch.from_numpy(ids).to(self.device), seen, positions, cache)
        rows = torch.tensor(copies, device=self.device)
        if cache is not None and len(copies) != len(index):
            cache.reorder_cache(rows)
        return logits[rows], cache

    def forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: DynamicCache | None,
    ) -> torch.Tensor:
        """Logits (float32, [row, vocabulary]) behind ``ids`` [row, position]; ``mask`` is of what
        the cache holds as well."""
        # A model of states alone takes a mask of its input, not of all that it has read before.
        is_step = self._keyword == "cache_params" and ids.shape[1] < mask.shape[1]
        output = self.model(
            input_ids=ids,
            attention_mask=None if is_step else mask,
            position_ids=positions,
            use_cache=cache is not None,
            **{self._keyword: cache},
            **self._last_only,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits


def _last_logit_only(model: PreTrainedModel) -> dict[str, Any]:
    """Spares the vocabulary projection of all prompt positions, where the model can."""
    known = arguments_of(model)
    return {"logits_to_keep": 1} if "logits_to_keep" in known else {}
