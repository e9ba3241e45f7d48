"""The evaluate stage: answers to held-out prompts, and what they say about a round's policy.

Policies are counted: policy 0 is the starting policy, policy k + 1 the one that round k trained.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.protocol import Sampling
from prefloop.data.shards import ShardFolder
from prefloop.pipeline.config import POLICY, PoolMember, SampleConfig
from prefloop.pipeline.executors.block_task import (
    BlockFacts,
    BlockJob,
    BlockTask,
    Keep,
    Make,
    Tables,
)
from prefloop.pipeline.run.all_or_some import AllOrSome, tally_samples
from prefloop.pipeline.run.context import RoundContext
from prefloop.pipeline.run.final_split import ids_of_rounds
from prefloop.pipeline.run.metrics import metrics_table
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.progress import StepProgress
from prefloop.pipeline.run.promotion import PROMOTION, Lineage, promotion_estimate
from prefloop.pipeline.run.run_dir import (
    EVALUATION,
    JURY,
    OPPONENT,
    PolicyKey,
    RunDir,
    Stopwatch,
)
from prefloop.pipeline.stages.likelihood.likelihood_figures import (
    Likely,
    MeasuredPolicy,
    likelihood_figures,
)
from prefloop.pipeline.stages.likelihood.reading import OpenScorer
from prefloop.pipeline.stages.lost_rows import AnswerBlock, restore_quarantine
from prefloop.pipeline.stages.matches import (
    MatchJury,
    Voting,
    forget_other_votes,
    match,
    match_figures,
)
from prefloop.pipeline.stages.measures import answer_figures
from prefloop.pipeline.stages.sample import (
    Draw,
    open_source,
    read_or_empty,
    remedy_of,
    sample_block,
    sampling_of,
)
from prefloop.pipeline.stages.train import reference_policy
from prefloop.training.config import EvaluateConfig, TrainConfig

ANSWERS = "answers"
"""Name of the stage that answers held-out prompts."""
MOST_UNTEMPERED = 256
"""Prompts that are answered once more for KL, at most: one answer each."""


async def answer_heldout(
    context: RoundContext,
    sample: SampleConfig,
    settings: EvaluateConfig,
    models: Models,
    policy: PolicyKey,
    member: PoolMember | None = None,
) -> None:
    """Sample the answers of ``policy`` to the held-out prompts, once for each policy.

    It is the policy that ``models`` serve now, or that of ``member``. Every policy gets the same
    seeds (common random numbers), which narrows the comparison. Journal and quarantine are those of
    the context's round.

    Of a trained policy there is a second, smaller draw from its own distribution where
    ``settings`` ask for another one: KL is the mean over answers of that distribution alone.
    """
    if not settings.enabled:
        return
    run = context.run
    ids = ids_of_rounds(run.heldout, settings, context.seed)
    if context.index == _answered_in(policy):
        _restore_quarantine(context, ids, policy)
    member = member or PoolMember(name=POLICY, engine=sample.engine)
    answers = HeldOutAnswers(run, settings, policy, ids)
    await _answer(context, sample, models, member, answers)
    sampling = heldout_sampling(sample, settings)
    measured = context.folder.metrics.exists(EVALUATION)
    trained = isinstance(policy, int) and policy > 0 and member.model == POLICY
    if trained and not is_untempered(sampling) and not measured:
        limit = min(settings.limit or MOST_UNTEMPERED, MOST_UNTEMPERED)
        fewer = settings.model_copy(update={"limit": limit})
        ids = ids_of_rounds(run.heldout, fewer, context.seed)
        answers = HeldOutAnswers(run, fewer, policy, ids, untempered=True)
        await _answer(context, sample, models, member, answers)


@dataclass(frozen=True)
class HeldOutAnswers:
    """Answers of a policy to held-out prompts, and how they are drawn."""

    run: RunDir
    settings: EvaluateConfig
    policy: PolicyKey
    ids: frozenset[str] | None
    """The held-out prompts that are answered; null: all."""
    untempered: bool = False
    """From the policy's own distribution, for KL."""

    @property
    def shards(self) -> ShardFolder:
        """Where they lie."""
        run, policy = self.run, self.policy
        return run.untempered(policy) if self.untempered else run.answers(policy)

    @property
    def quarantine(self) -> str:
        """Name of the quarantine of the prompts without."""
        return f"{'untempered' if self.untempered else 'evaluate'}-{self.policy}"

    @property
    def seed(self) -> str:
        """What leads their seeds."""
        return "untempered" if self.untempered else "evaluate"

    @property
    def title(self) -> str:
        """What they are called where progress is shown."""
        who = _who(self.policy)
        return f"answers of {who} for KL" if self.untempered else f"held-out answers of {who}"

    def sampling(self, sample: SampleConfig) -> Sampling:
        """How a policy is asked for them."""
        usual = heldout_sampling(sample, self.settings)
        if not self.untempered:
            return usual
        return replace(usual, temperature=1.0, top_p=1.0, top_k=0)


