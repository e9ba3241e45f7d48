"""What a server answered: any JSON value may stand anywhere, and what is taken from it is sound.

The one door between a response body and the run. What is no number where one should be is unknown;
a number that cannot be (a log-probability above 0, a count beyond its column) spoils the answer.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from prefloop.data.conversations.reasoning import Thought, split_thought
from prefloop.data.protocol import RequestRejected
from prefloop.pipeline.engines.openai.server_words import is_error, one_line, said_by

_LARGEST_COUNT = 2**31 - 1  # tokens are int32 in the tables
_LONGEST_ANSWER = 8 << 20  # characters; longer ones are no answer of a language model
_ROUNDING = 1e-3  # nats above 0 that are taken for a rounding error
_LN2 = math.log(2)
_LEAST_LOGPROB = -1e6  # vLLM writes -9999 for minus infinity
_BEFORE_WORD = "▁Ġ"  # sentencepiece's and byte-level BPE's
_SURROGATE = re.compile("[\ud800-\udfff]")

_DEEPEST = 6
_THOUGHT_FIELDS = (
    "reasoning_content", "reasoning", "thinking", "reasoning_details", "thinking_blocks",
)  # fmt: skip
"""What servers call the thought that they put beside the answer."""
_BEHIND = re.compile(r"\s*(?:<[^<>]*>\s*|\[[^\[\]]*\]\s*)*")
"""What may stand behind an answer: end tokens."""

_END_OF_TURN = re.compile(
    r"(?<![\"'`])\s*(?:<\|(?:im_end|eot_id|eom_id|end|return|endoftext|end_of_text|end_of_turn)\|>"
    r"|<(?:end_of_turn|turn\|)>|<\uff5cend\u2581of\u2581sentence\uff5c>|</s>)\s*\Z"
)
"""The token that ended an answer, where a server leaves it in the text."""

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
    (re.compile("not_(finish|complet|done)|repet|loop|degenerat"), "length"),
    (re.compile("^language$|filter|safety|refus|block|prohibit|polic|moderat|guard|recit|spii|sensitive|flag"
                "|harm|violat|censor"), "refused"),
    (re.compile("length|max|limit|trunc|budget|incomplete|unfinished|context|pause"), "length"),
    (re.compile("tool|function"), "tool"),
    (re.compile("err|abort|cancel|fail|time_?out|malform|interrupt|insufficient|overload|crash"
                "|unavailable|disconnect|preempt|deadline"), "broken"),
    (re.compile("stop|eos|end|complet|finish|done"), "stop"),
)  # fmt: skip


class GarbledResponseError(Exception):
    """The body is not what the API promises. Worth another try."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A parsed response. ``logprob`` in nats, None without log-probabilities.

    ``text`` is the answer alone. ``first_logprobs`` is None where the server did not tell what else
    the answer's first token might have been; ``prompt_tokens``, ``completion_tokens`` (the
    thought's included) and ``reasoning_tokens`` are None where it did not count.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprob: float | None
    first_logprobs: Mapping[str, float] | None
    prompt_tokens: int | None
    completion_tokens: int | None
    reasoning: str | None = None
    reasoning_tokens: int | None = None
    raw_text: str | None = None
    unlisted: float = 0.0
    """The most probability that any word has which is not in ``first_logprobs``."""
    price_share: float = 1.0
    """Of the engine's prices, what it cost."""
    prompt_part: tuple[int, int] = (0, 1)
    """Which part of how many of the prompt's tokens is its own: answers of one request share it."""
    tokens_are_shared: bool = False
    """Whether its tokens are a part, by length, of what the server counted for several answers."""

    @property
    def has_thought(self) -> bool:
        """Whether the model thought, seen or unseen."""
        return self.reasoning is not None or bool(self.reasoning_tokens)

    @property
    def has_choices(self) -> bool:
        """Whether the verdict can be read, be it from the text behind a thought."""
        return self.first_logprobs is not None or self.has_thought


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens that a server says it used, None where it does not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True)
class ThoughtHints:
    """What is known of a model's thoughts before it answers. ``opening``: what the prompt opened
    one with, empty for none, null where the server rendered the prompt. ``expected``: whether the
    request leaves tokens for one."""

    opening: str | None = None
    expected: bool = False


