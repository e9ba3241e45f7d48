"""What a user can set about training and evaluation. The defaults are settings we vetted.

This module imports no machine-learning library: ``prefloop --help`` and config checks read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from prefloop.data.strict import LATER, Strict
from prefloop.labelers.config import LabelerConfig
from prefloop.training.defaults import (
    BATCH_SIZE,
    as_begun,
    left_out,
    of_adapter,
    processes_of,
    reward_left_out,
)
from prefloop.training.presets import Preset

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
    "dpop",
    "clipped",
]
"""TRL's names (``DPOConfig.loss_type``; ``sigmoid`` is the loss of the DPO paper), and six of ours
(``prefloop.training.trainers.losses``)."""

OWN_LOSSES: tuple[Loss, ...] = ("soft", "cdpo", "simpo", "orpo", "dpop", "clipped")
"""Losses that TRL's DPOTrainer has not."""

NOT_WEIGHED: tuple[Loss, ...] = ("aot", "aot_unpaired", "hinge", "sft")
"""Losses that TRL cannot weigh pair by pair: they have sorted values of a batch, or one value for
the whole batch, or are multiplied where PyTorch still needs them."""

WITHOUT_REFERENCE: tuple[Loss, ...] = ("simpo", "orpo", "sft")
"""Losses that no reference policy goes into."""

SMOOTHED: tuple[Loss, ...] = ("robust", "cdpo", "exo_pair", "aot", "aot_unpaired")
"""Losses that ``label_smoothing`` goes into."""

OF_DIVERGENCE: tuple[Loss, ...] = (
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "exo_pair",
    "robust",
    "discopop",
)
"""Losses that another ``divergence`` than ``reverse_kl`` goes into."""

Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]

PolicyLoss = Literal["grpo", "dr_grpo", "dapo", "bnpo"]
"""TRL's names (``GRPOConfig.loss_type``)."""

SamplerCorrection = Literal["truncate", "mask"]
"""TRL's ``sequence_truncate`` and ``sequence_mask`` (``vllm_importance_sampling_mode``)."""

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
    quantize: Literal["nf4"] | None = None
    """``nf4``: QLoRA, the frozen base in 4 bits while training (needs bitsandbytes:
    ``pip install 'prefloop[qlora]'``). The adapter is for the base as it is."""


class Guards(Strict):
    """When training is stopped because it goes wrong. What is trained so far is thrown away back to
    the last weights that were put aside while all was well."""

    enabled: bool = True
    """Watch at all."""
    window: PositiveInt = 10
    """Optimiser steps whose mean is looked at. No guard stops a training before so many."""
    warn_share: float = Field(default=0.5, gt=0, le=1)
    """Share of a limit from which on there is a warning, and weights are no longer put aside."""
    max_margin_nats: PositiveFloat | None = 200.0
    """Margin in nats: the difference of the log-ratios to the reference, chosen minus rejected (to
    the first steps, for losses without a reference). At beta 0.1 it is ten times the reward margin,
    of which 1 to 10 is healthy. Null: no limit."""
    max_margin: PositiveFloat | None = None
    """The same limit in the loss's own unit, beta x nats; null: none in that unit."""
    max_chosen_drop: PositiveFloat | None = 100.0
    """Nats by which an answer that was chosen may become less likely than under the reference (than
    in the first steps, for losses without one), on average. Null: no limit."""
    max_perfect_steps: PositiveInt | None = 100
    """Steps in a row in which every pair is told apart, after which there is a warning. Null: no
    warning."""
    snapshots: PositiveInt = 10
    """Times a round that the weights are put aside while all is well; one is kept. Of large models
    fewer are: no more than write 64 GB, but two."""
    max_kl: PositiveFloat | None = 100.0
    """Nats an answer between a new policy and the starting one, on held-out prompts; within
    ``grpo`` and ``rloo``, between the policy and the reference (where ``beta`` is above 0). Null:
    no limit."""
    max_length_ratio: Annotated[float, Field(gt=1)] | None = 3.0
    """Mean length of held-out answers against that of the starting policy, longer or shorter;
    within ``grpo`` and ``rloo``, against the first steps'. Null: no limit."""
    max_truncated: Annotated[float, Field(gt=0, le=1)] | None = 0.5
    """Share of held-out answers that are cut at the token limit, of those that the starting policy
    does not cut either: where it cuts 40 %, a limit of 0.5 is 70 %. Within ``grpo`` and ``rloo``,
    the same of the answers trained on, against the first steps'. Null: no limit."""
    max_repetitive: Annotated[float, Field(gt=0, le=1)] | None = 0.5
    """Share of held-out answers in which a run of four words occurs three times or more, beyond the
    starting policy's in the same way. Null: no limit."""
    max_reward_drop: Annotated[PositiveFloat | None, LATER] = 2.0
    """``grpo``, ``rloo``: by how much the mean reward may fall below that of the first steps, in
    standard deviations of the rewards by then. (``reward: wins`` cannot fall: half of all answers
    win.) Null: no limit."""
    max_entropy_ratio: Annotated[float | None, Field(gt=1), LATER] = 10.0
    """``grpo``, ``rloo``: how many times less the entropy of a token may be than in the first
    steps. Null: no limit."""
    then: Literal["stop", "go_on"] = "stop"
    """After a guard went off: the run stops, or goes on from the policy that was put aside."""


