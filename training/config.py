"""What a user can set about training and evaluation. The defaults are settings we vetted.

This module imports no machine-learning library: ``prefloop --help`` and config checks read it.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from data.strict import Strict
from labelers.config import LabelerConfig

Loss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "soft",
    "cdpo",
    "simpo",
    "orpo",
]
"""TRL's names (``DPOConfig.loss_type``; ``sigmoid`` is the loss of the DPO paper), and four of ours
(``training.losses``)."""

OWN_LOSSES: tuple[Loss, ...] = ("soft", "cdpo", "simpo", "orpo")
"""Losses that TRL's DPOTrainer has not."""

WITHOUT_REFERENCE: tuple[Loss, ...] = ("simpo", "orpo", "sft")
"""Losses that no reference policy goes into."""

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


class Lora(Strict):
    """Low-rank adapters instead of full weights. Round k + 1 goes on training round k's adapter."""

    r: PositiveInt = 16
    """Rank."""
    alpha: PositiveInt = 32
    """Scale of the update: it is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input while training."""
    target_modules: Literal["all-linear"] | tuple[str, ...] | None = "all-linear"
    """Names of the modules that get an adapter; null = peft's default for the architecture."""


class Guards(Strict):
    """When training is stopped because it goes wrong. What is trained so far is thrown away back to
    the last weights that were put aside while all was well."""

    enabled: bool = True
    """Watch at all."""
    window: PositiveInt = 10
    """Optimiser steps whose mean is looked at."""
    warn_share: float = Field(default=0.5, gt=0, le=1)
    """Share of a limit from which on there is a warning, and weights are no longer put aside."""
    max_margin: PositiveFloat | None = 20.0
    """Reward margin (beta x difference of log-ratios, chosen minus rejected); 1 to 10 is healthy.
    Null: no limit."""
    max_chosen_drop: PositiveFloat | None = 100.0
    """Nats by which an answer that was chosen may become less likely than under the reference, on
    average. Null: no limit."""
    max_perfect_steps: PositiveInt | None = 100
    """Steps in a row in which every pair is told apart, after which there is a warning. Null: no
    warning."""
    snapshots: PositiveInt = 10
    """Times a round that the weights are put aside while all is well; one is kept."""
    max_kl: PositiveFloat | None = 100.0
    """Nats an answer between a new policy and the starting one, on held-out prompts. Null: no
    limit."""
    max_length_ratio: Annotated[float, Field(gt=1)] | None = 3.0
    """Mean length of held-out answers against that of the starting policy, longer or shorter. Null:
    no limit."""
    max_truncated: Annotated[float, Field(gt=0, le=1)] | None = 0.5
    """Share of held-out answers that are cut at the token limit. Null: no limit."""
    max_repetitive: Annotated[float, Field(gt=0, le=1)] | None = 0.5
    """Share of held-out answers in which a run of four words occurs three times or more. Null: no
    limit."""
    then: Literal["stop", "go_on"] = "stop"
    """After a guard went off: the run stops, or goes on from the policy that was put aside."""


