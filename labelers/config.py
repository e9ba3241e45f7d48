"""What a user can set about labelling, filtering and pairing. Defaults are the vetted settings.

This module imports no labeler and no machine-learning library: config checks read it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from prefloop.data.names import FileName
from prefloop.data.protocol import Thinking
from prefloop.data.strict import LATER, FreeMapping, Share, Strict
from prefloop.labelers.people import PeopleRole, is_human

JuryRule = Literal["mean", "majority", "reliability", "dawid_skene", "ensemble"]


# Labelers ---------------------------------------------------------------------------------------


MOST_WRITTEN = 30
"""Criteria that a model may write for a prompt."""


class WrittenCriteria(Strict):
    """A model writes the criteria of each prompt, once and before any answer is seen. They are kept
    in ``rubrics/`` of the run directory."""

    engine: str = "default"
    """Engine that serves the model, by its name in ``engines``."""
    model: str
    """Checkpoint folder, hub name or served name; not the policy, which changes."""
    most: Annotated[int, Field(ge=1, le=MOST_WRITTEN)] = 8
    """Criteria that it is asked for at most."""
    temperature: NonNegativeFloat | None = 0.0
    """Null sends none."""
    max_tokens: PositiveInt = 1024
    """Tokens of its answer at most."""
    thought_tokens: PositiveInt | None = None
    """Tokens that it may think before it answers, beside ``max_tokens``."""
    chat_template_kwargs: FreeMapping = {}  # noqa: RUF012
    """As a judge's."""
    reasoning_effort: str | None = None
    """As the model or server names it (``low``, ``high``); null is the engine's."""

    @field_validator("model")
    @classmethod
    def _stays_the_same(cls, value: str) -> str:
        if value == "policy":
            raise ValueError("criteria are written once, and the policy changes: name a model")
        return value

    @property
    def thinking(self) -> Thinking:
        """How much it may think."""
        return Thinking(self.thought_tokens, self.chat_template_kwargs, self.reasoning_effort)


class JudgeLabeler(Strict):
    """A language model that compares two answers."""

    type: Literal["judge"] = "judge"
    name: FileName = "judge"
    """Name in the ``labeler`` column of the votes."""
    judge: str = "pairwise"
    """What the model is asked and how it is read: a folder that ships with prefloop (``pairwise``,
    ``pairwise_rationale``, ``pairwise_short``) or the path of one of your own."""
    engine: str = "default"
    """Engine that serves the model, by its name in ``engines``."""
    model: str
    """Checkpoint folder, hub name or served name; ``embedded:judge``; or ``policy``: the current
    policy judges its own answers."""
    orders: Literal["both", "one"] = "both"
    """``both`` asks twice with the answers swapped, and a verdict that changes is a tie. ``one``
    asks once, in an order drawn by seed, at half the price and with the judge's position bias."""
    votes: Annotated[PositiveInt, LATER] = 1
    """Times a judge is asked the same, each with a seed of its own. Of one that compares answers,
    what more than half of the votes in an order say is its verdict, and else it is a tie; of one
    that looks at each by itself (in JSON), the mean counts. Needs a ``temperature`` above 0."""
    criteria: Annotated[Literal["judge", "prompt"] | WrittenCriteria, LATER] = "judge"
    """Of a judge of kind rubric: the criteria of its folder; or those that each ``prompt`` brings
    along (``prompts.train.columns.rubric``), without an opinion on prompts that have none; or a
    section ``{engine, model}``: what that model writes for each prompt."""
    temperature: NonNegativeFloat | None = 0.0
    """Null sends none, for servers that refuse it; a local model then draws as its
    generation_config.json says."""
    max_tokens: PositiveInt | None = None
    """Tokens of the judge's answer at most; null is what the judge's folder says."""
    thought_tokens: Annotated[PositiveInt | None, LATER] = None
    """Tokens that the judge may think before it answers, beside ``max_tokens``; null: it is not
    expected to think."""
    chat_template_kwargs: Annotated[FreeMapping, LATER] = {}  # noqa: RUF012
    """Variables of the chat template, such as ``enable_thinking: false``; each wins over the
    engine's of the same name."""
    reasoning_effort: Annotated[str | None, LATER] = None
    """As the model or server names it (``low``, ``high``); null is the engine's."""
    calibration: Path | None = None
    """File that `prefloop calibrate` wrote: it maps the judge's probabilities to those that the
    verdicts of people bear out, before the jury sees them. The votes stay as they were given."""
    decides: Annotated[bool, LATER] = True
    """Whether its votes count in the jury. Without, they are kept beside those of the others, for
    the filter ``score`` and to be compared with them."""
    weight: PositiveFloat = 1.0
    """Weight of this labeler in the jury."""

    @model_validator(mode="after")
    def _votes_differ(self) -> JudgeLabeler:
        if self.votes > 1 and self.temperature == 0:
            raise ValueError(
                f"votes {self.votes} would all be the same at temperature 0: set it above, for "
                "example 0.7, or leave out votes"
            )
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """The models that it asks, by their names in the config."""
        return tuple(dict.fromkeys(model for _, model in self.asked))

    @property
    def writer(self) -> WrittenCriteria | None:
        """Who writes its criteria, if anybody does."""
        return self.criteria if isinstance(self.criteria, WrittenCriteria) else None

    @property
    def asked(self) -> tuple[tuple[str, str], ...]:
        """Engines and models that it asks, by their names in the config, its own first."""
        own, writer = (self.engine, self.model), self.writer
        return (own,) if writer is None else (own, (writer.engine, writer.model))

    @property
    def thinking(self) -> Thinking:
        """How much each answer of the judge may be thought about."""
        return Thinking(self.thought_tokens, self.chat_template_kwargs, self.reasoning_effort)


