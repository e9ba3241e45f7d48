"""The files of a job: a line for each request, and what came of it, in any order.

What stands there is a server's word, and lines may be torn, missing, doubled or another job's. A
request has an answer where one line, or several that say the same, give it one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from prefloop.pipeline.engines.openai.connections.response import LARGEST_BODY
from prefloop.pipeline.engines.openai.server_words import load_body, said_by, strict_json
from prefloop.pipeline.engines.openai.transport import written

UNRUN = frozenset(["batch_expired", "batch_cancelled", "batch_canceled", "request_cancelled"])
"""What stands for requests that a job never came to."""


@dataclass(frozen=True)
class LineAnswer:
    """What a server answered to one request: as if it had been sent alone."""

    status: int
    body: bytes
    unrun: bool = False
    """It was never asked: nothing was done, and nothing is charged."""

    @property
    def is_good(self) -> bool:
        """Whether there is an answer in it, as far as the server says."""
        return 200 <= self.status < 300


@dataclass(frozen=True)
class LinePlace:
    """Where a line stands."""

    path: Path
    offset: int


@dataclass
class LinesFound:
    """What the files of a job hold: for each request the line that counts, and what is amiss."""

    lines: dict[str, LinePlace] = field(default_factory=dict)
    uncertain: set[str] = field(default_factory=set)
    """Requests with several answers that differ."""
    garbage: int = 0
    """Lines that are none."""
    foreign: int = 0
    """Lines of requests that are not the job's."""


def request_line(custom_id: str, url: str, body: Mapping[str, Any]) -> bytes:
    """The line of one request in the file that is sent."""
    line = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
    return written(line) + b"\n"


def requests_in(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The requests of a file that was sent: their ids and bodies. Raises ``ValueError`` for what
    is none."""
    for line in path.read_bytes().splitlines():
        request = json.loads(line)
        if not isinstance(request, dict) or not isinstance(request.get("body"), dict):
            raise ValueError("a line that is no request")
        yield str(request["custom_id"]), request["body"]


def look_through(paths: Iterable[Path], wanted: Collection[str]) -> LinesFound:
    """What stands in the files ``paths`` of a job that asked ``wanted``."""
    found = LinesFound()
    good: dict[str, dict[bytes, LinePlace]] = {}
    bad: dict[str, LinePlace] = {}
    for path in paths:
        for offset, data in _lines(path):
            parsed = _parsed(data)
            if parsed is None:
                found.garbage += 1
                continue
            custom_id, answer = parsed
            if custom_id not in wanted:
                found.foreign += 1
            elif answer.is_good:
                said = sha256(answer.body).digest()
                good.setdefault(custom_id, {}).setdefault(said, LinePlace(path, offset))
            else:
                bad[custom_id] = LinePlace(path, offset)
    found.lines.update(bad)
    for custom_id, answers in good.items():
        if len(answers) == 1:
            found.lines[custom_id] = next(iter(answers.values()))
        else:
            found.lines.pop(custom_id, None)
            found.uncertain.add(custom_id)
    return found


def line_at(place: LinePlace) -> LineAnswer:
    """The answer that stands at ``place``, where :func:`look_through` found one."""
    with place.path.open("rb") as file:
        file.seek(place.offset)
        parsed = _parsed(file.readline(LARGEST_BODY))
    assert parsed is not None
    return parsed[1]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their offsets; one that is longer than any answer is cut into
    pieces, none of which is a line."""
    with path.open("rb") as file:
        offset = 0
        while data := file.readline(LARGEST_BODY):
            if data.strip():
                yield offset, data
            offset += len(data)


def _parsed(data: bytes) -> tuple[str, LineAnswer] | None:
    """The id and the answer of a line; null where it is none."""
    try:
        line = strict_json(data)
    except ValueError:
        try:
            line = load_body(data)
        except ValueError:
            return None
    custom_id = line.get("custom_id") if isinstance(line, dict) else None
    if not isinstance(custom_id, str):
        return None
    response, error = line.get("response"), line.get("error")
    if isinstance(response, dict):
        return custom_id, _answered(response, error)
    if not error:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    is_unrun = isinstance(code, str) and code in UNRUN
    return custom_id, LineAnswer(_status_of(error), written({"error": error}), unrun=is_unrun)


def _answered(response: Mapping[str, Any], error: Any) -> LineAnswer:
    status, body = response.get("status_code"), response.get("body")
    if isinstance(status, bool) or not isinstance(status, int) or not 100 <= status < 600:
        status = 500  # of a request that failed on its way some say 0
    if not body and error:
        body = {"error": error}
    text = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else written(body)
    return LineAnswer(status, text)


def _status_of(error: Any) -> int:
    """The status that an error without a response would have had; what is said of it by name is
    the server's fault unless it says otherwise."""
    return said_by({"error": error}).status or 500
