"""What a user can set about training a reward model. The defaults are settings we vetted.

This module imports no machine-learning library.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat

from prefloop.training.config import Optimisation


class RewardConfig(Optimisation):
    """Training of a Bradley-Terry reward model with TRL's RewardTrainer."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate. Adapters usually need about ten times that of full weights."""
    center_rewards_coefficient: NonNegativeFloat = 0.0
    """Weight of the squared sum of both scores in the loss: it keeps scores around 0, which the
    comparison alone leaves open (Eisenstein et al. 2023, equation 2; they use 0.01)."""
    use_margin: bool = False
    """Ask for a gap of at least the column ``margin`` (Touvron et al. 2023, equation 2)."""