ShippedCheck = Literal["math", "choice", "exact", "json_schema", "unit_tests", "refusal", "pii"]
_OF_CHECK: dict[str, tuple[str, ...]] = {
    "gold": ("math", "choice", "exact", "json_schema", "unit_tests"),
    "unparsed": get_args(ShippedCheck),
    "choices": ("choice",),
    "within": ("exact",),
    "test_seconds": ("unit_tests",),
    "test_memory_mb": ("unit_tests",),
}
"""Keys that mean something with some checks only."""


class VerifierLabeler(Strict):
    """A function that scores one answer; the higher score wins."""

    type: Literal["verifier"] = "verifier"
    name: FileName = "verifier"
    """Name in the ``labeler`` column of the votes."""
    function: Annotated[str, Field(pattern=r"^[^:\s]+:[^:\s]+$")] | None = None
    """``module:function``, called as ``function(text, messages=..., reference=..., metadata=...)``
    and returning a number or a boolean. Null checks the constraints that came with the prompt.
    The function is your code; it runs in processes of its own, which share no state."""
    check: Annotated[ShippedCheck | None, LATER] = None
    """A verifier that ships with prefloop, instead of a function of yours. ``math``: the answer's
    last result equals the gold one (`pip install 'prefloop[math]'`). ``choice``: the letter or text
    of the gold choice. ``exact``: the gold text. ``json_schema``: JSON that a schema allows.
    ``unit_tests``: the share of tests that the answer's Python code passes, run without network
    and without write access (Linux). ``refusal``: the answer does not decline in its first
    sentences. ``pii``: it holds no e-mail address, phone, card, account or id number, and no key.
    The last two are for the filter ``score``, with ``decides: false``."""
    gold: Annotated[str | None, LATER] = None
    """With ``check``: column of the prompts' metadata with what is right (a result, a choice, a
    text or several, a schema, the tests); null is the prompt's reference answer (``json_schema``:
    any JSON)."""
    choices: Annotated[str | None, LATER] = None
    """With ``check: choice``: column of the prompts' metadata with the texts of the choices."""
    within: Annotated[Literal["whole", "final", "anywhere"], LATER] = "final"
    """With ``check: exact``: the gold text is the whole answer, what the answer comes to (its box,
    what is behind ``####`` or "the answer is", else its last line), or anywhere in it."""
    unparsed: Annotated[Literal["wrong", "worse", "invalid"], LATER] = "wrong"
    """With ``check``: an answer that holds nothing to be checked (no result, no choice, no code; or
    for ``refusal`` is empty or in a language whose refusals are not known)
    counts as ``wrong``, as ``worse`` than wrong, or makes its votes ``invalid``. The votes say in
    ``completion`` which it was."""
    test_seconds: Annotated[PositiveFloat, LATER] = 10.0
    """With ``check: unit_tests``: an answer's code fails where it takes longer."""
    test_memory_mb: Annotated[PositiveInt, LATER] = 1024
    """With ``check: unit_tests``: memory that an answer's code may take, in MiB."""
    timeout_s: Annotated[PositiveFloat, LATER] = 30.0
    """A call of ``function`` or ``check`` that takes longer is ended, and its answer's votes are
    invalid."""
    processes: Annotated[PositiveInt, LATER] = 1
    """Calls of ``function`` at the same time, each in a process that imports its module."""
    constraints: Annotated[Literal["own", "ifeval"], LATER] = "own"
    """Whose constraints came with the prompt, if there is no function: prefloop's ``own``, a list
    of objects with a ``type``; or ``ifeval``: the columns ``instruction_id_list`` and ``kwargs`` as
    in IFEval's prompts, checked by its official rules. The score is the share that is met."""
    mode: Annotated[Literal["strict", "loose"], LATER] = "strict"
    """With ``ifeval``: ``loose`` also counts an instruction as followed if it is once the answer's
    first line, its last, both, or its asterisks are taken away."""
    constraints_column: str = "constraints"
    """Where the prompt's metadata holds its list of prefloop's constraints."""
    min_gap: NonNegativeFloat = 0.0
    """Scores that differ by no more than this are a tie."""
    decides: Annotated[bool, LATER] = True
    """Whether its votes count in the jury. Without, they are kept beside those of the others, for
    the filter ``score`` and to be compared with them."""
    weight: PositiveFloat = 1.0
    """Weight of this labeler in the jury."""

    @model_validator(mode="after")
    def _constraints_fit(self) -> VerifierLabeler:
        if self.function and self.check:
            raise ValueError("function and check both score answers: leave out one")
        if (self.function or self.check) and self.constraints != "own":
            what = "function" if self.function else "check"
            raise ValueError(f"{what} scores answers by itself: leave out constraints")
        for key, check in _OF_CHECK.items():
            if getattr(self, key) != type(self).model_fields[key].default and (
                self.check not in check
            ):
                named = " or ".join(check)
                raise ValueError(f"{key} is for check {named}: set that, or leave out {key}")
        if self.check == "unit_tests" and self.timeout_s <= self.test_seconds:
            raise ValueError("timeout_s must be above test_seconds, or no code could fail by time")
        if self.mode != "strict" and self.constraints != "ifeval":
            raise ValueError(
                f"mode {self.mode} is IFEval's: set constraints: ifeval, or leave it out"
            )
        return self


