"""What a run will ask of its engines and what that costs, before anything is spent.

The prompts are really read and deduplicated. What cannot be known yet is bounded or assumed:
every step has an expected figure and an upper bound, and every assumption is part of the plan.
Where the run directory has finished work, its measured lengths and rates replace assumptions.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from prefloop.data.conversation import with_system_prompt
from prefloop.data.embedded import resolve_embedded
from prefloop.data.prompts.load import load_prompts
from prefloop.labelers.config import (
    BestVsRandom,
    BestVsWorst,
    JudgeLabeler,
    LabelerConfig,
    RankedNeighbours,
    RewardModelLabeler,
)
from prefloop.labelers.judges.folder import Judge, load_judge
from prefloop.labelers.judges.settings import ListwiseSettings, RatingSettings
from prefloop.pipeline.config import POLICY, RunConfig
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.report.formats import count, duration, money, short_count
from prefloop.pipeline.run.run_dir import OPPONENT, RunDir
from prefloop.pipeline.run.status import collect_status
from prefloop.pipeline.stages.prompts import round_rows, round_size
from prefloop.training.session.setup import optimiser_steps

CHARACTERS_PER_TOKEN = 4.0
"""Where no tokenizer is at hand."""
TEMPLATE_TOKENS = 8
"""Tokens that a chat template adds to each message."""
ANSWER_SHARE = 0.5
"""Expected length of a sampled answer, as a share of ``max_tokens``."""
RATIONALE_SHARE = 0.25
"""Expected length of a judge's rationale, as a share of its ``max_tokens``."""
DECODED_PER_SECOND = {"transformers": 2_000.0, "vllm": 5_000.0}
"""Generated tokens per second of an engine in this process."""
PREFILLED_PER_SECOND = {"transformers": 10_000.0, "vllm": 40_000.0}
"""Prompt tokens per second of an engine in this process."""
DECODED_PER_CONNECTION = 40.0
"""Generated tokens per second of one connection to an HTTP server."""
LATENCY_S = 0.5
"""Seconds before the first token of an HTTP answer."""
SCORED_PER_SECOND = 20_000.0
"""Tokens per second that a reward model reads."""
TRAINED_PER_SECOND = 4_000.0
"""Tokens of pairs per second of training, the reference's pass included."""

_TOKENIZED = 200  # texts from which a tokenizer's characters per token are measured


@dataclass(frozen=True)
class Step:
    """One kind of request of one round: all that one engine is asked for one purpose."""

    round: int
    stage: str
    """sample, label or evaluate."""
    what: str
    """The policy or labeler that answers."""
    engine: str | None
    """Name of the engine; null where a function or a reward model of this process answers."""
    requests: int
    """Completions asked for, at most (identical candidates make fewer pairs)."""
    prompt_tokens: int
    completion_tokens: int
    """Expected."""
    max_tokens: int
    """Upper bound of prompt and generated tokens together."""
    cost: float
    max_cost: float
    seconds: float


@dataclass(frozen=True)
class Training:
    """One round of training."""

    round: int
    examples: int
    """Pairs (answers, with the methods kto and sft), at most: filters drop some."""
    steps: int
    seconds: float


@dataclass(frozen=True)
class PlannedPrompts:
    """What reading the prompts gave."""

    read: int
    kept: int
    heldout: int
    dropped: int
    quarantined: int


