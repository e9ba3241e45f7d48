"""What passes between an engine's processes and this one: frames of a length and a pickle, over a
socket that no other process has."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import dataclass
from typing import Any

from prefloop.data.protocol import EngineFailed, RequestRejected
from prefloop.pipeline.engines.settings import LocalEngine

READ_AHEAD = 1 << 20
"""Bytes of a frame that are taken from the socket before it is asked for."""
OPENED, LOGGED, DYING = 0, -1, -2
"""Numbers of frames that answer no call: the engine is there, a record of its log, and why its
process ends itself."""
PATIENCE_S = 5.0
"""How long an engine may take to free what outlives its process."""
_LENGTH = 8

Told = tuple[bool, str, str]
"""An error as plain data: whether it is of one request alone, and its two texts. An exception does
not come through a pickle as what it was."""


@dataclass(frozen=True)
class OpeningOrder:
    """What a process is to open, and how."""

    config: LocalEngine
    model: str
    revision: str | None
    cores: tuple[int, ...]
    log_level: int


def framed(message: Any) -> bytes:
    """``message`` as it goes through the socket."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return len(body).to_bytes(_LENGTH) + body


async def next_message(reader: asyncio.StreamReader) -> Any:
    """The next message. Raises ``EOFError`` where the other side is gone."""
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH))
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise EOFError from error
    return pickle.loads(body)  # noqa: S301 - from our own process


def told(error: Exception) -> Told:
    """``error`` as plain data."""
    if isinstance(error, RequestRejected):
        return True, error.reason, error.detail
    if isinstance(error, EngineFailed):
        return False, error.problem, error.remedy
    return False, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}", ""


def raised(said: Told) -> RequestRejected | EngineFailed:
    """The error that :func:`told` made plain."""
    of_request, first, second = said
    return RequestRejected(first, second) if of_request else EngineFailed(first, second)
