"""Whether a model can be decoded token by token: not believed but tried, on a few tokens.

A model that keeps what it has read elsewhere than in the cache that it is given raises no error
when it goes on from there: it answers to the last token alone.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.engines.decoding.stepper import Stepper
from prefloop.pipeline.engines.kv_cache import is_plain

_PROMPTS = (6, 3)
"""Tokens of the prompts that a model is tried on ..."""
_STEPS = 4
"""... and of their answers."""
_NEAR = 0.05
"""Mean difference of log-probabilities in nats that rounding may make ..."""
_NEAR_IN_SHORT_TYPES = 0.5
"""... where experts may be other ones by it."""
_REMEDY = "set the engine's `type` to vllm, or ask a server that serves it"


@torch.inference_mode()
def require_steps(model: PreTrainedModel, name: str) -> None:
    """Raise ``EngineFailed`` where ``model``, called ``name``, says something else token by token
    than all at once."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    draw = np.random.default_rng(0)
    # Padding is for those to get wrong that keep a state.
    sizes = _PROMPTS[:1] if is_plain(model) else _PROMPTS
    prompts = [tuple(draw.integers(vocabulary, size=size).tolist()) for size in sizes]
    answers = draw.integers(vocabulary, size=(len(prompts), _STEPS))
    kind = model.config.model_type
    try:
        found = _step_by_step(model, prompts, answers)
    except Exception as error:  # models of all kinds; each has its own way to fail
        first = next(iter(str(error).strip().splitlines()), "")
        raise EngineFailed(
            f"{name}: models of type {kind} cannot be decoded token by token here "
            f"({type(error).__name__}: {first})",
            _REMEDY,
        ) from error
    near = _NEAR if model.dtype == torch.float32 else _NEAR_IN_SHORT_TYPES
    apart = (found - _at_once(model, prompts, answers)).abs().mean()
    if not apart < near:
        raise EngineFailed(
            f"{name}: models of type {kind} forget what they have read from token to token here "
            f"(log-probabilities are off by {apart:.2g} nats), so answers would be noise",
            _REMEDY,
        )


def _step_by_step(
    model: PreTrainedModel, prompts: list[tuple[int, ...]], answers: np.ndarray
) -> torch.Tensor:
    """Log-probabilities [prompt, step] of ``answers`` as they are decoded."""
    stepper = Stepper(model, [prompts], _STEPS)
    asked = torch.from_numpy(answers).to(model.device)
    logits, found = stepper.begin(), []
    for step in range(_STEPS):
        found.append(logits.log_softmax(-1).gather(1, asked[:, step, None]))
        if step + 1 < _STEPS:
            logits = stepper.advance(asked[:, step], None)
    return torch.cat(found, 1)


def _at_once(
    model: PreTrainedModel, prompts: list[tuple[int, ...]], answers: np.ndarray
) -> torch.Tensor:
    """The same of each prompt and its answer in one forward pass."""
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]], device=model.device)
        log_p = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        found.append(log_p[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0])
    return torch.stack(found)
