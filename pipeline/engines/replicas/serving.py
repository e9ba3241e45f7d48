"""A process with one engine in it; started by ``prefloop.pipeline.engines.replicas.replica``.

Calls come in over a socket and are answered in any order. The process ends when its caller does,
however that ends, and takes with it all that its engine started.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

from prefloop.data.protocol import Engine
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.engines.replicas.wire import (
    DYING,
    LOGGED,
    OPENED,
    PATIENCE_S,
    READ_AHEAD,
    OpeningOrder,
    framed,
    next_message,
    told,
)

_FACTS = ("supports_json_schema", "is_transformers", "can_sleep")
"""What an engine says of itself, and does not change."""
_IN_A_THREAD = {"logprobs"}
"""Methods of an engine that compute in the thread that calls them."""
_WATCH_S = 1.0


def serve(descriptor: int) -> None:
    """Open the engine that the first message asks for, and answer calls, until nobody calls."""
    os.set_inheritable(descriptor, False)
    os.dup2(2, 1)  # what a library prints is no output of the command
    threading.Thread(target=_end_with_caller, args=(os.getppid(),), daemon=True).start()
    caller = socket.socket(fileno=descriptor)
    # vLLM forks its workers. Did they keep the socket, nobody would see that this process is gone.
    os.register_at_fork(after_in_child=caller.close)
    asyncio.run(_serve(caller))


async def _serve(caller: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=caller, limit=READ_AHEAD)
    writer.transport.set_write_buffer_limits(high=0)  # what is drained is sent
    opening: asyncio.Future[Engine] | None = None
    tasks: set[asyncio.Task[None]] = set()
    try:
        opening = asyncio.ensure_future(_opened(await next_message(reader), writer))
        while True:  # from the beginning: the caller may be gone while a large model is loaded
            number, method, args = await next_message(reader)
            task = asyncio.ensure_future(_answer(opening, writer, number, method, args))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    except EOFError:
        # Whatever transformers computes needs no end in good order, and would hold it up.
        if opening and opening.done() and hasattr(opening.result(), "restart"):
            with suppress(Exception):
                await asyncio.wait_for(opening.result().aclose(), PATIENCE_S)
        _end()


async def _opened(order: OpeningOrder, writer: asyncio.StreamWriter) -> Engine:
    if order.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, order.cores)
    _log_to(writer, order.log_level)
    try:
        engine = await build_engine(order.config, order.model, revision=order.revision)
    except Exception as error:  # noqa: BLE001 - a model's code may raise anything
        writer.write(framed((OPENED, False, told(error))))
        await _sent(writer)
        _end()
    facts = {name: getattr(engine, name, False) for name in _FACTS}
    writer.write(framed((OPENED, True, facts)))
    return engine


async def _answer(
    opening: asyncio.Future[Engine],
    writer: asyncio.StreamWriter,
    number: int,
    method: str,
    args: tuple[Any, ...],
) -> None:
    engine = await opening
    work = getattr(engine, method)
    try:
        found = await (asyncio.to_thread(work, *args) if method in _IN_A_THREAD else work(*args))
    except Exception as error:  # noqa: BLE001 - the caller is to hear of it, whatever it is
        if getattr(engine, "is_dead", False):
            # A new process can go on where this one cannot.
            writer.write(framed((DYING, False, told(error))))
            await _sent(writer)
            _end()
        writer.write(framed((number, False, told(error))))
    else:
        writer.write(framed((number, True, found)))
    await _sent(writer)


async def _sent(writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):  # reading tells
        await writer.drain()


def _log_to(writer: asyncio.StreamWriter, level: int) -> None:
    """Let the caller log what is logged here."""
    loop = asyncio.get_running_loop()

    class Forwarded(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said = (LOGGED, record.levelno, (record.name, record.getMessage()))
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(writer.write, framed(said))

    logging.basicConfig(level=logging.ERROR, handlers=[Forwarded()])
    logging.getLogger("prefloop").setLevel(level)


def _end_with_caller(caller: int) -> None:
    """End the process, with all that it started, soon after its caller is gone: a model's code may
    keep the loop from reading."""
    while os.getppid() == caller:
        time.sleep(_WATCH_S)
    time.sleep(PATIENCE_S)
    _end()


def _end() -> NoReturn:
    os.killpg(0, signal.SIGKILL)
    os._exit(1)
