"""Several answers of one response: each is read like one that came alone, and none spoils another.

A server tells what all of them took together. What each took is known where it comes with its
tokens (``token_ids``, log-probabilities) and these add up to the server's sum; else the sum is
shared out by length, so that it stays what was paid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefloop.data.protocol import RequestRejected
from prefloop.pipeline.engines.openai.asking.question import ServerQuestion
from prefloop.pipeline.engines.openai.reply_reader import (
    GarbledResponseError,
    Reply,
    TokenUsage,
    read_reply,
    read_usage,
)

Counter = Callable[[str], int]
"""How many tokens a text has."""


def read_answers(body: Any, question: ServerQuestion, count: Counter) -> tuple[Reply | None, ...]:
    """The ``question.n`` answers that a response body to it holds, each at its place; null for
    one that lacks, is withheld or is none. There is one at least.

    Raises ``GarbledResponseError`` where the body holds none, and ``RequestRejected`` where the
    server withheld all that came.
    """
    if question.n == 1:
        return (read_reply(body, question.max_tokens, question.hints),)
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices:
        read_reply(body, question.max_tokens, question.hints)
        raise GarbledResponseError("garbage instead of answers: no choices")
    usage = read_usage(body)
    # So much is taken only where each answer is full: then a server need not say why it ended.
    full = usage.completion_tokens == len(choices) * question.max_tokens
    own: dict[str, Any] = {"error": body.get("error")}
    if full:
        own["usage"] = {"completion_tokens": question.max_tokens}
    came = [
        _Came(place, choice, *_read({"choices": [choice], **own}, question))
        for place, choice in _in_order(choices, question.n)
    ]
    read = [one.reply is not None and one.place is not None for one in came]
    if not any(read):
        raise _failure(came)
    found: list[Reply | None] = [None] * question.n
    number = 0
    for one, reply in zip(came, _counted(came, usage, question, count), strict=True):
        if reply is not None and one.place is not None:
            found[one.place] = replace(
                reply, prompt_tokens=usage.prompt_tokens, prompt_part=(number, sum(read))
            )
            number += 1
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Came:
    """A choice, which of the answers it is, and what it says, or why nothing."""

    place: int | None
    choice: Any
    reply: Reply | None
    failure: GarbledResponseError | RequestRejected | None

    @property
    def texts(self) -> tuple[str, str]:
        """The answer and the thought, as far as there are any."""
        if self.reply is not None:
            return self.reply.text, self.reply.reasoning or ""
        choice = self.choice if isinstance(self.choice, dict) else {}
        message = choice.get("message")
        said = message.get("content") if isinstance(message, dict) else choice.get("text")
        return (said, "") if isinstance(said, str) else ("", "")


def _read(
    alone: Mapping[str, Any], question: ServerQuestion
) -> tuple[Reply | None, GarbledResponseError | RequestRejected | None]:
    try:
        return read_reply(alone, question.max_tokens, question.hints), None
    except (GarbledResponseError, RequestRejected) as error:
        return None, error


def _failure(came: Sequence[_Came]) -> Exception:
    """Why none of the choices is an answer."""
    garbled = (one.failure for one in came if isinstance(one.failure, GarbledResponseError))
    return next(garbled, None) or came[0].failure or GarbledResponseError("no answer")


def _in_order(choices: Sequence[Any], n: int) -> list[tuple[int | None, Any]]:
    """The choices in the order of the answers that they are, and behind them those that are none.
    They may come in any order; where they are not numbered as they should be, it counts."""
    said = [choice.get("index") if isinstance(choice, dict) else None for choice in choices]
    known = [index for index in said if index is not None]
    if not known or not all(_is_place(one, n) for one in known) or len({*known}) < len(known):
        said = [at if at < n else None for at in range(len(choices))]
    pairs = list(zip(said, choices, strict=True))
    return sorted(pairs, key=lambda pair: n if pair[0] is None else pair[0])


def _is_place(index: Any, n: int) -> bool:
    return isinstance(index, int) and not isinstance(index, bool) and 0 <= index < n


def _counted(
    came: Sequence[_Came], usage: TokenUsage, question: ServerQuestion, count: Counter
) -> list[Reply | None]:
    """The replies, with what each took."""
    replies = [one.reply for one in came]
    total = usage.completion_tokens
    if total is None:
        return replies
    known = [None if reply is None else reply.completion_tokens for reply in replies]
    thoughts = _thoughts(came, usage, count)
    are_all = len(came) >= question.n and None not in replies
    if (exact := _exact(replies, known, total, are_all=are_all)) is not None:
        return [
            reply
            and replace(
                reply,
                completion_tokens=number,
                reasoning_tokens=thought if (own := reply.reasoning_tokens) is None else own,
            )
            for reply, number, thought in zip(replies, exact, thoughts, strict=True)
        ]
    hidden = sum(thought or 0 for thought in thoughts)
    lengths = [
        1 + sum(map(count, one.texts if thought is None else one.texts[:1]))
        for one, thought in zip(came, thoughts, strict=True)
    ]
    answers = _shared_out(total - hidden, lengths)
    return [
        reply
        and replace(
            reply,
            completion_tokens=number + (thought or 0),
            reasoning_tokens=thought,
            tokens_are_shared=True,
        )
        for reply, number, thought in zip(replies, answers, thoughts, strict=True)
    ]


def _exact(
    replies: Sequence[Reply | None], known: Sequence[int | None], total: int, *, are_all: bool
) -> list[int] | None:
    """What each took, 0 for those that cannot be read; null where that is not known. ``are_all``:
    what took ``total`` is all there."""
    numbers = [number for reply, number in zip(replies, known, strict=True) if reply is not None]
    if None in numbers:
        return None
    counts = [number or 0 for number in known]
    missing = total - sum(counts)
    if not are_all:  # by its log-probabilities, an answer may be one longer
        are_exact = all(reply is None or reply.token_ids for reply in replies)
        return counts if are_exact and missing >= 0 else None
    if missing == 0:
        return counts
    # Some servers count the token that ended an answer, and give no log-probability of it.
    ended = [reply is not None and reply.finish_reason == "stop" for reply in replies]
    if missing == sum(ended):
        return [number + end for number, end in zip(counts, ended, strict=True)]
    return None


def _thoughts(came: Sequence[_Came], usage: TokenUsage, count: Counter) -> list[int | None]:
    """What each thought took of the tokens that the server counts as thoughts: by length, or as
    much each where they are not shown; null where it counts none."""
    if usage.reasoning_tokens is None:
        return [None] * len(came)
    lengths = [count(one.texts[1]) for one in came]
    return [*_shared_out(usage.reasoning_tokens, lengths if any(lengths) else [1] * len(came))]


def _shared_out(total: int, weights: Sequence[int]) -> list[int]:
    """``total`` in whole parts by ``weights``, one of which is more than 0 at least; the largest
    remainders are rounded up, so that the parts add up."""
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    left = sorted(range(len(weights)), key=lambda at: (-(total * weights[at] % whole), at))
    for at in left[: total - sum(parts)]:
        parts[at] += 1
    return parts
