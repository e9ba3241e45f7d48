"""What a stage is handed beside its own section of the config: where it works, and what holds for
the whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.engines.settings import EngineConfig, OpenAIEngine, TransformersEngine
from prefloop.pipeline.executors.block_task import Executor
from prefloop.pipeline.executors.local import LocalExecutor
from prefloop.pipeline.machine.hardware import replicas_of
from prefloop.pipeline.run.run_dir import RoundDir, RunDir

BLOCKS_OF_PROCESS = 2
"""Blocks for each process of an engine: one to work on, and one that waits."""
MOST_OF_PROCESS = 64
"""Blocks for each process of an engine at most, where a few answers of each take so long that
others have to fill the engine. All are in memory, and a kill loses what was done of them."""


@dataclass(frozen=True)
class RunContext:
    """What all stages of all rounds share."""

    run: RunDir
    seed: int
    system_prompt: str | None
    """Put before conversations that have no system message of their own."""
    blocks_in_flight: int
    keeps_thoughts: bool = field(default=True, kw_only=True)
    """Whether the dataset's answers have the thoughts before them."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """Variables of the chat template that the policy is sampled with."""
    training_threads: int | None = field(default=None, kw_only=True)
    """CPU threads that training computes with in this process; null: as many as it takes by
    itself."""
    on_step: Callable[[int, Mapping[str, Any]], None] | None = field(default=None, kw_only=True)
    """Hears of each training step: the round and what was logged."""
    executor: Executor = field(default_factory=LocalExecutor, kw_only=True)
    """Has the blocks of a stage worked on."""
    collecting: Mapping[str, int] = field(default_factory=dict, kw_only=True)
    """Engines that collect requests before they ask, with the blocks that they are to have at
    once."""

    @staticmethod
    def of(config: RunConfig, run: RunDir) -> RunContext:
        """That of a run with ``config`` in ``run``."""
        return RunContext(
            run,
            config.seed,
            config.sample.system_prompt,
            blocks_in_flight(config),
            keeps_thoughts=config.write.reasoning == "keep",
            template_kwargs=_template_kwargs(config),
            training_threads=_training_threads(config),
            collecting=_collecting(config),
        )

    def blocks_for(self, engines: Iterable[str]) -> int:
        """Blocks to work on at once where ``engines`` are asked."""
        return max(self.blocks_in_flight, *(self.collecting.get(one, 1) for one in engines), 1)

    def round(self, index: int) -> RoundContext:
        """The same for the stages of round ``index``."""
        folder = self.run.round(index)
        return RoundContext(
            self.run,
            self.seed,
            self.system_prompt,
            self.blocks_in_flight,
            folder,
            keeps_thoughts=self.keeps_thoughts,
            template_kwargs=self.template_kwargs,
            training_threads=self.training_threads,
            on_step=self.on_step,
            executor=self.executor,
            collecting=self.collecting,
        )


@dataclass(frozen=True)
class RoundContext(RunContext):
    """What all stages of one round share."""

    folder: RoundDir

    @property
    def index(self) -> int:
        """The round's number, from 0."""
        return self.folder.index

    def note(self, stage: str, seconds: float, **facts: Any) -> None:
        """Append a finished piece of the round's work to the journal."""
        self.run.note(stage, self.index, seconds, **facts)


def blocks_in_flight(config: RunConfig) -> int:
    """Blocks to work on at once, so that all processes of each engine have something to do."""
    return (config.blocks_in_flight or BLOCKS_OF_PROCESS) * _most_processes(config)


def most_in_flight(config: RunConfig) -> int:
    """The same where engines say that they have room for more."""
    return (config.blocks_in_flight or MOST_OF_PROCESS) * _most_processes(config)


def _most_processes(config: RunConfig) -> int:
    return max(1, *map(_processes, config.engines.values()))


def _processes(engine: EngineConfig) -> int:
    try:
        return replicas_of(engine)
    except EngineFailed:  # who opens it says so; deciding anew does not
        return 1


def _collecting(config: RunConfig) -> dict[str, int]:
    """While a job is at work nothing else is, so all prompts that fit into memory go into it."""
    return {
        name: -(-engine.batch.max_prompts // config.block_size)
        for name, engine in config.engines.items()
        if isinstance(engine, OpenAIEngine) and engine.mode == "batch"
    }


def _training_threads(config: RunConfig) -> int | None:
    """As many as the policy samples with, where it does so in this process: a core that is left to
    others is left to them while it trains too."""
    engine = config.engines[config.sample.engine]
    if not isinstance(engine, TransformersEngine) or engine.replica_range[1] > 1:
        return None
    return engine.threads if config.executor.type == "local" else None


def _template_kwargs(config: RunConfig) -> dict[str, Any]:
    """Variables of the chat template in every request to the policy."""
    sample, engine = config.sample, config.engines[config.sample.engine]
    effort = sample.reasoning_effort or engine.reasoning_effort
    named = {} if effort is None else {"reasoning_effort": effort}
    return {**named, **engine.chat_template_kwargs, **sample.chat_template_kwargs}
