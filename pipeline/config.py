"""The run's config: one YAML file, validated whole before anything is spent.

Rooms own the config of what they do (``prefloop.data.config``, ``prefloop.labelers.config``,
``prefloop.training.config``, ``prefloop.pipeline.engines.settings``); this module puts them
together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from prefloop.data.config import PromptsConfig
from prefloop.data.errors import InputError, PrefloopError
from prefloop.data.names import FileName, name_problem
from prefloop.data.preferences.answer_source import AnswerSource
from prefloop.data.protocol import Thinking
from prefloop.data.storage.objects import as_address, is_address
from prefloop.data.strict import LATER, FreeMapping, Strict
from prefloop.data.yaml_files import YamlError, parse_yaml, read_yaml
from prefloop.labelers.config import (
    FilterConfig,
    GivenLabeler,
    JudgeLabeler,
    LabelConfig,
    LabelerConfig,
    LengthBalance,
    OriginLabeler,
    ReferenceLabeler,
)
from prefloop.labelers.jury.rules import FITTED_RULES
from prefloop.labelers.refused_settings import refused_settings
from prefloop.pipeline.engines.settings import (
    EngineConfig,
    MemoryMode,
    OpenAIEngine,
    TransformersEngine,
)
from prefloop.training.config import EvaluateConfig, TrainConfig

POLICY = "policy"
"""As a model's name: the policy of the current round."""
REFERENCE = "reference"
"""In the column ``policy``: who wrote the reference answers."""
StopString = Annotated[str, Field(min_length=1)]
"""What an answer ends before. An empty one would stand before every answer."""
_OWN = ("temperature", "top_p", "top_k", "max_tokens", "stop", "system_prompt")
"""Settings of the sampling that a member of the pool may have its own value for."""


class ConfigError(PrefloopError):
    """The config cannot be used; the message names the key and what to write there."""


TrackerName = Literal["trackio", "wandb", "tensorboard"]


class PoolMember(Strict):
    """One of several policies that candidates are drawn from."""

    name: str
    """Name in the ``policy`` column."""
    model: str = POLICY
    """Checkpoint folder, hub name or served name; ``policy`` is the policy being trained."""
    engine: str = "default"
    """Name of one of the run's ``engines``."""
    weight: float = Field(default=1.0, gt=0)
    """Relative share of the samples drawn from this member, among the members without an ``n``."""
    n: Annotated[int | None, Field(ge=1, le=10_000), LATER] = None
    """Samples for each prompt that this member draws; null: drawn by ``weight``."""
    temperature: Annotated[NonNegativeFloat | None, LATER] = None
    """Null, here and below: as in ``sample``."""
    top_p: Annotated[float | None, Field(gt=0, le=1), LATER] = None
    top_k: Annotated[int | None, Field(ge=0, lt=2**31), LATER] = None
    max_tokens: Annotated[int | None, Field(ge=1, lt=2**31), LATER] = None
    stop: Annotated[tuple[StopString, ...] | None, LATER] = None
    system_prompt: Annotated[str | None, LATER] = None
    """What this member is shown in place of ``sample.system_prompt``; an empty one is none. Judges
    and the dataset have the prompt with ``sample.system_prompt``, whoever answered."""

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        problem = name_problem(value.replace("/", "-"))  # names of models are names too
        if problem:
            raise ValueError(f"{value!r} {problem}")
        if value == REFERENCE:
            raise ValueError(f"{value!r} is the name of reference answers: take another")
        return value

    def own(self) -> dict[str, Any]:
        """The settings of ``sample`` that this member has its own value for."""
        values = {key: getattr(self, key) for key in _OWN}
        return {key: value for key, value in values.items() if value is not None}


