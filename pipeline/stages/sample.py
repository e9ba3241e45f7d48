"""The sample stage: n candidates for each prompt, from one policy or a pool of them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.conversations.conversation import as_sampled
from prefloop.data.hashing import content_id, derive_seed
from prefloop.data.protocol import (
    Completion,
    Engine,
    Request,
    RequestRejected,
    Sampling,
    Thinking,
)
from prefloop.data.quarantine import BadRow, quarantine_table
from prefloop.data.schemas import CANDIDATE
from prefloop.data.shards import ShardFolder
from prefloop.data.utf8 import BLANK
from prefloop.pipeline.config import REFERENCE, PoolMember, SampleConfig
from prefloop.pipeline.executors.block_task import (
    BlockFacts,
    BlockJob,
    BlockTask,
    Keep,
    Make,
    Tables,
)
from prefloop.pipeline.run.all_or_some import (
    GIVEN_ORIGIN,
    SAMPLED,
    AllOrSome,
    any_text,
    tally_samples,
)
from prefloop.pipeline.run.context import RoundContext
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.progress import StepProgress
from prefloop.pipeline.run.run_dir import RoundDir, Stopwatch
from prefloop.pipeline.run.spans import put_together
from prefloop.pipeline.stages.given import GivenPool, open_pool
from prefloop.pipeline.stages.lost_rows import AnswerBlock, restore_sample_quarantine
from prefloop.pipeline.stages.run_on import run_on

logger = logging.getLogger(__name__)

SAMPLE = "sample"
"""Name of the stage."""


@dataclass(frozen=True)
class Source:
    """One policy that candidates are drawn from, ready to be asked."""

    name: str
    revision: str
    weight: float
    engine: Engine
    n: int | None = None
    """Samples of each prompt; null: by weight, of those that are left."""
    sampling: Sampling | None = None
    """How it is asked; null: as the draw says."""
    system_prompt: str | None = None
    """In place of the draw's; empty: none, null: the draw's."""
    apart: tuple[str, ...] = ()
    """What tells its answers from equal ones of the same model that was asked otherwise."""


@dataclass(frozen=True)
class Draw:
    """How the candidates of a block are drawn; ``seed_parts`` lead every derived seed."""

    sources: Sequence[Source]
    n: int
    sampling: Sampling
    system_prompt: str | None
    seed_parts: tuple[str | int, ...]
    merge_identical: bool = True
    thinking: Thinking = field(default_factory=Thinking)
    count_reference_tokens: Callable[[str], int] | None = None
    """If given, reference answers become candidates, with this count of their tokens."""
    given: GivenPool | None = None
    """Answers that were there before, which become candidates too."""


async def sample_round(
    context: RoundContext,
    settings: SampleConfig,
    models: Models,
    blocks: int,
    *,
    with_references: bool = False,
) -> None:
    """Write the candidate shards of a round that do not exist yet, of its first ``blocks``."""
    folder = context.folder
    restore_sample_quarantine(context)
    missing = folder.candidates.missing(range(blocks))
    if not missing:
        return
    job = sample_job(context, settings, models, with_references=with_references)
    ready = await context.executor.open(job)
    watch = Stopwatch()
    total = folder.prompts.rows()
    todo = folder.prompts.rows(missing)
    title = f"round {folder.index} sample"
    came_before = any_text(folder.candidates, _origin(settings))
    outcome = AllOrSome(title, "prompts", remedy_of(settings), came_before=came_before)
    with StepProgress(title, total, done=total - todo) as progress:

        async def take(facts: BlockFacts, keep: Keep) -> None:
            async def commit() -> None:
                if await keep():
                    context.note("sample", watch.lap(), block=facts.block, failed=facts.failed)

            await outcome.take(facts.tally, commit)
            rows = folder.prompts.rows([facts.block])
            progress.advance(rows, tokens=facts.tokens, cost=facts.cost)

        await ready.run(
            missing, begin=lambda index: progress.begin(folder.prompts.rows([index])), take=take
        )
        await outcome.close()
    put_together(folder, folder.candidates)


def sample_job(
    context: RoundContext, settings: SampleConfig, models: Models, *, with_references: bool
) -> BlockJob:
    """What sampling a block of the round takes."""

    async def here() -> Make:
        draw = await open_draw(context, settings, models, with_references=with_references)
        return partial(draw_block, context.folder, draw=draw)

    details = {"sample": settings.model_dump(mode="json"), "with_references": with_references}
    task = BlockTask(SAMPLE, context.run.root, context.index, details)
    in_flight = context.blocks_for(member.engine for member in settings.members())
    return BlockJob(task, SampledBlocks(context, settings), here, in_flight)


@dataclass(frozen=True)
class SampledBlocks:
    """The candidates of a round; see ``prefloop.pipeline.executors.block_task.Shelf``."""

    context: RoundContext
    settings: SampleConfig

    def facts(self, index: int, tables: Tables) -> BlockFacts:
        """What is to be said of a block's candidates and of its prompts without."""
        candidates, failed = tables
        return BlockFacts(
            index,
            tally_samples(candidates, failed, origin=_origin(self.settings)),
            tokens=_generated(candidates),
            cost=float(np.sum(candidates["cost"].to_numpy())),
            failed=len(failed),
        )

    async def keep(self, index: int, tables: Tables) -> bool:
        """Write both. Votes that were given on others are asked for again."""
        folder = self.context.folder
        candidates, failed = tables
        if not await keep_block(folder, index, candidates, failed):
            return False
        if folder.votes.exists(index) and not _voted_on(folder, index, candidates):
            logger.warning(
                "round %d: the answers of block %d were lost and are others now: their "
                "votes are asked for again",
                folder.index,
                index,
            )
            folder.votes.remove([index])
        return True

    def kept(self, index: int) -> Tables | None:
        """Both, as they were written."""
        folder = self.context.folder
        if not folder.candidates.exists(index):
            return None
        return folder.candidates.read(index), read_or_empty(folder.quarantine("sample"), index)


