"""Losses that TRL's DPOTrainer has not, on the log-probabilities that it computes.

Imports torch: import this module inside functions only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)

from prefloop.training.config import OWN_LOSSES, TrainConfig

OWN = frozenset(OWN_LOSSES)


@dataclass(frozen=True)
class PairLogps:
    """What a loss is computed from; all tensors are [B] of one batch, in nats."""

    chosen: torch.Tensor
    """log p(chosen | prompt) under the policy, summed over the answer's tokens."""
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    ratio: torch.Tensor
    """log-ratio of chosen less that of rejected, each policy against reference."""
    p_chosen: torch.Tensor
    """The jury's probability that chosen is preferred."""

    @property
    def mean_chosen(self) -> torch.Tensor:
        """Log-probability per token of chosen."""
        return self.chosen / self.chosen_tokens

    @property
    def mean_rejected(self) -> torch.Tensor:
        """Log-probability per token of rejected."""
        return self.rejected / self.rejected_tokens


def own_loss(name: str, logps: PairLogps, config: TrainConfig) -> torch.Tensor:
    """The loss ``name`` of each pair [B]:

    * ``soft``: -p log sigma(beta r) - (1 - p) log sigma(-beta r), r the log-ratio and p the jury's
      probability of its decision (DPO with soft labels; cDPO's formula with p per pair).
    * ``cdpo``: the same with p = 1 - label_smoothing for all pairs (Mitchell 2023, conservative
      DPO, eq. 3).
    * ``simpo``: -log sigma(beta (mean log p chosen - mean log p rejected) - gamma) (Meng et al.
      2024, arXiv 2405.14734, eq. 6). No reference.
    * ``orpo``: -mean log p chosen - beta log sigma(log odds chosen - log odds rejected), with odds
      p / (1 - p) of the mean probability per token (Hong et al. 2024, arXiv 2403.07691, eq. 6 and
      7, beta being its lambda). No reference.
    """
    if name == "soft":
        return _soft(config.beta * logps.ratio, logps.p_chosen)
    if name == "cdpo":
        sure = torch.full_like(logps.ratio, 1 - config.label_smoothing)
        return _soft(config.beta * logps.ratio, sure)
    if name == "simpo":
        gap = config.beta * (logps.mean_chosen - logps.mean_rejected)
        return -F.logsigmoid(gap - config.simpo_gamma)
    assert name == "orpo"
    odds = _log_odds(logps.mean_chosen) - _log_odds(logps.mean_rejected)
    return -logps.mean_chosen - config.beta * F.logsigmoid(odds)


def _soft(logit: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return -p * F.logsigmoid(logit) - (1 - p) * F.logsigmoid(-logit)


def _log_odds(log_p: torch.Tensor) -> torch.Tensor:
    # log(1 - e^x) without cancellation for x near 0, where expm1 is exact.
    return log_p - torch.log(-torch.expm1(log_p.clamp(max=-1e-7)))