class RewardModelLabeler(Strict):
    """A sequence-classification model with one output scores each answer; the higher score wins.

    The soft vote is Bradley-Terry's: P(a preferred to b) = sigma(score_a - score_b).
    """

    type: Literal["reward_model"] = "reward_model"
    name: FileName = "reward_model"
    """Name in the ``labeler`` column of the votes."""
    model: str
    """Checkpoint folder (`prefloop train --method reward` makes one) or hub name; safetensors."""
    device: str = "auto"
    """``auto``: a GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 on a GPU, float32 on a CPU."""
    batch_tokens: PositiveInt = 16_384
    """Tokens in a batch at most, padding included; batches are sorted by length. On a CPU never
    more than 1,024, which is faster."""
    max_length: PositiveInt | None = None
    """Longest conversation in tokens, longer ones are invalid votes; null: the model's context."""
    trust_remote_code: bool = False
    """Run code that comes with the checkpoint."""
    min_gap: NonNegativeFloat = 0.0
    """Scores that differ by no more than this are a tie."""
    calibration: Annotated[Path | None, LATER] = None
    """File that `prefloop calibrate` wrote, as a judge's."""
    decides: Annotated[bool, LATER] = True
    """Whether its votes count in the jury. Without, they are kept beside those of the others, for
    the filter ``score`` and to be compared with them."""
    weight: PositiveFloat = 1.0
    """Weight of this labeler in the jury."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models that it loads, by their names in the config."""
        return (self.model,)


