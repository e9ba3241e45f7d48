"""The local copy in which a run on an object store is worked on."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from filelock import FileLock, Timeout

from prefloop.data.errors import PrefloopError, StorageError, call_folder
from prefloop.data.shards import as_json, atomic_write_json, write_if_changed
from prefloop.data.storage.commits import told_of_commits
from prefloop.data.storage.lease import Lease, LeaseLost
from prefloop.data.storage.objects import Objects
from prefloop.pipeline.machine.user_cache import cache_folder
from prefloop.pipeline.remote import changes
from prefloop.pipeline.remote.known_objects import KnownObjects
from prefloop.pipeline.remote.mirror import Mirror

logger = logging.getLogger(__name__)

EVERY_S = 30.0
"""Seconds between two looks at what no commit told of: logs, checkpoints of a training."""
_STORES = "stores"
_ABOUT = "store.json"
_AHEAD = "ahead.json"


class WorkingCopy:
    """The folder that stands for what is below an address: one in the user's cache, or ``folder``,
    which was that once. Making the object touches nothing."""

    def __init__(self, address: str, folder: Path | None = None) -> None:
        self.objects = Objects(address)
        self.address = self.objects.address
        name = self.address.rpartition("/")[2]
        digest = blake2b(self.address.encode(), digest_size=8).hexdigest()
        self._folder = (folder or cache_folder() / _STORES / digest).resolve()
        self.root = self._folder / name
        """The folder that is the same as what is on the store."""
        call_folder(self.root, self.address)

    def look(self, *, weights: bool = False, is_new: bool = False) -> Path:
        """The folder, up to date for who only reads. Where a process of this machine works in it,
        or one was killed here and nobody went on elsewhere, it is ahead of the store, and stays.

        Raises ``StorageError`` where nothing is below the address, unless ``is_new``.
        """
        self._prepare()
        looked, held = self._folder / ".look", self._folder / ".held"
        with FileLock(looked), suppress(Timeout), FileLock(held, blocking=False):
            if not self._is_ahead():
                with self._mirror() as mirror:
                    if not mirror.fetch(weights=weights) and not is_new:
                        raise StorageError(
                            f"{self.address}: nothing is there: check the address, or give it "
                            "to `prefloop run` as run_dir"
                        )
        return self.root

    @contextmanager
    def held(self) -> Iterator[None]:
        """Work in the folder: nobody else does on any machine, it has all that is on the store, and
        what is committed in it is there before the commit returns.

        Raises ``LeaseTaken`` where somebody else works there, ``LeaseLost`` where this process was
        away for so long that somebody else took over, and ``StorageError``.
        """
        lease = Lease(self.objects)
        self._prepare()
        with FileLock(self._folder / ".held"), self._mirror() as mirror:
            was_ahead = self._ahead_of()
            lease.take()
            try:
                changes.recover(self.objects)
                if was_ahead and was_ahead == lease.before and self.root.is_dir():
                    mirror.compare()
                else:
                    mirror.fetch()
                atomic_write_json(self._folder / _AHEAD, {"nonce": lease.nonce})
                mirror.send(lease, slow=True)
                with _Keeper(mirror, lease, self.root).at_work():
                    yield
            except LeaseLost:
                raise
            except BaseException:
                with suppress(PrefloopError):
                    lease.release()
                raise
            (self._folder / _AHEAD).unlink(missing_ok=True)
            lease.release()

    def _prepare(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{self._folder}: cannot be made: {error.strerror}: set XDG_CACHE_HOME to a folder "
                "with room for the run"
            ) from None
        about = {"address": self.address, "root": self.root.name}
        write_if_changed(self._folder / _ABOUT, as_json(about))

    @contextmanager
    def _mirror(self) -> Iterator[Mirror]:
        known = KnownObjects(self._folder / "known.sqlite")
        try:
            yield Mirror(self.objects, self.root, known)
        finally:
            known.close()

    def _ahead_of(self) -> str | None:
        """The nonce of the lease under which the folder was last worked in, where that did not end
        in good order."""
        try:
            found = json.loads((self._folder / _AHEAD).read_text(encoding="utf-8"))
            return str(found["nonce"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _is_ahead(self) -> bool:
        nonce = self._ahead_of()
        return nonce is not None and self.root.is_dir() and Lease(self.objects).is_last(nonce)


class _Keeper:
    """Carries over what is committed, and gives signs of life, while somebody works in a folder."""

    def __init__(self, mirror: Mirror, lease: Lease, root: Path) -> None:
        self._mirror = mirror
        self._lease = lease
        self._root = root
        self._guard = threading.RLock()
        self._lost: LeaseLost | None = None
        self._ended = threading.Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Until the end of which what is committed is carried over; the rest is so at the end."""
        beats = (self._lease.ttl / 4, self._lease.beat)
        looks = (EVERY_S, lambda: self._send(slow=True))
        # Two threads: a large upload must not keep back a sign of life.
        threads = [
            threading.Thread(target=self._again_and_again, args=pair, daemon=True)
            for pair in (beats, looks)
        ]
        for thread in threads:
            thread.start()
        try:
            with told_of_commits(self._committed):
                yield
            self._send(slow=True)
        except LeaseLost:
            raise
        except BaseException:
            try:
                self._send(slow=True)
            except PrefloopError as error:
                logger.warning("what was done last is not on the store yet: %s", error)
            raise
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()

    def _committed(self, path: Path) -> None:
        if path.is_relative_to(self._root):
            with self._guard:
                self._mirror.written(path)
                self._send()

    def _send(self, *, slow: bool = False) -> None:
        with self._guard:
            if self._lost:
                raise self._lost
            self._mirror.send(self._lease, slow=slow)

    def _again_and_again(self, seconds: float, work: Callable[[], None]) -> None:
        while not self._ended.wait(seconds):
            try:
                work()
            except LeaseLost as lost:
                self._lost = lost
                return
            except PrefloopError as error:
                logger.warning("the store is not up to date: %s", error)


def copy_of(path: Path) -> WorkingCopy | None:
    """The working copy that the folder ``path`` is, or is in; null for any other folder."""
    for folder in (path.resolve(), *path.resolve().parents):
        if folder.parent.parent.name != _STORES:
            continue
        try:
            about = json.loads((folder.parent / _ABOUT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return WorkingCopy(about["address"], folder.parent)
    return None