def _origin(settings: SampleConfig) -> str:
    """Of the answers that count: where engines are asked too, it is they who must not fail in
    everything."""
    return SAMPLED if settings.total else GIVEN_ORIGIN


def read_or_empty(shards: ShardFolder, index: int) -> pa.Table:
    """Shard ``index``, or no rows where it was not written."""
    return shards.read(index) if shards.exists(index) else shards.schema.empty_table()


def _generated(candidates: pa.Table) -> int:
    """Tokens that were sampled, thoughts included."""
    each = pc.add(candidates["tokens"], candidates["reasoning_tokens"].fill_null(0))
    return int(np.dot(each, candidates["copies"]))


def remedy_of(settings: SampleConfig) -> str:
    """What to change where nothing could be sampled."""
    if not settings.total:
        return "give answers to these prompts in sample.from, or draw some with sample.n"
    engines = dict.fromkeys(f"engines.{member.engine}" for member in settings.members())
    return (
        f"change {' or '.join(engines)}, or `sample` (as its max_tokens), so that all is answered"
    )


async def open_draw(
    context: RoundContext, settings: SampleConfig, models: Models, *, with_references: bool
) -> Draw:
    """How the candidates of a round are drawn, from the policies as they are now.

    ``with_references``: reference answers become candidates too.
    """
    return Draw(
        sources=[
            _asked_its_own_way(await open_source(member, models), member, settings)
            for member in settings.members()
            if settings.total
        ],
        n=settings.total,
        sampling=sampling_of(settings),
        system_prompt=context.system_prompt,
        seed_parts=(context.seed, "sample", context.index),
        thinking=settings.thinking,
        count_reference_tokens=models.token_counter() if with_references else None,
        given=open_pool(context.run, models, alone=not settings.total) if settings.given else None,
    )


async def draw_block(folder: RoundDir, index: int, draw: Draw) -> tuple[pa.Table, pa.Table]:
    """The candidates (schema CANDIDATE) of block ``index``, and the prompts without."""
    prompts = folder.prompts.read(index)
    return await sample_block(prompts, draw, folder.index, f"{folder.index}/sample/{index}")