async def _answer(
    context: RoundContext,
    sample: SampleConfig,
    models: Models,
    member: PoolMember,
    answers: HeldOutAnswers,
) -> None:
    """Write the shards of ``answers`` that are missing."""
    shards = answers.shards
    missing = shards.missing(answers.run.heldout.indices())
    if not missing:
        return
    ready = await context.executor.open(answer_job(context, sample, models, member, answers))
    watch = Stopwatch()
    asked = sample.model_copy(update={"pool": (member,)})
    outcome = AllOrSome(answers.title, "prompts", remedy_of(asked), came_before=shards.rows() > 0)
    with StepProgress(answers.title, len(missing), unit="blocks") as progress:

        async def take(facts: BlockFacts, keep: Keep) -> None:
            await outcome.take(facts.tally, keep)
            progress.advance(1, tokens=facts.tokens)

        await ready.run(missing, begin=lambda _: progress.begin(1), take=take)
        await outcome.close()
    context.note("evaluate", watch.lap(), answers_of=answers.policy)


def answer_job(
    context: RoundContext,
    sample: SampleConfig,
    models: Models,
    member: PoolMember,
    answers: HeldOutAnswers,
) -> BlockJob:
    """What the answers to a held-out block take."""

    async def here() -> Make:
        draw = Draw(
            sources=[await open_source(member, models)],
            n=1 if answers.untempered else answers.settings.samples_per_prompt,
            sampling=answers.sampling(sample),
            system_prompt=context.system_prompt,
            seed_parts=(context.seed, answers.seed),
            merge_identical=False,
            thinking=sample.thinking,
        )

        async def make(index: int) -> Tables:
            prompts = _asked(answers.run, index, answers.ids)
            block = f"{answers.seed}/{answers.policy}/{index}"
            return await sample_block(prompts, draw, context.index, block)

        return make

    details = {
        "sample": sample.model_dump(mode="json"),
        "evaluate": answers.settings.model_dump(mode="json"),
        "member": member.model_dump(mode="json"),
        "policy": answers.policy, "untempered": answers.untempered,
    }  # fmt: skip
    task = BlockTask(ANSWERS, answers.run.root, context.index, details)
    in_flight = context.blocks_for([member.engine])
    return BlockJob(task, AnsweredBlocks(context, answers), here, in_flight)


@dataclass(frozen=True)
class AnsweredBlocks:
    """Held-out answers by block; see ``prefloop.pipeline.executors.block_task.Shelf``."""

    context: RoundContext
    answers: HeldOutAnswers

    @property
    def _quarantine(self) -> ShardFolder:
        return self.context.folder.quarantine(self.answers.quarantine)

    def facts(self, index: int, tables: Tables) -> BlockFacts:
        """What is to be said of a block's answers and of its prompts without."""
        table, failed = tables
        return BlockFacts(
            index,
            tally_samples(table, failed, empty_counts=True),
            tokens=pc.sum(table["tokens"]).as_py() or 0,
            failed=len(failed),
        )

    async def keep(self, index: int, tables: Tables) -> bool:
        """Write both. Votes that were given on others are asked for again."""
        answers, quarantine = self.answers, self._quarantine
        place = AnswerBlock(answers.shards, quarantine, index, self.context.index)
        prompts = _asked(answers.run, index, answers.ids)
        kept = await asyncio.to_thread(place.keep, prompts, *tables)
        if kept and not answers.untempered:
            forget_other_votes(answers.run, answers.policy, index)
        return kept

    def kept(self, index: int) -> Tables | None:
        """Both, as they were written."""
        shards = self.answers.shards
        if not shards.exists(index):
            return None
        return shards.read(index), read_or_empty(self._quarantine, index)


async def answer_opponent(
    context: RoundContext, sample: SampleConfig, settings: EvaluateConfig, models: Models
) -> None:
    """The fixed opponent's answers to the held-out prompts, once for a run: in round 0."""
    opponent = settings.opponent
    if opponent is None:
        return
    engine = opponent.engine or sample.engine
    member = PoolMember(name=OPPONENT, engine=engine, model=opponent.model)
    answers = context.run.answers(OPPONENT)
    if not answers.missing(context.run.heldout.indices()):
        return
    await models.make_room()
    await answer_heldout(context.round(0), sample, settings, models, OPPONENT, member)
    await models.close(engine, opponent.model)


