"""What a user can set about training a reward model. The defaults are settings we vetted.

This module imports no machine-learning library.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from data.strict import Strict
from training.config import Lora


class RewardConfig(Strict):
    """Training of a Bradley-Terry reward model with TRL's RewardTrainer."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate. Adapters usually need about ten times that of full weights."""
    center_rewards_coefficient: NonNegativeFloat = 0.0
    """Weight of the squared sum of both scores in the loss: it keeps scores around 0, which the
    comparison alone leaves open (Eisenstein et al. 2023, equation 2; they use 0.01)."""
    use_margin: bool = False
    """Ask for a gap of at least the column ``margin`` (Touvron et al. 2023, equation 2)."""
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """Course of the learning rate after the warm-up."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0 (not with ``constant``)."""
    epochs: PositiveFloat = 1.0
    """Passes over the triples. Reward models overfit after one or two."""
    batch_size: PositiveInt = 8
    """Pairs in one forward pass (each is two sequences)."""
    gradient_accumulation: PositiveInt = 1
    """Forward passes per optimiser step."""
    max_length: PositiveInt = 1024
    """Tokens of a conversation. A pair with a longer one is dropped and counted."""
    max_pairs: PositiveInt | None = None
    """At most this many pairs, drawn at random with the seed; null = all."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (AdamW)."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this norm; 0 = never."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto = bf16 autocast on a GPU that has it, else float32."""
    lora: Lora | None = None
    """Train an adapter and the head, merged when the model is saved; null = all weights."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a fifth slower."""
    save_steps: PositiveInt = 500
    """Optimiser steps between the checkpoints that an interrupted training resumes from."""