def read_reply(body: Any, max_tokens: int, hints: ThoughtHints = ThoughtHints()) -> Reply:
    """Read a response body to a request for at most ``max_tokens``, those of a thought included;
    both APIs' shapes are known.

    Raises ``GarbledResponseError`` if it is not one, ``RequestRejected`` if the server withheld the
    answer.
    """
    choice = _choice(body)
    usage = read_usage(body)
    if _reason_word(choice) == "refused":
        raise RequestRejected("refused_by_server", _refusal(choice))
    if (error := _error_beside(choice) or _error_beside(body)) is not None:
        raise GarbledResponseError(f"an answer that an error broke off: {error}")
    message = choice.get("message")
    written = _text(message, choice)
    steps = _steps(choice.get("logprobs"))
    token_ids = _token_ids(choice.get("token_ids"))
    counted = usage.completion_tokens or len(token_ids) or len(steps) or None
    if counted is None and not written:
        counted = usage.completion_tokens
    finish_reason = _finish_reason(choice, bool(written), (counted or 0) >= max_tokens)
    thought = _thought(written, _reasoning(message, choice), finish_reason, hints)
    known = bool(steps) and all(step.logprob is not None for step in steps)
    place = _place_of_answer(thought, steps)
    is_told = place is not None and place < len(steps)
    first_logprobs, unlisted = steps[place or 0].by_word() if is_told else (None, 0.0)
    reasoning_tokens = usage.reasoning_tokens
    if reasoning_tokens is None and thought.reasoning is not None and place is not None:
        reasoning_tokens = place if place or not written.strip() else None
    return Reply(
        text=_without_end_of_turn(thought.answer),
        token_ids=token_ids,
        finish_reason=finish_reason if thought.closed else "length",
        logprob=math.fsum(step.logprob or 0.0 for step in steps) if known else None,
        first_logprobs=first_logprobs,
        unlisted=unlisted,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=counted,
        reasoning=thought.reasoning,
        reasoning_tokens=reasoning_tokens,
        raw_text=_raw_text(written, thought, hints),
    )


def read_usage(body: Any) -> TokenUsage:
    """The tokens that a body says were used, by whichever names.

    Raises ``GarbledResponseError`` for counts that cannot be.
    """
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return TokenUsage()
    prompt = _prompt_count(usage)
    completion = _first_count(
        usage, "completion_tokens", "output_tokens", "generated_tokens", "eval_count"
    )
    total = _first_count(usage, "total_tokens")
    if total is not None and prompt is not None and completion is None and total >= prompt:
        completion = total - prompt
    elif total is not None and completion is not None and prompt is None and total >= completion:
        prompt = total - completion
    hidden = 0
    if total is not None and prompt and completion is not None and total > prompt + completion:
        hidden = total - prompt - completion  # some count the thought in the total alone
        completion += hidden
    details = usage.get("completion_tokens_details", usage.get("output_tokens_details"))
    thought = _first_count(details, "reasoning_tokens") if isinstance(details, dict) else None
    thought = thought or _first_count(usage, "reasoning_tokens") or hidden or None
    if thought is not None and completion is not None and thought > completion:
        completion += thought  # a part cannot be more than the whole: it is counted beside it
    # No prompt is without tokens: a server that says so does not count.
    return TokenUsage(prompt or None, completion if prompt else completion or None, thought or None)


def _prompt_count(usage: Mapping[str, Any]) -> int | None:
    """The tokens of the prompt, those included that some servers count apart as they lay in a
    cache."""
    if (prompt := _first_count(usage, "prompt_tokens")) is not None:
        return prompt
    prompt = _first_count(usage, "input_tokens")
    if prompt is None:
        return _first_count(usage, "prompt_eval_count")
    apart = ("cache_read_input_tokens", "cache_creation_input_tokens")
    return prompt + sum(_first_count(usage, name) or 0 for name in apart)


