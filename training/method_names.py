"""What can be trained, by name: the command line knows it without the settings."""

from __future__ import annotations

from enum import StrEnum


class Method(StrEnum):
    """What ``prefloop train`` trains."""

    reward = "reward"
    """A Bradley-Terry reward model."""
    dpo = "dpo"
    """A policy, by direct preference optimisation."""
    kto = "kto"
    """A policy, on single answers with a label each."""
    sft = "sft"
    """A policy, on the chosen answers alone."""
