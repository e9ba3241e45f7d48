"""The process in which a user's function scores answers; started by
``prefloop.labelers.scorers.function_pool``.

Calls come in over a socket, each a length and a pickle; one line of JSON goes back for each, in
their order: a number, or the reason why there is none. The process ends when its caller does.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pickle
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

Score = Callable[..., Any]
"""``(text, *, messages, reference, metadata)`` to a number or a boolean."""

LENGTH = 8
"""Bytes of the length before a call."""
_REASON_CHARS = 2_000
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class FunctionMissing(ValueError):
    """There is no such function; says why and what to do."""


def search_here() -> None:
    """Let modules in the working directory be found, last, so that they hide nothing installed."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def load_function(path: str) -> Score:
    """The callable behind ``module:function``; modules in the working directory are found too.

    Raises :class:`FunctionMissing` where there is none.
    """
    module_name, _, name = path.partition(":")
    search_here()
    if module_name == "__main__":
        raise FunctionMissing(
            f"verifier function {path!r}: it is called in a process of its own, which knows no "
            "notebook and no script that is running; write it into a module, such as my_checks.py "
            "in the working directory"
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise FunctionMissing(
            f"verifier function {path!r}: importing {module_name} failed "
            f"({_told(error)}); write module:function, with the module installed "
            "or in the working directory"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise FunctionMissing(
            f"verifier function {path!r}: {module_name} has no function {name!r}; "
            "define it there, or correct the name"
        )
    return function  # type: ignore[no-any-return]


def serve(function: str, descriptor: int) -> None:
    """Answer the calls that come over the socket ``descriptor``, until it is closed.

    The first line says whether ``function`` was found: null, or what is wrong.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    os.dup2(2, 1)  # what the function prints is no output of the command
    caller = socket.socket(fileno=descriptor)
    try:
        score = load_function(function)
    except FunctionMissing as missing:
        _answer(caller, str(missing))
        return
    _answer(caller, None)
    calls: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(caller, calls), daemon=True).start()
    me = os.getpid()
    while True:
        found = _scored(score, calls.get())
        if os.getpid() != me:  # a fork that the function forgot
            os._exit(0)
        _answer(caller, found)


def _scored(score: Score, call: bytes) -> float | str:
    try:
        text, details = pickle.loads(call)  # noqa: S301 - from our own process
        return float(score(text, **details))
    except BaseException as error:  # noqa: BLE001 - the user's function may do this
        return _told(error)


def _told(error: BaseException) -> str:
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 - an exception of the user's may not know what it says
        said = "(it cannot be printed)"
    return f"{type(error).__name__}: {said}"[:_REASON_CHARS]


def _answer(caller: socket.socket, found: float | str | None) -> None:
    caller.sendall(json.dumps(found).encode() + b"\n")


def _receive(caller: socket.socket, calls: queue.SimpleQueue[bytes]) -> None:
    """Pass the calls on, and end the process, with all that it started, when nobody calls."""
    with suppress(OSError), caller.makefile("rb") as stream:
        while len(length := stream.read(LENGTH)) == LENGTH:
            calls.put(stream.read(int.from_bytes(length)))
    os.killpg(0, signal.SIGKILL)