def cleaned(text: str) -> str:
    """``text`` with U+FFFD for each half of a character, which no file can hold."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _choice(body: Any) -> Mapping[str, Any]:
    choices = body.get("choices") if isinstance(body, dict) else None
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        # One was asked for; a server that gives several may give them in any order.
        numbered = (one for one in choices if isinstance(one, dict) and one.get("index") == 0)
        return next(numbered, choices[0])
    if is_error(body):
        raise GarbledResponseError(f"an error instead of an answer: {said_by(body).words}")
    raise GarbledResponseError(f"garbage instead of an answer: no choices in {_sketch(body)}")


def _error_beside(answer: Mapping[str, Any]) -> str | None:
    """What went wrong at a server that began to answer, and says so beside what it has; null where
    nothing did."""
    error = answer.get("error")
    if isinstance(error, dict):
        error = error if any(error.values()) else None
    return said_by(error).words if error else None


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
    text = "\n".join(filter(None, ("".join(_parts(content, choice)), _calls(message))))
    if len(text) > _LONGEST_ANSWER:
        raise _garbled(f"an answer of {len(text)} characters")
    return cleaned(text)


def _reasoning(message: Any, choice: Mapping[str, Any]) -> str | None:
    """The thought that a server put beside the answer; None where there is none."""
    places = [message] if isinstance(message, dict) else [choice]
    for place in places:
        for name in _THOUGHT_FIELDS:
            if said := "".join(_thought_parts(place.get(name))).strip():
                return cleaned(said[:_LONGEST_ANSWER])
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        thoughts = [part for part in content if _is_thought(part)]
        if said := "".join(_thought_parts(thoughts)).strip():
            return cleaned(said[:_LONGEST_ANSWER])
    return None


def _is_thought(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and ("think" in kind or "reason" in kind)


def _thought_parts(value: Any, depth: int = 0) -> Iterator[str]:
    """The pieces of a thought's text, whatever they are packed in; other things are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and depth < _DEEPEST:
        for part in value:
            yield from _thought_parts(part, depth + 1)
    elif isinstance(value, dict) and depth < _DEEPEST:
        for name in ("thinking", "reasoning", "text", "summary", "content"):
            if name in value:
                yield from _thought_parts(value[name], depth + 1)
                return


def _thought(
    written: str, reasoning: str | None, finish_reason: str, hints: ThoughtHints
) -> Thought:
    """Thought and answer, by the server's own word or by the marks in the text."""
    if reasoning is not None:
        repeated = split_thought(written, None)
        if repeated.reasoning is not None and _same(repeated.reasoning, reasoning):
            return repeated  # some servers put the thought beside the answer and leave it there
        if repeated.reasoning == "" and repeated.closed:  # or its marks, or the one that ended it
            return replace(repeated, reasoning=reasoning, begins=0)
        return Thought(reasoning, written.lstrip(), closed=bool(written.strip()))
    opened = None if hints.opening is None else bool(hints.opening)
    short = len(written) <= _SHORT
    thought = (_split_short_thought if short else split_thought)(written, opened)
    in_vain = finish_reason == "length" and hints.expected and opened is None
    if thought.reasoning is None and in_vain:
        # Tokens were left for a thought, all are used, and nothing says where it ended.
        return Thought(written.strip(), "", closed=False)
    return thought


def _without_end_of_turn(answer: str) -> str:
    """``answer`` without the token that ended it; one that is nothing else is kept."""
    if not answer.endswith(">") and not answer.rstrip().endswith(">"):
        return answer
    found = _END_OF_TURN.search(answer)
    if found is None or not found.start() or ("</s>" in found[0] and "<s>" in answer):
        return answer
    return answer[: found.start()]


