"""What a run will ask of its engines and what that costs, before anything is spent.

The prompts are really read and deduplicated. What cannot be known yet is bounded or assumed:
every step has an expected figure and an upper bound, and every assumption is part of the plan.
Where the run directory has finished work, its measured lengths and rates replace assumptions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prefloop.data.prompts.load import PromptTables
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.engines.openai.ledger import Amount
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.machine.cards import Machine
from prefloop.pipeline.machine.speed import machine_speed
from prefloop.pipeline.machine.stage_memory import StageMemory, stage_memory
from prefloop.pipeline.plan.assumptions import training_settings
from prefloop.pipeline.plan.clock import Clock, SpeedOf
from prefloop.pipeline.plan.disk import DiskSpace, disk_space
from prefloop.pipeline.plan.planner import Planner
from prefloop.pipeline.plan.speeds import Measured
from prefloop.pipeline.plan.steps import BothPrices, Step, Training, both_prices
from prefloop.pipeline.report.formats import money, short_count
from prefloop.pipeline.run.manifest import as_begun
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.given_rows import GivenAnswers, load_with_answers

NOTHING: Mapping[str, Amount] = MappingProxyType({})


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
    opening_seconds: float
    """Of starting, and of opening engines."""
    memory: tuple[StageMemory, ...]
    disk: DiskSpace | None
    """Of training; null where nothing is trained."""
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]
    prices: tuple[BothPrices, ...] = ()
    """Of the engines that could be asked in jobs."""

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
        return asking + sum(each.seconds for each in self.training) + self.opening_seconds

    def as_dict(self) -> dict[str, Any]:
        """Everything, totals included, as values that ``json`` can write."""
        totals = {
            name: getattr(self, name)
            for name in ("requests", "tokens", "max_tokens", "cost", "max_cost", "seconds")
        }
        memory = [asdict(one) | {"fits": one.fits} for one in self.memory]
        return asdict(self) | {"memory": memory, "total": totals}


def make_plan(
    config: RunConfig,
    run: RunDir | None = None,
    *,
    speed_of: SpeedOf = machine_speed,
    on: Machine | None = None,
) -> Plan:
    """Read the prompts and work out every round; nothing is written but the speed of this machine,
    where it was never measured, into the user's cache folder.

    ``run`` is where finished work is looked for, the config's run directory by default. ``on`` is
    a machine to plan for in the place of this one; of finished work only lengths count then. Raises
    ``InputError`` for unusable prompts.
    """
    run = run or RunDir(Path(config.run_dir))
    config = as_begun(config, run)
    read = load_with_answers(config.prompts, config.sample.given, seed=config.seed)
    measured = Measured.of(config, run)
    if on is None:
        return plan_with(config, read, measured, speed_of)
    with on.pretended():
        return plan_with(config, read, measured.lengths(), on.speed_of)


def plan_with(
    config: RunConfig,
    read: tuple[PromptTables, GivenAnswers | None],
    measured: Measured,
    speed_of: SpeedOf,
) -> Plan:
    """The plan of a run with these prompts and answers, which ``load_with_answers`` read."""
    tables, given = read
    clock = Clock(config, speed_of)
    planner = Planner(config, tables.train, tables.heldout, measured, clock, given)
    for index in range(config.rounds):
        planner.add_round(index)
    planner.add_final()
    memory = tuple(stage_memory(config, longest_prompt=planner.longest_prompt()))
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
        opening_seconds=clock.opening(config.rounds),
        memory=memory,
        disk=disk_space(config, tuple(planner.training)),
        assumptions=(*training_settings(config.train), *planner.assumptions()),
        warnings=warnings_of(config, planner.steps, memory),
        prices=both_prices(config.engines, planner.steps),
    )


def warnings_of(
    config: RunConfig,
    steps: Iterable[Step],
    memory: Iterable[StageMemory],
    spent: Mapping[str, Amount] = NOTHING,
) -> tuple[str, ...]:
    """Budgets that ``steps`` exceed, after what was ``spent`` of them, and what does not fit."""
    return (
        *_over_budget(config, steps, spent),
        *(f"memory of {one.device}: {one.line()}" for one in memory if not one.fits),
    )


def _over_budget(
    config: RunConfig, steps: Iterable[Step], spent: Mapping[str, Amount]
) -> Iterable[str]:
    by_engine: dict[str, list[Step]] = defaultdict(list)
    for step in steps:
        if step.engine:
            by_engine[step.engine].append(step)
    for name, mine in by_engine.items():
        settings = config.engines[name]
        if not isinstance(settings, OpenAIEngine):
            continue
        before = spent.get(name, Amount())
        tokens = sum(step.prompt_tokens + step.completion_tokens for step in mine) + before.tokens
        most = sum(step.max_tokens for step in mine) + before.tokens
        if settings.max_total_tokens:
            yield from _warning(name, "max_total_tokens", settings.max_total_tokens, tokens, most)
        if settings.max_cost:
            cost, most_cost = (
                before.cost + sum(costs)
                for costs in ([s.cost for s in mine], [s.max_cost for s in mine])
            )
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
