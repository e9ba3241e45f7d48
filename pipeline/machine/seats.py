"""Engines and labelers as stages are handed them: in memory while they are asked, wherever they are
meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from prefloop.data.protocol import Completion, Engine, Request
from prefloop.labelers.base import Labeler, Pair, Vote
from prefloop.pipeline.engines.asked import announce, answered
from prefloop.training.inputs.tokens import TokenIds

if TYPE_CHECKING:
    from prefloop.training.policy.logprobs import Scores


@runtime_checkable
class ScoringEngine(Protocol):
    """An engine on this machine that can score answers under the weights that it serves."""

    def logprobs(
        self,
        prompts: Sequence[TokenIds],
        answers: Sequence[TokenIds],
        share: tuple[int, int] = (0, 1),
    ) -> Scores:
        """log p(answer | prompt) in nats of a share of token ids; see
        ``prefloop.training.policy.logprobs.share_logprobs``."""
        ...


@runtime_checkable
class SleepingEngine(Protocol):
    """An engine that may give its GPU to another and come back."""

    @property
    def can_sleep(self) -> bool:
        """Whether it does so on this machine."""
        ...

    async def sleep(self) -> None:
        """Free the GPU's memory. No request may be in flight."""
        ...

    async def wake_up(self) -> None:
        """Serve again what it served."""
        ...


@runtime_checkable
class RestartingEngine(Protocol):
    """An engine that can serve weights anew that it did not take in place."""

    async def restart(self, path: str) -> None:
        """Serve ``path`` from new processes."""
        ...


class SeatedEngine:
    """An ``Engine`` that takes its place in memory for each request."""

    def __init__(
        self,
        seat: Callable[[], AbstractAsyncContextManager[Engine]],
        engine: Engine,
        load: Callable[[int], AbstractContextManager[None]],
    ) -> None:
        """``engine`` is one that sat there, and tells what such an engine can do; ``load`` counts
        sequences as under way."""
        self._seat = seat
        self._like = engine
        self._load = load

    async def generate(self, request: Request) -> list[Completion]:
        """See ``prefloop.data.protocol.Engine``."""
        announce(request)
        try:
            with self._load(len(request.seeds)):
                async with self._seat() as engine:
                    return await engine.generate(request)
        finally:
            answered(request)

    async def load_policy(self, path: str) -> None:
        """See ``prefloop.data.protocol.Engine``."""
        async with self._seat() as engine:
            await engine.load_policy(path)

    async def aclose(self) -> None:
        """Nothing: the seat belongs to who gave it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._like, name)


class SeatedLabeler:
    """A ``Labeler`` with a model of its own that takes its place in memory for each block."""

    def __init__(
        self,
        name: str,
        seat: Callable[[], AbstractAsyncContextManager[Labeler]],
        load: Callable[[int], AbstractContextManager[None]],
    ) -> None:
        """``load`` counts blocks as under way."""
        self.name = name
        self._seat = seat
        self._load = load

    async def label(self, pairs: Sequence[Pair], *, block: str) -> list[Vote]:
        """See ``prefloop.labelers.base.Labeler``."""
        with self._load(1):
            async with self._seat() as labeler:
                return await labeler.label(pairs, block=block)