class ImplicitRewardLabeler(Strict):
    """A policy that was trained on preferences is a reward model too: an answer's score is
    ``beta`` * (log p(answer) under the policy - log p(answer) under its reference), equation 5 of
    Rafailov et al. 2023 (arXiv 2305.18290). The higher score wins.

    Of an answer, what the labeler is shown is scored, its end token included (of an answer that was
    cut off there is none): without the thought, or with it where ``label.show_reasoning`` is
    ``always``, in the tokens that training gives it. The soft vote is Bradley-Terry's.
    """

    type: Literal["implicit_reward"] = "implicit_reward"
    name: FileName = "implicit_reward"
    """Name in the ``labeler`` column of the votes."""
    policy: str
    """The policy that was trained: a checkpoint folder (such as ``RUN/round-000/policy``), a LoRA
    adapter's, or a hub name; safetensors. Its chat template and tokenizer are used for both."""
    reference: str
    """What it was trained from, the reference of its loss; it must have the same tokens."""
    beta: PositiveFloat = 0.1
    """That of the policy's training: it decides how sure the votes are, and not who wins."""
    per_token: bool = False
    """Divide the score by the answer's tokens: for a policy that was trained so, or where the sum
    prefers an answer for its length. ``beta`` is then usually larger (2 to 10)."""
    chat_template_kwargs: FreeMapping = {}  # noqa: RUF012
    """Variables of the chat template, those that the policy was trained with, such as
    ``enable_thinking: false``."""
    device: str = "auto"
    """``auto``: a GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 on a GPU, float32 on a CPU."""
    batch_size: PositiveInt = 16
    """Answers in a batch; batches are sorted by length."""
    max_length: PositiveInt | None = None
    """Longest conversation in tokens, longer ones are invalid votes; null: the shorter context of
    the two models."""
    min_gap: NonNegativeFloat = 0.0
    """Scores that differ by no more than this are a tie."""
    calibration: Path | None = None
    """File that `prefloop calibrate` wrote, as a judge's."""
    decides: Annotated[bool, LATER] = True
    """Whether its votes count in the jury. Without, they are kept beside those of the others, for
    the filter ``score`` and to be compared with them."""
    weight: PositiveFloat = 1.0
    """Weight of this labeler in the jury."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models that it loads, by their names in the config."""
        return (self.policy, self.reference)

    @model_validator(mode="after")
    def _two_models(self) -> ImplicitRewardLabeler:
        if self.policy == self.reference:
            raise ValueError(
                "policy and reference are the same model, so every answer would score 0: name what "
                "the policy was trained from as its reference"
            )
        return self


class ReferenceLabeler(Strict):
    """A reference answer (by a human) is preferred to any sampled one."""

    type: Literal["reference"] = "reference"
    name: FileName = "reference"
    """Name in the ``labeler`` column of the votes."""
    weight: PositiveFloat = 1.0
    """Weight of this labeler in the jury."""


