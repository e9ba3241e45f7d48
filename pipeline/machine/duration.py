"""How long a model takes, from its size and the machine's speed; all pure arithmetic.

A token costs two operations for each parameter that it is multiplied with (Kaplan et al. 2020,
arXiv 2001.08361, section 2.1), and a step of decoding reads all of them from memory once, whatever
the number of answers that are decoded together. A tiny model waits for neither, but for the
machine to begin its operations.
"""

from __future__ import annotations

from dataclasses import dataclass

from prefloop.pipeline.machine.model_shape import ModelShape
from prefloop.pipeline.machine.speed import MachineSpeed

OPERATIONS_PER_LAYER = 60
"""Operations of a layer that are begun one by one in a step of transformers' models."""
OPERATIONS_PER_STEP = 60
"""Those of a step outside of the layers: embedding, head, drawing a token."""
SHARE_OF_PEAK = 0.6
"""Of the measured speed of large products that whole models reach, padding included."""
_PASSES_OF_DRAWING = 10  # over the logits in float32, to draw a token and its log-probability
_OPTIMISER_BYTES = 28  # read and written of each parameter by a step of AdamW in float32


@dataclass(frozen=True)
class Computing:
    """A model on a device, in numbers of ``bytes_each``."""

    shape: ModelShape
    speed: MachineSpeed
    bytes_each: int
    eager: bool = True
    """Operations are begun one by one, and not as one recorded graph."""

    def reading(self, tokens: float) -> float:
        """Seconds of ``tokens`` that are read together: prompts, questions, conversations."""
        return 2 * self.shape.read * tokens / (SHARE_OF_PEAK * self.speed.flops)

    def step(self, together: float, context: float) -> float:
        """Seconds of one more token of each of ``together`` answers behind ``context`` tokens."""
        shape, speed = self.shape, self.speed
        cached = together * context * shape.cache_bytes(self.bytes_each)
        memory = (shape.read * self.bytes_each + cached) / speed.bytes_per_second
        arithmetic = 2 * shape.read * together / (SHARE_OF_PEAK * speed.flops)
        drawn = _PASSES_OF_DRAWING * together * shape.vocabulary * 4 / speed.bytes_per_second
        return max(memory, arithmetic) + self.begun() + drawn

    def begun(self) -> float:
        """Seconds in which the operations of one step are begun."""
        layers = self.shape.layers * OPERATIONS_PER_LAYER if self.eager else 0
        return (layers + OPERATIONS_PER_STEP) * self.speed.operation_s

    def answering(
        self, answers: int, lengths: tuple[float, float], *, prompts: float, together: int
    ) -> float:
        """Seconds of ``answers`` in batches of ``together`` at most.

        ``lengths``: tokens of an answer in the mean, and of a batch's longest. ``prompts``: tokens
        of prompts in all, each prompt once for all of its answers.
        """
        if not answers:
            return 0.0
        mean, longest = lengths
        batches = -(-answers // together)
        size = answers / batches
        context = prompts / answers + mean / 2
        # Answers leave the batch as they end, and its last tokens are decoded for few.
        full = mean * self.step(size, context)
        rest = max(longest - mean, 0) * self.step(max(size / 8, 1), context)
        return self.reading(prompts) + batches * (full + rest + self.begun())

    def training(self, tokens: float, steps: int, *, operations: float, trained: float) -> float:
        """Seconds of training on ``tokens`` in ``steps``: so many ``operations`` for each token
        and parameter, and of the parameters the share ``trained``."""
        passes = operations * self.shape.read * tokens / (SHARE_OF_PEAK * self.speed.flops)
        update = trained * self.shape.parameters * _OPTIMISER_BYTES / self.speed.bytes_per_second
        return passes + steps * (3 * self.begun() + update)