class SampleConfig(Strict):
    """How candidates are drawn."""

    model_config = ConfigDict(
        serialize_by_alias=True, validate_by_name=True, validate_by_alias=True
    )

    given: Annotated[AnswerSource | None, LATER] = Field(default=None, alias="from")
    """Answers that someone already has: they become candidates for their prompts, and no engine is
    opened to sample; with ``n``, fresh ones are drawn beside them. Without ``prompts.train``, the
    prompts are theirs."""
    n: int = Field(default=4, ge=0, le=10_000)
    """Samples for each prompt; 0 where there is ``from`` and nothing else is said. Where each
    member of the pool has an ``n``, it is their sum, and this is not looked at."""
    temperature: NonNegativeFloat | None = 1.0
    """Null sends none, for servers that refuse it; a local model then draws as its
    generation_config.json says. The same holds for ``top_p`` and ``top_k``."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = 0
    """0 keeps the whole vocabulary."""
    max_tokens: int = Field(default=512, ge=1, lt=2**31)
    """Tokens of an answer at most."""
    thought_tokens: Annotated[PositiveInt | None, LATER] = None
    """Tokens that the policy may think before it answers, beside ``max_tokens``; null: it is not
    expected to think."""
    chat_template_kwargs: Annotated[FreeMapping, LATER] = {}  # noqa: RUF012
    """Variables of the chat template, such as ``enable_thinking: false``; each wins over the
    engine's of the same name."""
    reasoning_effort: Annotated[str | None, LATER] = None
    """As the model or server names it (``low``, ``high``); null is the engine's."""
    stop: tuple[StopString, ...] = ()
    system_prompt: str | None = None
    """Put before conversations that have no system message of their own."""
    engine: str = "default"
    """Engine that serves the policy, by its name in ``engines``."""
    pool: tuple[PoolMember, ...] = ()
    """Several policies to draw from; empty: only the policy being trained."""
    prompts_per_round: int | None = Field(default=None, ge=1)
    """Prompts drawn for a round, without repeats until all are used; null: all of them."""

    def members(self) -> tuple[PoolMember, ...]:
        """The pool, or the policy alone where none is configured."""
        return self.pool or (PoolMember(name=POLICY, engine=self.engine),)

    @property
    def thinking(self) -> Thinking:
        """How much each answer of the policy may be thought about."""
        return Thinking(self.thought_tokens, self.chat_template_kwargs, self.reasoning_effort)

    def of_member(self, member: PoolMember) -> SampleConfig:
        """How ``member`` is asked."""
        return self.model_copy(update=member.own())

    @property
    def total(self) -> int:
        """Samples for each prompt, of all members."""
        fixed = [member.n for member in self.members()]
        return self.n if None in fixed else sum(filter(None, fixed))

    def expected_of(self, member: PoolMember) -> float:
        """Samples for each prompt that ``member`` draws, on average."""
        if member.n is not None:
            return member.n
        drawing = [one for one in self.members() if one.n is None]
        fixed = sum(one.n or 0 for one in self.members())
        return (self.n - fixed) * member.weight / sum(one.weight for one in drawing)

    @model_validator(mode="after")
    def _pool_adds_up(self) -> SampleConfig:
        names = [member.name for member in self.pool]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two members of pool are named {twice!r}: give each its own name")
        fixed = sum(member.n or 0 for member in self.pool)
        drawing = [member.name for member in self.pool if member.n is None]
        if self.pool and drawing and fixed >= self.n:
            raise ValueError(
                f"the members of pool with an n draw {fixed} samples, and n is {self.n}: none is "
                f"left for {drawing[0]!r}: raise n, or give it an n too"
            )
        return self


