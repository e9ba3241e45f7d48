"""The known reward of the experiment: how positive an answer sounds, from 0 to 1.

It stands for the sentiment classifier of the DPO paper (Rafailov et al. 2023, section 6.1), with
the words of the tiny policy.
"""

from __future__ import annotations

import math
import re
from typing import Any

POSITIVE = frozenset([
    "brave", "clever", "gentle", "happy", "golden", "shiny", "cheerful", "proud", "famous",
    "bright", "polite", "glad", "calm", "safe", "patient", "curious", "humble", "loved",
    "admired", "shared", "danced", "sang", "laughed",
])  # fmt: skip
NEGATIVE = frozenset([
    "lonely", "broken", "grumpy", "nervous", "rusty", "crooked", "stubborn", "tired", "sad",
    "hungry", "angry", "alone", "afraid", "lost", "late", "dusty", "careful", "strange",
    "dropped", "missed", "worried", "tripped",
])  # fmt: skip


def sentiment(text: str, **_: Any) -> float:
    """sigma(positive words - negative words)."""
    words = re.findall(r"[a-z]+", text.casefold())
    balance = sum((word in POSITIVE) - (word in NEGATIVE) for word in words)
    return 1 / (1 + math.exp(-balance))
