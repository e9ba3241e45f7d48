"""What all methods have in common: prompts, sizes, the config they start from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPTS = (
    "Give three tips for staying healthy.",
    "What are the three primary colors?",
    "Describe the structure of an atom.",
    "How can we reduce air pollution?",
    "Describe a time when you had to make a difficult decision.",
    "Identify the odd one out. Twitter, Instagram, Telegram",
    "Explain why 4/16 is equivalent to 1/4",
    "Write a short story about a career decision.",
    "Render a 3D model of a house",
    "Evaluate this sentence for spelling and grammar mistakes",
    "How did Julius Caesar die?",
    "What is the capital of France?",
    "Generate a list of ten items for a camping trip",
    "Discuss the causes of the Great Depression",
    "Classify: oak tree, copper ore, elephant",
    "Explain the use of word embeddings in NLP",
)


@dataclass(frozen=True)
class Setting:
    """Where everything lies, and how much of it there is.

    Every method is given ``passes`` x ``n`` answers a prompt, of ``tokens`` tokens at most, and
    takes ``updates`` optimiser steps on them (PPO twice as many: two passes over each batch).
    """

    out: Path
    model: str
    """The starting policy."""
    reward: Path
    """The reward model."""
    passes: int = 4
    n: int = 4
    tokens: int = 64
    prompts: int = len(PROMPTS)
    measured: int = 8
    """Answers a prompt by which a policy is measured."""
    rate: float = 1e-5
    threads: int | None = None
    seed: int = 0

    @property
    def updates(self) -> int:
        """Four optimiser steps a pass."""
        return 4 * self.passes

    @property
    def asked(self) -> tuple[str, ...]:
        """The prompts."""
        return PROMPTS[: self.prompts]

    def file(self) -> Path:
        """The prompts as a file."""
        path = self.out / "prompts.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in self.asked), "utf-8")
        return path

    def config(self) -> dict[str, Any]:
        """A run that samples and labels ``passes`` times, and trains nothing yet."""
        return {
            "seed": self.seed,
            "rounds": self.passes,
            "policy": self.model,
            "engines": {"default": {"type": "transformers", "threads": self.threads}},
            "prompts": {
                "train": {"path": str(self.file())},
                "heldout_share": 0.0,
                "near_duplicates": {"enabled": False},
            },
            "sample": {"n": self.n, "temperature": 1.0, "top_p": 1.0, "max_tokens": self.tokens},
            "label": {"labelers": [{"type": "reward_model", "model": str(self.reward)}]},
            "filter": {
                "strategy": {"type": "best_vs_worst"},
                "filters": [{"type": "identical"}],
            },
            "write": {"test_share": 0.0, "unpaired": True},
            "train": None,
            "evaluate": {"enabled": False},
        }
