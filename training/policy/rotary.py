"""Models whose rotary embedding is another one for long sequences (Phi-3's LongRoPE)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rotary_limit(model: Any) -> int | None:
    """Tokens up to which the rotary embedding of ``model`` is one, and from which on it is another
    for all sequences of a batch; null where it does not go by length."""
    config = model.config.get_text_config()
    named = getattr(config, "rope_parameters", None) or {}
    parts = [named, *(part for part in named.values() if isinstance(part, Mapping))]
    limits = [
        int(part["original_max_position_embeddings"])
        for part in parts
        if part.get("rope_type") == "longrope" and part.get("original_max_position_embeddings")
    ]
    return min(limits, default=None)
