"""The servers of one engine: whether their models agree, and which adapter they hold."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.engines.endpoints.endpoint import Endpoint, EndpointTurn, endpoints_of
from prefloop.pipeline.engines.endpoints.models_served import compared, served_by
from prefloop.pipeline.engines.endpoints.pool import Pool
from prefloop.pipeline.engines.openai.asking.question import Questioner
from prefloop.pipeline.engines.openai.connections.response import TransportError
from prefloop.pipeline.engines.settings import OpenAIEngine

logger = logging.getLogger(__name__)

_PROBES_OF_POLICY = 4

Problem = Callable[[Endpoint], Awaitable[Exception | None]]
"""What is wrong with one endpoint; null where it answers a harmless request."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Whether a server has an adapter, what it ``said``, and whether there was no answer."""

    is_there: bool
    said: str
    is_gone: bool = False


class Servers:
    """One, or several behind a :class:`Pool`. Use it from one event loop."""

    def __init__(self, config: OpenAIEngine, questions: Questioner, engine: str) -> None:
        """``questions`` asks for a model by its name; ``engine`` is the config's section, for
        messages. Sends nothing. Raises ``EngineFailed``."""
        self._config = config
        self._questions = questions
        self._engine = engine
        self.endpoints = endpoints_of(config)
        self.address = _in_words([endpoint.name for endpoint in self.endpoints])
        """What they are called in messages."""
        self.only = EndpointTurn(self.endpoints[0])
        self.pool: Pool | None = None
        if config.endpoints:
            self.pool = Pool(config, self.endpoints, name=engine, mend=self._mend)
        self._comparing: asyncio.Task[None] | None = None
        self.differences: tuple[str, ...] = ()
        """How the models of several endpoints differ, as far as they say."""
        self._adapter: dict[str, str] | None = None

    async def agree(self) -> None:
        """Compare what several endpoints say they serve, once; those that have no such model are
        left."""
        if self.pool is None or (self._comparing is not None and self._comparing.done()):
            return
        if self._comparing is None:
            self._comparing = asyncio.create_task(self._compare(self.pool))
        await asyncio.shield(self._comparing)

    async def load(self, name: str, path: str, remedy: str, problem_at: Problem) -> None:
        """Have them load the LoRA adapter at ``path``, and call it ``name``. Those that do not, or
        do not answer as it, are left. Raises ``EngineFailed`` where none does."""
        adapter = {"lora_name": name, "lora_path": str(Path(path).resolve())}
        await self.agree()
        asked = self.endpoints if self.pool is None else self.pool.endpoints
        found = await asyncio.gather(*(self._load_at(endpoint, adapter) for endpoint in asked))
        failed = {
            endpoint: loaded
            for endpoint, loaded in zip(asked, found, strict=True)
            if not loaded.is_there
        }
        if len(failed) == len(asked):
            told = "; ".join(
                f"{one.name} does not load {path}: {failed[one].said}" for one in asked
            )
            raise EngineFailed(told, remedy)
        self._questions.model, self._adapter = name, adapter
        if self.pool is None:
            return
        for endpoint, loaded in failed.items():
            problem = f"it does not load {path}: {loaded.said}"
            if loaded.is_gone:
                logger.warning("%s: %s: %s", self._engine, endpoint.name, problem)
            else:
                self.pool.leave(endpoint, EngineFailed(f"{endpoint.name}: {problem}", remedy))
        # Behind one address may be several servers, and one of them has loaded it.
        probed = [one for one in asked if one not in failed for _ in range(_PROBES_OF_POLICY)]
        said = await asyncio.gather(*(problem_at(endpoint) for endpoint in probed))
        for endpoint, error in zip(probed, said, strict=True):
            if isinstance(error, EngineFailed):
                self.pool.leave(endpoint, error)

    async def ask_each(self, problem_at: Problem) -> list[tuple[str, str]]:
        """Of each its name and what is wrong with it; empty where nothing is. None of them is left
        for it."""
        await self.agree()
        problems = await asyncio.gather(*(problem_at(one) for one in self.endpoints))
        found = []
        for endpoint, problem in zip(self.endpoints, problems, strict=True):
            left_out = None if self.pool is None else self.pool.left_out(endpoint)
            found.append((endpoint.name, str(left_out or problem or "")))
        return found

    async def aclose(self) -> None:
        """Let go of them."""
        if self._comparing is not None:
            self._comparing.cancel()
        if self.pool is not None:
            self.pool.close()
        for endpoint in self.endpoints:
            await endpoint.transport.aclose()

    async def _compare(self, pool: Pool) -> None:
        model = self._questions.model
        served = await asyncio.gather(
            *(served_by(one, model, self._config.timeout_s) for one in self.endpoints)
        )
        names = [endpoint.name for endpoint in self.endpoints]
        found = compared(model, dict(zip(names, served, strict=True)))
        for endpoint in self.endpoints:
            if (lacks := found.lacking.get(endpoint.name)) is not None:
                remedy = "serve the model there by this name, or take the endpoint out"
                pool.leave(endpoint, EngineFailed(f"{endpoint.name}: {lacks}", remedy))
        self.differences = found.notes
        for note in found.notes:
            logger.warning("%s: %s", self._engine, note)

    async def _load_at(self, endpoint: Endpoint, adapter: Mapping[str, str]) -> _Loaded:
        """Have one server load a LoRA adapter."""
        try:
            response = await endpoint.transport.post("/load_lora_adapter", adapter)
        except TransportError as error:
            return _Loaded(is_there=False, said=str(error), is_gone=True)
        except EngineFailed as failed:
            if self.pool is None:
                raise
            return _Loaded(is_there=False, said=failed.problem)
        said = f"status {response.status}: {endpoint.said(response).words}"
        return _Loaded(is_there=response.status < 400 or "already" in said, said=said)

    async def _mend(self, endpoint: Endpoint) -> bool:
        """Whether a server that has no such model, as it was started anew, has it again, or is
        gone once more."""
        if self._adapter is None:
            return False
        loaded = await self._load_at(endpoint, self._adapter)
        return loaded.is_there or loaded.is_gone


def _in_words(names: Sequence[str]) -> str:
    """Servers, by name, for a message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
