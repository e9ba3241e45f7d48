"""The label stage: every labeler votes on the proposed pairs of each prompt."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.conversations.conversation import as_sampled
from prefloop.data.errors import NothingCameOut
from prefloop.data.shards import ShardFolder
from prefloop.labelers.base import Answer, Labeler, Pair, Vote, votes_table
from prefloop.labelers.config import JudgeLabeler, LabelConfig, LabelerConfig
from prefloop.labelers.decisions.filters import has_empty_answer
from prefloop.labelers.people import without
from prefloop.pipeline.executors.block_task import (
    BlockFacts,
    BlockJob,
    BlockTask,
    Keep,
    Make,
    Tables,
)
from prefloop.pipeline.run.all_or_some import AllOrSome, any_valid_vote, tally_votes
from prefloop.pipeline.run.context import RoundContext
from prefloop.pipeline.run.progress import StepProgress
from prefloop.pipeline.run.run_dir import Stopwatch
from prefloop.pipeline.run.spans import put_together
from prefloop.pipeline.stages.given import proposed, with_given
from prefloop.pipeline.stages.invalid_votes import (
    Breaker,
    asks_again,
    kept_votes,
    set_aside,
    together,
    unasked,
)
from prefloop.pipeline.stages.rendering import answer_texts

logger = logging.getLogger(__name__)

LABEL = "label"
"""Name of the stage."""
OpenLabelers = Callable[[], Awaitable[list[Labeler]]]


async def label_round(
    context: RoundContext, settings: LabelConfig, open_labelers: OpenLabelers
) -> None:
    """Write the vote shards of a round that do not exist yet.

    ``open_labelers`` is only called if there are any: it may load models.
    """
    folder = context.folder
    missing = folder.votes.missing(folder.candidates.indices())
    if not missing:
        return
    if set(folder.decisions.indices()).intersection(missing):
        _decide_again(context, missing)
    ready = await context.executor.open(label_job(context, settings, open_labelers))
    watch = Stopwatch()
    total = folder.prompts.rows()
    todo = folder.prompts.rows(missing)
    title = f"round {folder.index} label"
    outcome = AllOrSome(
        title,
        "votes",
        remedy_of(settings.labelers),
        came_before=any_valid_vote(folder.votes, settings.silent),
    )
    breaker = Breaker(title, settings)
    with StepProgress(title, total, done=total - todo) as progress:

        async def take(facts: BlockFacts, keep: Keep) -> None:
            async def commit() -> None:
                if await keep():
                    context.note("label", watch.lap(), block=facts.block)

            await outcome.take(facts.tally, commit)
            breaker.count(facts.tally)
            rows = folder.prompts.rows([facts.block])
            progress.advance(rows, tokens=facts.tokens, cost=facts.cost)

        try:
            await ready.run(
                missing, begin=lambda index: progress.begin(folder.prompts.rows([index])), take=take
            )
            await outcome.close()
        except NothingCameOut:
            set_aside(folder, settings)
            raise
    shutil.rmtree(folder.votes_kept.folder, ignore_errors=True)
    put_together(folder, folder.votes)


def label_job(
    context: RoundContext, settings: LabelConfig, open_labelers: OpenLabelers
) -> BlockJob:
    """What the votes on a block of the round take."""

    async def here() -> Make:
        labelers = await open_labelers()

        async def make(index: int) -> Tables:
            return (await label_block(context, settings, index, labelers),)

        return make

    details = {
        "label": settings.model_dump(mode="json"),
        "anew": asks_again(context.folder, settings),
    }
    task = BlockTask(LABEL, context.run.root, context.index, details)
    shelf = LabelledBlocks(context.folder.votes, settings.silent)
    return BlockJob(task, shelf, here, context.blocks_for(engines_of(settings.labelers)))


@dataclass(frozen=True)
class LabelledBlocks:
    """Votes by block; see ``prefloop.pipeline.executors.block_task.Shelf``."""

    votes: ShardFolder
    silent: frozenset[str] = frozenset()
    """Labelers who decide nothing, and so are not counted."""

    def facts(self, index: int, tables: Tables) -> BlockFacts:
        """What is to be said of a block's votes."""
        [votes] = tables
        return BlockFacts(
            index,
            tally_votes(without(votes, self.silent)),
            tokens=pc.sum(votes["prompt_tokens"]).as_py() or 0,
            cost=pc.sum(votes["cost"]).as_py() or 0.0,
        )

    async def keep(self, index: int, tables: Tables) -> bool:
        """Write the votes."""
        return await asyncio.to_thread(self.votes.write, index, *tables)

    def kept(self, index: int) -> Tables | None:
        """The votes, as they were written."""
        return (self.votes.read(index),) if self.votes.exists(index) else None


