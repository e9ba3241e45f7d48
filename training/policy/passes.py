"""Forward passes of a policy over answers: the body on all tokens, the output layer on answers'.

Whether a model can be taken apart like that, and whether its attention can be told who sees whom,
is not believed but tried, on a few tokens: what is found is compared with the model's own logits.

Imports torch: import this module inside functions only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from prefloop.labelers.scorers.attention import SHARED_HEADS
from prefloop.training.policy.bundles import Batch, Bundle, batch_of
from prefloop.training.policy.head import Head, TokenScores, score_tokens

_MASKED = ("sdpa", SHARED_HEADS, "eager")
"""Implementations of attention that take a mask of one's own."""
_TRIED = (6, (3, 4))
"""Tokens of the prompt and of the answers that a model is tried on."""


@dataclass(frozen=True)
class Passes:
    """How a model goes over answers."""

    model: Any
    """transformers' own; an adapter lies within."""
    head: Head | None
    """Null where the output layer, by itself, does not give the model's logits."""
    apart: str | None
    """Why answers cannot share their prompt; null where they can."""

    @property
    def width(self) -> int:
        """Of a hidden state."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    def at(self, temperature: float) -> Passes:
        """The same with logits over ``temperature``."""
        return replace(self, head=self.head and replace(self.head, temperature=temperature))

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Hidden states [B, L, H] of ``batch``."""
        if bool((batch.part > 1).any()):
            eager = self.model.config.get_text_config()._attn_implementation == "eager"
            mask = batch.mask(additive=self.model.dtype if eager else None)
            return self._body(batch.ids, attention_mask=mask, position_ids=batch.positions)
        return self._body(batch.ids, attention_mask=(batch.part >= 0).long())

    def scores(self, batch: Batch) -> TokenScores:
        """What the model says of the answer tokens of ``batch``, in their order."""
        assert self.head is not None
        hidden = self.hidden(batch)[batch.spots]
        return score_tokens(hidden, batch.tokens.to(hidden.device), self.head)

    def _body(self, ids: torch.Tensor, **how: Any) -> torch.Tensor:
        found: torch.Tensor = self.model.base_model(ids, use_cache=False, **how).last_hidden_state
        return found


_known: WeakKeyDictionary[Any, tuple[bool, str | None]] = WeakKeyDictionary()
"""Of models that were tried: whether the output layer is known, and why answers stay apart."""


def passes_of(model: Any) -> Passes:
    """How ``model``, with an adapter around it or without, goes over answers."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if inner not in _known:
        training = inner.training
        try:
            with torch.no_grad():
                _known[inner] = _tried(inner.eval() if training else inner)
        finally:
            if training:
                inner.train()
    taken_apart, why = _known[inner]
    return Passes(inner, Head.of(inner) if taken_apart else None, why)


def _tried(model: Any) -> tuple[bool, str | None]:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    draw = np.random.default_rng(0)
    asked, lengths = _TRIED
    bundle = Bundle(
        draw.integers(vocabulary, size=asked).astype(np.int32),
        tuple(draw.integers(vocabulary, size=length).astype(np.int32) for length in lengths),
    )
    alone = batch_of(bundle.apart(), model.device)
    padded = (alone.part >= 0).long()
    logits = model(alone.ids, attention_mask=padded, use_cache=False).logits
    plain = logits[alone.spots].float().log_softmax(-1).gather(1, alone.tokens[:, None])[:, 0]
    try:
        passes = Passes(model, Head.of(model), None)
        if not _same(passes, alone, plain):
            return False, "its logits are more than its output layer"
    except Exception as error:  # noqa: BLE001  # models of all kinds; each has its own way to fail
        return False, f"its body cannot be run alone ({type(error).__name__})"
    why = _cannot_share(model)
    if why:
        return True, why
    try:
        fits = _same(passes, batch_of([bundle], model.device), plain)
    except Exception as error:  # noqa: BLE001  # as above
        return True, f"its attention refuses a mask ({type(error).__name__})"
    return True, None if fits else "its attention does not keep to a mask"


def _same(passes: Passes, batch: Batch, plain: torch.Tensor) -> bool:
    """Whether the passes find ``plain`` [N], but for rounding."""
    exact = passes.model.dtype == torch.float32 and not torch.is_autocast_enabled(plain.device.type)
    near = 1e-3 if exact else 0.2
    return bool((passes.scores(batch).log_probs - plain).abs().max() < near)


def _cannot_share(model: Any) -> str | None:
    """What a few tokens would not show."""
    config = model.config.get_text_config()
    if config is not model.config:
        return "it is more than a language model"
    if config._attn_implementation not in _MASKED:
        return f"its attention is {config._attn_implementation}: {' or '.join(_MASKED)} could"
    kinds = {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "its attention has a window"
    if getattr(config, "attention_chunk_size", None):
        return "its attention goes by chunks"
    return None
