"""Files that are there whole or not at all, and of which the first one stays.

Two writers of one file, or one that was paused and wakes when its work was done by another, are
told who was first: what others have built upon is never replaced by who comes late.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from filelock import FileLock

from prefloop.data.errors import StorageError
from prefloop.data.storage.commits import committed

_LINKLESS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What file systems without hard links say."""
_HOST = re.sub(r"[^\w.-]", "_", platform.node())[:64] or "localhost"
_TEMPORARY = re.compile(r"\..+\.tmp-(?:(?P<host>.+)-)?(?P<process>\d+)(?:-[0-9a-f]{8})?")
_READABLE = {
    errno.EACCES: "give yourself the right to read it; ",
    errno.EPERM: "give yourself the right to read it; ",
    errno.EMFILE: "raise the limit of open files (ulimit -n); ",
    errno.ENFILE: "end other processes that have many files open; ",
    errno.EIO: "the disk or its connection is faulty; ",
    errno.ESTALE: "mount the network folder again; ",
    errno.ENOMEM: "the machine is out of memory; ",
}
"""What keeps a file from being looked into, and says nothing of what it holds; and what helps."""
_OLD = 24 * 3600
"""Seconds after which a temporary file of another host is a leftover."""


class Listed(NamedTuple):
    """A file of a folder."""

    name: str
    """Within the folder."""
    size: int
    version: str
    """Another one when it has been written again."""


class Storage(Protocol):
    """Where files lie. They are named by their paths within it, with slashes.

    Every method raises ``StorageError`` where the storage refuses what it is asked for.
    """

    def get(self, name: str) -> bytes:
        """What is in a file. Raises ``FileNotFoundError`` where there is none."""

    def create(self, name: str, content: bytes | memoryview) -> bool:
        """Write a file, unless it is there: then nothing changes, and false is returned. Of all who
        create one file, whenever they do, one is told true."""

    def put(self, name: str, content: bytes | memoryview) -> None:
        """Write a file, also in the place of one that is there."""

    def list(self, folder: str = "") -> Sequence[Listed]:
        """The files in a folder, not those in folders within it, by name. One that does not exist
        is empty."""

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no fault."""


class LocalFiles:
    """The files below the folder ``root``. Making the object touches no disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, name: str) -> bytes:
        """See :class:`Storage`."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise refused(self.root / name, "read", error) from None

    def create(self, name: str, content: bytes | memoryview) -> bool:
        """See :class:`Storage`, and :func:`create_file`."""
        return create_file(self.root / name, lambda temporary: temporary.write_bytes(content))

    def put(self, name: str, content: bytes | memoryview) -> None:
        """See :class:`Storage`."""
        put_file(self.root / name, content)

    def list(self, folder: str = "") -> Sequence[Listed]:
        """See :class:`Storage`."""
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(filter(None, map(_listed, entries)))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise refused(self.root / folder, "read", error) from None

    def delete(self, name: str) -> None:
        """See :class:`Storage`."""
        try:
            (self.root / name).unlink(missing_ok=True)
        except OSError as error:
            raise refused(self.root / name, "removed", error) from None


def create_file(path: Path, write: Callable[[Path], object]) -> bool:
    """Let ``write`` make the file ``path``, unless it is there: then that stays, and false is
    returned.

    ``write`` is given another name in the same folder. The file gets its own by a hard link, which
    the file system refuses where the name is taken. Where there are no hard links (exFAT and some
    network drives) a rename does it, by whoever holds a lock of the operating system on the folder:
    that goes with its process, so that one which is killed is in nobody's way.
    """
    with _beside(path, write) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            # Over a network the answer may be lost, and the link be asked for again.
            return temporary.samefile(path)
        except OSError as error:
            if error.errno not in _LINKLESS:
                raise
            with FileLock(path.with_name(".create.lock")):
                if path.exists():
                    return False
                temporary.replace(path)
    return True


def put_file(path: Path, content: bytes | memoryview) -> None:
    """Write the file ``path``, also in the place of one that is there: readers see all of the old
    one or all of the new one. Raises ``StorageError``."""
    with _beside(path, lambda temporary: temporary.write_bytes(content)) as temporary:
        temporary.replace(path)


def link_file(source: Path, target: Path) -> None:
    """Let ``target`` be the file ``source`` too, or a copy; one that is there is left as it is.

    Files of a run are replaced and never written into, so what one name has does not change when
    the other gets new content. Raises ``StorageError``.
    """
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(source)
    except FileExistsError:
        return
    except OSError:  # another file system, or one without links
        create_file(target, lambda temporary: shutil.copyfile(source, temporary))
        return
    committed(target)


def link_files(source: Path, target: Path, pattern: str) -> None:
    """Let what matches ``pattern`` in the folder ``source`` be in ``target`` too."""
    for path in sorted(source.glob(pattern)):
        if path.is_file() and not path.name.startswith("."):
            link_file(path, target / path.relative_to(source))


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left half-written in ``folder`` and below it.

    Files of living processes stay, and those of another host for a day, as nobody here can tell
    whether their process lives. Leftovers are never read; they only take room.
    """
    for at, _, names in os.walk(folder):
        for name in names:
            if name.startswith(".") and (found := _TEMPORARY.fullmatch(name)):
                path = Path(at, name)
                with suppress(OSError):
                    if _is_left(path, found["host"], int(found["process"])):
                        path.unlink()


@contextmanager
def _beside(path: Path, write: Callable[[Path], object]) -> Iterator[Path]:
    """What ``write`` makes of a hidden name beside ``path``, on disk to the last byte. It goes at
    the end, and what was done with it is on disk then too."""
    mark = f"{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name}.tmp-{mark}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _flush(temporary)
        yield temporary
        _flush(path.parent)
    except OSError as error:
        raise refused(path, "written", error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    committed(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _listed(entry: os.DirEntry[str]) -> Listed | None:
    try:
        if entry.name.startswith(".") or entry.is_dir():
            return None
        stat = entry.stat()
    except FileNotFoundError:  # removed meanwhile
        return None
    return Listed(entry.name, stat.st_size, str(stat.st_mtime_ns))


def _is_left(path: Path, host: str | None, process: int) -> bool:
    if host in (None, _HOST):  # no host: of an earlier version
        return not _alive(process)
    return time.time() - path.stat().st_mtime > _OLD


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def refused(path: Path, done: str, error: OSError) -> StorageError:
    """What is said where the machine does not let ``path`` be ``done`` (written, read, removed)."""
    reason = _reason(error)
    remedy = "make room or choose another directory, then " if done == "written" else ""
    if done == "read" and is_of_machine(error):
        # It may be whole, and have been paid for.
        remedy = _READABLE[error.errno or 0] + "do not delete it, nothing says that it is damaged; "
    return StorageError(f"{path}: cannot be {done}: {reason}: {remedy}run the same command again")


def is_of_machine(error: BaseException) -> bool:
    """Whether ``error`` kept a file from being looked into, so that it may be whole."""
    return isinstance(error, OSError) and error.errno in _READABLE


def _reason(error: OSError) -> str:
    if error.errno is not None:  # Arrow has long words of its own for it
        return os.strerror(error.errno)
    return next(iter(str(error).splitlines()), type(error).__name__)