class ExecutorConfig(Strict):
    """Where the blocks of a run are worked on. The dataset is the same."""

    type: Literal["local", "ray"] = "local"
    """``local``: in this process. ``ray``: by workers on a Ray cluster, which see the run directory
    under the same path, or have the keys of the store that it is on (needs ``pip install
    'prefloop[ray]'``)."""
    address: str = Field(default="auto", pattern=r"\S")
    """Of the cluster: ``auto``, one that was started on this machine or that RAY_ADDRESS names;
    ``local``, a new one on this machine that ends with the run; or HOST:PORT."""
    cpus: float = Field(default=1, gt=0, le=100_000)
    """CPUs of a worker."""
    workers: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Workers at most, each with all engines of a stage. Null: as many as the ``replicas`` of these
    engines, where that is more than one, else as many as the cluster has room for."""
    working_dir: str | None = None
    """Folder that is sent to the workers, in which they look for judges, templates and modules of
    verifiers by relative paths. Null: they look in the folder that the run was started in, which
    they must see too."""
    attempts: int = Field(default=3, ge=1, le=1_000)
    """Workers that may die of a block, or with one; then the run stops and names it."""


class WriteConfig(Strict):
    """How the dataset is split and written."""

    unpaired: bool = False
    """Also write every candidate that was judged, with a label of its own (the dataset's config
    ``unpaired``: prompt, completion, label). Always done where ``train.method`` is ``kto``."""

    reasoning: Annotated[Literal["keep", "strip"], LATER] = "keep"
    """Of a policy that thinks before it answers: ``keep`` writes the thought too, so that training
    learns the tokens that were sampled; ``strip`` writes the answer alone, and training asks the
    chat template for a turn without a thought."""

    every_answer: Annotated[bool, LATER] = True
    """Also write every answer and every vote, with their texts and scores, as the dataset's configs
    ``candidates`` and ``votes``: nearly as much again on the disk as the run's own."""

    test_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the prompts whose triples go to the test split, drawn by prompt."""


class RunConfig(Strict):
    """A whole run: prompts in, preference dataset and better policy out."""

    run_dir: str = Field(default="runs/prefloop", pattern=r"\S")
    """Where the run lives: a directory, or an address on an object store, ``s3://BUCKET/FOLDER``
    (``gs://``, ``az://``), with the extra of that name. ``--run-dir`` wins over it."""
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    rounds: int = Field(default=1, ge=1, le=1_000)
    policy: str = "embedded:policy"
    """The starting policy: checkpoint folder, hub name, served name, or ``embedded:policy``."""
    engines: dict[FileName, EngineConfig] = {"default": TransformersEngine()}  # noqa: RUF012
    """Generation engines by name; sampling and judges refer to them."""
    block_size: int = Field(default=64, ge=1, lt=2**31)
    """Prompts in a block: the unit of resuming. Many blocks share a file once they are done."""
    blocks_in_flight: int | None = Field(default=None, ge=1, le=10_000)
    """Blocks worked on at once, so that an engine never drains at a shard's end; so many for each
    of an engine's ``replicas``. Null: two, and more as long as vLLM has fewer than twice
    ``max_num_seqs`` sequences, those that wait included, or a server fewer than twice
    ``max_concurrency`` requests, up to 64: where a few answers are ten times as long as the others,
    two blocks leave most of an engine idle. All blocks under way are in memory, and a kill loses
    what is not done of them."""
    memory: Annotated[MemoryMode, LATER] = "auto"
    """Which of this machine's models stay in memory while others work. ``auto``: all that fit
    together; where one does not, those that are idle make room (vLLM sleeps, others are closed and
    opened again). ``one_at_a_time``: never two on one device. ``keep_open``: all, whether they fit
    or not. The dataset is the same."""
    tracking: Annotated[tuple[TrackerName, ...], LATER] = ()
    """Trackers that hear of every training step and every round: ``trackio``, ``wandb``,
    ``tensorboard``. They change nothing of what is made."""
    executor: Annotated[ExecutorConfig, LATER] = Field(default_factory=ExecutorConfig)
    prompts: PromptsConfig
    sample: SampleConfig = Field(default_factory=SampleConfig)
    label: LabelConfig
    filter: FilterConfig = Field(default_factory=FilterConfig)
    write: WriteConfig = Field(default_factory=WriteConfig)
    train: TrainConfig | None = None
    """Null: only the dataset is made."""
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)

    @field_validator("run_dir")
    @classmethod
    def _names_a_directory(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is empty: name the directory that the run is to live in")
        if not is_address(value):
            return value
        try:
            return as_address(value)
        except InputError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="before")
    @classmethod
    def _given_answers_have_prompts(cls, raw: Any) -> Any:
        """Where answers are given and nothing else is said: nothing is sampled, and the prompts
        are theirs."""
        sample = raw.get("sample") if isinstance(raw, Mapping) else None
        given = sample.get("from") if isinstance(sample, Mapping) else None
        given = {"path": given} if isinstance(given, str) else given
        if not isinstance(sample, Mapping) or not isinstance(given, Mapping):
            return raw
        prompts = raw.get("prompts") or {}
        if isinstance(prompts, Mapping) and prompts.get("train") is None and "path" in given:
            given = {**given, "own_prompts": True}
            prompts = {**prompts, "train": {"path": given["path"]}}
        alone = {} if "n" in sample or sample.get("pool") else {"n": 0}
        return {**raw, "prompts": prompts, "sample": {**sample, **alone, "from": given}}

    def _fit_given(self) -> None:
        """Raise ``ValueError`` where given answers, or none, do not fit the rest."""
        given, compared = (
            self.sample.given,
            [one.name for one in self.label.labelers if isinstance(one, GivenLabeler)],
        )
        if given is None:
            if self.sample.total == 0:
                raise ValueError("sample.n is 0, and there are no other answers: set sample.from")
            if compared:
                raise ValueError(
                    f"label.labelers.{compared[0]} is of type given, and no answers are: set "
                    "sample.from, or leave it out"
                )
            return
        if self.sample.total == 0 and self.rounds > 1:
            raise ValueError(
                "sample.from gives the same answers in every round: set rounds: 1, or sample.n to "
                "draw fresh ones beside them"
            )
        if self.train and self.train.on_policy:
            raise ValueError(
                f"train.method {self.train.method} learns from answers that it samples itself: "
                "leave out sample.from"
            )
        if self.sample.total == 0 and self.sample.pool:
            raise ValueError("sample.n is 0, so nobody in sample.pool is asked: set one or neither")

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        self._fit_given()
        named = [("sample.engine", self.sample.engine)] if self.uses_policy else []
        named += [(f"sample.pool.{m.name}.engine", m.engine) for m in self.sample.pool]
        named += [
            (f"label.labelers.{labeler.name}{key}.engine", engine)
            for labeler in self.all_labelers
            if isinstance(labeler, JudgeLabeler)
            for key, (engine, _) in zip(("", ".criteria"), labeler.asked, strict=False)
        ]
        if self.evaluate.opponent and self.evaluate.opponent.engine:
            named.append(("evaluate.opponent.engine", self.evaluate.opponent.engine))
        for key, engine in named:
            if engine not in self.engines:
                raise ValueError(
                    f"{key} names the engine {engine!r}, and `engines` has only "
                    f"{', '.join(sorted(self.engines))}"
                )
        if self.rounds > 1 and self.train is None:
            raise ValueError("rounds is more than 1 but `train` is missing: add a `train:` section")
        if self.train and isinstance(self.engines[self.sample.engine], OpenAIEngine):
            lora_server = self.train.lora is not None
            if not lora_server and (self.rounds > 1 or self.evaluate.enabled):
                raise ValueError(
                    "sample.engine is an OpenAI-compatible server, which cannot be given newly "
                    "trained full weights: sample with `vllm` or `transformers`, set train.lora "
                    "(vLLM servers load adapters), or set rounds: 1 with evaluate.enabled: false"
                )
        self._fit_batches({engine for _, engine in named})
        if self.train and self.train.stop_early and not self.write.test_share:
            raise ValueError(
                "train.stop_early measures the test split: set write.test_share above 0, or leave "
                "it out"
            )
        if self.train and self.train.on_policy:
            self._fit_on_policy(self.train)
        self._check_origins()
        self._check_rubrics()
        self._check_scores()
        names = [labeler.name for labeler in self.label.labelers]
        for key, judges in (
            ("evaluate.judges", self.evaluate.judges),
            ("evaluate.final.judges", self.final_judges),
        ):
            twice = {labeler.name for labeler in judges} & set(names)
            if twice:
                raise ValueError(
                    f"{key} and label.labelers both have a {min(twice)!r}: give it another `name`, "
                    "or choose it with evaluate.labelers"
                )
        if self.train and self.evaluate.enabled and not self.evaluators:
            raise ValueError(
                "no labeler can compare answers to held-out prompts: give evaluate.judges, or set "
                "evaluate.enabled: false"
            )
        if self.evaluate.judges and self.evaluate.labelers is not None:
            raise ValueError("evaluate.judges and evaluate.labelers: give one or the other")
        for name in self.evaluate.labelers or ():
            if name not in names:
                raise ValueError(
                    f"evaluate.labelers names {name!r}, and label.labelers has only "
                    f"{', '.join(names)}"
                )
        return self

    def _fit_batches(self, asked: Set[str]) -> None:
        """Raise ``ValueError`` where one of the engines that are ``asked`` is in ``mode: batch``
        and would be waited for in vain, or is to serve weights that change."""
        batches = {
            name
            for name in asked
            if isinstance(engine := self.engines[name], OpenAIEngine) and engine.mode == "batch"
        }
        if batches and self.executor.type == "ray":
            raise ValueError(
                f"engines.{min(batches)} has mode: batch, and with executor.type ray each worker "
                "would send jobs of a few blocks: set executor.type: local, or mode: live"
            )
        if self.train is None:
            return
        judges = [one for one in self.all_labelers if isinstance(one, JudgeLabeler)]
        changing = {self.sample.engine}
        changing |= {member.engine for member in self.sample.pool if member.model == POLICY}
        changing |= {judge.engine for judge in judges if judge.model == POLICY}
        if (self.rounds > 1 or self.evaluate.enabled) and (found := changing & batches):
            raise ValueError(
                f"engines.{min(found)} has mode: batch, which is for fixed models, and serves the "
                "policy that this run trains: set mode: live there"
            )
        meanwhile = {one.engine for one in self.label.labelers if isinstance(one, JudgeLabeler)}
        if self.train.on_policy and (found := (meanwhile | changing) & batches):
            raise ValueError(
                f"train.method {self.train.method} asks while it trains, and would wait for a job "
                f"at every step: set engines.{min(found)}.mode: live"
            )

    def _check_scores(self) -> None:
        """Raise ``ValueError`` where a filter looks at scores of a labeler that is not there."""
        names = [labeler.name for labeler in self.label.labelers]
        for name in self.filter.scored_by:
            if name not in names:
                raise ValueError(
                    f"the filter score looks at the labeler {name!r}, and label.labelers has only "
                    f"{', '.join(names)}"
                )

    def _check_rubrics(self) -> None:
        """Raise ``ValueError`` where a judge takes its criteria from prompts that bring none."""
        sources = self.prompts.train_sources
        own = self.sample.given is not None and self.sample.given.own_prompts
        if own or any(source.columns.rubric for source in sources.values()):
            return
        for labeler in self.all_labelers:
            if isinstance(labeler, JudgeLabeler) and labeler.criteria == "prompt":
                raise ValueError(
                    f"{labeler.name}.criteria is prompt, and no prompt brings a rubric along: name "
                    f"its column in {next(iter(sources))}.columns.rubric"
                )

    def _check_origins(self) -> None:
        """Raise ``ValueError`` where a labeler ``origin`` names whom the pool does not have, or is
        left alone to compare policies."""
        members = [member.name for member in self.sample.members()]
        for labeler in self.all_labelers:
            for name in labeler.order if isinstance(labeler, OriginLabeler) else ():
                if name not in members:
                    raise ValueError(
                        f"label.labelers.{labeler.name}.order names {name!r}, and sample.pool has "
                        f"only {', '.join(members)}"
                    )
        evaluates = self.train is not None and self.evaluate.enabled
        if evaluates and all(isinstance(one, OriginLabeler) for one in self.evaluators):
            raise ValueError(
                "a labeler of type origin has no opinion on answers to held-out prompts: give "
                "evaluate.judges, or set evaluate.enabled: false"
            )

    def _fit_on_policy(self, train: TrainConfig) -> None:
        """Raise ``ValueError`` where something needs the whole round before training begins, or
        samples where it should not."""
        if self.executor.type == "ray" and not isinstance(
            self.engines[self.sample.engine], OpenAIEngine
        ):
            raise ValueError(
                f"train.method {train.method} samples while it trains, which no worker of a "
                "cluster does: let sample.engine be an `openai` server, or set executor.type: local"
            )
        if self.label.jury.rule in FITTED_RULES:
            raise ValueError(
                f"label.jury.rule {self.label.jury.rule} is fitted to a whole round's votes, and "
                "this training decides while it samples: set it to mean or majority"
            )
        if any(isinstance(rule, LengthBalance) for rule in self.filter.filters):
            raise ValueError(
                "the filter length_balance needs a whole round's pairs, and this training decides "
                "while it samples: leave it out"
            )
        if train.method in ("grpo", "rloo"):
            if self.label.pairs != "all":
                raise ValueError(
                    f"label.pairs is {self.label.pairs}, and method {train.method} rewards the "
                    "answers of one policy, the one it trains: leave it out"
                )
            answers = train.batch_size * train.gradient_accumulation
            if self.sample.n < 2 or answers % self.sample.n:
                raise ValueError(
                    f"method {train.method} compares the sample.n ({self.sample.n}) answers to a "
                    "prompt within a step: train.batch_size x gradient_accumulation "
                    f"({answers}) must be a multiple of it, and it at least 2"
                )
            sample = self.sample
            if not sample.temperature or sample.top_p != 1 or sample.top_k != 0:
                raise ValueError(
                    f"method {train.method} learns from answers that were drawn from the whole "
                    "distribution: set sample.temperature above 0 (1 is usual), sample.top_p to 1 "
                    "and sample.top_k to 0"
                )
            if train.sampler_correction and sample.temperature != 1:
                raise ValueError(
                    "train.sampler_correction compares with log-probabilities at temperature 1: "
                    "set sample.temperature to 1, or leave it out"
                )
            if self.sample.pool or self.uses_references:
                raise ValueError(
                    f"method {train.method} learns from the policy's own answers: leave out "
                    "sample.pool and labelers of type reference"
                )

    @property
    def uses_policy(self) -> bool:
        """Whether the policy is asked, trained, or at least named."""
        judges = (one for one in self.all_labelers if isinstance(one, JudgeLabeler))
        default = type(self).model_fields["policy"].default
        return (
            self.sample.total > 0
            or self.train is not None
            or self.policy != default
            or any(POLICY in judge.models for judge in judges)
        )

    @property
    def prompts_per_leg(self) -> int | None:
        """Prompts that are sampled at once while training; null where sampling comes first."""
        train = self.train
        if train is None or not train.on_policy:
            return None
        answers = train.batch_size * train.gradient_accumulation
        return train.online_steps * answers if train.online else answers // self.sample.n

    @property
    def writes_unpaired(self) -> bool:
        """Whether single answers with labels are written beside the triples."""
        return self.write.unpaired or bool(self.train and self.train.method == "kto")

    @property
    def evaluators(self) -> tuple[LabelerConfig, ...]:
        """The labelers that compare policies."""
        if self.evaluate.judges:
            return self.evaluate.judges
        wanted = self.evaluate.labelers
        if wanted is None:
            wanted = tuple({one.name for one in self.label.labelers} - self.label.silent)
        return tuple(
            one
            for one in self.label.labelers
            if one.name in wanted and not isinstance(one, GivenLabeler)
        )

    @property
    def final_judges(self) -> tuple[LabelerConfig, ...]:
        """The labelers of ``evaluate.final`` alone."""
        return self.evaluate.final.judges if self.evaluate.final else ()

    @property
    def final_evaluators(self) -> tuple[LabelerConfig, ...]:
        """The labelers that compare the policy to keep with the starting one, at the end."""
        return self.final_judges or self.evaluators

    @property
    def all_labelers(self) -> tuple[LabelerConfig, ...]:
        """Those that label and those that only evaluate."""
        return (*self.label.labelers, *self.evaluate.judges, *self.final_judges)

    @property
    def uses_references(self) -> bool:
        """Whether reference answers take part as candidates."""
        return any(isinstance(labeler, ReferenceLabeler) for labeler in self.label.labelers)