class TrainConfig(Strict):
    """One round of preference training with TRL's DPOTrainer."""

    loss: Loss | tuple[Loss, ...] = "sigmoid"
    """Several losses are added up with ``loss_weights``: [sigmoid, sft] is RPO's loss with its NLL
    term. ``soft`` takes the jury's p_chosen for a label, ``cdpo`` 1 - ``label_smoothing``;
    ``sigmoid_norm`` is length-normalised DPO; ``simpo`` and ``orpo`` need no reference."""
    loss_weights: tuple[float, ...] | None = None
    """One weight for each of several losses; null = 1 each."""
    beta: PositiveFloat = 0.1
    """Strength of the pull towards the reference (tau for ``ipo``, lambda for ``orpo``; ``simpo``
    wants about 2)."""
    simpo_gamma: NonNegativeFloat = 1.0
    """Margin that ``simpo`` asks for, in units of its reward."""
    ld_alpha: float | None = Field(default=None, ge=0, le=1)
    """Weight of an answer's tokens beyond the length of the other one, against length bias
    (LD-DPO); null = 1."""
    divergence: Divergence = "reverse_kl"
    """The f-divergence that holds the policy to its reference (f-DPO); not with every loss."""
    divergence_alpha: float = Field(default=0.5, gt=0)
    """Alpha of ``alpha_divergence``."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Probability that a label is flipped (``robust``, ``cdpo``), epsilon (``exo_pair``, must be
    above 0)."""
    learning_rate: PositiveFloat = 5e-7
    """Peak learning rate. Adapters usually need about ten times that of full weights."""
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """Course of the learning rate after the warm-up."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0 (not with ``constant``)."""
    epochs: PositiveFloat = 1.0
    """Passes over the triples."""
    batch_size: PositiveInt = 8
    """Pairs in one forward pass (each is two sequences)."""
    gradient_accumulation: PositiveInt = 1
    """Forward passes per optimiser step."""
    max_length: PositiveInt = 1024
    """Tokens of prompt and answer. A pair with a longer sequence is dropped and counted."""
    max_pairs: PositiveInt | None = None
    """At most this many pairs, drawn at random with the run's seed; null = all."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (AdamW)."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this norm; 0 = never."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto = bf16 autocast on a GPU that has it, else float32. Never fp16: it gives NaN losses."""
    reference: Literal["start", "previous", "average"] = "start"
    """Reference policy of the loss: the policy before round 0, the one that was sampled from, or
    the mean of the weights of all policies so far (not with ``lora``)."""
    data: Literal["fresh", "accumulated", "replay"] = "fresh"
    """Train on the triples of this round only, on those of all rounds so far, or on this round's
    with some of earlier rounds drawn among them (``replay_share``)."""
    replay_share: float = Field(default=0.25, gt=0, lt=1)
    """With ``replay``: share of the pairs that come from earlier rounds, as far as these have so
    many; drawn by seed."""
    order: Literal["random", "length", "margin"] = "random"
    """``random``: drawn by seed. ``length``: drawn by seed too, with pairs of like length in a
    batch, which wastes less on padding. ``margin``: a curriculum, the largest margins first."""
    lora: Lora | None = None
    """Train an adapter; null = all weights."""
    precompute_reference_logprobs: bool = True
    """Run the reference once before training, so that it takes no memory while training."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a fifth slower."""
    guards: Guards = Field(default_factory=Guards)
    """When training is stopped, and what then."""
    save_steps: PositiveInt = 500
    """Optimiser steps between the checkpoints that an interrupted round resumes from."""

    @model_validator(mode="after")
    def _losses_fit(self) -> Self:
        losses = self.losses
        if not losses:
            raise ValueError("loss needs at least one name, for example sigmoid")
        if self.loss_weights is not None and len(self.loss_weights) != len(losses):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} values for {len(losses)} losses"
            )
        if "cdpo" in losses and self.label_smoothing == 0:
            raise ValueError("loss cdpo needs label_smoothing above 0, for example 0.1")
        if self.reference == "average" and self.lora is not None:
            raise ValueError("reference average needs whole models: leave out lora")
        own = sorted(set(losses) & set(OWN_LOSSES))
        if own and self.divergence != "reverse_kl":
            raise ValueError(f"divergence {self.divergence} does not go with loss {own[0]}")
        if "exo_pair" in losses and self.label_smoothing == 0:
            raise ValueError("loss exo_pair needs label_smoothing above 0, for example 0.001")
        return self

    @property
    def uses_reference(self) -> bool:
        """Whether the losses compare with a reference policy."""
        return not set(self.losses) <= set(WITHOUT_REFERENCE)

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The loss names as a tuple, also where there is one."""
        return (self.loss,) if isinstance(self.loss, str) else self.loss


class EvaluateConfig(Strict):
    """How a new policy is compared with the starting and the previous one on held-out prompts."""

    enabled: bool = True
    """Evaluate after each round."""
    limit: PositiveInt | None = None
    """At most this many held-out prompts; null = all."""
    samples_per_prompt: PositiveInt = 1
    """Answers of each policy per prompt; intervals account for several answers of one prompt."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature; 0 = greedy. The KL estimate needs 1.0."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling. The KL estimate needs 1.0."""
    max_tokens: PositiveInt | None = None
    """Longest answer in tokens; null = as in sampling."""
    labelers: tuple[str, ...] | None = None
    """Names of the labelers of the run that compare the answers; null = all of them."""
    judges: tuple[LabelerConfig, ...] = ()
    """Labelers that vote in the evaluation only, instead of the run's: a policy that was trained on
    a judge's labels does better by that judge than it is. Their jury is the mean."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Coverage of the intervals."""
    patience: PositiveInt | None = None
    """Rounds in a row whose policy does not win against the one before (by the jury, the interval
    above 0.5) after which the run ends; null = all rounds are run."""