class OriginLabeler(Strict):
    """The answers of one member of the pool are preferred to those of another: "delta" pairs, such
    as of a larger and a smaller model, or of one model with a better and a worse system prompt.

    No opinion on answers of one member, of members that ``order`` does not name, and on texts that
    both members wrote.
    """

    type: Literal["origin"] = "origin"
    name: FileName = "origin"
    """Name in the ``labeler`` column of the votes."""
    order: tuple[str, ...] = Field(min_length=2)
    """Names of members of ``sample.pool``, the best first."""
    weight: PositiveFloat = 1.0
    """Weight of this labeler in the jury."""

    @model_validator(mode="after")
    def _each_once(self) -> OriginLabeler:
        twice = next((name for name in self.order if self.order.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"order names {twice!r} twice: name each member once")
        return self


class GivenLabeler(Strict):
    """The labels, ratings or ranks that the answers of ``sample.from`` came with. No judge sees
    them."""

    type: Literal["given"] = "given"
    name: FileName = "given"
    """Name in the ``labeler`` column of the votes."""
    decides: bool = False
    """Whether its votes count in the jury. Without, they are kept beside those of the others, to be
    compared with them (`prefloop agreement`, the report)."""
    weight: PositiveFloat = 1.0
    """Weight of this labeler in the jury."""


LabelerConfig = Annotated[
    JudgeLabeler
    | RewardModelLabeler
    | ImplicitRewardLabeler
    | VerifierLabeler
    | ReferenceLabeler
    | OriginLabeler
    | GivenLabeler,
    Field(discriminator="type"),
]
"""One of the labelers, told apart by ``type``."""
OwnModelLabeler = RewardModelLabeler | ImplicitRewardLabeler
"""Those that load models of their own into this process."""


class Jury(Strict):
    """How the votes of several labelers on a pair add up."""

    rule: JuryRule = "mean"
    """``mean`` averages the labelers' probabilities by weight; ``majority`` counts their verdicts,
    and is a tie unless one verdict has more weight than each other. ``reliability`` weighs
    verdicts by the log-odds of each labeler's accuracy; ``dawid_skene`` fits every labeler's
    confusions (which verdicts it gives for which truth) to the votes of the round. ``ensemble``
    compares the mean of the labelers' scores, each standardised over the round, less a ``penalty``
    for their disagreement."""
    penalty: Annotated[NonNegativeFloat, LATER] = 1.0
    """For ``ensemble``: standard deviations of an answer's scores that are taken off their mean. 0
    is the plain mean."""
    reliability: dict[str, Annotated[float, Field(gt=0, lt=1)]] | None = None
    """For ``reliability``: accuracy of each labeler by name, for example as `prefloop judge-eval`
    measured it. Null: fitted to the votes of the round, which takes three labelers."""
    tie_band: Annotated[float, Field(ge=0, lt=0.5)] = 0.01
    """A pair is a tie where the jury's probability is within this of 0.5."""


class LabelConfig(Strict):
    """Who votes on which pairs, and how the votes add up."""

    labelers: tuple[LabelerConfig, ...] = Field(min_length=1)
    jury: Jury = Field(default_factory=Jury)
    people: PeopleRole = "override"
    """What votes of people (`prefloop review pull`) do: ``override`` decides the pairs they voted
    on, by their majority; ``jury`` makes each person a member of the jury; ``calibration`` changes
    no decision. It may be changed later, and holds from the next pull on."""
    show_reasoning: Annotated[Literal["never", "always"], LATER] = "never"
    """Whether labelers see what a policy thought before its answer, or the answer alone. Filters,
    duplicates, lengths and win rates always go by the answer."""
    pairs_per_prompt: PositiveInt | None = None
    """Pairs of a prompt that are voted on, drawn by seed; null is all of them."""
    pairs: Annotated[Literal["all", "across_policies"], LATER] = "all"
    """Of which pairs these are drawn: all, or those of answers of different policies. Left out, a
    run that begins takes the latter where ``pairs_per_prompt`` is set and ``filter.strategy`` is
    ``across_policies``, which keeps no other; a run that has votes goes on as it began."""
    max_invalid: Annotated[Share | None, LATER] = 0.3
    """Share of a labeler's votes that may be invalid, beyond which the run ends before more is
    paid: of its last 256, or of all where there are 32 or more, and by more than chance explains.
    What is valid is kept. Null: never."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> LabelConfig:
        names = [labeler.name for labeler in self.labelers]
        if self.silent == set(names):
            raise ValueError("no labeler decides: add one, or set `decides: true` of one of them")
        twice = sorted({name for name in names if names.count(name) > 1})
        human = next((name for name in names if is_human(name)), None)
        if human:
            raise ValueError(f"a labeler is named {human!r}: names of people begin like that")
        if twice:
            raise ValueError(f"two labelers are named {twice[0]!r}: give each a `name` of its own")
        return self

    @model_validator(mode="after")
    def _ensemble_has_scores(self) -> LabelConfig:
        if self.jury.rule != "ensemble":
            if self.jury.penalty != Jury.model_fields["penalty"].default:
                raise ValueError(f"jury.penalty is given, but jury.rule is {self.jury.rule}")
            return self
        if self.people == "jury":
            raise ValueError(
                "jury.rule ensemble compares scores, and people give none: set people to override "
                "or calibration"
            )
        if len(self.labelers) - len(self.silent) < 2:
            raise ValueError(
                "jury.rule ensemble needs two labelers that give scores, such as reward models: "
                "add one, or take the rule mean"
            )
        return self

    @model_validator(mode="after")
    def _reliability_is_of_the_labelers(self) -> LabelConfig:
        given = self.jury.reliability
        if given is None:
            return self
        if self.jury.rule != "reliability":
            raise ValueError(f"jury.reliability is given, but jury.rule is {self.jury.rule}")
        names = {labeler.name for labeler in self.labelers} - self.silent
        for name in sorted(names ^ given.keys()):
            what = "names no labeler" if name in given else "is missing"
            raise ValueError(f"jury.reliability: {name!r} {what}: give each labeler's accuracy")
        return self

    @property
    def calibrations(self) -> dict[str, Path]:
        """File with the calibration of each labeler that has one, by name."""
        return {
            labeler.name: labeler.calibration
            for labeler in self.labelers
            if isinstance(labeler, JudgeLabeler | OwnModelLabeler)
            and labeler.calibration is not None
        }

    @property
    def silent(self) -> frozenset[str]:
        """Labelers whose votes are kept and decide nothing, by name."""
        return frozenset(
            labeler.name for labeler in self.labelers if not getattr(labeler, "decides", True)
        )

    @property
    def weights(self) -> dict[str, float]:
        """Weight in the jury of each labeler, by name."""
        return {labeler.name: labeler.weight for labeler in self.labelers}


# Filters ----------------------------------------------------------------------------------------


class Identical(Strict):
    """Drop pairs whose answers differ in nothing but case and white space.

    Always on: listing it only moves it to another place in the order.
    """

    type: Literal["identical"] = "identical"


class Truncated(Strict):
    """Drop pairs with an answer that was cut at the token limit."""

    type: Literal["truncated"] = "truncated"
    which: Literal["either", "chosen"] = "either"
    """``chosen`` lets the rejected answer be cut."""


class LengthRatio(Strict):
    """Drop pairs whose longer answer has more than ``max`` times the tokens of the shorter; answers
    of different models, whose tokenizers need not agree, are compared by characters."""

    type: Literal["length_ratio"] = "length_ratio"
    max: Annotated[float, Field(ge=1)] = 3.0


class Length(Strict):
    """Drop pairs with an answer shorter or longer than allowed."""

    type: Literal["length"] = "length"
    min_tokens: PositiveInt = 1
    max_tokens: PositiveInt | None = None

    @model_validator(mode="after")
    def _something_fits(self) -> Length:
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(f"max_tokens is less than min_tokens ({self.min_tokens})")
        return self


class NearDuplicateAnswers(Strict):
    """Drop pairs whose answers are almost the same text."""

    type: Literal["near_duplicate_answers"] = "near_duplicate_answers"
    max_similarity: Share = 0.95
    """Normalised Indel similarity of the two texts, in characters: 1 is the same text."""


class AgreementFilter(Strict):
    """Drop pairs on which fewer than this share of the labelers share the decision."""

    type: Literal["agreement"] = "agreement"
    min: Share = 0.5


class PositionConsistency(Strict):
    """Drop pairs on which a judge changed its verdict when the answers were swapped."""

    type: Literal["position_consistency"] = "position_consistency"


class Margin(Strict):
    """Drop pairs whose scores (mean win probability, 0 to 1) differ by less than ``min``."""

    type: Literal["margin"] = "margin"
    min: Annotated[float, Field(ge=-1, le=1)] = 0.1


class PChosen(Strict):
    """Drop pairs that the jury is less sure of than ``min``."""

    type: Literal["p_chosen"] = "p_chosen"
    min: Annotated[float, Field(ge=0.5, le=1)] = 0.6


class MinQuality(Strict):
    """Drop pairs whose chosen answer has an absolute score below ``min``, or none at all.

    Needs a labeler that gives absolute scores, such as a verifier; the unit is that labeler's.
    """

    type: Literal["min_quality"] = "min_quality"
    min: float


class ScoreFilter(Strict):
    """Drop pairs with an answer whose score by one labeler is out of bounds: one that is unsafe,
    refuses, or names a person, by whatever labeler says so.

    The reason is ``score:LABELER``. A labeler that is for this alone has ``decides: false``.
    """

    type: Literal["score"] = "score"
    labeler: str
    """Name of a labeler that gives scores: a reward model, a verifier, a judge with ratings or a
    rubric."""
    min: float | None = None
    """Lowest score that is kept, in the labeler's unit."""
    max: float | None = None
    """Highest score that is kept."""
    which: Literal["either", "chosen", "rejected"] = "either"
    """Whose score has to be within: ``chosen`` lets the rejected answer be as it is, which may be
    what is to be unlearnt."""
    unscored: Annotated[Literal["drop", "keep"], LATER] = "drop"
    """An answer without a score by it is not known to be within: ``drop`` its pairs, or ``keep``
    them, where it is known to be no reason, such as a language that a check does not know."""

    @model_validator(mode="after")
    def _is_a_bound(self) -> ScoreFilter:
        if self.min is None and self.max is None:
            raise ValueError("has neither min nor max: give one of them, or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: no score would be kept")
        return self

    @property
    def reason(self) -> str:
        """Of the pairs that it drops."""
        return f"{self.type}:{self.labeler}"


class LengthBalance(Strict):
    """Drop the weakest pairs with a longer chosen answer until these are no longer too many.

    Looks at the whole round, after all other filters and the pair strategy.
    """

    type: Literal["length_balance"] = "length_balance"
    max_share_longer: Annotated[float, Field(ge=0.5, le=1)] = 0.55
    """Share of pairs whose chosen answer has more tokens (of answers of different models: more
    characters), among kept pairs of unequal lengths."""


PairFilter = Annotated[
    Identical
    | Truncated
    | LengthRatio
    | Length
    | NearDuplicateAnswers
    | AgreementFilter
    | PositionConsistency
    | Margin
    | PChosen
    | MinQuality
    | ScoreFilter
    | LengthBalance,
    Field(discriminator="type"),
]
"""One of the filters, told apart by ``type``, which is also the reason of the pairs it drops (of
``score``, with the labeler's name)."""


def reason_of_filter(one: PairFilter) -> str:
    """The reason of the pairs that a filter drops."""
    return one.reason if isinstance(one, ScoreFilter) else one.type


# Pair strategies --------------------------------------------------------------------------------


class BestVsWorst(Strict):
    """One pair a prompt: the one with the largest difference in score."""

    type: Literal["best_vs_worst"] = "best_vs_worst"


class BestVsRandom(Strict):
    """One pair a prompt: the best answer against one drawn by seed."""

    type: Literal["best_vs_random"] = "best_vs_random"


class BestVsLow(Strict):
    """One pair a prompt: the best answer against the one whose reward is nearest to the mean of the
    prompt's answers minus ``deviations`` standard deviations (Xiao et al. 2025, arXiv 2502.16825).

    For many answers a prompt, of which the worst is an outlier that teaches little; of five or
    fewer it is the worst. An answer's reward is the mean of its scores by labelers that give
    scores, such as a reward model; where they do not, the normal score of its mean win probability.
    """

    type: Literal["best_vs_low"] = "best_vs_low"
    deviations: PositiveFloat = 2.0
    """Standard deviations below the mean."""


class CorrectVsIncorrect(Strict):
    """Pairs of a right and a wrong answer, of like length: those of a prompt whose lengths differ
    least. A prompt whose answers are all right, or all wrong, has none.

    For verifiers. A right answer is often the longer one, or the shorter, and pairs of the best and
    the worst would teach that.
    """

    type: Literal["correct_vs_incorrect"] = "correct_vs_incorrect"
    correct: float = 1.0
    """An answer is right where the mean of its scores, by the labelers that give scores, is this or
    more, and else wrong. Answers without a score are neither."""
    pairs: PositiveInt = 1
    """Pairs of a prompt at most."""


class RankedNeighbours(Strict):
    """Every pair of answers that are next to each other in the prompt's ranking by score."""

    type: Literal["ranked_neighbours"] = "ranked_neighbours"


class AllPairs(Strict):
    """Every pair whose scores differ by at least ``min_margin``."""

    type: Literal["all"] = "all"
    min_margin: Annotated[float, Field(ge=-1, le=1)] = 0.0


Chooser = BestVsWorst | BestVsLow | BestVsRandom | CorrectVsIncorrect | RankedNeighbours | AllPairs
"""The strategies that choose by score."""


class AcrossPolicies(Strict):
    """Pairs of answers of different policies only, chosen among these by another strategy.

    Scores are means over all pairs that were labelled. ``label.pairs`` says whether pairs that are
    not across policies are labelled too.
    """

    type: Literal["across_policies"] = "across_policies"
    choose: Literal[
        "best_vs_worst",
        "best_vs_low",
        "best_vs_random",
        "correct_vs_incorrect",
        "ranked_neighbours",
        "all",
    ] = "best_vs_worst"
    """The strategy that chooses among the pairs across policies."""
    min_margin: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """For ``all``: least difference in score."""

    @property
    def chooser(self) -> Chooser:
        """That strategy."""
        if self.choose == "all":
            return AllPairs(min_margin=self.min_margin)
        others = (
            BestVsWorst(), BestVsLow(), BestVsRandom(), CorrectVsIncorrect(), RankedNeighbours(),
        )  # fmt: skip
        return next(one for one in others if one.type == self.choose)


PairStrategy = Annotated[Chooser | AcrossPolicies, Field(discriminator="type")]
"""Which of a prompt's pairs that passed the filters go into the dataset."""


class FilterConfig(Strict):
    """Which decided pairs are kept. Filters act in their order; the first to drop a pair is its
    reason. The pair strategy chooses among those that are left."""

    strategy: PairStrategy = Field(default_factory=BestVsWorst)
    filters: tuple[PairFilter, ...] = (Identical(), Truncated(), NearDuplicateAnswers())

    @model_validator(mode="after")
    def _each_once(self) -> FilterConfig:
        reasons = [reason_of_filter(one) for one in self.filters]
        twice = sorted({name for name in reasons if reasons.count(name) > 1})
        if twice:
            raise ValueError(f"the filter {twice[0]!r} is listed twice: keep one of them")
        return self

    @property
    def scored_by(self) -> tuple[str, ...]:
        """The labelers whose scores filters look at, by name."""
        return tuple(one.labeler for one in self.filters if isinstance(one, ScoreFilter))