def _same(one: str, other: str) -> bool:
    return one.split() == other.split()


_SHORT = 16  # letters: a verdict in one token, of which there are few different ones
_split_short_thought = lru_cache(maxsize=1024)(split_thought)


def _raw_text(written: str, thought: Thought, hints: ThoughtHints) -> str | None:
    if thought.reasoning is None or not written.strip() or not thought.begins:
        return None
    led = not hints.opening or written.lstrip().startswith(hints.opening.strip())
    return written if led else f"{hints.opening}{written}"


def _calls(message: Any) -> str:
    """The tools that an answer calls, as JSON: a list of ``{name, arguments}``; empty if none, or
    one that has no name."""
    if not isinstance(message, dict):
        return ""
    calls = message.get("tool_calls") or [{"function": message.get("function_call")}]
    found = []
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return ""
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            with suppress(ValueError, RecursionError):  # a model may write what is no JSON
                arguments = json.loads(arguments)
        found.append({"name": function["name"], "arguments": arguments})
    return json.dumps(found, ensure_ascii=False) if found else ""


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
        if _is_thought(content):
            return
        if kind == "reference" and "text" not in content:
            return  # Mistral's: which source stands behind the text before it
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
    said = choice.get("finish_reason")
    if said is None and isinstance(choice.get("stop_reason"), str):
        said = choice["stop_reason"]  # beside a finish_reason it may be a token's id
    if isinstance(said, list) and len(said) == 1:
        said = said[0]
    if said is None:
        return "unsaid"
    if not isinstance(said, str):
        raise _garbled(f"a finish_reason that is {_sketch(said)}")
    return _meaning(said[:100])


@lru_cache(maxsize=256)
def _meaning(said: str) -> str:
    word = re.sub(r"[^a-z0-9]+", "_", said.lower()).strip("_")
    if word in _UNSAID:
        return "unsaid"
    if word in _FINISHED:
        return "stop"
    return next((meaning for part, meaning in _WORDS if part.search(word)), "unknown")


def _finish_reason(choice: Mapping[str, Any], has_text: bool, is_full: bool) -> str:
    word = _reason_word(choice)
    if word in ("stop", "length"):
        return word
    said = one_line(str(choice.get("finish_reason")), 60)
    if word == "tool" and has_text and _calls(choice.get("message")):
        return "stop"
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


@dataclass(frozen=True, slots=True)
class _Step:
    """A generated token: its text and log-probability, None where the server does not tell, and
    what else it might have been."""

    token: str | None
    logprob: float | None
    seen: Any

    def by_word(self) -> tuple[dict[str, float] | None, float]:
        """The words that it might have been, itself among them, and the most probability that any
        other has: no more than the unlikeliest that was listed, and than all these leave of 1."""
        listed = _listed(self.seen)
        words = _by_word(listed)
        if not words:
            return None, 0.0
        shares = [math.exp(value) for value in words.values()]
        unlisted = min(min(shares), max(0.0, 1.0 - math.fsum(shares)))
        if self.token is not None and self.logprob is not None and not self._is_in(listed):
            drawn = _word(self.token)
            beside = words.get(drawn)
            both = self.logprob if beside is None else _added(beside, self.logprob)
            words[drawn] = min(both, 0.0)
        return words, unlisted

    def _is_in(self, listed: list[tuple[Any, Any]]) -> bool:
        """Whether it is among the ``listed``, where it may be spelled in another way."""
        word, own = _word(self.token or ""), self.logprob or 0.0
        return any(
            token == self.token
            or (isinstance(token, str) and _word(token) == word and abs(said - own) < _ROUNDING)
            for token, said in listed
        )