@dataclass(frozen=True)
class Plan:
    """A run before it is run."""

    prompts: PlannedPrompts
    prompts_per_round: tuple[int, ...]
    steps: tuple[Step, ...]
    training: tuple[Training, ...]
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def requests(self) -> int:
        """Completions asked of engines in all."""
        return sum(step.requests for step in self.steps if step.engine)

    @property
    def tokens(self) -> int:
        """Expected tokens, prompts included."""
        return sum(step.prompt_tokens + step.completion_tokens for step in self.steps)

    @property
    def max_tokens(self) -> int:
        """Upper bound of the tokens, prompts included."""
        return sum(step.max_tokens for step in self.steps)

    @property
    def cost(self) -> float:
        """Expected cost."""
        return sum(step.cost for step in self.steps)

    @property
    def max_cost(self) -> float:
        """Upper bound of the cost."""
        return sum(step.max_cost for step in self.steps)

    @property
    def seconds(self) -> float:
        """Expected time."""
        asking = sum(step.seconds for step in self.steps)
        return asking + sum(each.seconds for each in self.training)

    def as_dict(self) -> dict[str, Any]:
        """Everything, totals included, as values that ``json`` can write."""
        totals = {
            name: getattr(self, name)
            for name in ("requests", "tokens", "max_tokens", "cost", "max_cost", "seconds")
        }
        return asdict(self) | {"total": totals}


@dataclass(frozen=True)
class _Measured:
    """What finished work of this run directory tells; null where there is none."""

    answer_tokens: float | None = None
    seconds_per_request: Mapping[str, float] | None = None
    """By stage."""
    seconds_per_step: float | None = None

    @classmethod
    def of(cls, config: RunConfig, run: RunDir) -> _Measured:
        if not run.journal.exists():
            return cls()
        status = collect_status(run)
        samples = sum(each.samples for each in status.rounds)
        tokens = sum(each.usage["sample"].completion_tokens for each in status.rounds)
        asked = {one.name for one in config.label.labelers if isinstance(one, JudgeLabeler)}
        judged = sum(each.votes.get(name, 0) for each in status.rounds for name in asked)
        requests = {"sample": samples, "label": judged}
        rates = {
            stage: status.seconds[stage] / number
            for stage, number in requests.items()
            if number and status.seconds.get(stage)
        }
        steps = sum(_trained_steps(run))
        trained = status.seconds.get("train", 0.0)
        return cls(
            answer_tokens=tokens / samples if samples else None,
            seconds_per_request=rates,
            seconds_per_step=trained / steps if steps and trained else None,
        )


def _trained_steps(run: RunDir) -> Iterable[int]:
    for folder in run.rounds():
        if folder.metrics.exists(0):
            steps = folder.metrics.read(0, ["step"])["step"].to_pylist()
            yield max((step for step in steps if step is not None), default=0)


def make_plan(config: RunConfig, run: RunDir | None = None) -> Plan:
    """Read the prompts and work out every round; nothing is written.

    ``run`` is where finished work is looked for, the config's run directory by default. Raises
    ``InputError`` for unusable prompts.
    """
    tables = load_prompts(config.prompts, seed=config.seed)
    measured = _Measured.of(config, run or RunDir(Path(config.run_dir)))
    planner = _Planner(config, tables.train, tables.heldout, measured)
    for index in range(config.rounds):
        planner.add_round(index)
    return Plan(
        prompts=PlannedPrompts(
            read=tables.read,
            kept=len(tables.train),
            heldout=len(tables.heldout),
            dropped=len(tables.dropped),
            quarantined=len(tables.quarantine),
        ),
        prompts_per_round=tuple(planner.prompts_per_round),
        steps=tuple(planner.steps),
        training=tuple(planner.training),
        assumptions=tuple(planner.assumptions()),
        warnings=tuple(_over_budget(config, planner.steps)),
    )


