"""`prefloop check`, also at the beginning of a run: everybody that is going to be asked, is asked
once."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from urllib.parse import urlsplit

from prefloop.data.errors import PrefloopError
from prefloop.data.hashing import derive_seed
from prefloop.data.protocol import Engine
from prefloop.labelers.config import JudgeLabeler, OwnModelLabeler, VerifierLabeler
from prefloop.pipeline.checking.check_lines import Check, CheckFailed, CheckLine, Level
from prefloop.pipeline.checking.endpoint_check import check_endpoints
from prefloop.pipeline.checking.judge_check import check_labeler, check_schema
from prefloop.pipeline.checking.sampler_check import Sampler, check_sampler
from prefloop.pipeline.checking.several_check import check_several
from prefloop.pipeline.checking.still_to_ask import (
    StillToAsk,
    is_local,
    is_toy,
    of_servers,
    wanted_by,
)
from prefloop.pipeline.config import PoolMember, RunConfig
from prefloop.pipeline.engines.openai.api_key import read_key
from prefloop.pipeline.engines.openai.batch.asked_live import asked_live
from prefloop.pipeline.engines.openai.openai_server import OpenAIServer
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.machine.stage_memory import stage_memory
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.sample import sampling_of

logger = logging.getLogger(__name__)


def keys_that_are_set(config: RunConfig) -> Iterator[CheckLine]:
    """Whether each server elsewhere has the key that it is going to ask for."""
    for name, engine in config.engines.items():
        if not isinstance(engine, OpenAIEngine):
            continue
        for server in engine.servers:
            host = urlsplit(server.base_url).hostname or ""
            if host in ("localhost", "::1") or host.startswith("127.") or server.extra_headers:
                continue
            variable = server.api_key_env or ""
            if not read_key(variable).is_set:
                says = f"the environment variable {variable} is not set: no key is sent"
                if engine.endpoints:
                    says += f" to {server.base_url}"
                yield CheckLine("warning", f"engines.{name}", says, f"set {variable}")


def what_fits_into_memory(config: RunConfig) -> Iterator[CheckLine]:
    """Whether what is computed on this machine fits into it, stage by stage; estimated."""
    if config.executor.type == "ray":  # it is computed elsewhere
        return
    for stage in stage_memory(config):
        level: Level = "ok" if stage.fits else "warning"
        yield CheckLine(level, f"memory of {stage.device}", stage.line())


OF_THE_CONFIG: tuple[Callable[[RunConfig], Iterable[CheckLine]], ...] = (
    keys_that_are_set,
    what_fits_into_memory,
)
"""What is seen without asking anybody: from a config and this machine."""


async def check_config(config: RunConfig, run: RunDir) -> Check:
    """Check all that ``run`` by ``config`` asks. Costs count, and answers are kept, as the run's.

    Raises subclasses of ``PrefloopError`` for what cannot even be tried.
    """
    models = Models(config, cache=run.cache)
    try:
        return await check_all(config, models, wanted_by(config))
    finally:
        await models.release()


async def check_before(config: RunConfig, run: RunDir, models: Models) -> None:
    """Check what ``run`` has not begun to ask yet. Warnings are logged.

    Raises :class:`CheckFailed` where it would get nothing.
    """
    wanted = wanted_by(config, run)
    if config.executor.type == "ray":  # what computes is for its workers, which have the room
        wanted = of_servers(config, wanted)
    if not wanted.samplers and not wanted.labelers and not wanted.verifiers:
        return
    found = await check_all(config, models, wanted)
    for warning in found.warnings:
        logger.warning("check: %s", warning)
    if found.failures:
        raise CheckFailed(found.failures)


async def check_all(config: RunConfig, models: Models, wanted: StillToAsk) -> Check:
    """Check those in ``wanted``, the samplers last: their models are needed first. Nobody waits for
    a job: also an engine that asks in batches is asked at once, at its full price."""
    with asked_live():
        return await _checked(config, models, wanted)


async def _checked(config: RunConfig, models: Models, wanted: StillToAsk) -> Check:
    found = [finding for look in OF_THE_CONFIG for finding in look(config)]
    for key, verifier in wanted.verifiers:
        found += await _told(key, _verifier(models, verifier, key))
    endpoints, gone = await check_endpoints(config, models, wanted)
    found += endpoints
    for key, labeler in wanted.labelers:
        if isinstance(labeler, JudgeLabeler) and (labeler.engine, labeler.model) in gone:
            continue
        found += await _told(key, _labeler(config, models, key, labeler))
        if isinstance(labeler, OwnModelLabeler) or is_local(config, labeler.engine):
            await models.make_room()
    for at, member in enumerate(wanted.samplers):
        if (member.engine, member.model) in gone:
            continue
        if at and is_local(config, member.engine):
            await models.make_room()
        key = f"sample.pool.{member.name}" if config.sample.pool else "sample"
        found += await _told(key, _sampler(config, models, key, member))
    return Check((*found, *await _jobs(models, wanted)))


async def _jobs(models: Models, wanted: StillToAsk) -> list[CheckLine]:
    """Whether the servers that are asked in batches have jobs."""
    asked = [(member.engine, member.model) for member in wanted.samplers]
    judges = (one for _, one in wanted.labelers if isinstance(one, JudgeLabeler))
    asked += [(one.engine, one.model) for one in judges]
    found = []
    for name, model in dict(asked).items():
        opened = models.opened(name, model)
        if not isinstance(opened, OpenAIServer):
            continue
        problem = await opened.problem_of_jobs()
        if problem:
            remedy = f"set engines.{name}.mode: live, or take a server with a batch API"
            found.append(CheckLine("failure", f"engines.{name}", f"no jobs: {problem}", remedy))
        elif problem is not None:
            found.append(CheckLine("ok", f"engines.{name}", "the server lists its batch jobs"))
    return found


async def _told(key: str, looking: Awaitable[list[CheckLine]]) -> list[CheckLine]:
    """What ``looking`` finds; that it cannot look is a finding too."""
    try:
        return await looking
    except PrefloopError as error:
        return [CheckLine("failure", key, str(error))]


async def _verifier(models: Models, verifier: VerifierLabeler, key: str) -> list[CheckLine]:
    """That its function is found, or that its check can run here."""
    await models.labeler(verifier)
    what = f"the function {verifier.function}" if verifier.function else f"check {verifier.check}"
    return [CheckLine("ok", key, f"{what} is there")]


async def _labeler(
    config: RunConfig, models: Models, key: str, labeler: JudgeLabeler | OwnModelLabeler
) -> list[CheckLine]:
    opened = await models.labeler(labeler, keeps=False)  # the question here is no prompt's
    toy = any(is_toy(config, model) for model in labeler.models)
    if isinstance(labeler, OwnModelLabeler):
        return await check_labeler(key, labeler, opened, is_toy=toy)
    engine = await models.engine(labeler.engine, labeler.model)
    anew = partial(models.ask_anew, labeler.engine, labeler.model)
    found = await _of_now(anew, lambda: check_labeler(key, labeler, opened, is_toy=toy))
    if not _fails(found):
        found += await check_schema(key, engine, labeler, derive_seed(config.seed, "check"))
    return found


async def _sampler(
    config: RunConfig, models: Models, key: str, member: PoolMember
) -> list[CheckLine]:
    settings, asked = config.engines[member.engine], config.sample.of_member(member)
    fresh: Callable[[], Awaitable[Engine]] | None = None
    sends_seeds = wants_logprobs = True
    if isinstance(settings, OpenAIEngine):
        sends_seeds, wants_logprobs = "seed" not in settings.leave_out, settings.logprobs
        fresh = partial(models.without_cache, member.engine, member.model)
    engine = await models.engine(member.engine, member.model)
    sampler = Sampler(
        name=key,
        key="sample",
        engine_key=f"engines.{member.engine}",
        engine=engine,
        sampling=sampling_of(asked),
        thinking=asked.thinking,
        system_prompt=asked.system_prompt,
        seed=derive_seed(config.seed, "check"),
        fresh=fresh,
        sends_seeds=sends_seeds,
        wants_logprobs=wants_logprobs,
        is_toy=is_toy(config, member.model),
    )
    anew = partial(models.ask_anew, member.engine, member.model)
    found = await _of_now(anew, lambda: check_sampler(sampler))
    if fresh is not None and isinstance(settings, OpenAIEngine) and not _fails(found):
        most = min(settings.n_per_request, config.sample.total)
        found += await check_several(sampler, fresh, most)
    return found


async def _of_now(
    ask_anew: Callable[[bool], bool], look: Callable[[], Awaitable[list[CheckLine]]]
) -> list[CheckLine]:
    """What ``look`` finds; a failure that a kept answer shows may be mended since."""
    found = await look()
    if _fails(found) and ask_anew(True):
        try:
            found = await look()
        finally:
            ask_anew(False)
    return found


def _fails(found: Iterable[CheckLine]) -> bool:
    return any(one.level == "failure" for one in found)
