"""Rounds whose answers are sampled and labelled while the policy is trained on them.

Block k of such a round is what leg k of the training samples: the same nouns in the same folders as
in any other round, only that block k comes from the policy as it was at leg k. So such a round
writes a dataset too, and a killed one reads the blocks it has.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import threading
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.data.conversations.conversation import as_sampled
from prefloop.data.errors import NothingCameOut
from prefloop.data.hashing import derive_seed, prompt_id
from prefloop.data.shards import ShardFolder
from prefloop.labelers.base import Labeler
from prefloop.labelers.config import FilterConfig, LabelConfig
from prefloop.labelers.decisions.candidate_scores import candidate_scores, mean_scores
from prefloop.labelers.people import without
from prefloop.pipeline.config import SampleConfig
from prefloop.pipeline.run.all_or_some import (
    AllOrSome,
    Tally,
    any_text,
    any_valid_vote,
    tally_samples,
    tally_votes,
)
from prefloop.pipeline.run.context import RoundContext
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.promotion import Lineage
from prefloop.pipeline.run.round_jury import load_round_jury
from prefloop.pipeline.run.run_dir import RunError, Stopwatch
from prefloop.pipeline.stages.dataset.layout import split_of
from prefloop.pipeline.stages.dataset.row_tables import triples_of
from prefloop.pipeline.stages.dataset.span_tables import SpanTables
from prefloop.pipeline.stages.deciding.decided_blocks import decide_blocks
from prefloop.pipeline.stages.filter import why_none_kept
from prefloop.pipeline.stages.invalid_votes import Breaker
from prefloop.pipeline.stages.label import OpenLabelers, label_block
from prefloop.pipeline.stages.label import remedy_of as label_remedy
from prefloop.pipeline.stages.lost_rows import restore_sample_quarantine
from prefloop.pipeline.stages.rendering import rendering_of
from prefloop.pipeline.stages.sample import draw_block, keep_block, open_draw
from prefloop.pipeline.stages.sample import remedy_of as sample_remedy
from prefloop.pipeline.stages.train import (
    reference_policy,
    run_training,
    trained_before,
)
from prefloop.training.config import TrainConfig
from prefloop.training.inputs.rendering import Rendering
from prefloop.training.methods.online import OnlineDpo
from prefloop.training.methods.reinforcement import Reinforcement
from prefloop.training.session.checkpoint_folder import checkpoint_folder
from prefloop.training.session.fit import OnStep, TrainResult, fit
from prefloop.training.session.job import Job
from prefloop.training.session.on_policy import Group, Prompts, WeightsNow


@dataclass(frozen=True)
class LegSettings:
    """How a leg gets from its prompts to votes and pairs: what the stages before training are set
    to in any other round."""

    prompts: int
    """In each leg."""
    sample: SampleConfig
    with_references: bool
    """Reference answers are candidates too."""
    label: LabelConfig
    filters: FilterConfig
    test_share: float
    """Share of the prompts whose triples are the test split: they are not trained on."""


async def train_while_sampling(
    context: RoundContext,
    training: TrainConfig,
    settings: LegSettings,
    models: Models,
    open_labelers: OpenLabelers,
    origin: Lineage,
) -> None:
    """Train policy k + 1 from the policy that the round began with, on what it answers meanwhile.

    Raises what the stages raise that it calls.
    """
    restore_sample_quarantine(context)
    if trained_before(context, training.guards):  # no labeler needs to be opened
        refuse_lost_blocks(context)
        return
    legs = _Legs(context, training, settings, models, await open_labelers())

    def train(on_step: OnStep) -> TrainResult:
        def step(record: dict[str, float]) -> None:
            legs.check()
            on_step(record)

        job = Job(
            policy=origin.previous,
            reference=reference_policy(context, training, origin),
            files=(),
            out=context.folder.policy,
            config=training,
            seed=derive_seed(context.seed, "train", context.index),
            rendering=rendering_of(context, [context.index], origin.previous)
            if training.online
            else Rendering(context.template_kwargs),
        )
        prompts = _prompts(context, settings)
        if training.online:
            return fit(job, OnlineDpo(prompts, legs.triples), on_step=step)
        assert settings.sample.temperature is not None  # the config demands it
        method = Reinforcement(
            prompts,
            legs.groups,
            group_size=settings.sample.n,
            temperature=settings.sample.temperature,
            max_tokens=settings.sample.max_tokens,
        )
        return fit(job, method, on_step=step)

    # The training has a thread of its own; engines and labelers stay in this event loop.
    try:
        await asyncio.to_thread(run_training, context, training.guards, train)
    except NothingCameOut:  # what was trained meanwhile was trained on nothing
        shutil.rmtree(checkpoint_folder(context.folder.policy), ignore_errors=True)
        raise
    finally:
        legs.stop()


def refuse_lost_blocks(context: RoundContext) -> None:
    """Raise ``RunError`` where blocks are missing that a training sampled: the policy that answered
    was there for a moment only, so that nothing can make them anew."""
    folder = context.folder
    sampled, voted = folder.candidates.indices(), folder.votes.indices()
    legs = range(max([*sampled, *voted, *folder.decisions.indices()], default=-1) + 1)
    for shards, found in ((folder.candidates, sampled), (folder.votes, voted)):
        lost = [index for index in legs if index not in found]
        if lost:
            raise RunError(
                f"{shards.path(lost[0])} is missing, and the training that it was sampled for is "
                "over: put it back from a copy, or use a new --run-dir"
            )


def _prompts(context: RoundContext, settings: LegSettings) -> Prompts:
    rows = context.folder.prompts.table(["prompt_id", "messages", "turns", "tools"]).to_pylist()
    asked = [as_sampled(row, context.system_prompt) for row in rows]
    held_out = frozenset(
        prompt_id(list(messages))
        for row, messages in zip(rows, asked, strict=True)
        if split_of(row["prompt_id"], seed=context.seed, test_share=settings.test_share) == "test"
    )
    return Prompts(asked, settings.prompts, held_out)


class _Legs:
    """Makes the blocks of a round when the training, in another thread, asks for them."""

    def __init__(
        self,
        context: RoundContext,
        training: TrainConfig,
        settings: LegSettings,
        models: Models,
        labelers: Sequence[Labeler],
    ) -> None:
        self._context, self._folder = context, context.folder
        self._reward, self._settings = training.reward, settings
        self._models, self._labelers = models, labelers
        self._jury = load_round_jury(settings.label, context.folder)
        self._loop = asyncio.get_running_loop()
        self._stopped = threading.Event()
        self._reinforces = not training.online
        title = f"round {context.index}"
        self._sampled = AllOrSome(
            f"{title} sample",
            "prompts",
            sample_remedy(settings.sample),
            came_before=any_text(self._folder.candidates),
        )
        self._voted = AllOrSome(
            f"{title} label",
            "votes",
            label_remedy(settings.label.labelers),
            came_before=any_valid_vote(self._folder.votes),
        )
        self._breaker = Breaker(f"{title} label", settings.label)

    def triples(self, leg: int, now: WeightsNow) -> list[Path]:
        """See ``prefloop.training.session.on_policy.Triples``.

        Raises ``NothingCameOut`` at the last leg where none kept a pair.
        """
        self._make(leg, now)
        if self._is_last(leg) and (nothing := why_none_kept(self._context)):
            self._forget(("triple", "decision", "vote", "candidate"))
            raise nothing
        return [self._folder.triples.own_file(leg)] if self._folder.triples.rows([leg]) else []

    def groups(self, leg: int, now: WeightsNow) -> list[Group]:
        """See ``prefloop.training.session.on_policy.Groups``."""
        self._make(leg, now)
        candidates = self._folder.candidates.read(leg)
        rewards = self._rewards(leg)
        by_prompt: dict[str, list[tuple[Any, bool, float, float | None, int]]] = defaultdict(list)
        for row in candidates.to_pylist():
            reward = rewards.get(row["candidate_id"], math.nan)
            said = row["token_ids"] if row["token_ids"] is not None else row["text"]
            told = (row["logprob"], row["tokens"] + (row["reasoning_tokens"] or 0))
            answer = (said, row["finish_reason"] == "stop", reward, *told)
            by_prompt[row["prompt_id"]] += [answer] * row["copies"]
        found = []
        for prompt in self._folder.prompts.read(leg, ["prompt_id"])["prompt_id"].to_pylist():
            answers = by_prompt[prompt]  # none where the prompt could not be sampled
            columns = [list(column) for column in zip(*answers, strict=True)] or [[]] * 5
            found.append(Group(*columns))
        return found

    def check(self) -> None:
        """Raise where nobody waits for the training any more."""
        if self._stopped.is_set():
            raise asyncio.CancelledError

    def stop(self) -> None:
        """Let the training end at its next step."""
        self._stopped.set()

    def _make(self, leg: int, now: WeightsNow) -> None:
        folder = self._folder
        if not folder.candidates.exists(leg):
            self._models.use_policy(str(now()))
            self._wait(self._sample(leg))
        if not folder.votes.exists(leg):
            self._wait(self._label(leg))
        if not folder.decisions.exists(leg):
            label, filters = self._settings.label, self._settings.filters
            decisions = decide_blocks(self._context, [leg], label, filters, self._jury)
            folder.decisions.write_together([leg], *decisions)
        if not folder.triples.exists(leg):
            tables = SpanTables(folder, [leg], self._context.system_prompt)
            folder.triples.write(leg, triples_of(self._context, tables))

    async def _sample(self, leg: int) -> None:
        watch = Stopwatch()
        draw = await open_draw(
            self._context,
            self._settings.sample,
            self._models,
            with_references=self._settings.with_references,
        )
        candidates, failed = await draw_block(self._folder, leg, draw)
        kept = await keep_block(self._folder, leg, candidates, failed)
        tally = tally_samples(candidates, failed, empty_counts=self._reinforces)
        await self._count(self._sampled, leg, tally, self._folder.candidates)
        if kept:
            self._context.note("sample", watch.lap(), block=leg, failed=len(failed))

    async def _label(self, leg: int) -> None:
        watch = Stopwatch()
        votes = await label_block(
            self._context,
            self._settings.label,
            leg,
            self._labelers,
            with_empty=self._reinforces,
        )
        self._breaker.take(votes)
        await asyncio.to_thread(self._folder.votes.write, leg, votes)
        await self._count(self._voted, leg, tally_votes(votes), self._folder.votes)
        self._context.note("label", watch.lap(), block=leg)

    async def _count(self, outcome: AllOrSome, leg: int, tally: Tally, shards: ShardFolder) -> None:
        """Count what came of a leg, whose shard had to be written for the training to go on: where
        nothing came of any, none of them stays."""
        try:
            await outcome.take(tally, _nothing_to_write)
            if self._is_last(leg):
                await outcome.close()
        except NothingCameOut:
            sampled = ("candidate",) if shards is self._folder.candidates else ()
            self._forget(("triple", "decision", "vote", *sampled))
            raise

    def _is_last(self, leg: int) -> bool:
        return leg == self._folder.prompts.indices()[-1]

    def _forget(self, nouns: Sequence[str]) -> None:
        """Remove what the legs made, so that a mended config makes it anew."""
        for noun in nouns:
            shutil.rmtree(self._folder.root / noun, ignore_errors=True)

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        self.check()
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _rewards(self, leg: int) -> dict[str, float]:
        """The reward of each candidate that has one."""
        if self._reward == "wins":
            columns = ["chosen_id", "rejected_id", "p_chosen", "reason"]
            scores = candidate_scores(self._folder.decisions.read(leg, columns))
            return dict(
                zip(scores["candidate_id"].to_pylist(), scores["score"].to_pylist(), strict=True)
            )
        return mean_scores(without(self._folder.votes.read(leg), self._settings.label.silent))


async def _nothing_to_write() -> None:
    pass
