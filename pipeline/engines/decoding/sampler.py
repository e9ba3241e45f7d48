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

_GREEDY_BELOW = 1e-5
"""Temperatures below which the likeliest token is taken: logits divided by one overflow."""


class SeededSampler:
    """Inverse-CDF draws, one uniform for each row and step from a Philox stream of the row's seed.

    One vectorised draw for the whole batch: no generator objects, no loop over rows, per step.
    """

    def __init__(self, sampling: Sampling, places: int, device: torch.device) -> None:
        """For ``places`` rows at a time; see ``seat``."""
        temperature, top_p, top_k = sampling.temperature, sampling.top_p, sampling.top_k
        assert temperature is not None and top_p is not None and top_k is not None  # noqa: PT018
        self._greedy = temperature < _GREEDY_BELOW
        self._warpers = LogitsProcessorList()
        if self._greedy:
            return
        if temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_k > 0:
            self._warpers.append(TopKLogitsWarper(top_k))
        if top_p < 1:
            self._warpers.append(TopPLogitsWarper(top_p))
        self._steps = sampling.max_tokens
        shape = (places, self._steps)
        self._uniforms = torch.empty(shape, dtype=torch.float64, device=device)

    def seat(self, places: torch.Tensor, seeds: Sequence[int]) -> None:
        """Have the row at each of ``places`` (int64) draw from one of ``seeds``, from the start."""
        if self._greedy:
            return
        streams = {
            seed: np.random.Generator(np.random.Philox(seed)).random(self._steps)
            for seed in set(seeds)
        }
        drawn = torch.from_numpy(np.stack([streams[seed] for seed in seeds]))
        self._uniforms[places] = drawn.to(self._uniforms.device)

    def draw(self, logits: torch.Tensor, places: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Tokens (int64, [rows]) for ``logits`` (float32, [rows, vocabulary]).

        ``places`` are those (int64) of the rows still being decoded; ``steps`` (int64) count from
        0, each row's own.
        """
        if self._greedy:
            return logits.argmax(dim=-1)
        if self._warpers:
            logits = self._warpers(None, logits)
        # float64, so that uniform * total stays below total and a token of probability 0 is
        # never reached by rounding.
        cdf = torch.softmax(logits, dim=-1).cumsum(dim=-1, dtype=torch.float64)
        target = self._uniforms[places, steps].unsqueeze(1) * cdf[:, -1:]
        return torch.searchsorted(cdf, target, right=True).squeeze(1)
