"""What a server says of a job: any JSON value may stand anywhere, and what is taken is sound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefloop.pipeline.engines.openai.server_words import one_line, said_by
from prefloop.pipeline.engines.openai.transport import written

TAG = "prefloop"
"""The key of a job's metadata that holds its name."""
AT_WORK = frozenset(["validating", "in_progress", "finalizing", "cancelling"])
OVER = frozenset(["completed", "expired", "cancelled", "canceled", "failed"])
_SYNONYMS = {"canceled": "cancelled", "canceling": "cancelling", "queued": "validating",
             "pending": "validating", "running": "in_progress", "succeeded": "completed",
             "error": "failed"}  # fmt: skip
_FULL = ("enqueued token limit", "token_limit_exceeded", "enqueued_token", "too many batches")


@dataclass(frozen=True)
class Fault:
    """What is wrong with a job that failed, or with one ``line`` (from 1) of its file."""

    error: Mapping[str, Any]
    line: int | None = None

    @property
    def words(self) -> str:
        """It, on one line."""
        said = [self.error.get(name) for name in ("code", "message")]
        return one_line(": ".join(one for one in said if isinstance(one, str)) or "no reason given")

    @property
    def body(self) -> bytes:
        """It, as the body of an answer to a request sent alone."""
        return written({"error": self.error})

    @property
    def status(self) -> int:
        """The status of that answer."""
        return said_by({"error": self.error}).status or 400

    @property
    def is_full(self) -> bool:
        """Whether the server has too much waiting already, so that it is no fault of the job's."""
        return self.line is None and any(word in self.words.lower() for word in _FULL)


@dataclass(frozen=True)
class JobState:
    """A job as the server sees it."""

    id: str
    status: str
    output_file: str | None = None
    error_file: str | None = None
    faults: tuple[Fault, ...] = ()
    done: int = 0
    total: int | None = None
    input_file: str | None = None
    tag: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.status in OVER


def read_state(body: Any) -> JobState | None:
    """The state in ``body``; null where there is none."""
    if not isinstance(body, dict):
        return None
    found, status = body.get("id"), body.get("status")
    if not isinstance(found, str) or not found or not isinstance(status, str):
        return None
    status = status.strip().lower()
    status = _SYNONYMS.get(status, status)
    if status not in AT_WORK | OVER:
        return None
    counts = body.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    metadata = body.get("metadata")
    return JobState(
        id=found,
        status=status,
        output_file=_text(body.get("output_file_id")),
        error_file=_text(body.get("error_file_id")),
        faults=tuple(_faults(body.get("errors"))),
        done=(_count(counts.get("completed")) or 0) + (_count(counts.get("failed")) or 0),
        total=_count(counts.get("total")),
        input_file=_text(body.get("input_file_id")),
        tag=_text(metadata.get(TAG)) if isinstance(metadata, dict) else None,
    )


def _faults(errors: Any) -> list[Fault]:
    data = errors.get("data") if isinstance(errors, dict) else errors
    if isinstance(errors, dict) and not isinstance(data, list) and errors.get("message"):
        data = [errors]
    if isinstance(data, str) and data:
        data = [{"message": data}]
    found = data if isinstance(data, list) else []
    return [
        Fault({key: value for key, value in one.items() if key != "line"}, _count(one.get("line")))
        for one in found
        if isinstance(one, dict)
    ]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: Any) -> int | None:
    is_one = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return value if is_one else None