class Optimisation(Strict):
    """What every training by gradient descent is asked."""

    learning_rate: PositiveFloat
    """Peak learning rate."""
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """Course of the learning rate after the warm-up."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0 (not with ``constant``)."""
    epochs: PositiveFloat = 1.0
    """Passes over the data. Reward models overfit after one or two."""
    batch_size: PositiveInt = BATCH_SIZE
    """Pairs in one forward pass, each two sequences (answers, with ``sft``, ``kto``, ``grpo`` and
    ``rloo``)."""
    gradient_accumulation: PositiveInt = 1
    """Forward passes per optimiser step. Left out together with ``batch_size``, it is 4 for
    policies: 32 pairs a step, and fewer where a ``cluster`` trains in several processes."""
    max_length: PositiveInt = 1024
    """Tokens of prompt and answer. What is longer is dropped and counted."""
    max_pairs: PositiveInt | None = None
    """At most this many pairs, drawn at random with the seed; null = all."""
    optimizer: Annotated[Optimizer, LATER] = "adamw"
    """``adamw``; ``adamw_8bit``, whose state takes a quarter of the memory; ``paged_adamw`` and
    ``paged_adamw_8bit``, whose state moves to the computer's memory where the GPU's is full. All
    but the first need bitsandbytes (``pip install 'prefloop[qlora]'``), the paged ones a GPU."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (AdamW)."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this norm; 0 = never."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto = bf16 autocast on a GPU that has it, else float32. Never fp16: it gives NaN losses."""
    lora: Lora | None = None
    """Train an adapter; null = all weights. That of a reward model is merged when it is saved."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a fifth slower."""
    save_steps: PositiveInt = 500
    """Optimiser steps between the checkpoints that an interrupted training resumes from."""

    @model_validator(mode="wrap")
    @classmethod
    def _with_what_is_left_out(cls, raw: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Keys that other keys decide have their values, and still count as left out."""
        if not isinstance(raw, Mapping):
            return handler(raw)
        made = handler({**cls._left_out(raw), **raw})
        object.__setattr__(made, "__pydantic_fields_set__", set(raw))
        return made

    @classmethod
    def _left_out(cls, _given: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def continuing(self, before: Mapping[str, Any]) -> Self:
        """These settings for a training that was begun with the settings ``before``, as JSON: what
        is left out here is as it was then, also where its default is another by now."""
        now = self.model_dump(mode="json")
        return self.model_copy(update=as_begun(self.model_fields_set, now, before))


class SftWarmup(Strict):
    """Supervised training on the chosen answers of round 0, before its training on preferences."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate. Left out, it is ten times as much with ``lora``."""
    epochs: PositiveFloat = 1.0
    """Passes over the chosen answers."""

    def at(self, rate: float) -> Self:
        """The same at another learning rate, which still counts as left out."""
        made = self.model_copy()
        made.__dict__["learning_rate"] = rate
        return made


class ClusterConfig(Strict):
    """Processes on a Ray cluster that train together."""

    workers: PositiveInt
    """How many, each with a GPU of its own where the cluster has GPUs."""
    cpus: PositiveFloat = 1
    """CPUs of each."""
    accelerator_type: str | None = None
    """Kind of GPU of each, as Ray names it (``H100``); null: any."""
    address: str = Field(default="auto", pattern=r"\S")
    """Of the cluster, as ``executor.address`` has it."""
    attempts: PositiveInt = 3
    """Times that the training is begun, from its last checkpoint, where processes or nodes die."""


class StopEarly(Strict):
    """When a round's training ends before its steps do: once held-out pairs get no better. What is
    saved are the weights that did best on them, also where training went on to its end."""

    by: Literal["loss", "accuracy"] = "loss"
    """What held-out pairs are measured by: the loss that is trained, or the share of pairs whose
    chosen answer has the higher reward."""
    times: PositiveInt = 10
    """How often in a round they are measured."""
    patience: PositiveInt = 3
    """Measurements in a row that are not the best one so far, after which training stops."""
    max_pairs: PositiveInt = 256
    """At most this many of them, drawn by seed."""


class TrainConfig(Optimisation):
    """How a round trains its policy, with TRL's trainers. What is left out may depend on method,
    loss and adapter: ``prefloop plan`` and the run's ``config.yaml`` show what it came to."""

    preset: Annotated[Preset | None, LATER] = None
    """A recipe that was published, for all keys of ``train`` that are left out here: ``zephyr``
    (the alignment handbook's), ``tulu3``, ``simpo`` (Llama 3 8B Instruct), ``iterative-dpo``
    (RLHFlow's). Values and sources: ``prefloop/training/presets.py``. The learning rate is
    multiplied by 10 where there is ``lora``."""
    method: Literal["dpo", "kto", "sft", "grpo", "rloo"] = "dpo"
    """``dpo``: on pairs, by ``loss``. ``kto``: on single answers with a label each. ``sft``: on the
    chosen answers alone. ``grpo``, ``rloo``: reinforcement learning on answers of the policy as it
    is, with the labelers' votes for a reward."""
    loss: Loss | tuple[Loss, ...] = "sigmoid"
    """Several losses are added up with ``loss_weights``: [sigmoid, sft] is RPO's loss with its NLL
    term. ``soft`` takes the jury's p_chosen for a label, ``cdpo`` 1 - ``label_smoothing``;
    ``sigmoid_norm`` is length-normalised DPO; ``simpo`` and ``orpo`` need no reference; ``dpop``
    (DPO-Positive) does not let chosen answers become less likely than under the reference;
    ``clipped`` is DPO that learns nothing from a pair beyond ``margin_cap``."""
    loss_weights: tuple[float, ...] | None = None
    """One weight for each of several losses; null = 1 each."""
    beta: NonNegativeFloat = 0.1
    """Strength of the pull towards the reference (tau for ``ipo``, lambda for ``orpo``). With
    ``grpo`` and ``rloo``: weight of the KL to the reference, 0 = none. Left out, it is 2 with
    ``simpo``, 5 with ``sigmoid_norm``, 0.04 with ``grpo``, 0 with its ``dr_grpo`` and ``dapo``,
    0.05 with ``rloo``."""
    desirable_weight: PositiveFloat = 1.0
    """Weight of good answers in ``kto``; times their number it should be near that of bad ones."""
    undesirable_weight: PositiveFloat = 1.0
    """Weight of bad answers in ``kto``."""
    reward: Literal["wins", "score"] = "wins"
    """Reward of ``grpo`` and ``rloo``: the jury's mean probability that an answer is preferred to
    the others to its prompt, or the mean of the scores that the labelers give it (labelers that
    give scores: reward models, verifiers, ratings)."""
    clip: PositiveFloat = 0.2
    """How far the ratio to the policy that sampled may go in one update (``grpo``, ``rloo``)."""
    clip_high: Annotated[PositiveFloat | None, LATER] = None
    """How far upwards, where that is another bound (``grpo``); null = ``clip``. Left out, it is
    0.28 with ``dapo``."""
    policy_loss: Annotated[PolicyLoss, LATER] = "grpo"
    """``grpo``: how tokens are averaged. ``grpo``: within an answer, then over answers. ``dapo``:
    over all tokens of the step (DAPO, arXiv 2503.14476). ``dr_grpo``: their sum over a constant,
    the longest answer allowed (Dr. GRPO, arXiv 2503.20783). ``bnpo``: over the tokens of a forward
    pass."""
    scale_rewards: bool = True
    """``grpo``: divide advantages by their standard deviation in the group. Left out, it is false
    with ``dr_grpo``."""
    mask_truncated: Annotated[bool, LATER] = False
    """``grpo``, ``rloo``: learn nothing from answers that were cut at the token limit (DAPO's
    overlong filtering)."""
    sampler_correction: Annotated[SamplerCorrection | None, LATER] = None
    """``grpo``: weigh each answer by how much likelier it is under the weights that are trained
    than the engine said that sampled it, which computes in its own precision: up to
    ``sampler_correction_max`` (``truncate``), or not at all beyond that (``mask``). Needs an engine
    that tells log-probabilities, and temperature 1."""
    sampler_correction_max: Annotated[PositiveFloat, LATER] = 3.0
    """Largest weight of ``sampler_correction``."""
    online: bool = False
    """``dpo``: sample and label within the round, every ``online_steps`` optimiser steps, with the
    policy as it is by then."""
    online_steps: PositiveInt = 1
    """Optimiser steps on pairs of one and the same policy (``online``)."""
    simpo_gamma: NonNegativeFloat = 1.0
    """Margin that ``simpo`` asks for, in units of its reward."""
    dpop_lambda: Annotated[NonNegativeFloat, LATER] = 50.0
    """Weight of the loss in log-probability of a chosen answer in ``dpop`` (lambda; the paper's
    value)."""
    margin_cap: Annotated[PositiveFloat, LATER] = 10.0
    """Reward margin (beta x nats) beyond which a pair has no gradient in ``clipped``; 1 to 10 is
    healthy."""
    wpo: Annotated[bool, LATER] = False
    """Weigh each pair by how likely its answers are under the policy as it is, per token, so that
    what other policies wrote counts as little as this one would write it (WPO, arXiv 2406.11827,
    equation 2, with its sampled alignment). Not with ``aot``, ``aot_unpaired``, ``hinge`` and
    ``sft``."""
    ld_alpha: float | None = Field(default=None, ge=0, le=1)
    """Weight of an answer's tokens beyond the length of the other one, against length bias
    (LD-DPO); null = 1."""
    divergence: Divergence = "reverse_kl"
    """The f-divergence that holds the policy to its reference (f-DPO): another one goes with
    ``sigmoid``, ``sigmoid_norm``, ``hinge``, ``ipo``, ``exo_pair``, ``robust`` and ``discopop``."""
    divergence_alpha: float = Field(default=0.5, gt=0)
    """Alpha of ``alpha_divergence``."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Probability that a label is flipped (``robust``, ``cdpo``, ``aot``, ``aot_unpaired``),
    epsilon (``exo_pair``, must be above 0). No other loss takes it."""
    learning_rate: PositiveFloat = 5e-7
    """Peak learning rate. Left out, it is 1e-5 with ``sft``, 8e-6 with ``orpo``, 1e-6 with ``grpo``
    and ``rloo``, and ten times as much with ``lora``."""
    reference: Literal["start", "previous", "average", "ema"] = "start"
    """Reference policy of the loss: the policy before round 0 (``start``), the one that was sampled
    from, or the mean of the weights of all policies so far; ``ema`` begins each round as the one
    that was sampled from, and follows the policy at every optimiser step (TR-DPO, arXiv
    2404.09656). The last two need whole models, not ``lora``, and ``ema`` keeps one more in
    memory."""
    ema_decay: Annotated[float, Field(gt=0, lt=1), LATER] = 0.995
    """With ``ema``: what stays of the reference in an optimiser step; the rest is the policy's. At
    0.995 it is half of what the policy was 138 steps ago or earlier."""
    data: Literal["fresh", "accumulated", "replay"] = "fresh"
    """Train on the triples of this round only, on those of all rounds so far, or on this round's
    with some of earlier rounds drawn among them (``replay_share``)."""
    replay_share: float = Field(default=0.25, gt=0, lt=1)
    """With ``replay``: share of the pairs that come from earlier rounds, as far as these have so
    many; drawn by seed."""
    order: Literal["length", "random", "margin"] = "length"
    """``length``: drawn by seed, with pairs (or answers) of like length in a batch, which wastes
    less on padding, and batches of different lengths in a step. ``random``: drawn by seed.
    ``margin``: a curriculum, the pairs with the largest margins first (``dpo`` only)."""
    padding_free: Annotated[bool, LATER] = False
    """``sft``: answers of a batch one behind the other in one row, instead of padded. Less work
    where lengths differ, and the same weights, given an attention that keeps them apart."""
    liger: Annotated[bool, LATER] = False
    """Liger's kernels for norms, rotations and activations, on a GPU (``pip install
    'prefloop[liger]'``)."""
    precompute_reference_logprobs: bool = True
    """Run the reference once before training, so that it takes no memory while training."""
    accelerate: Path | None = None
    """File that ``accelerate config`` wrote: train on several devices or machines, with FSDP or
    DeepSpeed where it says so. ``batch_size`` is then that of each process."""
    cluster: Annotated[ClusterConfig | None, LATER] = None
    """Train in processes on a Ray cluster, which see the run directory under the same path. With
    ``accelerate``, its file says what is sharded (FSDP), and the cluster which processes there
    are. ``batch_size`` is that of each process."""
    sft_warmup: SftWarmup | None = None
    """Begin round 0 with supervised training on its chosen answers, as in the DPO paper where no
    policy was tuned on such answers. What comes out is the policy that preferences train, and the
    reference that ``start`` means."""
    stop_early: Annotated[StopEarly | None, LATER] = None
    """Measure pairs of the test split while training (``dpo``), and keep the weights that did best
    on them; null: keep the last. They are never trained on."""
    guards: Guards = Field(default_factory=Guards)
    """When training is stopped, and what then."""

    @classmethod
    def _left_out(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return left_out(given)

    @model_validator(mode="after")
    def _losses_fit(self) -> Self:
        losses = self.losses
        if not losses:
            raise ValueError("loss needs at least one name, for example sigmoid")
        if self.beta == 0 and self.method not in ("grpo", "rloo", "sft"):
            raise ValueError("beta 0 is for grpo and rloo: set it above 0, for example 0.1")
        if self.loss_weights is not None and len(self.loss_weights) != len(losses):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} values for {len(losses)} losses"
            )
        if "cdpo" in losses and self.label_smoothing == 0:
            raise ValueError("loss cdpo needs label_smoothing above 0, for example 0.1")
        if self.reference in ("average", "ema") and self.lora is not None:
            raise ValueError(f"reference {self.reference} needs whole models: leave out lora")
        if self.reference == "ema":
            self._ema_fits()
        apart = sorted(set(losses) - set(OF_DIVERGENCE))
        if apart and self.divergence != "reverse_kl":
            raise ValueError(f"divergence {self.divergence} does not go with loss {apart[0]}")
        # A preset's is for the preset's loss.
        smoothed = self.label_smoothing and self.preset is None and self.method == "dpo"
        if smoothed and not set(losses) & set(SMOOTHED):
            raise ValueError(
                f"label_smoothing does not go with loss {losses[0]}: DPO with it is cdpo "
                "(conservative) or robust; or leave it out"
            )
        unweighed = sorted(set(losses) & set(NOT_WEIGHED))
        if self.wpo and unweighed:
            raise ValueError(f"wpo does not go with loss {unweighed[0]}: leave one of them out")
        if self.wpo and self.method != "dpo":
            raise ValueError(f"wpo is for method dpo, not {self.method}: leave it out")
        if "exo_pair" in losses and self.label_smoothing == 0:
            raise ValueError("loss exo_pair needs label_smoothing above 0, for example 0.001")
        return self

    @model_validator(mode="after")
    def _warm_up_by_adapter(self) -> Self:
        warm = self.sft_warmup
        if warm and self.lora and "learning_rate" not in warm.model_fields_set:
            self.__dict__["sft_warmup"] = warm.at(of_adapter(warm.learning_rate))
        return self

    def continuing(self, before: Mapping[str, Any]) -> Self:
        made, warm, was = super().continuing(before), self.sft_warmup, before.get("sft_warmup")
        alike = (self.lora is None) == (before.get("lora") is None)
        if warm and was and alike and "learning_rate" not in warm.model_fields_set:
            return made.model_copy(update={"sft_warmup": warm.at(was["learning_rate"])})
        return made

    @property
    def processes(self) -> int:
        """How many train together, each on a batch of its own."""
        return processes_of({"cluster": self.cluster, "accelerate": self.accelerate})

    def _ema_fits(self) -> None:
        """Raise ``ValueError`` where no reference can follow the policy."""
        if self.online or self.method in ("kto", "sft"):
            what = "online training" if self.online else f"method {self.method}"
            raise ValueError(f"reference ema is not for {what}: set it to start or previous")
        for key in ("accelerate", "cluster"):
            if getattr(self, key):
                raise ValueError(f"reference ema needs all weights in one process: leave out {key}")
        if self.precompute_reference_logprobs:
            raise ValueError(
                "reference ema moves while training: leave out precompute_reference_logprobs"
            )

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        if self.online and self.method != "dpo":
            raise ValueError(f"online is for method dpo, not {self.method}: leave it out")
        if self.order == "margin" and (self.on_policy or self.method != "dpo"):
            raise ValueError("order margin sorts pairs sampled before: leave it out here")
        if self.stop_early and (self.on_policy or self.method != "dpo"):
            raise ValueError(
                "stop_early measures pairs sampled before: it is for method dpo, not online"
            )
        if self.stop_early and self.reference == "ema":
            raise ValueError(
                "stop_early compares losses, and reference ema moves between them: leave one out"
            )
        if self.padding_free and self.method != "sft":
            raise ValueError(
                f"padding_free is for method sft, not {self.method}: leave it out (TRL's trainers "
                "of pairs and of rewarded answers pad)"
            )
        of_grpo = {"policy_loss": "grpo", "clip_high": None, "sampler_correction": None}
        for key, default in of_grpo.items():
            if getattr(self, key) != default and self.method != "grpo":
                raise ValueError(f"{key} is for method grpo, not {self.method}: leave it out")
        if self.mask_truncated and self.method not in ("grpo", "rloo"):
            raise ValueError("mask_truncated is for methods grpo and rloo: leave it out")
        if self.method == "kto" and self.batch_size < 2:
            raise ValueError("method kto needs batch_size 2 or more: its KL term is of a batch")
        if self.on_policy:
            fixed = {"epochs": 1.0, "data": "fresh", "max_pairs": None}
            other = [name for name, value in fixed.items() if getattr(self, name) != value]
            if other:
                what = "online" if self.online else f"method {self.method}"
                raise ValueError(
                    f"{what} trains on answers of the policy as it is, each once: leave out "
                    f"{', '.join(other)} (sample.prompts_per_round says how many prompts)"
                )
            for key in ("accelerate", "cluster"):
                if getattr(self, key):
                    raise ValueError(
                        f"{key} is for training on what was sampled before: leave it out"
                    )
            if self.sft_warmup:
                raise ValueError(
                    "sft_warmup needs answers before training begins: leave it out, or train "
                    "offline (online: false)"
                )
        return self

    @property
    def resolved(self) -> dict[str, Any]:
        """The values of keys that were left out and that method, loss, adapter or preset decided,
        where they are no default."""
        fields = type(self).model_fields
        return {
            key: getattr(self, key)
            for key in left_out({name: getattr(self, name) for name in self.model_fields_set})
            if getattr(self, key) != fields[key].get_default()
        }

    @property
    def on_policy(self) -> bool:
        """Whether answers are sampled while the policy is trained."""
        return self.online or self.method in ("grpo", "rloo")

    @property
    def uses_reference(self) -> bool:
        """Whether the losses compare with a reference policy."""
        return not set(self.losses) <= set(WITHOUT_REFERENCE)

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The loss names as a tuple, also where there is one."""
        return (self.loss,) if isinstance(self.loss, str) else self.loss


class Opponent(Strict):
    """A policy to compare with that is not trained."""

    model: str
    """Checkpoint folder, hub name or served name."""
    engine: str | None = None
    """Name of one of the run's ``engines``; null = the one that samples."""


