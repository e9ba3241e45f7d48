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
    chosen_ratio: torch.Tensor
    """log-ratio of chosen, policy against reference."""
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
    * ``dpop``: -log sigma(beta (r - lambda max(0, log reference chosen - log policy chosen))) (Pal
      et al. 2024, arXiv 2402.13228, eq. 3).
    * ``clipped``: -log sigma(min(beta r, cap)): DPO with no gradient from pairs beyond the cap.
      Optimisers that divide by the size of gradients, as Adam does, turn even the faintest pull of
      pairs that are long told apart into steps of full size, and their margin grows without end.
    """
    if name == "soft":
        return _soft(config.beta * logps.ratio, logps.p_chosen)
    if name == "cdpo":
        sure = torch.full_like(logps.ratio, 1 - config.label_smoothing)
        return _soft(config.beta * logps.ratio, sure)
    if name == "simpo":
        gap = config.beta * (logps.mean_chosen - logps.mean_rejected)
        return -F.logsigmoid(gap - config.simpo_gamma)
    if name == "dpop":
        lost = (-logps.chosen_ratio).clamp(min=0)
        return -F.logsigmoid(config.beta * (logps.ratio - config.dpop_lambda * lost))
    if name == "clipped":
        return -F.logsigmoid((config.beta * logps.ratio).clamp(max=config.margin_cap))
    assert name == "orpo"
    odds = _log_odds(logps.mean_chosen) - _log_odds(logps.mean_rejected)
    return -logps.mean_chosen - config.beta * F.logsigmoid(odds)


def _soft(logit: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return -p * F.logsigmoid(logit) - (1 - p) * F.logsigmoid(-logit)


def _log_odds(log_p: torch.Tensor) -> torch.Tensor:
    # log(1 - e^x) without cancellation for x near 0, where expm1 is exact.
    return log_p - torch.log(-torch.expm1(log_p.clamp(max=-1e-7)))


def wpo_weights(per_token: torch.Tensor, squares: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """How much each pair [B] counts in WPO (Zhou et al. 2024, arXiv 2406.11827, eq. 2).

    ``per_token`` and ``squares`` [2B, T] are log p of each token, and the log of the sum of squared
    probabilities at its place; ``mask`` says which are the answers', chosen ones first. The weight
    of an answer is the mean per token of their difference, as a probability: what sampling from the
    policy gives has 1 on average (the paper's sampled alignment).
    """
    aligned = ((per_token - squares) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    chosen, rejected = aligned.detach().exp().chunk(2)
    return chosen * rejected