def _steps(value: Any) -> list[_Step]:
    """The generated tokens, as far as their log-probabilities were told."""
    if not isinstance(value, dict):
        return []
    tokens = value.get("content")
    if isinstance(tokens, list):
        return [
            _Step(
                _token(token.get("token")),
                _logprob(token.get("logprob"), _LEAST_LOGPROB),
                token.get("top_logprobs"),
            )
            if isinstance(token, dict)
            else _Step(None, None, None)
            for token in tokens
        ]
    said = value.get("token_logprobs")
    if not isinstance(said, list):
        return []
    words, top = value.get("tokens"), value.get("top_logprobs")
    return [
        _Step(_token(_item(words, place)), _logprob(step, _LEAST_LOGPROB), _item(top, place))
        for place, step in enumerate(said)
    ]


def _item(values: Any, place: int) -> Any:
    return values[place] if isinstance(values, list) and place < len(values) else None


def _token(value: Any) -> str | None:
    return cleaned(value) if isinstance(value, str) else None


def _place_of_answer(thought: Thought, steps: list[_Step]) -> int | None:
    """Which of the tokens the answer begins with; None where they do not say. Some servers list the
    tokens of a thought too that they do not show."""
    if thought.reasoning is None:
        answer, first = thought.answer.strip(), steps[0].token if steps else None
        if len(steps) < 2 or first is None or not answer:
            return 0
        word = _word(first)
        if not word:
            return _place(answer, steps) or 0
        if answer.startswith(word) or word.startswith(answer):
            return 0
    return _place(thought.answer, steps)


def _place(answer: str, steps: list[_Step]) -> int | None:
    """Which of the tokens the answer behind a thought begins with; None where they do not say."""
    tokens = [step.token for step in steps]
    said = answer.strip()
    if not said or None in tokens:
        return None
    ends = list(itertools.accumulate(len(token or "") for token in tokens))
    whole = "".join(token or "" for token in tokens)
    start = whole.rfind(said)
    if start < 0 or _BEHIND.fullmatch(whole, start + len(said)) is None:
        return None
    place = bisect.bisect_right(ends, start)
    before = whole[ends[place - 1] if place else 0 : start]
    return None if _word(before) else place


def _logprob(value: Any, least: float) -> float | None:
    """A log-probability; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not least <= value <= _ROUNDING:  # false for NaN, too
        raise _garbled("a log-probability that cannot be")
    return min(float(value), 0.0)


def _listed(seen: Any) -> list[tuple[Any, Any]]:
    """Tokens and their log-probabilities, as a server lists them; none where it does not."""
    if isinstance(seen, dict):
        return list(seen.items())
    if isinstance(seen, list) and all(isinstance(each, dict) for each in seen):
        return [(each.get("token"), each.get("logprob")) for each in seen]
    return []


def _by_word(listed: list[tuple[Any, Any]]) -> dict[str, float] | None:
    """Log-probability of each word, " A" and "A" added up; None if any of them is unknown."""
    tokens: dict[str, float] = {}
    for token, said in listed:
        if type(said) is float and _LEAST_LOGPROB <= said <= 0.0:
            logprob: float | None = said
        else:
            tiny = isinstance(said, int | float) and said < _LEAST_LOGPROB
            logprob = -math.inf if tiny else _logprob(said, _LEAST_LOGPROB)
        if not isinstance(token, str) or logprob is None:
            return None
        # Some servers list the drawn token beside the likeliest, where it stands already.
        if token not in tokens or tokens[token] < logprob:
            tokens[token] = logprob
    words: dict[str, float] = {}
    for token, logprob in tokens.items():
        word = _word(token)
        words[word] = min(_added(words[word], logprob), 0.0) if word in words else logprob
    return words or None


def _word(token: str) -> str:
    """A token without the space before it, and without the mark for it that some servers leave, who
    give tokens as their vocabularies have them."""
    return (token if token.isascii() else cleaned(token).lstrip(_BEFORE_WORD)).strip()


def _added(first: float, second: float) -> float:
    """The logarithm of the sum of two probabilities, to the last bit as numpy's ``logaddexp``."""
    if first == second:
        return first + _LN2
    high, low = max(first, second), min(first, second)
    return high + math.log1p(math.exp(low - high))