class _Planner:
    """Adds up the steps of a run, round by round."""

    def __init__(
        self, config: RunConfig, prompts: pa.Table, heldout: pa.Table, measured: _Measured
    ) -> None:
        self._config = config
        self._prompts = prompts
        limit = config.evaluate.limit
        self._heldout = heldout if limit is None else heldout.slice(0, limit)
        self._measured = measured
        self._tokenizers: dict[str, float] = {}
        self._pairs_so_far = 0
        self._timed: set[tuple[str, str]] = set()
        self.steps: list[Step] = []
        self.training: list[Training] = []
        self.prompts_per_round: list[int] = []

    def add_round(self, index: int) -> None:
        """Sampling, labelling, training and evaluation of round ``index``."""
        config = self._config
        prompts = self._prompts
        wanted = round_size(
            len(prompts),
            per_round=config.sample.prompts_per_round,
            per_leg=config.prompts_per_leg,
        )
        if wanted is not None:
            rows = round_rows(len(prompts), wanted, index, config.seed)
            prompts = prompts.take(pa.array(rows))
        self.prompts_per_round.append(len(prompts))
        self._sample(index, prompts)
        pairs = self._pairs(prompts)
        self._label(index, "label", prompts, pairs, self._answer_tokens(), config.sample.max_tokens)
        if config.train:
            self._train(index, prompts, pairs)
            if config.evaluate.enabled and len(self._heldout):
                self._evaluate(index)

    def _sample(self, index: int, prompts: pa.Table) -> None:
        members = self._config.sample.members()
        total = sum(member.weight for member in members)
        for member in members:
            share = member.weight / total
            requests = round(len(prompts) * self._config.sample.n * share)
            per_prompt = self._prompt_tokens(prompts, self._model(member.model))
            self._add(
                index, "sample", member.name, member.engine, requests,
                prompt_tokens=sum(per_prompt) / max(len(per_prompt), 1),
                expected=self._answer_tokens(),
                most=self._config.sample.max_tokens,
            )  # fmt: skip

    def _pairs(self, prompts: pa.Table) -> list[int]:
        """Pairs of each prompt, if no two of its candidates are the same."""
        label = self._config.label
        every = [math.comb(candidates, 2) for candidates in self._candidates(prompts)]
        return [min(number, label.pairs_per_prompt or number) for number in every]

    def _candidates(self, prompts: pa.Table) -> list[int]:
        """Candidates of each prompt, its reference answer among them where it takes part."""
        n, referenced = self._config.sample.n, self._config.uses_references
        return [
            n + int(bool(referenced and reference))
            for reference in prompts["reference"].to_pylist()
        ]

    def _label(
        self,
        index: int,
        stage: str,
        prompts: pa.Table,
        pairs: Sequence[int],
        answer_tokens: float,
        longest: int,
        labelers: Sequence[LabelerConfig] | None = None,
    ) -> None:
        for labeler in labelers or self._config.label.labelers:
            if isinstance(labeler, RewardModelLabeler):
                self._score(index, stage, labeler, prompts, pairs, answer_tokens, longest)
                continue
            if not isinstance(labeler, JudgeLabeler):
                self._add(index, stage, labeler.name, None, sum(pairs), 0, 0, 0)
                continue
            self._judge(index, stage, labeler, prompts, pairs, answer_tokens, longest)

    def _judge(
        self,
        index: int,
        stage: str,
        labeler: JudgeLabeler,
        prompts: pa.Table,
        pairs: Sequence[int],
        answer_tokens: float,
        longest: int,
    ) -> None:
        """Requests by the kind of judge: about a pair, about all answers, or about one answer."""
        judge = load_judge(labeler.judge)
        settings = judge.settings
        orders = 2 if labeler.orders == "both" else 1
        voted = self._voted(stage, prompts, pairs)
        questions: list[int]  # of each prompt
        if isinstance(settings, ListwiseSettings):
            questions = [orders * min(number, 1) for number in voted]
            shown = voted
        elif isinstance(settings, RatingSettings):
            aspects = len(settings.aspects) if settings.parser == "token" else 1
            questions = [aspects * number for number in voted]
            shown = [1] * len(voted)
        else:
            questions = [orders * number for number in pairs]
            shown = [2] * len(pairs)
        requests = sum(questions)
        answers = sum(a * b for a, b in zip(questions, shown, strict=True)) / max(requests, 1)
        asked = self._judge_tokens(judge, prompts, questions, self._model(labeler.model))
        most = labeler.max_tokens or settings.max_tokens
        by_token = not isinstance(settings, ListwiseSettings) and settings.parser == "token"
        self._add(
            index, stage, labeler.name, labeler.engine, requests,
            prompt_tokens=asked + answers * answer_tokens,
            expected=1 if by_token else most * RATIONALE_SHARE,
            most=most,
            longest_prompt=asked + answers * longest,
            like="label",
        )  # fmt: skip

    def _voted(self, stage: str, prompts: pa.Table, pairs: Sequence[int]) -> list[int]:
        """Candidates of each prompt that are in its pairs, at most."""
        # In a round robin of m candidates there are m (m - 1) / 2 pairs; fewer pairs than that
        # may still touch them all, and matches of the evaluation share none.
        most = [2 * number for number in pairs]
        if stage != "label":
            return most
        return [min(a, b) for a, b in zip(most, self._candidates(prompts), strict=True)]

    def _score(
        self,
        index: int,
        stage: str,
        labeler: RewardModelLabeler,
        prompts: pa.Table,
        pairs: Sequence[int],
        answer_tokens: float,
        longest: int,
    ) -> None:
        """A reward model reads each candidate once, however many pairs it is in."""
        most = self._voted(stage, prompts, pairs)
        answers = sum(most)
        lengths = self._prompt_tokens(prompts, labeler.model)
        prompt = sum(a * b for a, b in zip(most, lengths, strict=True)) / max(answers, 1)
        self._add(
            index, stage, labeler.name, None, answers,
            prompt_tokens=prompt + answer_tokens,
            expected=0,
            most=0,
            longest_prompt=prompt + longest,
        )  # fmt: skip

    def _train(self, index: int, prompts: pa.Table, pairs: Sequence[int]) -> None:
        settings, config = self._config.train, self._config
        assert settings is not None
        match config.filter.strategy:
            case BestVsWorst() | BestVsRandom():
                kept = sum(min(number, 1) for number in pairs)
            case RankedNeighbours():
                kept = sum(min(number, config.sample.n) for number in pairs)
            case _:
                kept = sum(pairs)
        sequences = 1 if settings.method in ("kto", "sft") else 2
        if settings.method == "kto":
            kept = sum(self._candidates(prompts))
        fresh = round(kept * (1 - config.write.test_share))
        self._pairs_so_far += fresh
        examples = fresh if settings.data == "fresh" else self._pairs_so_far
        examples = min(examples, settings.max_pairs or examples)
        steps = optimiser_steps(examples, settings)
        if config.prompts_per_leg:
            legs = len(prompts) // config.prompts_per_leg
            steps = legs * (settings.online_steps if settings.online else 1)
            if not settings.online:
                sequences, kept = 1, len(prompts) * config.sample.n
            examples = kept
        if settings.sft_warmup and index == 0:
            warm = settings.model_copy(update={"epochs": settings.sft_warmup.epochs})
            steps += optimiser_steps(fresh, warm)
        if self._measured.seconds_per_step:
            seconds = steps * self._measured.seconds_per_step
        else:
            lengths = self._prompt_tokens(prompts, self._model(POLICY))
            mean = sum(lengths) / max(len(lengths), 1) + self._answer_tokens()
            seconds = examples * settings.epochs * sequences * mean / TRAINED_PER_SECOND
        self.training.append(Training(index, examples, steps, seconds))

    def _evaluate(self, index: int) -> None:
        config = self._config
        settings, heldout = config.evaluate, self._heldout
        most = settings.max_tokens or config.sample.max_tokens
        expected = min(self._answer_tokens(), most)
        requests = len(heldout) * settings.samples_per_prompt
        lengths = self._prompt_tokens(heldout, self._model(POLICY))
        # Round 0 answers with the starting policy too.
        for policy in [0, 1] if index == 0 else [index + 1]:
            self._add(
                index, "evaluate", f"policy {policy}", config.sample.engine, requests,
                prompt_tokens=sum(lengths) / len(lengths),
                expected=expected,
                most=most,
            )  # fmt: skip
        opponents = 1 if index == 0 else 2  # start and previous are the same in round 0
        if settings.opponent:
            opponents += 1
            if index == 0:
                self._add(
                    index, "evaluate", OPPONENT, settings.opponent.engine or config.sample.engine,
                    requests,
                    prompt_tokens=sum(lengths) / len(lengths),
                    expected=expected,
                    most=most,
                )  # fmt: skip
        pairs = [settings.samples_per_prompt * opponents] * len(heldout)
        self._label(index, "evaluate", heldout, pairs, expected, most, config.evaluators)

    def _add(
        self,
        index: int,
        stage: str,
        what: str,
        engine: str | None,
        requests: int,
        prompt_tokens: float,
        expected: float,
        most: float,
        longest_prompt: float | None = None,
        like: str = "sample",
    ) -> None:
        """A step of ``requests`` that is timed ``like`` a stage; tokens are means of a request."""
        longest_prompt = prompt_tokens if longest_prompt is None else longest_prompt
        settings = self._config.engines[engine] if engine else None
        price_in = price_out = 0.0
        if isinstance(settings, OpenAIEngine):
            price_in = settings.price_per_million_prompt_tokens / 1e6
            price_out = settings.price_per_million_completion_tokens / 1e6
        rates = self._measured.seconds_per_request or {}
        if engine:
            self._timed.add((like, engine))
        if engine is None:
            seconds = requests * prompt_tokens / SCORED_PER_SECOND
        elif like in rates:
            seconds = requests * rates[like]
        else:
            seconds = self._seconds(engine, requests, prompt_tokens, expected)
        self.steps.append(
            Step(
                round=index,
                stage=stage,
                what=what,
                engine=engine,
                requests=requests,
                prompt_tokens=round(requests * prompt_tokens),
                completion_tokens=round(requests * expected),
                max_tokens=round(requests * (longest_prompt + most)),
                cost=requests * (prompt_tokens * price_in + expected * price_out),
                max_cost=requests * (longest_prompt * price_in + most * price_out),
                seconds=seconds,
            )
        )

    def _seconds(self, engine: str, requests: int, prompt: float, answer: float) -> float:
        settings = self._config.engines[engine]
        if not isinstance(settings, OpenAIEngine):
            prefill = prompt / PREFILLED_PER_SECOND[settings.type]
            return requests * (prefill + answer / DECODED_PER_SECOND[settings.type])
        bounds = [
            requests * (LATENCY_S + answer / DECODED_PER_CONNECTION) / settings.max_concurrency
        ]
        if settings.requests_per_minute:
            bounds.append(60 * requests / settings.requests_per_minute)
        if settings.tokens_per_minute:
            bounds.append(60 * requests * (prompt + answer) / settings.tokens_per_minute)
        return max(bounds)

    def _answer_tokens(self) -> float:
        return self._measured.answer_tokens or self._config.sample.max_tokens * ANSWER_SHARE

    def _model(self, model: str) -> str:
        return self._config.policy if model == POLICY else model

    def _prompt_tokens(self, prompts: pa.Table, model: str) -> list[float]:
        """Tokens of each prompt as the policy is shown it."""
        system = self._config.sample.system_prompt
        shown_prompts = [with_system_prompt(row, system) for row in prompts["messages"].to_pylist()]
        texts = ["".join(turn["content"] for turn in turns) for turns in shown_prompts]
        ratio = self._characters_per_token(model, texts)
        return [
            len(text) / ratio + TEMPLATE_TOKENS * len(turns)
            for text, turns in zip(texts, shown_prompts, strict=True)
        ]

    def _judge_tokens(
        self, judge: Judge, prompts: pa.Table, questions: Sequence[int], model: str
    ) -> float:
        """Mean tokens of a judge's question without the answers, over all ``questions``."""
        system = self._config.sample.system_prompt
        texts, weights, turns = [], [], 0
        rows = zip(
            prompts["messages"].to_pylist(),
            prompts["reference"].to_pylist(),
            questions,
            strict=True,
        )
        for messages, reference, number in rows:
            asked = judge.blank(with_system_prompt(messages, system), reference)
            texts.append("".join(turn["content"] for turn in asked))
            weights.append(number)
            turns = len(asked)
        if not sum(weights):
            return 0.0
        ratio = self._characters_per_token(model, texts)
        characters = sum(len(text) * weight for text, weight in zip(texts, weights, strict=True))
        return characters / sum(weights) / ratio + TEMPLATE_TOKENS * turns

    def _characters_per_token(self, model: str, texts: Sequence[str]) -> float:
        tokenizer = _local_tokenizer(model)
        if tokenizer is None:
            return CHARACTERS_PER_TOKEN
        if model not in self._tokenizers:
            sample = [text for text in texts[:_TOKENIZED] if text]
            encoded = tokenizer.encode_batch(sample, add_special_tokens=False)
            tokens = sum(len(one.ids) for one in encoded)
            ratio = sum(map(len, sample)) / tokens if tokens else CHARACTERS_PER_TOKEN
            self._tokenizers[model] = ratio
        return self._tokenizers[model]

    def assumptions(self) -> Iterable[str]:
        """Every assumption that went into the steps, in words."""
        measured = self._measured
        for model, ratio in self._tokenizers.items():
            yield f"{model}: {ratio:.1f} characters per token, measured with its tokenizer"
        yield (
            f"prompts of models without a local tokenizer: {CHARACTERS_PER_TOKEN:g} characters per "
            f"token; {TEMPLATE_TOKENS} tokens of chat template per message"
        )
        if measured.answer_tokens:
            yield f"answers: {measured.answer_tokens:.0f} tokens, as measured in the run directory"
        else:
            yield f"answers: {ANSWER_SHARE:.0%} of sample.max_tokens (upper bound: all of them)"
        yield (
            f"judges: one token for a token verdict, {RATIONALE_SHARE:.0%} of max_tokens for a "
            "rationale"
        )
        yield (
            "pairs: no two candidates of a prompt are the same, and every pair passes the filters "
            "(upper bounds); prompts count once for each completion"
        )
        yield from self._time_assumptions()

    def _time_assumptions(self) -> Iterable[str]:
        measured = self._measured
        rates = measured.seconds_per_request or {}
        for stage, seconds in rates.items():
            yield f"time of {stage}: {seconds:.3g} s a request, as measured in the run directory"
        engines = self._config.engines
        types = {engines[engine].type for like, engine in self._timed if like not in rates}
        for kind in sorted(types & DECODED_PER_SECOND.keys()):
            yield (
                f"time of {kind} engines: {PREFILLED_PER_SECOND[kind]:,.0f} prompt and "
                f"{DECODED_PER_SECOND[kind]:,.0f} generated tokens a second (a guess: it depends "
                "on model and machine; after one block the run directory knows better)"
            )
        if "openai" in types:
            yield (
                f"time of openai engines: {LATENCY_S:g} s and {DECODED_PER_CONNECTION:g} tokens a "
                "second for each of max_concurrency connections, or its rate limits if slower"
            )
        if any(isinstance(one, RewardModelLabeler) for one in self._config.all_labelers):
            yield f"time of reward models: {SCORED_PER_SECOND:,.0f} tokens a second (a guess)"
        if self.training:
            yield (
                f"time of training: {measured.seconds_per_step:.3g} s a step, as measured"
                if measured.seconds_per_step
                else f"time of training: {TRAINED_PER_SECOND:,.0f} tokens a second (a guess)"
            )