class FinalConfig(Strict):
    """Held-out prompts that no round is evaluated on. When the run is over, the policy to keep
    answers them, and is compared with the starting policy, once."""

    share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the held-out prompts, drawn by prompt."""
    size: PositiveInt | None = None
    """So many of the held-out prompts instead of a share; null = the share."""
    judges: tuple[LabelerConfig, ...] = ()
    """Labelers that vote on them, best ones that labelled no training data; none = those of
    ``evaluate.judges``, or else the run's own."""


class EvaluateConfig(Strict):
    """How a new policy is compared with the starting and the previous one on held-out prompts."""

    enabled: bool = True
    """Evaluate after each round."""
    limit: PositiveInt | None = None
    """At most this many held-out prompts; null = all."""
    samples_per_prompt: PositiveInt = 1
    """Answers of each policy per prompt; intervals account for several answers of one prompt."""
    temperature: NonNegativeFloat | None = 1.0
    """Sampling temperature; 0 = greedy; null as in ``sample.temperature``. Where it is not 1, or
    ``top_p`` is not, KL is measured on a draw of its own: one answer to each of at most 256
    held-out prompts, at 1 and 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    """Nucleus sampling; null as in ``sample.top_p``."""
    max_tokens: PositiveInt | None = None
    """Longest answer in tokens; null = as in sampling."""
    labelers: tuple[str, ...] | None = None
    """Names of the labelers of the run that compare the answers; null = all of them."""
    judges: tuple[LabelerConfig, ...] = ()
    """Labelers that vote in the evaluation only, instead of the run's: a policy that was trained on
    a judge's labels does better by that judge than it is. Their jury is the mean."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Coverage of the intervals."""
    final: Annotated[FinalConfig | None, LATER] = None
    """Held-out prompts to be looked at once, when the run is over: the rounds' figures chose the
    policy, so by them it looks better than it is. Null = none."""
    opponent: Opponent | None = None
    """A fixed policy that every round's policy is compared with too."""
    promote: Literal["winner", "always"] = "winner"
    """Which policy the next round samples from and trains: the new one only if it won against the
    one before (by the jury, the interval above 0.5) and set off no guard, else that one again; or
    always the new one. Where nothing is evaluated it is always the new one. The policy that is
    named as the one to keep is the one that did best, whatever stands here."""
    promote_error: Annotated[Literal["run", "round"], LATER] = "run"
    """What the chance of promoting a policy that is no better, half of 1 - ``confidence`` in one
    round, may add up to. ``run``: to 1 - ``confidence`` in all planned rounds together, so with
    more than two the interval that promotion goes by is wider (Bonferroni). ``round``: each round
    goes by its interval as it is, and the chances add up."""
    patience: PositiveInt | None = None
    """Rounds in a row whose policy does not win against the one before (by the jury, the interval
    above 0.5), or sets off a guard, after which the run ends; null = all rounds are run."""

    @model_validator(mode="after")
    def _final_is_evaluated(self) -> Self:
        if self.final is not None and not self.enabled:
            raise ValueError(
                "final needs rounds that are evaluated: set enabled: true, or leave it out"
            )
        return self


class RewardConfig(Optimisation):
    """Training of a Bradley-Terry reward model with TRL's RewardTrainer."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate. Left out, it is ten times as much with ``lora``."""
    center_rewards_coefficient: NonNegativeFloat = 0.0
    """Weight of the squared sum of both scores in the loss: it keeps scores around 0, which the
    comparison alone leaves open (Eisenstein et al. 2023, equation 2; they use 0.01)."""
    use_margin: bool = False
    """Ask for a gap of at least the column ``margin`` (Touvron et al. 2023, equation 2)."""

    @classmethod
    def _left_out(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return reward_left_out(given, cls.model_fields["learning_rate"].default)
