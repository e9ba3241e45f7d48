"""One process with an engine in it, as an engine of this one."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefloop.data.protocol import Completion, EngineFailed, Request
from prefloop.pipeline.engines.replicas.places import ReplicaPlace
from prefloop.pipeline.engines.replicas.wire import (
    DYING,
    LOGGED,
    OPENED,
    PATIENCE_S,
    READ_AHEAD,
    OpeningOrder,
    framed,
    next_message,
    raised,
)
from prefloop.training.inputs.tokens import TokenIds

if TYPE_CHECKING:
    from prefloop.training.policy.logprobs import Scores

logger = logging.getLogger(__name__)

_MEMORY = (
    "who is killed with SIGKILL has mostly used up the memory: set fewer `replicas`, or a smaller "
    "batch_size or max_num_seqs; the same command resumes the run"
)
_SAID = "look for its own error above; the same command resumes the run"
_BOOT = (
    "import json, sys; sys.path[:], at = json.loads(sys.argv[1]); "
    "from prefloop.pipeline.engines.replicas.serving import serve; serve(at)"
)
_SIGNALS = {number.value: number.name for number in signal.Signals}


@dataclass
class ReplicaDied(EngineFailed):
    """The process is gone, and what it was asked is not answered; another one may answer it."""


def remedy_of(died: Exception) -> str:
    """What to do about processes that die as ``died`` says."""
    return _MEMORY if "SIGKILL" in str(died) else _SAID


class Replica:
    """Engine in a process of its own. Made by :meth:`start`; use it from the event loop of that.

    The process ends with this one, however this one ends: its socket is closed then.
    """

    def __init__(self, place: ReplicaPlace, who: str, own: socket.socket, theirs: int) -> None:
        """Use :meth:`start` instead."""
        self.place = place
        self.who = f"{who}, {place}"
        self.facts: Mapping[str, Any] = {}
        """What the engine says of itself; see ``prefloop.pipeline.engines.replicas.serving``."""
        self.on_death: Callable[[Replica], None] | None = None
        """Hears of it when the process ends and nobody here ended it."""
        self.over: str | None = None
        """Why the process is gone; null while it is there."""
        call = json.dumps([list(map(str, sys.path)), theirs])
        self._popen = subprocess.Popen(  # noqa: S603 - our own interpreter and script
            [sys.executable, "-P", "-c", _BOOT, call],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs,),
            start_new_session=True,  # it and all that it starts can be ended, by us alone
            env=place.environment(os.environ),
        )
        self._socket = own
        self._finalizer = weakref.finalize(self, _end, self._popen)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._closing = False
        self._says_why: str | None = None

    @classmethod
    async def start(cls, order: OpeningOrder, place: ReplicaPlace, who: str) -> Replica:
        """Start a process and wait until its engine is there.

        Raises ``EngineFailed``: as the process says it, or because it ended meanwhile.
        """
        own, theirs = socket.socketpair()
        with theirs:
            try:
                replica = cls(place, who, own, theirs.fileno())
            except OSError as error:
                own.close()
                raise EngineFailed(
                    f"{who}: no process can be started: {error.strerror}", "set fewer `replicas`"
                ) from error
        try:
            await replica._open(order)
        except ReplicaDied as died:
            await replica.aclose()
            raise EngineFailed(
                f"{replica.who} ended while it loaded {order.model} ({died.problem})",
                remedy_of(died),
            ) from None
        except BaseException:
            await replica.aclose()
            raise
        return replica

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._popen.pid

    async def generate(self, request: Request) -> list[Completion]:
        """See ``prefloop.data.protocol.Engine``. Raises :class:`ReplicaDied` too, as all do."""
        found: list[Completion] = await self._call("generate", request)
        return found

    async def load_policy(self, path: str) -> None:
        """See ``prefloop.data.protocol.Engine``."""
        await self._call("load_policy", path)

    async def restart(self, path: str) -> None:
        """Serve ``path`` from a new vLLM in the process."""
        await self._call("restart", path)

    async def sleep(self) -> None:
        """Free the GPU's memory; see ``VllmInProcess``."""
        await self._call("sleep")

    async def wake_up(self) -> None:
        """Serve again; see ``VllmInProcess``."""
        await self._call("wake_up")

    async def logprobs(
        self,
        prompts: Sequence[TokenIds],
        answers: Sequence[TokenIds],
        share: tuple[int, int],
    ) -> Scores:
        """See ``HfEngine.logprobs``."""
        found: Scores = await self._call("logprobs", prompts, answers, share)
        return found

    async def aclose(self) -> None:
        """End the process with all that it started."""
        self._closing = True
        if self._reading is None:
            _end(self._popen)
            self._socket.close()
            return
        self._reading.cancel()
        await self._reading

    async def _open(self, order: OpeningOrder) -> None:
        self._socket.setblocking(False)
        reader, self._writer = await asyncio.open_connection(sock=self._socket, limit=READ_AHEAD)
        opened = self._waiting[OPENED] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.ensure_future(self._read(reader))
        self._writer.write(framed(order))
        self.facts = await opened
        del self._waiting[OPENED]

    async def _call(self, method: str, *args: Any) -> Any:
        if self.over is not None:
            raise ReplicaDied(self.over)
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(framed((number, method, args)))
            with suppress(ConnectionError):  # reading tells
                await self._writer.drain()
            return await answer
        finally:
            self._waiting.pop(number, None)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Take answers until the process is gone, with all that it started. Cancelled, by
        :meth:`aclose` or with all else in the loop, it lets the process end."""
        try:
            while True:
                self._take(*await next_message(reader))
        except EOFError:
            pass
        except asyncio.CancelledError:
            self._closing = True
            await self._farewell(reader)
        self._kill()
        with suppress(asyncio.CancelledError):  # it is killed, and nobody needs to know how it went
            await asyncio.to_thread(self._popen.wait)
        code = self._popen.returncode or 0
        how = f"signal {_SIGNALS.get(-code, -code)}" if code < 0 else f"exit code {code}"
        self.over = self._says_why or how
        self._writer.close()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ReplicaDied(self.over))
        if self.on_death is not None and not self._closing:
            self.on_death(self)

    async def _farewell(self, reader: asyncio.StreamReader) -> None:
        """Tell the process to end, and wait a little until it has freed what outlives it."""
        with suppress(OSError, RuntimeError, TimeoutError, asyncio.CancelledError):
            self._writer.write_eof()
            async with asyncio.timeout(PATIENCE_S + 1):
                while await reader.read(READ_AHEAD):
                    pass

    def _take(self, number: int, good: Any, value: Any) -> None:
        if number == LOGGED:
            name, message = value
            logging.getLogger(name).log(good, "%s: %s", self.place, message)
        elif number == DYING:
            self._says_why = value[1]
        elif (answer := self._waiting.get(number)) is not None and not answer.done():
            if good:
                answer.set_result(value)
            else:
                answer.set_exception(raised(value))

    def _kill(self) -> None:
        if self._popen.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)


def _end(popen: subprocess.Popen[bytes]) -> None:
    """For a process that nobody closed."""
    if popen.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
