"""Does the engine really serve the checkpoint it was told to load?

vLLM's weight reload on the CPU answers "done" and serves garbage (seen: 13 nats off). So after
every swap a few answers of the engine are scored again with transformers on the checkpoint
itself; a policy that does not agree is never sampled from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from prefloop.data.conversations.chat import render_tokens
from prefloop.data.hashing import content_id
from prefloop.data.protocol import Completion, Engine, EngineFailed, Message, Request, Sampling
from prefloop.pipeline.engines.weights import adapter_base, is_adapter, load_model, load_tokenizer

TOLERANCE_NATS = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.05}
"""Log-probability difference per token that rounding explains, by the engine's dtype. Engine and
check round differently; a wrong checkpoint of a real model is off by more than these."""

_ROOM = 1.3  # beside the weights there are activations
_CONTEXT_BYTES = 2**30
_NOISE_NATS = 1e-5  # float32 rounds by about a tenth of this: nothing can be read from less


class PolicyMismatch(EngineFailed):
    """The engine's log-probabilities are not those of the checkpoint."""


async def verify_policy(
    engine: Engine,
    checkpoint: str,
    probes: Sequence[tuple[Message, ...]],
    *,
    tolerance_nats: float = TOLERANCE_NATS["float32"],
    max_tokens: int = 16,
    base: str | None = None,
    previous: str | None = None,
) -> float:
    """Compare the engine's greedy answers to ``probes`` with transformers in float32, whatever
    the engine's type, so that one side alone rounds: on the GPU where the engine left it room for
    that, else on the CPU.

    ``checkpoint`` is a model folder or a LoRA adapter folder on ``base`` (default: the base that
    the adapter names). ``previous`` is what the engine served before: a round of training may move
    the policy by less than an engine in bfloat16 rounds, so an engine that is twice as near to
    ``previous`` as to ``checkpoint`` is refused whatever the tolerance. Returns the largest
    difference of the mean log-probability per token, in nats. Raises ``PolicyMismatch`` if the
    engine serves something else, and ``EngineFailed`` where it gives no token ids or
    log-probabilities to compare. Of an engine of several processes each is looked at.
    """
    if not probes:
        raise EngineFailed(
            "there is no prompt to compare the engine's log-probabilities with the checkpoint's on",
            "give at least one",
        )
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
    members: Sequence[Engine] = getattr(engine, "replicas", ()) or (engine,)
    answers = await asyncio.gather(
        *(
            member.generate(
                Request(content_id("probe", checkpoint, i), probe, sampling, seeds=(0,))
            )
            for member in members
            for i, probe in enumerate(probes)
        )
    )
    greedy = [completions[0] for completions in answers]
    if any(not answer.token_ids or answer.logprob is None for answer in greedy):
        raise EngineFailed(
            "the engine gives no token ids and log-probabilities, so the policy cannot be checked",
            "for an HTTP server that is vLLM set vllm_extensions: true",
        )

    def off(policy: str) -> Awaitable[list[float]]:
        return asyncio.to_thread(_worst_differences, policy, base, probes, greedy)

    names = ["the engine"]
    if len(members) > 1:
        names = [f"process {at + 1} of {len(members)} of the engine" for at in range(len(members))]
    differences = await off(checkpoint)
    for name, worst in zip(names, differences, strict=True):
        if not worst <= tolerance_nats:  # also true for NaN
            raise PolicyMismatch(
                f"{name} does not serve {checkpoint}: its log-probabilities are "
                f"{worst:.3g} nats per token off (tolerance {tolerance_nats:.3g})",
                "restart the engine on the checkpoint; on the CPU vLLM takes LoRA adapters only",
            )
    if previous is None or max(differences) <= _NOISE_NATS:
        return max(differences)
    for name, worst, stale in zip(names, differences, await off(previous), strict=True):
        if worst > _NOISE_NATS and 2 * stale < worst:
            raise PolicyMismatch(
                f"{name} still serves {previous} and not {checkpoint}: it is {stale:.3g} nats per "
                f"token off the one and {worst:.3g} off the other",
                "restart the engine on the checkpoint",
            )
    return max(differences)


def has_room(model: str, free: int) -> bool:
    """Whether ``free`` bytes hold the model in the folder ``model`` in float32, and what computing
    a few answers takes beside it."""
    stored = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    # Weights on disk have two bytes a number or more, or are quantized: then nobody can say.
    return stored > 0 and _ROOM * 2 * stored + _CONTEXT_BYTES <= free


def _free_on_gpu() -> int:
    import torch

    return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else 0


def _worst_differences(
    checkpoint: str,
    base: str | None,
    probes: Sequence[tuple[Message, ...]],
    answers: Sequence[Completion],
) -> list[float]:
    """The largest difference of each engine; ``answers`` are theirs to all ``probes``, one engine
    after the other."""
    import torch

    base = (base or adapter_base(checkpoint)) if is_adapter(checkpoint) else checkpoint
    tokenizer = load_tokenizer(base)
    device = torch.device("cuda" if has_room(base, _free_on_gpu()) else "cpu")
    model = load_model(checkpoint, base=base, device=device, dtype=torch.float32)
    differences = []
    for probe, answer in zip(cycle(probes), answers, strict=False):
        prompt = render_tokens(tokenizer, probe)
        ids = torch.tensor([[*prompt, *answer.token_ids]], device=device)
        with torch.inference_mode():
            steps = model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        expected = steps.gather(1, ids[0, len(prompt) :, None]).double().sum().item()
        assert answer.logprob is not None
        differences.append(abs(answer.logprob - expected) / len(answer.token_ids))
    by_engine = np.reshape(differences, (-1, len(probes)))
    return [float(worst) for worst in by_engine.max(axis=1)]  # NaN if one is NaN
