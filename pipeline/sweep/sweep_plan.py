"""What a sweep will take: the round that all values share, once, and what each does by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.machine.speed import machine_speed
from prefloop.pipeline.plan.clock import SpeedOf
from prefloop.pipeline.plan.plan import Plan, plan_with, warnings_of
from prefloop.pipeline.plan.speeds import START_S, Measured
from prefloop.pipeline.plan.steps import Step
from prefloop.pipeline.run.manifest import as_begun
from prefloop.pipeline.run.run_dir import OPPONENT, RunDir
from prefloop.pipeline.stages.given_rows import load_with_answers
from prefloop.pipeline.sweep.swept import Trial

_SUMMED = ("requests", "tokens", "max_tokens", "cost", "max_cost", "seconds")


@dataclass(frozen=True)
class TrialPlan:
    """What one combination of values does by itself."""

    label: str
    settings: dict[str, Any]
    plan: Plan


@dataclass(frozen=True)
class SweepPlan:
    """A sweep before anything of it is done."""

    shared: Plan
    """Answers and votes of the first round, and what the starting policy answers."""
    trials: tuple[TrialPlan, ...]

    @property
    def plans(self) -> tuple[Plan, ...]:
        """That of what is shared, and those of the trials."""
        return (self.shared, *(one.plan for one in self.trials))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of all: each trial has the budgets of its config to itself."""
        told = [("shared", self.shared), *((one.label, one.plan) for one in self.trials)]
        return tuple(f"{name}: {warning}" for name, plan in told for warning in plan.warnings)

    @property
    def total(self) -> dict[str, float]:
        """Sums over all of it."""
        return {name: sum(getattr(plan, name) for plan in self.plans) for name in _SUMMED}

    def as_dict(self) -> dict[str, Any]:
        """Everything, totals included, as values that ``json`` can write."""
        return {
            "shared": self.shared.as_dict(),
            "trials": [
                {"label": one.label, "settings": one.settings, **one.plan.as_dict()}
                for one in self.trials
            ],
            "total": self.total,
        }


def plan_sweep(
    shared: RunConfig, trials: Sequence[Trial], *, speed_of: SpeedOf = machine_speed
) -> SweepPlan:
    """What ``run_sweep`` with the same arguments would take; prompts are read once.

    Raises ``InputError`` for unusable prompts.
    """
    run = RunDir(Path(shared.run_dir))
    shared = as_begun(shared, run)
    read = load_with_answers(shared.prompts, shared.sample.given, seed=shared.seed)
    measured = Measured.of(shared, run)
    once = _part(shared, plan_with(shared, read, measured, speed_of), shared=True)
    found = []
    for trial in trials:
        own = RunDir(Path(trial.config.run_dir))
        config = as_begun(trial.config, own).model_copy(update={"label": shared.label})
        # Lengths and speeds that the trial has not measured itself, the shared round tells.
        known = Measured.of(config, own) if own.journal.exists() else measured
        plan = _part(config, plan_with(config, read, known, speed_of), shared=False)
        found.append(TrialPlan(trial.label, trial.settings, plan))
    return SweepPlan(once, tuple(found))


def _part(config: RunConfig, plan: Plan, *, shared: bool) -> Plan:
    """Of a run's plan what is done once for all trials, or what each of them does."""
    steps = tuple(step for step in plan.steps if _is_shared(step) == shared)
    memory = tuple(one for one in plan.memory if not shared or one.stage in ("sample", "label"))
    if shared:
        return replace(
            plan,
            prompts_per_round=plan.prompts_per_round[:1],
            steps=steps,
            training=(),
            memory=memory,
            warnings=warnings_of(config, steps, memory),
        )
    return replace(
        plan,
        steps=steps,
        opening_seconds=max(plan.opening_seconds - START_S, 0.0),  # the libraries are there
        warnings=warnings_of(config, steps, memory),
    )


def _is_shared(step: Step) -> bool:
    if step.round != 0:
        return False
    answers = step.stage == "evaluate" and step.what in ("policy 0", OPPONENT)
    return answers or step.stage in ("sample", "label")
