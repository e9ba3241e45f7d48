"""The decode loop of the transformers engine: one batch of prompts in, drawn tokens out.

``model.generate`` would do, but it prefills a prompt once for each of its samples, keeps decoding
rows that have ended, and copies the whole KV cache at every step. This loop prefills each prompt
once, drops ended rows, and writes the cache in place; see benchmarks for what that is worth.
Everything it does depends on the batch alone, so the same batch gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, StoppingCriteria
from transformers.cache_utils import DynamicCache

from prefloop.data.protocol import Sampling
from prefloop.pipeline.engines.kv_cache import arguments_of, cache_keyword, in_place_cache
from prefloop.pipeline.engines.prefixes import SharedPrefill
from prefloop.pipeline.engines.sampler import SeededSampler

_DROP_SHARE = 0.125  # ended rows are dropped once they are this share of the batch


@dataclass(frozen=True)
class Drawn:
    """One decoded row. ``logprob`` in nats, untempered, over ``token_ids`` (end token included).

    ``first_logprobs`` (float32, [token]) are those of the asked-for tokens at the first position.
    """

    token_ids: tuple[int, ...]
    logprob: float
    ended: bool
    first_logprobs: np.ndarray


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    seeds: Sequence[int],
    sampling: Sampling,
    *,
    end_ids: Sequence[int],
    stops: StoppingCriteria | None = None,
    watch_ids: Sequence[int] = (),
) -> list[Drawn]:
    """Continue each of ``prompts`` until an end token, a stop string or ``max_tokens``.

    ``watch_ids``: tokens whose log-probability at the first position is asked for.
    """
    device = model.device
    batch, budget = len(prompts), sampling.max_tokens
    sampler = SeededSampler(sampling, seeds, device)
    ends = torch.tensor(list(end_ids), dtype=torch.long, device=device)
    tokens = torch.zeros((batch, budget), dtype=torch.long, device=device)
    logprobs = torch.zeros((batch, budget), dtype=torch.float32, device=device)
    lengths = torch.full((batch,), budget, dtype=torch.long, device=device)
    ended = torch.zeros(batch, dtype=torch.bool, device=device)

    step_model = _Stepper(model, prompts, budget)
    logits = step_model.prefill()
    watched = torch.tensor(list(watch_ids), dtype=torch.long, device=device)
    first = logits[:, watched] - logits.logsumexp(dim=-1, keepdim=True)
    rows = torch.arange(batch, device=device)  # batch rows that the model still decodes
    for step in range(budget):
        drawn = sampler.draw(logits, rows, step)
        drawn_logits = logits.gather(1, drawn.unsqueeze(1)).squeeze(1)
        tokens[rows, step] = drawn
        logprobs[rows, step] = drawn_logits - logits.logsumexp(dim=-1)
        done = torch.isin(drawn, ends)
        if stops is not None:
            done |= stops(tokens[rows, : step + 1], None)
        fresh = rows[done & ~ended[rows]]
        ended[fresh] = True
        lengths[fresh] = step + 1
        over = ended[rows]
        n_over = int(over.sum())
        if n_over == len(rows) or step + 1 == budget:
            break
        keep = None
        if n_over >= _DROP_SHARE * len(rows):
            keep = (~over).nonzero().squeeze(1)
            rows, drawn = rows[keep], drawn[keep]
        logits = step_model.advance(drawn, keep)

    sums = (logprobs.double() * (torch.arange(budget, device=device) < lengths[:, None])).sum(1)
    columns = zip(
        tokens.tolist(), lengths.tolist(), sums.tolist(), ended.tolist(), first.cpu().numpy(),
        strict=True,
    )  # fmt: skip
    return [Drawn(tuple(ids[:n]), total, end, watch) for ids, n, total, end, watch in columns]


class _Stepper:
    """The model's forward passes: prompts left-padded, positions and mask kept in step."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], budget: int
    ) -> None:
        self._model = model
        # Samples of one prompt share its prefill: the cache rows are copied instead.
        index = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        copies = [index[p] for p in prompts]
        self._shared = SharedPrefill(model, list(index), copies)
        self._copies = torch.tensor(copies, device=model.device)
        width = max(map(len, index))
        ids = np.zeros((len(index), width), dtype=np.int64)
        mask = np.ones((len(index), width + budget), dtype=np.int64)
        for row, prompt in enumerate(index):
            ids[row, width - len(prompt) :] = prompt
            mask[row, : width - len(prompt)] = 0
        self._ids = torch.from_numpy(ids).to(model.device)
        self._mask = torch.from_numpy(mask).to(model.device)
        self._width = width
        self._positions = (self._mask[:, :width].cumsum(1) - 1).clamp(min=0)
        self._capacity = width + budget if budget > 1 else None
        self._cache: DynamicCache | None = None
        self._last_only = _last_logit_only(model)
        self._keyword = cache_keyword(model)

    def prefill(self) -> torch.Tensor:
        """Logits (float32, [row, vocabulary]) of the first token."""
        if self._shared.pays:
            logits, self._cache = self._shared.run(self._capacity)
            self._mask = self._mask[self._copies]
            self._positions = self._positions[self._copies, -1:]
            return logits
        if self._capacity:
            self._cache = in_place_cache(self._model, self._capacity)
        logits = self._forward(self._ids, self._positions)[self._copies]
        self._positions = self._positions[:, -1:]
        if len(self._copies) != len(self._ids):
            self._select(self._copies)
        return logits

    def advance(self, tokens: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
        """Logits of the next token, after dropping all rows but ``keep`` (if given)."""
        if keep is not None:
            self._select(keep)
        self._width += 1
        self._positions = self._positions + 1
        return self._forward(tokens.unsqueeze(1), self._positions)

    def _select(self, rows: torch.Tensor) -> None:
        self._mask, self._positions = self._mask[rows], self._positions[rows]
        if self._cache is not None:
            self._cache.reorder_cache(rows)

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask[:, : self._width],
            position_ids=positions,
            use_cache=self._cache is not None,
            **{self._keyword: self._cache},
            **self._last_only,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits


def _last_logit_only(model: PreTrainedModel) -> dict[str, Any]:
    """Spares the vocabulary projection of all prompt positions, where the model can."""
    known = arguments_of(model)
    return {"logits_to_keep": 1} if "logits_to_keep" in known else {}
