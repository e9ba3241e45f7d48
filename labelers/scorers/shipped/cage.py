"""A process for code that a model wrote: no network, no file of the machine that it could change,
no other process that it could reach, and only so much time and memory.

It is made of Linux namespaces, which need no rights where the system allows them to users. Where
it does not, nothing is run: ``CageError`` says what to do. The tests reach the process on a pipe
after the code was executed, and what passed comes back on another with a word that the code has
not seen; code that sets out to read its own process's memory for it could still forge a pass.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PRINTED = 1 << 20
"""Bytes of what a program prints that are looked at."""
_FILES = 16 << 20
_USER, _NET, _MOUNT, _IPC, _PROCESSES, _HOST = (
    0x10000000, 0x40000000, 0x00020000, 0x08000000, 0x20000000, 0x04000000,
)  # fmt: skip
_PRIVATE = 0x40000 | 0x4000  # MS_PRIVATE | MS_REC
_NOSUID_NODEV = 0x2 | 0x4
_MOUNT_SETATTR, _AT_FDCWD, _RECURSIVE = 442, -100, 0x8000
_READ_ONLY, _NO_SUID, _NO_DEV = 0x1, 0x2, 0x4
_DIE_WITH_PARENT, _NO_NEW_PRIVILEGES = 1, 38
_NOBODY = 65534
_REFUSED = 97
"""Exit code of a cage that the system did not allow."""


class CageError(RuntimeError):
    """Code cannot be run safely on this machine."""


@dataclass(frozen=True)
class Limits:
    """Of one run of a program."""

    seconds: float
    memory_mb: int


@dataclass(frozen=True)
class Ran:
    """What became of a program."""

    passed: list[bool]
    """One for each test; empty where the program did not come to its tests."""
    printed: str | None
    """What it printed; null where it failed, took too long or printed too much."""


def run_caged(
    code: str, limits: Limits, tests: Sequence[str] = (), *, given: str | None = None
) -> Ran:
    """Run ``code``, then each of ``tests`` in its namespace; or with ``given`` on its input, as a
    program that prints.

    Raises :class:`CageError` where the system allows no cage.
    """
    if sys.platform != "linux":
        raise CageError(f"code of a model is run in a cage of Linux's, not on {sys.platform}")
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="prefloop-cage-") as folder:
        job = {
            "code": code, "tests": [] if given is not None else list(tests), "word": word,
            "folder": folder, "seconds": limits.seconds, "memory": limits.memory_mb << 20,
        }  # fmt: skip
        job_in, job_out = os.pipe()
        told_in, told_out = os.pipe()
        with (
            os.fdopen(job_out, "wb") as write, os.fdopen(told_in, "rb") as read,
            tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err,
        ):  # fmt: skip
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and script
                [sys.executable, "-I", "-B", str(Path(__file__)), str(job_in), str(told_out)],
                stdin=subprocess.PIPE,
                # Files, whose size is limited, unlike that of what a pipe passes on.
                stdout=out if given is not None else subprocess.DEVNULL,
                stderr=err,
                pass_fds=(job_in, told_out),
                env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
            )
            os.close(job_in)
            os.close(told_out)
            with suppress(BrokenPipeError):
                write.write(json.dumps(job).encode())
                write.close()
            late = False
            try:
                process.communicate((given or "").encode(), timeout=limits.seconds)
            except subprocess.TimeoutExpired:
                late = True
                process.kill()  # the program ends with it
                process.communicate()
            told = read.read().decode(errors="replace").splitlines()
            out.seek(0)
            err.seek(0)
            shown, said = out.read(_PRINTED + 1), err.read()
    if process.returncode == _REFUSED:
        raise CageError(
            "this system allows no process without network and without write access "
            f"({_why(said)}): code of a model is not run unprotected; allow user "
            "namespaces (kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns), or label on a machine that has them"
        )
    marks = {line.removeprefix(f"{word} ") for line in told if line.startswith(f"{word} ")}
    printed = None
    if given is not None and not late and process.returncode == 0 and len(shown) <= _PRINTED:
        printed = shown.decode(errors="replace")
    return Ran([str(index) in marks for index in range(len(tests))] if marks else [], printed)


def _why(err: bytes) -> str:
    lines = err.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no reason given"


def _main(job_at: int, told_at: int) -> None:
    """The cage: shut it, then run the program in a process that sees no other."""
    with os.fdopen(job_at, "rb") as read:
        job: dict[str, Any] = json.loads(read.read())
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    try:
        _shut(libc, job)
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        os._exit(_REFUSED)
    child = os.fork()
    if not child:
        # A process group reaches beyond the namespace: kill(0) would end whoever labels.
        os.setsid()
        _limit(libc, job)
        _program(job, told_at)
    _, status = os.waitpid(child, 0)
    os._exit(0 if status == 0 else 1)


def _shut(libc: Any, job: dict[str, Any]) -> None:
    uid, gid = os.getuid(), os.getgid()
    _ask(libc.unshare(_USER | _NET | _MOUNT | _IPC | _PROCESSES | _HOST), "unshare")
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{_NOBODY} {uid} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{_NOBODY} {gid} 1", encoding="ascii")
    _ask(libc.mount(b"none", b"/", None, _PRIVATE, None), "mount")
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY | _NO_SUID | _NO_DEV, 0, 0, 0)
    _ask(
        libc.syscall(
            _MOUNT_SETATTR, _AT_FDCWD, b"/", _RECURSIVE, ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
        ),
        "mount_setattr",
    )  # fmt: skip
    # Sockets of services can be talked to on a disk that is only read.
    for hidden in ("/run", "/var/run", "/tmp/.X11-unix"):  # noqa: S108 - hidden, not used
        if Path(hidden).is_dir() and not Path(hidden).is_symlink():
            _ask(libc.mount(b"none", hidden.encode(), b"tmpfs", _NOSUID_NODEV, None), "mount")
    size = f"size={_FILES},mode=777".encode()
    _ask(libc.mount(b"none", job["folder"].encode(), b"tmpfs", _NOSUID_NODEV, size), "mount")
    os.chdir(job["folder"])


def _ask(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _limit(libc: Any, job: dict[str, Any]) -> None:
    seconds = max(1, int(job["seconds"]) + 1)
    for kind, value in (
        (resource.RLIMIT_AS, job["memory"]), (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, _FILES), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 64),
    ):  # fmt: skip
        resource.setrlimit(kind, (value, value))
    libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    # Where a container forbids it, the numbers of other processes can be seen, and no more.
    libc.mount(b"proc", b"/proc", b"proc", _NOSUID_NODEV, None)
    _drop_rights(libc)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def _drop_rights(libc: Any) -> None:
    """Give up the rights that the maker of a namespace has in it: what is read-only stays so."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _ask(libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")


def _program(job: dict[str, Any], told_at: int) -> None:
    """Execute the code, then its tests; say which passed. Does not return."""
    tests, word = job.pop("tests"), job.pop("word")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    try:
        exec(compile(job.pop("code"), "answer.py", "exec"), namespace)  # noqa: S102 - caged
        for index, test in enumerate(tests):
            try:
                exec(compile(test, "test.py", "exec"), namespace)  # noqa: S102 - caged
            except BaseException:  # noqa: BLE001, S112 - a failed test, whatever it raises
                continue
            os.write(told_at, f"{word} {index}\n".encode())
        os.write(told_at, f"{word} ran\n".encode())
        sys.stdout.flush()
    except SystemExit as leaving:
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(0 if leaving.code in (None, 0) else 1)
    except BaseException:  # noqa: BLE001 - whatever a model's code does
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))
