"""What a relabelling would take, and whether its judges answer: before anybody else is asked.

The answers are there, so pairs are counted and not estimated; nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.schemas import PROMPT
from prefloop.labelers.config import JudgeLabeler, LabelerConfig, OwnModelLabeler
from prefloop.labelers.decisions.filters import has_empty_answer
from prefloop.pipeline.checking.check_lines import Check
from prefloop.pipeline.checking.run_check import check_all
from prefloop.pipeline.checking.still_to_ask import StillToAsk, verifiers_in
from prefloop.pipeline.config import RunConfig, load_config
from prefloop.pipeline.engines.openai.ledger import Amount, ledger_at
from prefloop.pipeline.machine.speed import machine_speed
from prefloop.pipeline.machine.stage_memory import StageMemory, stage_memory
from prefloop.pipeline.plan.clock import Clock, SpeedOf
from prefloop.pipeline.plan.plan import warnings_of
from prefloop.pipeline.plan.planned_votes import votes_of
from prefloop.pipeline.plan.planner import PairsToLabel, Planner
from prefloop.pipeline.plan.speeds import Measured
from prefloop.pipeline.plan.steps import Step
from prefloop.pipeline.relabel.asking_again import config_for, models_for
from prefloop.pipeline.relabel.relabel import made_with, sources_of
from prefloop.pipeline.relabel.relabel_folder import (
    LabelerRound,
    find_folder,
    has_answers,
    votes_in,
)
from prefloop.pipeline.relabel.wanted import Asked, Wanted, wanted_labels
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.run_dir import RoundDir, RunDir, RunError
from prefloop.pipeline.stages.given import proposed
from prefloop.pipeline.stages.invalid_votes import kept_votes

_ANSWER_COLUMNS = ["candidate_id", "prompt_id", "text", "tokens", "reasoning_tokens", "policy",
                   "origin"]  # fmt: skip


@dataclass(frozen=True)
class VotesToAsk:
    """What one labeler would be asked."""

    labeler: str
    there: int
    """Votes that an earlier call has asked for, or that the run or another relabelling has."""
    pairs: int
    """To be asked about."""
    votes: int
    """These come to."""
    steps: tuple[Step, ...]
    """By round: requests, tokens, price and time."""


@dataclass(frozen=True)
class RelabelPlan:
    """A relabelling before anybody is asked."""

    run: Path
    folder: Path
    """Where it would lie."""
    labelers: tuple[VotesToAsk, ...]
    opening_seconds: float
    memory: tuple[StageMemory, ...]
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """Of all labelers."""
        return tuple(step for one in self.labelers for step in one.steps)

    def as_dict(self) -> dict[str, Any]:
        """Everything, totals included, as values that ``json`` can write."""
        steps = self.steps
        tokens = sum(step.prompt_tokens + step.completion_tokens for step in steps)
        totals = {
            "votes": sum(one.votes for one in self.labelers),
            "requests": sum(step.requests for step in steps if step.engine),
            "tokens": tokens,
            "max_tokens": sum(step.max_tokens for step in steps),
            "cost": sum(step.cost for step in steps),
            "max_cost": sum(step.max_cost for step in steps),
            "seconds": sum(step.seconds for step in steps) + self.opening_seconds,
        }
        return {
            **asdict(self),
            "run": str(self.run),
            "folder": str(self.folder),
            "memory": [asdict(one) | {"fits": one.fits} for one in self.memory],
            "total": totals,
        }


def plan_relabel(
    run: RunDir, asked: Asked, *, name: str | None = None, speed_of: SpeedOf = machine_speed
) -> RelabelPlan:
    """What labelling the answers of ``run`` as ``asked`` would take. Raises as ``relabel`` does."""
    wanted = wanted_labels(load_config(run.config), asked)
    _, keys = made_with(run, wanted)
    directory = find_folder(run, name or wanted.name, keys, is_given=name is not None)
    sources = sources_of(run, directory, wanted, keys)
    rounds = [folder for folder in run.rounds() if folder.candidates.indices()]
    if not rounds:
        raise RunError(f"{run.root} has no answers yet: `prefloop run` samples them first")
    config = wanted.config
    clock = Clock(config, speed_of)
    prompts = pa.concat_tables([folder.prompts.table() for folder in rounds])
    planner = Planner(config, prompts, PROMPT.empty_table(), Measured(), clock)
    found = []
    for labeler in config.label.labelers:
        there = pairs = votes = 0
        steps: list[Step] = []
        for folder in rounds:
            left = _Left(labeler)
            for index in folder.candidates.indices():
                taken = sources[labeler.name].get(folder.index, ())
                known = _known(directory, taken, folder, index, labeler, config)
                if known is not None:
                    there += known
                else:
                    left.add(run, directory, folder, index, config)
            if left.pairs:
                steps += planner.add_votes(folder.index, left.labelled(), labeler)
                pairs += left.pairs
                votes += votes_of(labeler, steps[-1].requests, left.pairs)
        found.append(VotesToAsk(labeler.name, there, pairs, votes, tuple(steps)))
    asks = {one.labeler for one in found if one.pairs}
    still = tuple(one for one in config.label.labelers if one.name in asks)
    label = config.label.model_copy(update={"labelers": still})
    memory = stage_memory(
        _nothing_sampled(wanted.alone).model_copy(update={"label": label}),
        longest_prompt=planner.longest_prompt(),
    )
    return RelabelPlan(
        run=run.root,
        folder=directory.root,
        labelers=tuple(found),
        opening_seconds=clock.opening_judges(still) if still else 0.0,
        memory=tuple(memory),
        assumptions=(
            "answers: as long as they are, by the tokens that the run counted",
            "what a server is asked that it was asked before is answered by the run's response "
            "cache, and costs nothing: it is counted here all the same",
            *planner.assumptions_of_votes(),
        ),
        warnings=warnings_of(config, planner.steps, memory, _spent(config, run)),
    )


async def check_relabel(run: RunDir, asked: Asked) -> Check:
    """Ask the labelers that are new once. What it costs counts in the run's budgets.

    Raises as ``relabel`` does.
    """
    wanted = wanted_labels(load_config(run.config), asked)
    labelers = _asked(wanted)
    models = models_for(wanted.config, labelers, cache_of=run)
    voting = [(f"label.labelers.{one.name}", one) for one in labelers]
    to_ask = tuple(
        (key, one) for key, one in voting if isinstance(one, JudgeLabeler | OwnModelLabeler)
    )
    try:
        config = _nothing_sampled(config_for(wanted.config, labelers))
        return await check_all(config, models, StillToAsk((), to_ask, verifiers_in(voting)))
    finally:
        await models.release()


def _asked(wanted: Wanted) -> tuple[LabelerConfig, ...]:
    return tuple(one for one in wanted.config.label.labelers if one.name in wanted.new)


def _nothing_sampled(config: RunConfig) -> RunConfig:
    sample = config.sample.model_copy(update={"n": 0, "pool": ()})
    return config.model_copy(update={"sample": sample})


def _known(
    directory: RunDir,
    sources: Iterable[RunDir],
    folder: RoundDir,
    index: int,
    labeler: LabelerConfig,
    config: RunConfig,
) -> int | None:
    """How many votes of ``labeler`` there are on a block; null where it is to be asked."""
    ours = LabelerRound(directory.root, folder.index, labeler.name)
    if has_answers(directory, folder, index) and ours.votes.exists(index):
        return ours.votes.rows([index])
    for source in sources:
        votes = votes_in(source, folder, index, labeler.name, config)
        if votes is not None:
            return len(votes)
    return None


class _Left:
    """The pairs of a round that a labeler is to be asked about."""

    def __init__(self, labeler: LabelerConfig) -> None:
        self._labeler = labeler
        self._prompts: list[pa.Table] = []
        self._pairs: list[int] = []
        self._candidates: list[int] = []
        self._lengths: list[int] = []

    @property
    def pairs(self) -> int:
        """In all."""
        return sum(self._pairs)

    def add(
        self, run: RunDir, directory: RunDir, folder: RoundDir, index: int, config: RunConfig
    ) -> None:
        """Count the pairs of a block of which there are no votes, or valid ones alone."""
        candidates = folder.candidates.read(index, _ANSWER_COLUMNS)
        context = RunContext.of(config, run).round(folder.index)
        pairs = proposed(context, candidates, config.label)
        empty = has_empty_answer(pairs["a_id"], pairs["b_id"], candidates)
        pairs = pairs.filter(pa.array(~empty))
        ours = LabelerRound(directory.root, folder.index, self._labeler.name)
        settings = config.label.model_copy(update={"labelers": (self._labeler,)})
        if has_answers(directory, folder, index):
            done = pc.unique(kept_votes(ours, index, settings)["prompt_id"])
            pairs = pairs.filter(pc.invert(pc.is_in(pairs["prompt_id"], value_set=done)))
        tokens = candidates["tokens"].to_numpy()
        if config.label.show_reasoning == "always":
            tokens = tokens + pc.fill_null(candidates["reasoning_tokens"], 0).to_numpy()
        rows = dict(zip(candidates["candidate_id"].to_pylist(), tokens.tolist(), strict=True))
        of_prompt: dict[str, list[tuple[str, str]]] = {}
        for row in pairs.to_pylist():
            of_prompt.setdefault(row["prompt_id"], []).append((row["a_id"], row["b_id"]))
            self._lengths += [rows[row["a_id"]], rows[row["b_id"]]]
        prompts = folder.prompts.read(index)
        self._prompts.append(prompts)
        for prompt in prompts["prompt_id"].to_pylist():
            mine = of_prompt.get(prompt, [])
            self._pairs.append(len(mine))
            self._candidates.append(len({one for pair in mine for one in pair}))

    def labelled(self) -> PairsToLabel:
        """As a planner takes them."""
        return PairsToLabel(
            stage="label",
            prompts=pa.concat_tables(self._prompts),
            pairs=self._pairs,
            candidates=self._candidates,
            answer_tokens=float(np.mean(self._lengths)),
            longest=max(self._lengths),
        )


def _spent(config: RunConfig, run: RunDir) -> dict[str, Amount]:
    """What each engine has spent of the run's budgets."""
    files = {name: run.cache / f"{name}.spent.jsonl" for name in config.engines}
    ledgers = {name: ledger_at(file) for name, file in files.items() if file.exists()}
    return {name: one.settled + one.lost for name, one in ledgers.items()}
