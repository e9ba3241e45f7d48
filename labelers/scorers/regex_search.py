"""Patterns out of data, matched by Python's ``re`` in a process that may be late.

``re`` backtracks, so that a short pattern can take for ever on a short text, and holds the
interpreter meanwhile. So another process searches, with a limit on the computing time of each
search, whatever else the machine does; it ends with this one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import suppress

SECONDS = 0.2
"""Computing time of one search."""
_BYTES = 1 << 30
"""Memory of the process that searches."""
_WORKER = """
import json, re, resource, signal, sys
def late(*_):
    raise TimeoutError
seconds = float(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
signal.signal(signal.SIGVTALRM, late)
signal.signal(signal.SIGINT, signal.SIG_IGN)
for line in sys.stdin.buffer:
    pattern, text, counted = json.loads(line)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        answer = (
            sum(1 for _ in re.finditer(pattern, text)) if counted
            else re.search(pattern, text) is not None
        )
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except TimeoutError:
        answer = f"takes more than {seconds:g} s of computing on this text"
    except Exception as error:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        answer = f"is not a regular expression: {type(error).__name__}: {error}"
    sys.stdout.write(json.dumps(answer) + "\\n")
    sys.stdout.flush()
"""


class PatternError(ValueError):
    """A pattern that is none, or cannot be searched for in time; says what it does or is."""


class RegexSearch:
    """Searches for patterns, one at a time. The process is started by the first search."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._one_at_a_time = threading.Lock()

    def found(self, pattern: str, text: str) -> bool:
        """Whether ``pattern`` is found in ``text``. Raises :class:`PatternError`."""
        return bool(self._answer(pattern, text, counted=False))

    def count(self, pattern: str, text: str) -> int:
        """How often ``pattern`` is found in ``text``. Raises :class:`PatternError`."""
        return self._answer(pattern, text, counted=True)

    def _answer(self, pattern: str, text: str, *, counted: bool) -> int:
        question = json.dumps([pattern, text, counted]).encode() + b"\n"
        with self._one_at_a_time:
            line = self._ask(question) or self._ask(question)  # again where it had been killed
        if not line:
            raise PatternError("ends the process that searches for it")
        answer = json.loads(line)
        if isinstance(answer, str):
            raise PatternError(answer)
        return int(answer)

    def close(self) -> None:
        """End the process."""
        with self._one_at_a_time:
            self._end()

    def _ask(self, question: bytes) -> bytes:
        """The line that the process answers; empty where it ended instead."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        line = b""
        with suppress(BrokenPipeError):
            process.stdin.write(question)
            process.stdin.flush()
            line = process.stdout.readline()
        if not line.endswith(b"\n"):
            self._end()
            return b""
        return line

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and script
            [sys.executable, "-I", "-c", _WORKER, str(self._seconds), str(_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        process.wait()
