"""Does a server give several answers to one request, and other ones? It is asked as a run asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from prefloop.data.protocol import Completion, Engine, Request, RequestRejected
from prefloop.pipeline.checking.check_lines import CheckLine
from prefloop.pipeline.checking.sampler_check import FEW_TOKENS, OPEN_QUESTION, Sampler, said_in
from prefloop.pipeline.engines.openai.asking.several import SeveralAnswers
from prefloop.pipeline.engines.openai.openai_server import OpenAIServer


async def check_several(
    sampler: Sampler, fresh: Callable[[], Awaitable[Engine]], n: int
) -> list[CheckLine]:
    """What becomes of a request for ``n`` answers to the engine that ``fresh`` opens; nothing where
    a run makes none. Raises ``EngineFailed``."""
    if n < 2 or sampler.sampling.temperature == 0:
        return []
    engine = await fresh()
    assert isinstance(engine, OpenAIServer)
    request = Request(
        request_id="check-several",
        messages=({"role": "user", "content": OPEN_QUESTION},),
        sampling=replace(sampler.sampling, max_tokens=FEW_TOKENS),
        seeds=tuple((sampler.seed + number) % 2**31 for number in range(n)),
        chat_template_kwargs=sampler.thinking.chat_template_kwargs,
        reasoning_effort=sampler.thinking.reasoning_effort,
        block="check-several",
    )
    try:
        answers = await engine.generate(request)
    except RequestRejected as rejected:
        says = f"a question to be answered {n} times is refused ({rejected})"
        return [CheckLine("warning", sampler.name, says, _alone(sampler))]
    finally:
        await engine.aclose()
    return [_found(sampler, engine.several, answers)]


def _found(sampler: Sampler, several: SeveralAnswers, answers: list[Completion]) -> CheckLine:
    n, came = len(answers), several.most_came
    different = len({said_in(answer) for answer in answers})
    if not came:
        says = f"a request for {n} answers is refused, and each alone is answered"
        remedy = f"{_alone(sampler)}, or fewer than {n}" if n > 2 else _alone(sampler)
    elif came == 1:
        says = f"{n} answers were asked for in one request, and one came: each is asked for alone"
        remedy = _alone(sampler)
    elif came < n:
        says = f"{n} answers were asked for in one request, and {came} came: the others are asked "
        says += "for alone"
        remedy = f"set {sampler.engine_key}.n_per_request: {came}"
    elif 2 * different <= n:
        says = (
            f"of {n} answers that came with one request {different} differ: a seed does not draw "
        )
        says += "each of them"
        remedy = _alone(sampler)
    else:
        says = f"one request brings {n} answers, {different} of them different"
        return CheckLine("ok", sampler.name, says)
    return CheckLine("warning", sampler.name, says, remedy)


def _alone(sampler: Sampler) -> str:
    return f"set {sampler.engine_key}.n_per_request: 1"
