"""From settings to an engine; each engine's library is imported only when it is asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prefloop.data.protocol import Engine, EngineFailed
from prefloop.pipeline.engines.openai.parameters import Place
from prefloop.pipeline.engines.settings import OpenAIEngine, TransformersEngine, VllmEngine


async def build_engine(
    config: TransformersEngine | VllmEngine | OpenAIEngine,
    model: str,
    *,
    revision: str | None = None,
    cache: Path | None = None,
    ledger: Path | None = None,
    place: Place | None = None,
) -> Engine:
    """The engine of ``config`` serving ``model``: a checkpoint folder, a hub name, or the name
    that the HTTP server gives it.

    ``cache`` is the folder for a server's responses where ``config`` names none, ``ledger`` the
    file with what it has spent, ``place`` where the run's config says all this. Raises
    ``EngineFailed``.
    """
    if not isinstance(config, OpenAIEngine) and config.replica_range[1] > 1:
        from prefloop.pipeline.engines.replicas.places import replicas_here

        if await asyncio.to_thread(replicas_here, config) > 1:
            from prefloop.pipeline.engines.replicas.replicated import start_replicas

            who = place.engine if place else f"the {config.type} engine"
            return await start_replicas(config, model, revision=revision, who=who)
    match config:
        case TransformersEngine():
            try:
                from prefloop.pipeline.engines.transformers_engine import HfEngine
            except ImportError as error:
                raise EngineFailed(
                    f"transformers cannot be imported: {error}", "pip install prefloop"
                ) from error
            return await asyncio.to_thread(HfEngine, config, model, revision=revision)
        case VllmEngine():
            from prefloop.pipeline.engines.vllm_engine import VllmInProcess

            return await VllmInProcess.start(config, model, revision=revision)
        case OpenAIEngine():
            from prefloop.pipeline.engines.openai.openai_server import OpenAIServer

            return OpenAIServer(config, model, cache=cache, ledger=ledger, place=place)
