"""The evaluate stage: answers to held-out prompts, and what they say about a round's policy.

Policies are counted: policy 0 is the starting policy, policy k + 1 the one that round k trained.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.protocol import Sampling
from prefloop.data.shards import ShardFolder
from prefloop.pipeline.config import POLICY, PoolMember, SampleConfig
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
from prefloop.pipeline.run.stream import run_blocks
from prefloop.pipeline.stages.lost_rows import AnswerBlock, restore_quarantine
from prefloop.pipeline.stages.matches import (
    MatchJury,
    Voting,
    forget_other_votes,
    match,
    match_figures,
)
from prefloop.pipeline.stages.measures import Likely, answer_figures, likelihood_figures
from prefloop.pipeline.stages.sample import Draw, open_source, remedy_of, sample_block, sampling_of
from prefloop.pipeline.stages.train import reference_policy
from prefloop.training.config import EvaluateConfig, TrainConfig
from prefloop.training.policy.logprobs import Scorer

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
    sampling = heldout_sampling(sample, settings)
    answers = _Answers(
        run.answers(policy), f"evaluate-{policy}", f"held-out answers of {_who(policy)}", sampling,
        settings.samples_per_prompt, ids, seed="evaluate",
    )  # fmt: skip
    await _answer(context, sample, models, member, policy, answers)
    measured = context.folder.metrics.exists(EVALUATION)
    trained = isinstance(policy, int) and policy > 0 and member.model == POLICY
    if trained and not is_untempered(sampling) and not measured:
        again = replace(sampling, temperature=1.0, top_p=1.0, top_k=0)
        limit = min(settings.limit or MOST_UNTEMPERED, MOST_UNTEMPERED)
        fewer = settings.model_copy(update={"limit": limit})
        answers = _Answers(
            run.untempered(policy), f"untempered-{policy}", f"answers of {_who(policy)} for KL",
            again, 1, ids_of_rounds(run.heldout, fewer, context.seed), seed="untempered",
        )  # fmt: skip
        await _answer(context, sample, models, member, policy, answers)


@dataclass(frozen=True)
class _Answers:
    """Answers to held-out prompts, and how they are drawn."""

    shards: ShardFolder
    quarantine: str
    title: str
    sampling: Sampling
    n: int
    ids: frozenset[str] | None
    """The held-out prompts that are answered; null: all."""
    seed: str


async def _answer(
    context: RoundContext,
    sample: SampleConfig,
    models: Models,
    member: PoolMember,
    policy: PolicyKey,
    answers: _Answers,
) -> None:
    """Write the shards of ``answers`` that are missing."""
    run, shards = context.run, answers.shards
    quarantine = context.folder.quarantine(answers.quarantine)
    missing = shards.missing(run.heldout.indices())
    if not missing:
        return
    draw = Draw(
        sources=[await open_source(member, models)],
        n=answers.n,
        sampling=answers.sampling,
        system_prompt=context.system_prompt,
        seed_parts=(context.seed, answers.seed),
        merge_identical=False,
        thinking=sample.thinking,
    )
    watch = Stopwatch()
    asked = sample.model_copy(update={"pool": (member,)})
    outcome = AllOrSome(answers.title, "prompts", remedy_of(asked), came_before=shards.rows() > 0)
    with StepProgress(answers.title, len(missing), unit="blocks") as progress:

        async def work(index: int) -> None:
            progress.begin(1)
            prompts = _asked(run, index, answers.ids)
            block = f"{answers.seed}/{policy}/{index}"
            table, failed = await sample_block(prompts, draw, context.index, block)

            async def commit() -> None:
                place = AnswerBlock(shards, quarantine, index, context.index)
                kept = await asyncio.to_thread(place.keep, prompts, table, failed)
                if kept and shards.folder == run.answers(policy).folder:
                    forget_other_votes(run, policy, index)

            await outcome.take(tally_samples(table, failed, empty_counts=True), commit)
            progress.advance(1, tokens=pc.sum(table["tokens"]).as_py() or 0)

        await run_blocks(missing, work, in_flight=context.blocks_in_flight)
        await outcome.close()
    context.note("evaluate", watch.lap(), answers_of=policy)


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
    open_scorer: Callable[[], AbstractAsyncContextManager[Scorer]]
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
    async with by.open_scorer() as score:
        rows += await asyncio.to_thread(
            likelihood_figures,
            context,
            origin.start,
            reference_policy(context, train, origin),
            Likely(score, settings.confidence, by.untempered),
            beta=train.beta,
        )
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