async def keep_block(folder: RoundDir, index: int, candidates: pa.Table, failed: pa.Table) -> bool:
    """Write what :func:`draw_block` gave; false where the block was done by another meanwhile."""
    block = AnswerBlock(folder.candidates, folder.quarantine("sample"), index, folder.index)
    if not await asyncio.to_thread(block.keep, folder.prompts.read(index), candidates, failed):
        return False
    if index == 0 and (warning := run_on(candidates)):
        logger.warning("round %d: %s", folder.index, warning)
    return True


def _voted_on(folder: RoundDir, index: int, candidates: pa.Table) -> bool:
    """Whether the votes on block ``index`` are about these candidates."""
    votes = folder.votes.read(index, ["prompt_id", "a_id", "b_id"])
    ids = set(candidates["candidate_id"].to_pylist())
    blank = pc.match_substring_regex(candidates["text"], BLANK)
    several, wanted = (
        {prompt for prompt, number in Counter(rows.to_pylist()).items() if number > 1}
        for rows in (candidates["prompt_id"], candidates["prompt_id"].filter(pc.invert(blank)))
    )
    voted = set(votes["prompt_id"].to_pylist())  # of older versions, on empty answers too
    return wanted <= voted <= several and ids.issuperset(
        votes["a_id"].to_pylist() + votes["b_id"].to_pylist()
    )


async def open_source(member: PoolMember, models: Models) -> Source:
    """The engine behind a member of the pool, serving what the member names."""
    engine = await models.engine(member.engine, member.model)
    return Source(member.name, models.member_revision(member), member.weight, engine)


def _asked_its_own_way(source: Source, member: PoolMember, settings: SampleConfig) -> Source:
    own = member.own()
    return replace(
        source,
        n=member.n,
        sampling=sampling_of(settings.of_member(member)),
        system_prompt=member.system_prompt,
        apart=(member.name,) if own else (),
    )


def sampling_of(settings: SampleConfig) -> Sampling:
    """The part of ``settings`` that an engine is asked with."""
    return Sampling(
        settings.temperature, settings.top_p, settings.top_k, settings.max_tokens, settings.stop
    )


async def sample_block(
    prompts: pa.Table, draw: Draw, round_index: int, block: str
) -> tuple[pa.Table, pa.Table]:
    """Candidates of a block of prompts, and the prompts that could not be sampled.

    Returns tables of the schemas CANDIDATE and QUARANTINE. Candidates come in the order of the
    prompts and samples; a failing request never takes others with it, only ``EngineFailed`` is
    raised.
    """
    rows = prompts.to_pylist()
    asked: list[tuple[Mapping[str, Any], Source, list[int]]] = []
    for row in rows:
        for source, indices in _share_out(row["prompt_id"], draw):
            asked.append((row, source, indices))
    per_source = Counter(source.name for _, source, _ in asked)

    async def ask(
        row: Mapping[str, Any], source: Source, indices: list[int]
    ) -> list[Completion] | RequestRejected:
        request = Request(
            request_id=content_id(block, row["prompt_id"], source.name),
            messages=as_sampled(row, _system_prompt(source, draw)),
            sampling=source.sampling or draw.sampling,
            seeds=tuple(_seed(draw, row["prompt_id"], index) for index in indices),
            thought_tokens=draw.thinking.thought_tokens,
            chat_template_kwargs=draw.thinking.chat_template_kwargs,
            reasoning_effort=draw.thinking.reasoning_effort,
            block=f"{block}/{source.name}",
            block_size=per_source[source.name],
        )
        try:
            return await source.engine.generate(request)
        except RequestRejected as rejected:
            return rejected

    answers = await asyncio.gather(*(ask(*question) for question in asked))
    candidates: list[dict[str, Any]] = []
    failed: list[BadRow] = []
    by_id: dict[str, dict[str, Any]] = {}
    for (row, source, indices), answer in zip(asked, answers, strict=True):
        if isinstance(answer, RequestRejected):
            failed.append(_quarantined(row, answer))
            continue
        for index, completion in zip(indices, answer, strict=True):
            candidate = _candidate(row, source, completion, index, draw, round_index)
            first = by_id.setdefault(candidate["candidate_id"], candidate)
            if first is not candidate and draw.merge_identical:
                first["copies"] += 1
                first["cost"] += candidate["cost"]
            else:
                candidates.append(candidate)
    if draw.given:
        more, without = draw.given.candidates(rows, candidates, round_index)
        candidates += more
        failed += without
    if draw.count_reference_tokens:
        sampled = {candidate["prompt_id"] for candidate in candidates}
        candidates += [
            _reference(row, round_index, draw.count_reference_tokens)
            for row in rows
            if row["reference"] and row["prompt_id"] in sampled
        ]
    return (
        pa.Table.from_pylist(candidates, schema=CANDIDATE),
        quarantine_table("sample", failed, round_index=round_index),
    )


