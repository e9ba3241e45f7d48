"""Does a verdict come out? A judge votes on a plain pair, on the way that all its votes go."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from prefloop.data.hashing import content_id, pair_id
from prefloop.data.prompts.criteria import RUBRIC
from prefloop.data.protocol import Engine, Request, RequestRejected, Sampling
from prefloop.labelers.base import Answer, Labeler, Pair, Vote
from prefloop.labelers.config import JudgeLabeler, OwnModelLabeler
from prefloop.labelers.judges.folder import load_judge
from prefloop.pipeline.checking.check_lines import CheckLine, Level
from prefloop.pipeline.checking.sampler_check import QUESTION
from prefloop.pipeline.stages.invalid_votes import remedy_for

_RIGHT = "The capital of France is Paris."
_WRONG = "I like turtles, and it may well rain on Tuesday."
_RUBRIC = ["It names the capital of France.", "It keeps to the question."]
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": ["red", "green"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


def plain_pair(*, with_reference: bool, with_rubric: bool = False) -> Pair:
    """A right answer, as ``a``, and one that has nothing to do with the question."""
    prompt = content_id("check", QUESTION)
    ids = [content_id(prompt, text) for text in (_RIGHT, _WRONG)]
    return Pair(
        pair_id=pair_id(prompt, *ids),
        prompt_id=prompt,
        round=0,
        messages=({"role": "user", "content": QUESTION},),
        reference="Paris." if with_reference else None,
        metadata={RUBRIC: _RUBRIC} if with_rubric else {},
        a=Answer(ids[0], _RIGHT, 8, "sampled"),
        b=Answer(ids[1], _WRONG, 11, "sampled"),
    )


async def check_labeler(
    key: str,
    config: JudgeLabeler | OwnModelLabeler,
    labeler: Labeler,
    *,
    is_toy: bool,
) -> list[CheckLine]:
    """What becomes of its votes on the plain pair; ``key`` is its section of the config.

    ``is_toy``: which answer it prefers is no sign of anything. Raises ``EngineFailed``.
    """
    needs = isinstance(config, JudgeLabeler) and load_judge(config.judge).settings.needs_reference
    rubric = isinstance(config, JudgeLabeler) and config.criteria == "prompt"
    pair = plain_pair(with_reference=needs, with_rubric=rubric)
    votes = await labeler.label([pair], block=f"check/{config.name}")
    return [_verdict(key, config, votes, is_toy=is_toy), *_thought(key, config, votes)]


async def check_schema(
    key: str, engine: Engine, config: JudgeLabeler, seed: int
) -> list[CheckLine]:
    """Whether an answer has the form of a JSON schema, of which the question does not speak.

    Raises ``EngineFailed``.
    """
    settings = load_judge(config.judge).settings
    if getattr(settings, "parser", "json") != "json":
        return []
    request = Request(
        request_id="check-schema",
        messages=({"role": "user", "content": "Say hello."},),
        sampling=Sampling(temperature=config.temperature, max_tokens=64),
        seeds=(seed,),
        json_schema=_SCHEMA,
        thought_tokens=config.thought_tokens,
        chat_template_kwargs=config.chat_template_kwargs,
        reasoning_effort=config.reasoning_effort,
        block="check-schema",
    )
    try:
        [answer] = await engine.generate(request)
        said = json.loads(answer.text)
    except RequestRejected as rejected:
        return [_schema(key, f"a request with a JSON schema is refused ({rejected})")]
    except ValueError:
        said = None
    if isinstance(said, dict) and said.get("colour") in ("red", "green"):
        return [CheckLine("ok", key, "JSON schemas are honoured")]
    return [_schema(key, "JSON schemas are not honoured: verdicts come out as the model likes")]


def _schema(key: str, says: str) -> CheckLine:
    remedy = f"set {key}.judge to one that answers in text, or take a server with JSON schemas"
    return CheckLine("warning", key, says, remedy)


def _verdict(
    key: str, config: JudgeLabeler | OwnModelLabeler, votes: Sequence[Vote], *, is_toy: bool
) -> CheckLine:
    if not votes:
        return CheckLine("warning", key, "it has no opinion on a plain pair, and gave no vote")
    invalid = [vote for vote in votes if vote.preference == "invalid"]
    if invalid:
        why = invalid[0].rationale or invalid[0].completion or "no reason given"
        says = f"no verdict comes out of {len(invalid)} of {len(votes)} answers on a plain pair"
        level: Level = "failure" if len(invalid) == len(votes) else "warning"
        return CheckLine(level, key, f"{says} ({why})", remedy_for(config, why))
    right = sum(vote.preference == "a" for vote in votes)
    known = [f"{vote.p_a:.2f}" for vote in votes if vote.p_a is not None]
    soft = f" (p {', '.join(known)})" if known else ""
    if right == len(votes) or is_toy:
        return CheckLine("ok", key, f"a verdict comes out{soft}")
    return CheckLine(
        "warning", key,
        f"of a right answer and one beside the point it prefers the right one in {right} of "
        f"{len(votes)} votes{soft}",
        "try it with prefloop judge-eval, or take another model",
    )  # fmt: skip


def _thought(
    key: str, config: JudgeLabeler | OwnModelLabeler, votes: Sequence[Vote]
) -> list[CheckLine]:
    thoughts = [vote.reasoning_tokens or 0 for vote in votes if vote.reasoning is not None]
    if not isinstance(config, JudgeLabeler) or config.thought_tokens or not thoughts:
        return []
    says = (
        f"the judge thinks ({max(thoughts)} tokens), and {key}.thought_tokens is null: its "
        "thoughts and its verdicts share max_tokens"
    )
    remedy = f"set {key}.thought_tokens, or {key}.chat_template_kwargs: {{enable_thinking: false}}"
    return [CheckLine("warning", key, says, remedy)]
