"""Draws next tokens: every row from its own seed, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from prefloop.data.protocol import Sampling


class SeededSampler:
    """Inverse-CDF draws, one uniform for each row and step from a Philox stream of the row's seed.

    One vectorised draw for the whole batch: no generator objects, no loop over rows, per step.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int], device: torch.device) -> None:
        temperature, top_p, top_k = sampling.temperature, sampling.top_p, sampling.top_k
        assert temperature is not None and top_p is not None and top_k is not None  # noqa: PT018
        self._greedy = temperature == 0
        self._warpers = LogitsProcessorList()
        if self._greedy:
            return
        if temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_k > 0:
            self._warpers.append(TopKLogitsWarper(top_k))
        if top_p < 1:
            self._warpers.append(TopPLogitsWarper(top_p))
        streams = {
            seed: np.random.Generator(np.random.Philox(seed)).random(sampling.max_tokens)
            for seed in set(seeds)
        }
        self._uniforms = torch.from_numpy(np.stack([streams[s] for s in seeds])).to(device)

    def draw(self, logits: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
        """Tokens (int64, [rows]) for ``logits`` (float32, [rows, vocabulary]).

        ``rows`` are the batch rows (int64) still being decoded; ``step`` counts from 0.
        """
        if self._greedy:
            return logits.argmax(dim=-1)
        if self._warpers:
            logits = self._warpers(None, logits)
        # float64, so that uniform * total stays below total and a token of probability 0 is
        # never reached by rounding.
        cdf = torch.softmax(logits, dim=-1).cumsum(dim=-1, dtype=torch.float64)
        target = self._uniforms[rows, step].unsqueeze(1) * cdf[:, -1:]
        return torch.searchsorted(cdf, target, right=True).squeeze(1)