def _share_out(prompt_id: str, draw: Draw) -> list[tuple[Source, list[int]]]:
    """Which source draws which of the n samples of a prompt: the first are of those with an n of
    their own, the others are drawn by the sources' weights."""
    if not draw.n:
        return []
    if len(draw.sources) == 1:
        return [(draw.sources[0], list(range(draw.n)))]
    weights = np.array([source.weight if source.n is None else 0.0 for source in draw.sources])
    fixed = [np.full(source.n or 0, index) for index, source in enumerate(draw.sources)]
    drawn = np.concatenate([*fixed, np.zeros(0, np.int64)])
    if left := draw.n - len(drawn):
        generator = np.random.default_rng(derive_seed(*draw.seed_parts, "pool", prompt_id))
        others = generator.choice(len(weights), size=left, p=weights / weights.sum())
        drawn = np.concatenate([drawn, others])
    shares = [
        (source, np.flatnonzero(drawn == index).tolist())
        for index, source in enumerate(draw.sources)
    ]
    return [(source, indices) for source, indices in shares if indices]


def _system_prompt(source: Source, draw: Draw) -> str | None:
    return draw.system_prompt if source.system_prompt is None else source.system_prompt


def _seed(draw: Draw, prompt_id: str, index: int) -> int:
    return derive_seed(*draw.seed_parts, prompt_id, index)


def _candidate(
    row: Mapping[str, Any],
    source: Source,
    completion: Completion,
    index: int,
    draw: Draw,
    round_index: int,
) -> dict[str, Any]:
    # Samples that are kept apart although they read alike need ids of their own.
    apart: tuple[str | int, ...] = source.apart if draw.merge_identical else (index,)
    if completion.raw_text is not None:
        apart += (completion.raw_text,)  # the same answer by another thought is another sample
    thought = completion.reasoning is not None or completion.reasoning_tokens > 0
    return {
        "candidate_id": content_id(row["prompt_id"], source.revision, completion.text, *apart),
        "prompt_id": row["prompt_id"],
        "round": round_index,
        "sample_index": index,
        "text": completion.text,
        "tokens": completion.answer_tokens,
        "finish_reason": completion.finish_reason,
        "logprob": completion.logprob,
        "origin": "sampled",
        "policy": source.name,
        "policy_revision": source.revision,
        "seed": _seed(draw, row["prompt_id"], index),
        "copies": 1,
        "prompt_tokens": completion.prompt_tokens,
        "cost": completion.cost,
        "reasoning": completion.reasoning,
        "reasoning_tokens": completion.reasoning_tokens if thought else None,
        "raw_text": completion.raw_text,
        "token_ids": (completion.token_ids or None) if thought or completion.ids_differ else None,
    }


def _reference(
    row: Mapping[str, Any], round_index: int, count_tokens: Callable[[str], int]
) -> dict[str, Any]:
    return {
        "candidate_id": content_id(row["prompt_id"], REFERENCE, row["reference"]),
        "prompt_id": row["prompt_id"],
        "round": round_index,
        "sample_index": -1,
        "text": row["reference"],
        "tokens": count_tokens(row["reference"]),
        "finish_reason": "stop",
        "logprob": None,
        "origin": "reference",
        "policy": REFERENCE,
        "policy_revision": REFERENCE,
        "seed": 0,
        "copies": 1,
        "prompt_tokens": 0,
        "cost": 0.0,
        "reasoning": None,
        "reasoning_tokens": None,
        "raw_text": None,
        "token_ids": None,
    }


def _quarantined(row: Mapping[str, Any], rejected: RequestRejected) -> BadRow:
    content = json.dumps(row, ensure_ascii=False)
    return BadRow(row["source"], row["row"], "prompt", rejected.reason, rejected.detail, content)