@cache
def _local_tokenizer(model: str) -> Any:
    """The tokenizer of a checkpoint folder, or null where there is none on this machine."""
    file = Path(resolve_embedded(model)) / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))


def _over_budget(config: RunConfig, steps: Iterable[Step]) -> Iterable[str]:
    by_engine: dict[str, list[Step]] = defaultdict(list)
    for step in steps:
        if step.engine:
            by_engine[step.engine].append(step)
    for name, mine in by_engine.items():
        settings = config.engines[name]
        if not isinstance(settings, OpenAIEngine):
            continue
        tokens = sum(step.prompt_tokens + step.completion_tokens for step in mine)
        most = sum(step.max_tokens for step in mine)
        if settings.max_total_tokens:
            yield from _warning(name, "max_total_tokens", settings.max_total_tokens, tokens, most)
        if settings.max_cost:
            cost, most_cost = sum(s.cost for s in mine), sum(s.max_cost for s in mine)
            yield from _warning(name, "max_cost", settings.max_cost, cost, most_cost)


def _warning(engine: str, key: str, budget: float, expected: float, most: float) -> Iterable[str]:
    form = money if key == "max_cost" else short_count
    if expected > budget:
        yield (
            f"engines.{engine}.{key} is {form(budget)}, and the plan expects {form(expected)}: the "
            "run will stop there (it can be resumed with a larger budget)"
        )
    elif most > budget:
        yield (
            f"engines.{engine}.{key} is {form(budget)}, and the upper bound is {form(most)}: the "
            "run may stop there (it can be resumed with a larger budget)"
        )