def engines_of(labelers: Iterable[LabelerConfig]) -> set[str]:
    """The engines that ``labelers`` ask."""
    return {one.engine for one in labelers if isinstance(one, JudgeLabeler)}


def remedy_of(labelers: Sequence[LabelerConfig]) -> str:
    """What to change where no vote is valid."""
    keys = {
        f"engines.{one.engine} or the judge {one.name}": None
        for one in labelers
        if isinstance(one, JudgeLabeler)
    }
    others = [f"the labeler {one.name}" for one in labelers if not isinstance(one, JudgeLabeler)]
    return f"change {', '.join([*keys, *others])}"


def _decide_again(context: RoundContext, lost: Sequence[int]) -> None:
    """What was decided from votes that were lost since is decided again."""
    reviews = context.run.root / "review"
    logger.warning(
        "round %d: the votes of %d block(s) were lost: they are asked for again, and the round is "
        "decided again%s",
        context.index,
        len(lost),
        f"; `prefloop review pull` of {reviews} puts the votes of people back"
        if reviews.is_dir()
        else "",
    )
    context.run.card.unlink(missing_ok=True)
    context.folder.forget_decisions()


async def label_block(
    context: RoundContext,
    settings: LabelConfig,
    index: int,
    labelers: Sequence[Labeler],
    *,
    with_empty: bool = False,
) -> pa.Table:
    """The votes (schema VOTE) on block ``index``.

    Nobody is asked about pairs with an answer that has no text, as no filter lets them through;
    ``with_empty``: where answers are rewarded one by one, they are.
    """
    folder = context.folder
    prompts, candidates = folder.prompts.read(index), folder.candidates.read(index)
    pairs = proposed(context, candidates, settings)
    if not with_empty:
        empty = has_empty_answer(pairs["a_id"], pairs["b_id"], candidates)
        pairs = pairs.filter(pa.array(~empty))
    shown = candidates
    if settings.show_reasoning == "always":
        texts = answer_texts(candidates, with_thoughts=True)
        place = candidates.column_names.index("text")
        shown = candidates.set_column(place, "text", texts)
    built = build_pairs(pairs, prompts, shown, context.index, context.system_prompt)
    built = with_given(context.run, built, candidates)
    kept = kept_votes(folder, index, settings)
    fresh = await vote(built, labelers, f"{folder.index}/label/{index}", kept)
    return together(kept, fresh, built, [one.name for one in labelers]) if len(kept) else fresh


async def vote(
    pairs: Sequence[Pair],
    labelers: Sequence[Labeler],
    block: str,
    kept: pa.Table | None = None,
) -> pa.Table:
    """The votes of all labelers on ``pairs``: schema VOTE, labeler by labeler in their order.

    A labeler is not asked about prompts on which it has votes in ``kept``.
    """
    votes: list[list[Vote]] = await asyncio.gather(
        *(
            labeler.label(
                pairs if kept is None or not len(kept) else unasked(pairs, kept, labeler.name),
                block=f"{block}/{labeler.name}",
            )
            for labeler in labelers
        )
    )
    return votes_table([one for of_labeler in votes for one in of_labeler])


def build_pairs(
    pairs: pa.Table,
    prompts: pa.Table,
    candidates: pa.Table,
    round_index: int,
    system_prompt: str | None,
) -> list[Pair]:
    """Join proposed pairs with the texts a labeler needs, by id."""
    by_prompt = {row["prompt_id"]: row for row in prompts.to_pylist()}
    answers = {row["candidate_id"]: _answer(row) for row in candidates.to_pylist()}
    built = []
    for pair in pairs.to_pylist():
        prompt = by_prompt[pair["prompt_id"]]
        built.append(
            Pair(
                pair_id=pair["pair_id"],
                prompt_id=pair["prompt_id"],
                round=round_index,
                messages=as_sampled(prompt, system_prompt),
                reference=prompt["reference"],
                metadata=json.loads(prompt["metadata"]),
                a=answers[pair["a_id"]],
                b=answers[pair["b_id"]],
            )
        )
    return built


def _answer(row: dict[str, Any]) -> Answer:
    return Answer(
        candidate_id=row["candidate_id"],
        text=row["text"],
        tokens=row["tokens"],
        origin=row["origin"],
        policy=row["policy"],
        complete=row["finish_reason"] != "length",
    )
