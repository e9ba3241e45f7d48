"""What a server says when it does not answer: one short line, in its own words.

Servers wrap their messages in many ways: ``{"error": {"message": ..}}`` (OpenAI), ``{"detail":
[{"loc": .., "msg": ..}]}`` (FastAPI), ``{"message": ..}``, a list of these (Google), plain text or
a page of HTML.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

LONGEST = 300
"""Characters of a server's words that are shown."""
_READ = 20_000  # characters of a body that are looked at for words
_KEYS = (
    "error", "errors", "detail", "details", "message", "msg", "error_message", "error_msg",
    "errormessage", "error_description", "title", "reason", "description", "fault", "faultstring",
    "innererror", "statusmessage", "exception", "metadata", "raw",
)  # fmt: skip
_ERROR_KEYS = frozenset(_KEYS) - {"title", "reason", "description", "metadata", "raw"}
_DEEPEST = 6
_decode = msgspec.json.Decoder().decode
_STATUS_OF = {
    "insufficient_quota": 402, "insufficient_credits": 402, "billing_hard_limit_reached": 402,
    "invalid_api_key": 401, "authentication_error": 401, "unauthorized": 401,
    "unauthenticated": 401, "permission_error": 403, "permission_denied": 403, "forbidden": 403,
    "model_not_found": 404, "not_found_error": 404, "not_found": 404, "notfounderror": 404,
    "context_length_exceeded": 400, "invalid_request_error": 400, "badrequesterror": 400,
    "invalid_argument": 400, "content_filter": 400, "rate_limit_exceeded": 429,
    "rate_limit_error": 429, "too_many_requests": 429, "resource_exhausted": 429,
    "overloaded_error": 529, "api_error": 500, "server_error": 500, "internal_error": 500,
    "internalservererror": 500, "internal": 500, "unavailable": 503,
}  # fmt: skip
_TAGS = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->|<[^<>]*>", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Said:
    """``words``: one line. ``status``: the HTTP status that the body itself names, if it does.
    ``codes``: the short words in it, lower case; ``fields``: what it finds fault with."""

    words: str
    status: int | None = None
    codes: frozenset[str] = frozenset()
    fields: tuple[str, ...] = ()


def one_line(text: str, most: int = LONGEST) -> str:
    """``text`` on one line of at most ``most`` characters, control characters escaped."""
    short = " ".join(text[: 20 * most].split())
    line = "".join(_visible(letter) for letter in short[: most + 1])
    return line if len(line) <= most and len(short) <= most else line[: most - 1] + "…"


def load_body(data: bytes) -> Any:
    """The JSON value in ``data``; letters that are no UTF-8 are replaced.

    Raises ``ValueError`` where there is none, also for one nested too deeply.
    """
    try:
        text = data.decode(json.detect_encoding(data), "replace")
        return json.loads(text, strict=False)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def strict_json(data: bytes) -> Any:
    """The same for JSON as the standard has it, at a quarter of the time.

    Raises ``ValueError`` for anything else, which :func:`load_body` may yet read.
    """
    try:
        return _decode(data)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def is_error(body: Any) -> bool:
    """Whether a body that holds no answer is a server's complaint."""
    while isinstance(body, list) and len(body) == 1:
        body = body[0]
    return isinstance(body, dict) and any(
        value for key, value in body.items() if key.lower() in _ERROR_KEYS
    )


def said_in(data: bytes) -> Said:
    """What the server said in the body ``data``."""
    try:
        body = load_body(data)
    except ValueError:
        return Said(one_line(_plain(data[: 4 * _READ].decode("utf-8", "replace")[:_READ])))
    return said_by(body)


def said_by(body: Any) -> Said:
    """What the server said in a body that is JSON."""
    if isinstance(body, str):
        return Said(one_line(_plain(body[:_READ])))
    messages = list(dict.fromkeys(_messages(body, _DEEPEST)))
    words = one_line("; ".join(messages[:4]))
    if not words and body not in (None, [], {}):
        words = one_line(json.dumps(_cut(body, 3)))
    codes = frozenset(_codes(body, _DEEPEST))
    return Said(words, _status(body, codes), codes, tuple(_fields(body, _DEEPEST)))


