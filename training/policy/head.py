"""The output layer on chosen positions only, a chunk at a time: logits of all positions over a
vocabulary of 150,000 are the largest thing in a training, and nobody needs them at once.

Imports torch: import this module inside functions only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

CHUNK = 1 << 24
"""Logits that exist at the same time, at most (a row of the vocabulary at least)."""
_TILE = 1 << 15
"""Width of the tiles of TRL's kernel, as TRL sets it."""


@dataclass(frozen=True)
class TokenScores:
    """What the model says of N next tokens, each [N] in float32."""

    log_probs: torch.Tensor
    """In nats, of the token that came."""
    entropy: torch.Tensor
    mean_logits: torch.Tensor
    is_top1: torch.Tensor
    """Whether the token that came is the likeliest."""
    log_sum_squares: torch.Tensor
    """Log of the sum of squared probabilities."""


@dataclass(frozen=True)
class Head:
    """The output layer of a causal language model."""

    layer: Any
    scale: float
    """What logits are multiplied by ..."""
    softcap: float | None
    """... and held under, before ``temperature``."""
    temperature: float = 1.0

    @staticmethod
    def of(model: Any, temperature: float = 1.0) -> Head:
        """That of ``model`` (transformers' own, without an adapter around it), by its config."""
        config = model.config.get_text_config()
        scale = 1.0
        for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
            if getattr(config, name, None) is not None:
                scale = float(getattr(config, name))
                break
        else:
            divided = getattr(config, "logits_scaling", None)
            if divided is not None:
                scale = float(divided if config.model_type == "hyperclovax" else 1 / divided)
        softcap = getattr(config, "final_logit_softcapping", None)
        return Head(model.get_output_embeddings(), scale, softcap, temperature)

    def logits(self, raw: torch.Tensor) -> torch.Tensor:
        """What the layer gave as logits, in float32."""
        raw = raw.float()
        if self.scale != 1:
            raw = raw * self.scale
        if self.softcap is not None:
            raw = self.softcap * torch.tanh(raw / self.softcap)
        return raw if self.temperature == 1 else raw / self.temperature


def score_tokens(hidden: torch.Tensor, tokens: torch.Tensor, head: Head) -> TokenScores:
    """What ``head`` says of ``tokens`` [N] from the hidden states [N, H] before them.

    Exact: the gradient is that of the plain formula, computed from logits that are made again.
    """
    layer = head.layer
    # Another kind of layer (with an adapter, in 4 bits) is more than its weight.
    if type(layer) is torch.nn.Linear and hidden.is_cuda:
        return _by_kernel(hidden, tokens, head)
    if type(layer) is torch.nn.Linear:
        given = hidden, layer.weight, layer.bias, tokens, head
        found = _Scores.apply(*given)  # type: ignore[no-untyped-call]  # torch's
        return TokenScores(*found)
    rows = _rows_at_once(layer.weight)
    chunk = partial(checkpoint, _plain_scores, use_reentrant=False)
    parts = [
        chunk(hidden[start : start + rows], tokens[start : start + rows], head)
        for start in range(0, len(tokens), rows)
    ] or [_plain_scores(hidden, tokens, head)]
    return TokenScores(*(torch.cat(one) for one in zip(*parts, strict=True)))


