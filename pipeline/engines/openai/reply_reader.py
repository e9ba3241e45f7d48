"""What a server answered: any JSON value may stand anywhere, and what is taken from it is sound.

The one door between a response body and the run. What is no number where one should be is unknown;
a number that cannot be (a log-probability above 0, a count beyond its column) spoils the answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefloop.data.protocol import RequestRejected
from prefloop.pipeline.engines.openai.server_words import is_error, one_line, said_by

_LARGEST_COUNT = 2**31 - 1  # tokens are int32 in the tables
_LONGEST_ANSWER = 8 << 20  # characters; longer ones are no answer of a language model
_ROUNDING = 1e-3  # nats above 0 that are taken for a rounding error
_LEAST_LOGPROB = -1e6  # vLLM writes -9999 for minus infinity
_SURROGATE = re.compile("[\ud800-\udfff]")

_FINISHED = frozenset(
    [
        "stop",
        "stopped",
        "eos",
        "eos_token",
        "eos_token_id",
        "end",
        "end_turn",
        "end_of_turn",
        "endoftext",
        "stop_sequence",
        "stop_sequence_hit",
        "stop_token",
        "stop_word",
        "stop_words",
        "complete",
        "completed",
        "completion",
        "done",
        "finish",
        "finished",
        "normal",
        "success",
        "succeeded",
        "natural",
        "ok",
    ]
)
_UNSAID = frozenset(["", "null", "none", "unknown", "unspecified", "finish_reason_unspecified"])
_WORDS = (
    # Parts of words; the first that fits decides. Spellings differ from server to server.
    (re.compile("rate_limit|quota"), "broken"),
    (re.compile("filter|safety|refus|block|prohibit|polic|moderat|guard|recit|spii|sensitive|flag"
                "|harm|violat|censor"), "refused"),
    (re.compile("length|max|limit|trunc|budget|incomplete|unfinished"), "length"),
    (re.compile("tool|function"), "tool"),
    (re.compile("err|abort|cancel|fail|time_?out|malform|interrupt|insufficient|overload|crash"
                "|unavailable|disconnect"), "broken"),
    (re.compile("stop|eos|end|complet|finish|done"), "stop"),
)  # fmt: skip


class GarbledResponseError(Exception):
    """The body is not what the API promises. Worth another try."""


@dataclass(frozen=True)
class Reply:
    """A parsed response. ``logprob`` in nats, None without log-probabilities.

    ``first_logprobs`` is None where the server did not tell what else the first token might have
    been; ``prompt_tokens`` and ``completion_tokens`` are None where it did not count.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprob: float | None
    first_logprobs: Mapping[str, float] | None
    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True)
class TokenUsage:
    """Tokens that a server says it used, None where it does not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def read_reply(body: Any, max_tokens: int) -> Reply:
    """Read a response body to a request for at most ``max_tokens``; both APIs' shapes are known.

    Raises ``GarbledResponseError`` if it is not one, ``RequestRejected`` if the server withheld the
    answer.
    """
    choice = _choice(body)
    usage = read_usage(body)
    if _reason_word(choice) == "refused":
        raise RequestRejected("refused_by_server", _refusal(choice))
    message = choice.get("message")
    text = _text(message, choice)
    steps, first = _logprobs(choice.get("logprobs"))
    token_ids = _token_ids(choice.get("token_ids"))
    counted = usage.completion_tokens or len(token_ids) or len(steps) or None
    if counted is None and not text:
        counted = usage.completion_tokens
    known = bool(steps) and None not in steps
    return Reply(
        text=text,
        token_ids=token_ids,
        finish_reason=_finish_reason(choice, bool(text), (counted or 0) >= max_tokens),
        logprob=math.fsum(step for step in steps if step is not None) if known else None,
        first_logprobs=first,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=counted,
    )


def read_usage(body: Any) -> TokenUsage:
    """The tokens that a body says were used, by whichever names.

    Raises ``GarbledResponseError`` for counts that cannot be.
    """
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return TokenUsage()
    prompt = _first_count(usage, "prompt_tokens", "input_tokens", "prompt_eval_count")
    completion = _first_count(
        usage, "completion_tokens", "output_tokens", "generated_tokens", "eval_count"
    )
    total = _first_count(usage, "total_tokens")
    if total is not None and prompt is not None and completion is None and total >= prompt:
        completion = total - prompt
    elif total is not None and completion is not None and prompt is None and total >= completion:
        prompt = total - completion
    # No prompt is without tokens: a server that says so does not count.
    return TokenUsage(prompt or None, completion if prompt else completion or None)


def cleaned(text: str) -> str:
    """``text`` with U+FFFD for each half of a character, which no file can hold."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _choice(body: Any) -> Mapping[str, Any]:
    choices = body.get("choices") if isinstance(body, dict) else None
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    if is_error(body):
        raise GarbledResponseError(f"an error instead of an answer: {said_by(body).words}")
    raise GarbledResponseError(f"garbage instead of an answer: no choices in {_sketch(body)}")


def _sketch(value: Any) -> str:
    """``value`` in a few words."""
    if isinstance(value, dict):
        keys = ", ".join(map(str, list(value)[:6]))
        return one_line(f"an object of {keys}", 100) if value else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return one_line(f"the text {value[:60]!r}", 100)
    return "null" if value is None else f"a {type(value).__name__}"


def _garbled(what: str) -> GarbledResponseError:
    return GarbledResponseError(f"garbage instead of an answer: {what}")