def quoted_fields(words: str, names: Collection[str]) -> list[str]:
    """Those of ``names`` that stand in ``words`` as a name: quoted, or with an underscore."""
    found = []
    for name in names:
        bare = "_" in name or name in {"seed", "logprobs", "temperature"}
        quote = "" if bare else "['\"`‘“]"
        close = r"(?!\w)" if bare else "['\"`’”]"
        if re.search(rf"(?<![\w]){quote}{re.escape(name)}{close}", words):
            found.append(name)
    return found


def _visible(letter: str) -> str:
    if letter == " " or not unicodedata.category(letter).startswith(("C", "Z")):
        return letter
    return f"\\x{ord(letter):02x}" if ord(letter) < 256 else f"\\u{ord(letter):04x}"


def _plain(text: str) -> str:
    """The words of a page of HTML, or the text itself."""
    if not re.match(r"\s*<[!?a-zA-Z]", text):
        return text
    return html.unescape(_TAGS.sub(" ", text))


def _messages(value: Any, depth: int) -> Iterator[str]:
    if depth == 0:
        return
    if isinstance(value, str):
        if value.strip():
            yield _plain(value[:_READ]).strip()
    elif isinstance(value, list):
        for item in value[:4]:
            yield from _messages(item, depth - 1)
    elif isinstance(value, dict):
        lower = {key.lower(): _unpacked(key, item) for key, item in list(value.items())[:100]}
        place = lower.get("loc")
        for key in _KEYS:
            for text in _messages(lower.get(key), depth - 1):
                yield f"{_dotted(place)}: {text}" if isinstance(place, list) else text


def _dotted(place: list[Any]) -> str:
    return ".".join(str(part) for part in place[:8] if isinstance(part, str | int))


def _objects(value: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    if depth and isinstance(value, list):
        for item in value[:10]:
            yield from _objects(item, depth - 1)
    elif depth and isinstance(value, dict):
        yield value
        for key in list(value)[:100]:
            if key.lower() in _KEYS:
                yield from _objects(_unpacked(key, value[key]), depth - 1)


def _unpacked(key: str, value: Any) -> Any:
    """``value``, or the JSON in it where it is what a gateway was told by the server behind it."""
    if key.lower() == "raw" and isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        with suppress(ValueError, RecursionError):
            return json.loads(value[:_READ], strict=False)
    return value


def _codes(body: Any, depth: int) -> Iterator[str]:
    for found in _objects(body, depth):
        for key in ("code", "type", "status", "error", "error_code"):
            value = found.get(key)
            if isinstance(value, str) and len(value) < 80:
                yield value.lower()


def _fields(body: Any, depth: int) -> Iterator[str]:
    for found in _objects(body, depth):
        if isinstance(found.get("param"), str):
            yield found["param"].split(".")[0].split("[")[0]
        place = found.get("loc")
        if isinstance(place, list):
            yield from (part for part in place if isinstance(part, str) and part != "body")


def _status(body: Any, codes: Collection[str]) -> int | None:
    for found in _objects(body, _DEEPEST):
        for key in ("code", "status", "status_code", "statusCode", "http_status"):
            value = found.get(key)
            if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3:
                value = int(value)
            if isinstance(value, int | float) and 400 <= value < 600:
                return int(value)
    known = [_STATUS_OF[code] for code in sorted(codes) if code in _STATUS_OF]
    return max(
        known, key=lambda status: (status in (401, 402, 403, 404, 429), status), default=None
    )


def _cut(value: Any, depth: int) -> Any:
    """``value`` made small enough to be shown."""
    if isinstance(value, dict):
        return {k[:40]: _cut(v, depth - 1) for k, v in list(value.items())[:8]} if depth else "…"
    if isinstance(value, list):
        return [_cut(item, depth - 1) for item in value[:4]] if depth else "…"
    if isinstance(value, str):
        return value[:80]
    return value if value is None or abs(value) < 1e18 else "a huge number"
