"""Calls of a user's function, in processes that can be ended: a function may loop for ever, hold
the interpreter meanwhile, or take its process with it, and costs that call alone.

Each process is a new interpreter: it imports the function's module for itself, nothing of the
caller is copied into it, and the caller imports nothing of the user's.
"""

from __future__ import annotations

import json
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from prefloop.data.utf8 import escaped, shown
from prefloop.labelers.base import LabelerError
from prefloop.labelers.scorers.function_process import LENGTH, search_here

Call = tuple[str, Mapping[str, Any]]
"""A text, and the function's other arguments by name."""

CHUNK = 64
"""Calls that a process is given at once, so that cheap ones are not spent on waiting."""
_IMPORT_SECONDS = 600.0
_GLANCE_SECONDS = 0.2
"""How often a batch looks whether it was given up."""
_SIGNALS = {number.value: number.name for number in signal.Signals}
_TERMINATED = "signal SIGTERM"
_TERMINATIONS = 3
_BOOT = (
    "import json, sys; sys.path[:], *call = json.loads(sys.argv[1]); "
    "from prefloop.labelers.scorers.function_process import serve; serve(*call)"
)


class GivenUp(Exception):
    """Nobody waits for the results any more."""


class FunctionPool:
    """Processes that call one function. One batch of calls at a time, on all processes.

    The processes end with the pool, and with this process, however it ends.
    """

    def __init__(self, function: str, *, processes: int, timeout_s: float) -> None:
        """Starts the first process. Raises ``LabelerError`` where it finds no ``function``."""
        self._function, self._size, self._timeout = function, processes, timeout_s
        self._processes: list[_Process] = []
        self._one_at_a_time = threading.Lock()
        self.close = weakref.finalize(self, _end, self._processes)
        """Ends all processes."""
        with self._one_at_a_time:
            _Batch(self, [], threading.Event()).run()

    def results(self, calls: Sequence[Call], given_up: threading.Event) -> list[float | str]:
        """What the function gives for each call, as a number, or why there is none: it raised, took
        more than ``timeout_s``, or ended its process.

        Raises :class:`GivenUp` soon after ``given_up`` is set, with no call running any more, and
        ``LabelerError`` where a new process does not find the function.
        """
        with self._one_at_a_time:
            return _Batch(self, calls, given_up).run()

    @property
    def pids(self) -> list[int]:
        """The processes that are there now."""
        return [process.pid for process in self._processes]


class _Process:
    """One interpreter and what is under way to and from it."""

    def __init__(self, function: str) -> None:
        search_here()
        self._socket, theirs = socket.socketpair()
        with theirs:
            call = json.dumps([list(map(str, sys.path)), function, theirs.fileno()])
            self._popen = subprocess.Popen(  # noqa: S603 - our own interpreter and script
                [sys.executable, "-P", "-c", _BOOT, call],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # it and all that it starts can be ended, by us alone
            )
        self._socket.setblocking(False)
        self._outgoing, self._incoming = bytearray(), bytearray()
        self.pid = self._popen.pid
        self.ready = False
        """Whether it has found the function."""
        self.answered = False
        """Whether it has answered a call."""
        self.asked: deque[int] = deque()
        """The calls that it has and did not answer, by their places in the batch."""
        self.deadline = time.monotonic() + _IMPORT_SECONDS

    def fileno(self) -> int:
        return self._socket.fileno()

    def runs(self) -> bool:
        look = os.WEXITED | os.WNOHANG | os.WNOWAIT  # its number stays its own until ``end``
        with suppress(ChildProcessError):
            return os.waitid(os.P_PID, self.pid, look) is None
        return False

    def waits_to_write(self) -> bool:
        return bool(self._outgoing)

    def ask(self, at: int, call: bytes) -> None:
        self.asked.append(at)
        self._outgoing += len(call).to_bytes(LENGTH) + call

    def write(self) -> None:
        """Send what it takes now; where it is gone, reading tells."""
        with suppress(OSError):
            del self._outgoing[: self._socket.send(self._outgoing)]

    def read(self) -> tuple[list[float | str | None], bool]:
        """The answers that are there, and whether more can come."""
        open_ = True
        while open_:
            try:
                data = self._socket.recv(1 << 20)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self._incoming += data
            open_ = bool(data)
        *lines, rest = self._incoming.split(b"\n")
        self._incoming = bytearray(rest)
        return [json.loads(line) for line in lines], open_

    def end(self) -> str:
        """Kill it and all that it started, if that was not done; returns how it ended."""
        if self._popen.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        code = self._popen.wait()
        return f"exit code {code}" if code >= 0 else f"signal {_SIGNALS.get(-code, -code)}"

    def hang_up(self) -> None:
        self._socket.close()