def render_plan(plan: Plan) -> RenderableType:
    """The plan as text and tables for a terminal."""
    prompts = plan.prompts
    head = Text.assemble(
        ("prompts   ", "dim"),
        f"{count(prompts.read)} read = {count(prompts.kept)} kept + {count(prompts.heldout)} held "
        f"out + {count(prompts.dropped)} dropped + {count(prompts.quarantined)} quarantined\n",
        ("rounds    ", "dim"),
        f"{len(plan.prompts_per_round)}, with "
        + ", ".join(count(number) for number in plan.prompts_per_round)
        + " prompts\n",
        ("requests  ", "dim"), f"{count(plan.requests)} at most\n",
        ("tokens    ", "dim"),
        f"{short_count(plan.tokens)} expected, {short_count(plan.max_tokens)} at most\n",
        ("cost      ", "dim"), f"{money(plan.cost)} expected, {money(plan.max_cost)} at most\n",
        ("time      ", "dim"), f"about {duration(plan.seconds)}",
    )  # fmt: skip
    parts: list[RenderableType] = [head, Padding(_step_table(plan), (1, 0))]
    if plan.training:
        parts.append(Padding(_training_table(plan), (0, 0, 1, 0)))
    for warning in plan.warnings:
        parts.append(Text(f"Warning: {warning}", style="bold yellow"))
    parts.append(Text("Assumed:", style="dim"))
    parts += [Text(f"  - {assumption}", style="dim") for assumption in plan.assumptions]
    return Group(*parts)


def _step_table(plan: Plan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title="Requests", title_justify="left")
    for column in ("round", "stage", "who"):
        table.add_column(column)
    for column in ("requests", "tokens in", "out", "all, at most", "cost", "time"):
        table.add_column(column, justify="right")
    for step in plan.steps:
        who = step.what + (f" ({step.engine})" if step.engine else "")
        table.add_row(
            str(step.round), step.stage, Text(who), count(step.requests),
            short_count(step.prompt_tokens), short_count(step.completion_tokens),
            short_count(step.max_tokens), money(step.cost), duration(step.seconds),
        )  # fmt: skip
    return table


def _training_table(plan: Plan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title="Training", title_justify="left")
    for column in ("round", "examples, at most", "steps", "time"):
        table.add_column(column, justify="right")
    for each in plan.training:
        table.add_row(
            str(each.round), count(each.examples), count(each.steps), duration(each.seconds)
        )
    return table
