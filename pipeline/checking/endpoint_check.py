"""Does each of several servers answer? A run goes on without some of them, and is slower for it.
Does a single one serve the model that it is asked for?"""

from __future__ import annotations

from prefloop.data.errors import PrefloopError
from prefloop.labelers.config import JudgeLabeler
from prefloop.pipeline.checking.check_lines import CheckLine, Level
from prefloop.pipeline.checking.still_to_ask import StillToAsk
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.engines.openai.openai_server import OpenAIServer
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.machine.residency import ModelKey
from prefloop.pipeline.run.models import Models


async def check_endpoints(
    config: RunConfig, models: Models, wanted: StillToAsk
) -> tuple[list[CheckLine], set[ModelKey]]:
    """A line for each endpoint of the engines that are asked, and for each server that lists other
    models; and those, by engine and model, that no endpoint answers for: whoever asks them would
    wait long for nothing."""
    judges = [one for _, one in wanted.labelers if isinstance(one, JudgeLabeler)]
    asked = [each for one in judges for each in one.asked]
    asked += [(member.engine, member.model) for member in wanted.samplers]
    found: list[CheckLine] = []
    gone: set[ModelKey] = set()
    for engine, model in dict.fromkeys(asked):
        settings = config.engines[engine]
        if not isinstance(settings, OpenAIEngine):
            continue
        if not settings.endpoints:
            found += await _of_only(models, engine, model)
            continue
        try:
            lines = await _of_one(models, engine, model)
        except PrefloopError as error:
            lines = [CheckLine("failure", f"engines.{engine}", str(error))]
        found += lines
        if all(line.level == "failure" for line in lines):
            gone.add((engine, model))
    return found, gone


async def _of_only(models: Models, engine: str, model: str) -> list[CheckLine]:
    try:
        await models.engine(engine, model)
    except PrefloopError:  # who asks it says so
        return []
    opened = models.opened(engine, model)
    assert isinstance(opened, OpenAIServer)  # that is what its settings are of
    others = await opened.other_models()
    if others is None:
        return []
    says = f"the server may answer with another model than it is asked for: {others}"
    remedy = "name a model that it lists, or serve this one"
    return [CheckLine("warning", f"engines.{engine}", says, remedy)]


async def _of_one(models: Models, engine: str, model: str) -> list[CheckLine]:
    await models.engine(engine, model)
    opened = models.opened(engine, model)
    assert isinstance(opened, OpenAIServer)  # that is what its settings are of
    subject = f"engines.{engine}"
    answers = await opened.ask_each()
    amiss: Level = "warning" if any(not problem for _, problem in answers) else "failure"
    return [
        CheckLine(amiss, subject, f"{name} does not answer for {model}: {problem}")
        if problem
        else CheckLine("ok", subject, f"{name} answers for {model}")
        for name, problem in answers
    ] + [CheckLine("warning", subject, note) for note in opened.differences]
