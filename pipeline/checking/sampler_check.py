"""Does a policy answer as the config takes for granted?"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from prefloop.data.conversations.conversation import with_system_prompt
from prefloop.data.protocol import (
    Completion,
    Engine,
    Message,
    Request,
    RequestRejected,
    Sampling,
    Thinking,
)
from prefloop.pipeline.checking.check_lines import CheckLine, Level

QUESTION = "What is the capital of France? Answer in one short sentence."
OPEN_QUESTION = "Invent a ship: its name, its captain, and where it is bound."
FEW_TOKENS = 24
_LEAST_SYSTEM = 2  # tokens that a system message takes at least
_NEW_WORDS = 64


@dataclass(frozen=True)
class Sampler:
    """Who is asked, and how. ``name`` is what findings are about, ``key`` the section of the config
    that says how, ``engine_key`` that of the engine; ``fresh`` opens the same engine without its
    cache, where it has one.

    ``is_toy``: what it says is no sign of anything.
    """

    name: str
    key: str
    engine_key: str
    engine: Engine
    sampling: Sampling
    thinking: Thinking
    system_prompt: str | None
    seed: int
    fresh: Callable[[], Awaitable[Engine]] | None = None
    sends_seeds: bool = True
    wants_logprobs: bool = True
    is_toy: bool = False


async def check_sampler(sampler: Sampler) -> list[CheckLine]:
    """What becomes of a plain question. Raises ``EngineFailed``."""
    messages = with_system_prompt(_turn(QUESTION), sampler.system_prompt)
    try:
        answer = await _ask(sampler, messages, sampler.sampling, sampler.thinking)
    except RequestRejected as rejected:
        return [await _refused(sampler, rejected)]
    found = [await _answered(sampler, answer, messages), *_thought(sampler, answer)]
    if answer.logprob is None and sampler.wants_logprobs:
        found.append(
            CheckLine(
                "warning", sampler.name, "no log-probabilities come with the answers",
                f"set {sampler.engine_key}.logprobs: false, which asks for none",
            )
        )  # fmt: skip
    if sampler.system_prompt is not None:
        found.append(await _system_prompt(sampler, answer))
    if sampler.fresh is not None:
        found += await _seeds(sampler, sampler.fresh)
    return found


async def _answered(
    sampler: Sampler, answer: Completion, messages: tuple[Message, ...]
) -> CheckLine:
    limit = f"{sampler.key}.max_tokens"
    if not answer.text.strip() and not sampler.is_toy:
        # One may be chance.
        again = await _ask(sampler, messages, sampler.sampling, sampler.thinking, seed=1)
        level: Level = "warning" if again.text.strip() else "failure"
        if answer.reasoning is not None and _ended_by_itself(sampler, answer):
            says = (
                f"all that came, {answer.completion_tokens} tokens, is said to be a thought, and "
                "there was room for more: the server takes answers for thoughts"
            )
            remedy = (
                "start it without what takes thoughts apart (vLLM's --reasoning-parser), or let "
                f"the model think (take enable_thinking: false out of {sampler.key} and "
                f"{sampler.engine_key})"
            )
            return CheckLine(level, sampler.name, says, remedy)
        if answer.reasoning is not None:
            remedy = (
                f"raise {sampler.key}.thought_tokens, or set {sampler.key}.chat_template_kwargs: "
                "{enable_thinking: false} so that it does not think"
            )
            says = f"a thought of {answer.reasoning_tokens} tokens, and no answer behind it"
            return CheckLine(level, sampler.name, says, remedy)
        says = f"an answer without text (finish reason {answer.finish_reason!r})"
        return CheckLine(level, sampler.name, says, f"raise {limit}, or change the model")
    if answer.finish_reason == "length" and not sampler.is_toy:
        says = (
            f"one short sentence was asked for, and cut off at {sampler.sampling.max_tokens} tokens"
        )
        return CheckLine("warning", sampler.name, says, f"raise {limit}")
    return CheckLine("ok", sampler.name, f"answers, in {answer.answer_tokens} tokens")


def _ended_by_itself(sampler: Sampler, answer: Completion) -> bool:
    """Whether an answer ended long before its limit."""
    limit = sampler.sampling.max_tokens + (sampler.thinking.thought_tokens or 0)
    return 0 < 2 * answer.completion_tokens < limit


def _thought(sampler: Sampler, answer: Completion) -> list[CheckLine]:
    if answer.reasoning is None or sampler.thinking.thought_tokens is not None:
        return []
    says = (
        f"the model thinks ({answer.reasoning_tokens} tokens), and {sampler.key}.thought_tokens is "
        "null: its thoughts and its answers share max_tokens"
    )
    remedy = (
        f"set {sampler.key}.thought_tokens, or {sampler.key}.chat_template_kwargs: "
        "{enable_thinking: false}"
    )
    return [CheckLine("warning", sampler.name, says, remedy)]


async def _refused(sampler: Sampler, rejected: RequestRejected) -> CheckLine:
    """Why a plain question is refused: the system prompt is tried apart."""
    if sampler.system_prompt is not None:
        try:
            await _ask(sampler, _turn(QUESTION), sampler.sampling, sampler.thinking)
        except RequestRejected:
            pass
        else:
            return CheckLine(
                "failure", sampler.name,
                f"a system message is refused ({rejected}), and all else is not",
                "set sample.system_prompt: null, and put its text into the prompts",
            )  # fmt: skip
    remedy = f"change what the message names, in {sampler.key} or {sampler.engine_key}"
    return CheckLine("failure", sampler.name, f"a plain question is refused ({rejected})", remedy)


async def _system_prompt(sampler: Sampler, answer: Completion) -> CheckLine:
    """Whether the template writes the system prompt: the prompt is longer with it."""
    one = replace(sampler.sampling, max_tokens=1)
    bare = await _ask(sampler, _turn(QUESTION), one, Thinking())
    if answer.prompt_tokens < bare.prompt_tokens + _LEAST_SYSTEM:
        # Some servers do not count what they had read before: a text that is new to them.
        words = f"{sampler.seed} " + " ".join(map(str, range(_NEW_WORDS)))
        answer = await _ask(sampler, with_system_prompt(_turn(QUESTION), words), one, Thinking())
    if answer.prompt_tokens < bare.prompt_tokens + _LEAST_SYSTEM:
        return CheckLine(
            "failure", sampler.name,
            "the chat template leaves the system prompt out (the prompt has "
            f"{answer.prompt_tokens} tokens with it and {bare.prompt_tokens} without)",
            "set sample.system_prompt: null, and put its text into the prompts",
        )  # fmt: skip
    return CheckLine("ok", sampler.name, "the system prompt reaches the model")


async def _seeds(sampler: Sampler, fresh: Callable[[], Awaitable[Engine]]) -> list[CheckLine]:
    """Whether a seed gives the same answer again, and another seed another one."""
    if sampler.sampling.temperature == 0:
        return []
    few = replace(sampler.sampling, max_tokens=FEW_TOKENS)
    other = await _ask(sampler, _turn(OPEN_QUESTION), few, Thinking(), seed=1)
    first = await _ask(sampler, _turn(OPEN_QUESTION), few, Thinking())
    if said_in(first) == said_in(other):
        return [
            CheckLine(
                "warning", sampler.name,
                "two seeds give the same answer: the answers to a prompt may all be alike",
                f"raise {sampler.key}.temperature, or take a server that draws by seed",
            )
        ]  # fmt: skip
    if not sampler.sends_seeds:
        return [CheckLine("ok", sampler.name, "seeds are not sent, as leave_out says")]
    engine = await fresh()
    try:
        again = await _ask(replace(sampler, engine=engine), _turn(OPEN_QUESTION), few, Thinking())
    finally:
        await engine.aclose()
    if said_in(first) == said_in(again):
        return [CheckLine("ok", sampler.name, "the same seed gives the same answer")]
    return [
        CheckLine(
            "warning", sampler.name,
            "the same seed gives another answer: a run that is made again gets other answers",
            f"set {sampler.engine_key}.leave_out: [seed], or take a server that honours seeds",
        )
    ]  # fmt: skip


async def _ask(
    sampler: Sampler,
    messages: tuple[Message, ...],
    sampling: Sampling,
    thinking: Thinking,
    *,
    seed: int = 0,
) -> Completion:
    request = Request(
        request_id="check",
        messages=messages,
        sampling=sampling,
        seeds=((sampler.seed + seed) % 2**31,),
        thought_tokens=thinking.thought_tokens,
        chat_template_kwargs=sampler.thinking.chat_template_kwargs,
        reasoning_effort=sampler.thinking.reasoning_effort,
        block="check",
    )
    [completion] = await sampler.engine.generate(request)
    return completion


def _turn(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def said_in(answer: Completion) -> tuple[str, str]:
    """What makes two answers the same one."""
    return answer.reasoning or "", answer.text