def _rows_at_once(weight: torch.Tensor) -> int:
    return max(1, CHUNK // weight.shape[0])


def _by_kernel(hidden: torch.Tensor, tokens: torch.Tensor, head: Head) -> TokenScores:
    """By TRL's Triton kernel, which computes the same on tiles."""
    from trl.kernels import ChunkedLogProbFunction

    asked = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    log_probs, entropy, squares, mean, top1 = ChunkedLogProbFunction.apply(
        hidden, head.layer.weight, head.layer.bias, tokens, head.temperature, _TILE, head.softcap,
        head.scale, asked,
    )  # fmt: skip
    return TokenScores(log_probs, entropy, mean, top1, squares)


def _plain_scores(hidden: torch.Tensor, tokens: torch.Tensor, head: Head) -> Any:
    logits = head.logits(head.layer(hidden))
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    top1 = logits.detach().argmax(-1) == tokens
    picked = log_p.gather(1, tokens[:, None])[:, 0]
    return picked, entropy, logits.detach().mean(-1), top1, (2 * log_p.detach()).logsumexp(-1)


class _Scores(torch.autograd.Function):
    """``TokenScores`` of a linear layer; two chunks of logits exist at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        tokens: torch.Tensor,
        head: Head,
    ) -> Any:
        ctx.set_materialize_grads(False)
        kind = hidden.device.type
        autocast = torch.is_autocast_enabled(kind)
        ctx.dtype = torch.get_autocast_dtype(kind) if autocast else hidden.dtype
        ctx.head, ctx.rows = head, _rows_at_once(weight)
        used = weight.to(ctx.dtype)
        parts = []
        for start in range(0, len(tokens), ctx.rows):
            logits = head.logits(
                _project(hidden[start : start + ctx.rows].to(ctx.dtype), used, bias)
            )
            asked = tokens[start : start + ctx.rows]
            most, likeliest = logits.max(-1)
            picked = logits.gather(1, asked[:, None])[:, 0]
            power = torch.exp(logits - most[:, None])
            total = power.sum(-1)
            log_z = most + total.log()
            entropy = log_z - torch.linalg.vecdot(power, logits) / total
            squares = torch.linalg.vecdot(power, power).log() - 2 * total.log()
            scores = picked - log_z, entropy, logits.mean(-1), likeliest == asked, squares
            parts.append((*scores, log_z))
            del logits, power
        empty = hidden.new_zeros(0, dtype=torch.float32)
        none = empty, empty, empty, empty.bool(), empty, empty
        columns = [torch.cat(one) for one in zip(*(parts or [none]), strict=True)]
        log_probs, entropy, mean, top1, squares, log_z = columns
        ctx.save_for_backward(hidden, weight, bias, tokens, log_z, entropy)
        ctx.mark_non_differentiable(mean, top1, squares)
        return log_probs, entropy, mean, top1, squares

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        of_log_probs, of_entropy = gradients[:2]
        hidden, weight, bias, tokens, log_z, entropy = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        head: Head = ctx.head
        used = weight.to(ctx.dtype)
        # In float32 over all chunks, whatever each is computed in.
        wide = {"dtype": torch.float32, "device": hidden.device}
        d_hidden = torch.zeros(hidden.shape, **wide) if needs_hidden else None
        d_weight = torch.zeros(weight.shape, **wide) if needs_weight else None
        d_bias = torch.zeros(bias.shape, **wide) if needs_bias else None
        for start in range(0, len(tokens), ctx.rows):
            part = slice(start, start + ctx.rows)
            states = hidden[part].to(ctx.dtype)
            raw = _project(states, used, bias)
            log_p = head.logits(raw).sub_(log_z[part, None])
            change = log_p.exp()
            if of_entropy is not None:
                log_p.add_(entropy[part, None]).mul_(change).mul_(-of_entropy[part, None])
            if of_log_probs is not None:
                change.mul_(-of_log_probs[part, None])
                change.scatter_add_(1, tokens[part, None], of_log_probs[part, None].float())
                if of_entropy is not None:
                    change.add_(log_p)
            elif of_entropy is not None:
                change = log_p
            del log_p
            change.mul_(head.scale / head.temperature)
            if head.softcap is not None:
                bent = torch.tanh(raw.float() * head.scale / head.softcap)
                change.mul_(1 - bent.square())
            del raw
            change = change.to(ctx.dtype)
            if d_hidden is not None:
                d_hidden[part] = change @ used
            if d_weight is not None:
                d_weight.addmm_(change.t().float(), states.float())
            if d_bias is not None:
                d_bias += change.sum(0, dtype=torch.float32)
        return (
            None if d_hidden is None else d_hidden.to(hidden.dtype),
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
            None,
        )


def _project(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    raw = states @ weight.t()
    return raw if bias is None else raw.add_(bias.to(raw.dtype))