class _Batch:
    """Calls on their way through the processes of a pool."""

    def __init__(
        self, pool: FunctionPool, calls: Sequence[Call], given_up: threading.Event
    ) -> None:
        self._pool, self._calls, self._given_up = pool, calls, given_up
        self._processes = pool._processes
        self._results: list[float | str | None] = [None] * len(calls)
        self._left = len(calls)
        self._waiting = deque(range(len(calls)))
        self._deaths: Counter[int] = Counter()
        """How often a process ended during a call."""
        share = len(calls) // (4 * pool._size)
        self._chunk = max(1, min(CHUNK, share))

    def run(self) -> list[float | str]:
        try:
            for process in [one for one in self._processes if not one.runs()]:
                self._drop(process)
            while self._left or not self._processes or not self._processes[0].ready:
                if self._given_up.is_set():
                    raise GivenUp
                self._start()
                for process in self._processes:
                    self._feed(process)
                self._wait()
        except BaseException:
            _end(self._processes)
            raise
        return [one for one in self._results if one is not None]

    def _start(self) -> None:
        """Begin processes where calls wait for them."""
        idle = sum(not process.asked for process in self._processes)
        wanted = len(self._waiting) - idle if self._processes else 1
        room = self._pool._size - len(self._processes)
        for _ in range(min(wanted, room)):
            self._processes.append(_Process(self._pool._function))

    def _feed(self, process: _Process) -> None:
        if not process.ready or process.asked:
            return
        while self._waiting and len(process.asked) < self._chunk:
            at = self._waiting.popleft()
            try:
                call = pickle.dumps(self._calls[at])
            except Exception as error:  # noqa: BLE001 - whatever the metadata hold
                reason = shown(f"{type(error).__name__}: {error}")
                self._answer(at, f"the call cannot be sent to its process: {reason}")
                continue
            process.ask(at, call)
        process.deadline = time.monotonic() + self._pool._timeout

    def _wait(self) -> None:
        """Until a process can be read from or written to, or is late."""
        now = time.monotonic()
        busy = [process for process in self._processes if process.asked or not process.ready]
        if not busy:
            return
        nearest = min(process.deadline for process in busy) - now
        with selectors.DefaultSelector() as selector:
            for process in busy:
                both = selectors.EVENT_READ | selectors.EVENT_WRITE
                selector.register(
                    process, both if process.waits_to_write() else selectors.EVENT_READ
                )
            found = selector.select(max(0.0, min(nearest, _GLANCE_SECONDS)))
        for key, events in found:
            process = key.fileobj  # type: ignore[assignment]
            if events & selectors.EVENT_WRITE:
                process.write()
            if events & selectors.EVENT_READ:
                self._read(process)
        for process in [one for one in busy if one in self._processes]:
            if time.monotonic() > process.deadline and (process.asked or not process.ready):
                self._late(process)

    def _read(self, process: _Process) -> None:
        if not self._take(process):
            self._ended(process)

    def _take(self, process: _Process) -> bool:
        """Take the answers that are there; returns whether more can come."""
        answers, more = process.read()
        for answer in answers:
            if not process.ready:
                if answer is not None:
                    raise LabelerError(shown(str(answer)))
                process.ready = True
            else:
                assert answer is not None
                self._answer(process.asked.popleft(), answer)
                process.answered = True
            process.deadline = time.monotonic() + self._pool._timeout
        return more

    def _ended(self, process: _Process) -> None:
        """The process is gone: its call is tried again where others may be at fault."""
        how = process.end()
        self._require_import(process, f"ended its process ({how})")
        if process.asked:
            at = process.asked[0]
            self._deaths[at] += 1
            # Others may have used up its memory; who ends a whole job ends us too, in a moment.
            enough = _TERMINATIONS if how == _TERMINATED else 1 + process.answered
            if self._deaths[at] >= enough:
                self._answer(process.asked.popleft(), f"the function ended its process ({how})")
        self._drop(process)

    def _late(self, process: _Process) -> None:
        """End a process whose call takes too long."""
        process.end()
        self._require_import(process, f"takes more than {_IMPORT_SECONDS:g} s")
        before = process.asked[0]
        self._take(process)
        # What it answered in the last moment counts, and the call after it was only begun.
        if process.asked and process.asked[0] == before:
            process.asked.popleft()
            self._answer(before, f"took more than {self._pool._timeout:g} s (timeout_s)")
        self._drop(process)

    def _require_import(self, process: _Process, problem: str) -> None:
        if not process.ready:
            module = self._pool._function.partition(":")[0]
            raise LabelerError(
                f"verifier function {self._pool._function!r}: importing {module} {problem}; "
                "import it alone to see why"
            )

    def _drop(self, process: _Process) -> None:
        """Forget a process that is over; what it did not answer waits for another."""
        self._waiting.extendleft(reversed(process.asked))
        process.end()
        process.hang_up()
        self._processes.remove(process)

    def _answer(self, at: int, found: float | str) -> None:
        self._results[at] = escaped(found) if isinstance(found, str) else found
        self._left -= 1


def _end(processes: list[_Process]) -> None:
    for process in processes:
        process.end()
        process.hang_up()
    processes.clear()