@dataclass(frozen=True)
class Measuring:
    """Who measures a policy; each is only opened if it has something to do."""

    voting: Voting
    load_jury: Callable[[], MatchJury]
    """Called once all votes are there."""
    open_scorer: OpenScorer
    promotion_confidence: float
    """Coverage of the interval that promotion goes by."""
    untempered: bool
    """Whether held-out answers are drawn from the policies' own distributions."""


async def evaluate_round(
    context: RoundContext,
    settings: EvaluateConfig,
    train: TrainConfig,
    origin: Lineage,
    by: Measuring,
) -> None:
    """Measure the policy that this round trained: win rates, KL, lengths, reward margin.

    ``train`` and ``origin`` are what it was trained with and from.
    """
    run, metrics = context.run, context.folder.metrics
    if metrics.exists(EVALUATION) or not run.heldout.indices():
        return
    watch = Stopwatch()
    new = context.index + 1
    rows = answer_figures(run, new, against=None)
    rows += answer_figures(run, 0, against="start")
    opponents: dict[str, PolicyKey] = {"start": 0, "previous": origin.previous_index}
    if settings.opponent:
        opponents[OPPONENT] = OPPONENT
    for opponent in dict.fromkeys(opponents.values()):
        await match(context, new, opponent, by.voting)
    jury = by.load_jury()
    for against, opponent in opponents.items():
        rows += match_figures(run, jury, new, opponent, against)
        if against != OPPONENT and by.promotion_confidence != jury.confidence:
            stricter = replace(jury, confidence=by.promotion_confidence)
            rows += _promotion_figure(match_figures(run, stricter, new, opponent, against))
    measured = MeasuredPolicy(
        number=new,
        policy=context.folder.policy,
        other=origin.start,
        against="start",
        start=origin.start,
        reference=await asyncio.to_thread(reference_policy, context, train, origin),
        beta=train.beta,
    )
    likely = Likely(by.open_scorer, settings.confidence, by.untempered)
    rows += await likelihood_figures(context, measured, likely)
    for row in rows:
        row["round"] = context.index
    metrics.write(EVALUATION, metrics_table(rows))
    context.note("evaluate", watch.lap())


def _promotion_figure(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The jury's win rate among the figures of a match, under the name that promotion knows."""
    return [
        {**row, "name": PROMOTION, "estimate": promotion_estimate(row["estimate"])}
        for row in rows
        if (row["name"], row["labeler"]) == ("win_rate", JURY)
    ]


def heldout_sampling(sample: SampleConfig, settings: EvaluateConfig) -> Sampling:
    """As in sampling, but for what the evaluation sets itself."""
    own = sampling_of(sample)
    return replace(
        own,
        temperature=own.temperature if settings.temperature is None else settings.temperature,
        top_p=own.top_p if settings.top_p is None else settings.top_p,
        top_k=0,
        max_tokens=settings.max_tokens or sample.max_tokens,
    )


def is_untempered(sampling: Sampling) -> bool:
    """Whether answers are drawn from the policy's own distribution. Where it is not said, it is not
    known."""
    return (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)


def _who(policy: PolicyKey) -> str:
    if policy == OPPONENT:
        return "the opponent"
    return f"policy {policy}" if policy else "the starting policy"


def _answered_in(policy: PolicyKey) -> int:
    """The round that lets a policy answer, where nothing is lost."""
    return max(policy - 1, 0) if isinstance(policy, int) else 0


def _restore_quarantine(
    context: RoundContext, asked_ids: frozenset[str] | None, policy: PolicyKey
) -> None:
    """See ``restore_quarantine``: for the answers of ``policy`` that are there."""
    run, name = context.run, f"evaluate-{policy}"
    for index in run.answers(policy).indices():
        if any(folder.quarantine(name).exists(index) for folder in run.rounds()):
            continue  # drawn again in another round
        prompts = _asked(run, index, asked_ids)
        answered = run.answers(policy).read(index, ["prompt_id"])["prompt_id"]
        shards = context.folder.quarantine(name)
        restore_quarantine(shards, index, prompts, answered, context.index)


def _asked(run: RunDir, index: int, ids: frozenset[str] | None) -> pa.Table:
    """Held-out block ``index``, as far as its prompts are among ``ids``; null: all."""
    prompts = run.heldout.read(index)
    if ids is None:
        return prompts
    among = [one in ids for one in prompts["prompt_id"].to_pylist()]
    return prompts.filter(pa.array(among, pa.bool_()))