ConfigLike = str | Path | Mapping[str, Any] | RunConfig
"""A run's config: the path of its YAML, a mapping of its keys, or the config itself."""
Overrides = Sequence[str] | Mapping[str, Any]
"""Keys to change: ``["sample.n=8"]``, values read as YAML, or ``{"sample.n": 8}``."""


def load_config(config: ConfigLike, overrides: Overrides = ()) -> RunConfig:
    """Read, override and validate a config.

    Raises :class:`ConfigError` naming the file (or ``config``, where it is none) and the key at
    fault.
    """
    if isinstance(config, RunConfig):
        if not overrides:
            return config
        train = config.train
        config = config.model_dump(mode="json")
        if train:  # what was left out may mean something else after the overrides
            given = train.model_fields_set
            config["train"] = {key: config["train"][key] for key in sorted(given)}
    if isinstance(config, Mapping):
        raw, origin = copy.deepcopy(dict(config)), "config"
    else:
        try:
            path = Path(config)
        except TypeError:
            kind = type(config).__name__
            raise ConfigError(f"config: is a {kind}: give a path or a mapping of keys") from None
        raw, origin = _read_yaml(path), str(config)
    for key, value in overrides_of(overrides).items():
        set_key(raw, key, value)
    return validate_config(raw, origin)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file (`prefloop init DIR` writes a config)") from None
    except IsADirectoryError:
        inside = sorted(path.glob("*.y*ml"))
        remedy = f"did you mean {inside[0]}?" if inside else "`prefloop init DIR` writes a config"
        raise ConfigError(f"{path}: is a folder, not a config ({remedy})") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {reason_of(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping of keys, e.g. `prompts:` and `label:`")
    return raw


def reason_of(error: Exception) -> str:
    """Why a file is no config, in few words."""
    if isinstance(error, YamlError):
        return f"not valid YAML: {error}"
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def validate_config(raw: Mapping[str, Any], origin: str) -> RunConfig:
    """Validate a config mapping. ``origin`` is named in errors. Raises :class:`ConfigError`."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        lines = refused_settings(error, RunConfig)
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from None
    except RecursionError:
        raise ConfigError(f"{origin}: nested too deep for a config") from None


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``; list items are named by name or index."""
    if isinstance(value, Mapping) and value:
        pairs: Iterator[tuple[str, Any]] = ((str(key), item) for key, item in value.items())
    elif isinstance(value, list | tuple) and value:
        pairs = ((_item_name(i, item), item) for i, item in enumerate(value))
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in pairs:
        flat.update(flatten(item, f"{prefix}.{key}" if prefix else key))
    return flat


def _item_name(index: int, item: Any) -> str:
    return str(item.get("name", index)) if isinstance(item, Mapping) else str(index)


def override_key(raw: dict[str, Any], override: str) -> None:
    """Set a key of ``raw`` by ``a.b=value``, the value read as YAML; ``ConfigError`` for others."""
    key, value = parse_override(override)
    set_key(raw, key, value)


def parse_override(override: str) -> tuple[str, Any]:
    """Key and value of ``a.b=value``, the value read as YAML. Raises ``ConfigError``."""
    key, separator, text = override.partition("=")
    if not separator or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"--set {override}: write it as key=value, e.g. --set sample.n=8")
    try:
        return key.strip(), parse_yaml(text)
    except YamlError as error:
        raise ConfigError(f"--set {override}: {error}") from None


def overrides_of(overrides: Overrides) -> dict[str, Any]:
    """Key and value of each override, the last one of a key. Raises ``ConfigError``."""
    if isinstance(overrides, Mapping):
        return dict(overrides)
    return dict(map(parse_override, overrides))


def set_key(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set the key ``a.b`` of ``raw``. Raises ``ConfigError`` where there is no such place."""
    target: Any = raw
    *parents, last = key.strip().split(".")
    for parent in parents:
        if isinstance(target, list):
            target = _list_item(target, parent, key)
        else:
            if not isinstance(target.get(parent), dict | list):
                target[parent] = {}
            target = target[parent]
    if isinstance(target, list):
        raise ConfigError(f"--set {key}: name a key of the list's item, e.g. a.0.key=value")
    target[last] = value


def _list_item(items: list[Any], name: str, key: str) -> Any:
    for index, item in enumerate(items):
        if name == str(index) or (isinstance(item, dict) and item.get("name") == name):
            return item
    raise ConfigError(f"--set {key}: the list has no item {name!r}")