def _text(message: Any, choice: Mapping[str, Any]) -> str:
    if isinstance(message, dict):
        content = message.get("content")
        if not content and message.get("refusal"):
            raise RequestRejected("refused_by_server", _refusal(choice))
    elif "text" in choice:
        content = choice["text"]
    else:
        raise _garbled("a choice without a message")
    text = "".join(_parts(content, choice))
    if len(text) > _LONGEST_ANSWER:
        raise _garbled(f"an answer of {len(text)} characters")
    return cleaned(text)


def _parts(content: Any, choice: Mapping[str, Any]) -> Iterator[str]:
    """The pieces of an answer's text; a thought that stands beside it is none of them."""
    if content is None:
        return
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, list):
                raise _garbled("a content that is lists in a list")
            yield from _parts(part, choice)
    elif isinstance(content, dict):
        kind = content.get("type")
        if isinstance(kind, str) and ("think" in kind or "reason" in kind):
            return
        if isinstance(kind, str) and kind == "refusal":
            raise RequestRejected("refused_by_server", _refusal(choice))
        text = content.get("text")
        if isinstance(text, dict):
            text = text.get("value")
        if not isinstance(text, str) and not (text is None and "text" in content):
            raise _garbled(f"a content that is {_sketch(content)}")
        yield text or ""
    else:
        raise _garbled(f"a content that is {_sketch(content)}")


def _refusal(choice: Mapping[str, Any]) -> str:
    said = [f"finish_reason {one_line(str(choice.get('finish_reason')), 60)!r}"]
    message = choice.get("message")
    for value in (message.get("refusal") if isinstance(message, dict) else None, choice):
        words = one_line(value) if isinstance(value, str) else said_by(value).words
        if value is not choice and words and value:
            said.append(words)
    return ": ".join(said)


def _reason_word(choice: Mapping[str, Any]) -> str:
    """What the finish reason means: stop, length, refused, tool, broken, unsaid or unknown."""
    said = choice.get("finish_reason", choice.get("stop_reason"))
    if isinstance(said, list) and len(said) == 1:
        said = said[0]
    if said is None:
        return "unsaid"
    if not isinstance(said, str):
        raise _garbled(f"a finish_reason that is {_sketch(said)}")
    word = re.sub(r"[^a-z0-9]+", "_", said[:100].lower()).strip("_")
    if word in _UNSAID:
        return "unsaid"
    if word in _FINISHED:
        return "stop"
    return next((meaning for part, meaning in _WORDS if part.search(word)), "unknown")


def _finish_reason(choice: Mapping[str, Any], has_text: bool, is_full: bool) -> str:
    word = _reason_word(choice)
    said = one_line(str(choice.get("finish_reason")), 60)
    if word in ("stop", "length"):
        return word
    if word == "tool":
        raise RequestRejected(
            "refused_by_server",
            f"finish_reason {said!r}: the model called a tool instead of answering",
        )
    if word == "broken" or (word == "unknown" and not has_text):
        words = said_by(choice).words if is_error(choice) else ""
        raise _garbled(f"finish_reason {said!r}" + (f": {words}" if words else ""))
    return "length" if is_full else "stop"


def _token_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        return ()
    ids = [_count(item, "token id") for item in value]
    known = [item for item in ids if item is not None]
    return tuple(known) if len(known) == len(ids) else ()


def _first_count(usage: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        if (count := _count(usage.get(name), name)) is not None:
            return count
    return None


def _count(value: Any, name: str) -> int | None:
    """A count that its column can hold; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not 0 <= value <= _LARGEST_COUNT or value != int(value):  # false for NaN, too
        raise _garbled(f"a {name} that is no count" if value == value else f"a {name} of NaN")
    return int(value)


def _logprobs(value: Any) -> tuple[list[float | None], dict[str, float] | None]:
    """Log-probabilities of the tokens, and of the words that the first token might have been.

    No steps, or None for a step or for the words: unknown.
    """
    if not isinstance(value, dict):
        return [], None
    tokens = value.get("content")
    if isinstance(tokens, list):
        steps = [_logprob(token.get("logprob"), _LEAST_LOGPROB) if isinstance(token, dict) else None
                 for token in tokens]  # fmt: skip
        first = tokens[0].get("top_logprobs") if tokens and isinstance(tokens[0], dict) else None
        return steps, _by_word(first)
    said = value.get("token_logprobs")
    if not isinstance(said, list):
        return [], None
    top = value.get("top_logprobs")
    first = top[0] if isinstance(top, list) and top else None
    return [_logprob(step, _LEAST_LOGPROB) for step in said], _by_word(first)


def _logprob(value: Any, least: float) -> float | None:
    """A log-probability; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not least <= value <= _ROUNDING:  # false for NaN, too
        raise _garbled("a log-probability that cannot be")
    return min(float(value), 0.0)


def _by_word(seen: Any) -> dict[str, float] | None:
    """Log-probability of each word, " A" and "A" added up; None if any of them is unknown."""
    if isinstance(seen, dict):
        pairs = list(seen.items())
    elif isinstance(seen, list) and all(isinstance(each, dict) for each in seen):
        pairs = [(each.get("token"), each.get("logprob")) for each in seen]
    else:
        return None
    tokens: dict[str, float] = {}
    for token, said in pairs:
        tiny = isinstance(said, int | float) and said < _LEAST_LOGPROB
        logprob = -math.inf if tiny else _logprob(said, _LEAST_LOGPROB)
        if not isinstance(token, str) or logprob is None:
            return None
        # Some servers list the drawn token beside the likeliest, where it stands already.
        tokens[token] = max(tokens.get(token, -math.inf), logprob)
    words: dict[str, float] = {}
    for token, logprob in tokens.items():
        word = cleaned(token).strip()
        both = float(np.logaddexp(words.get(word, -math.inf), logprob))
        words[word] = min(both, 0.0)
    return words or None
