"""What an engine has spent, on disk: it counts over resumes, and for all who open the engine.

A file of JSON lines, appended only: ``{"reserve": ID, "tokens": .., "cost": ..}`` before a request
is sent, ``{"settle": ID, ..}`` with what it took. What was reserved by a process that was killed
is never settled, and so counts in full, unless another takes it over: a job of many ``requests``
goes on at the server. A torn line is skipped: where it is a reservation, nothing was sent yet.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from filelock import FileLock

from prefloop.data.protocol import EngineFailed


@dataclass(frozen=True)
class Amount:
    """Tokens, and money in the currency of the prices."""

    tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.tokens + other.tokens, self.cost + other.cost)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.tokens - other.tokens, self.cost - other.cost)


class Ledger:
    """The amounts of one file, or, without a path, of this object. Used through :func:`ledger_at`,
    so that there is one in a process for each file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.settled = Amount()
        self.surplus = Amount()
        """The most that a request took beyond what was thought to be the most; of a job, each of
        its requests in the mean."""
        self.is_measured = False
        """Whether it is known of any request what it took."""
        self._open: dict[str, Amount] = {}
        self._surplus_then: dict[str, Amount] = {}
        self._requests: dict[str, int] = {}
        self._mine: set[str] = set()
        self._read = 0
        self._guard = threading.RLock()
        self._lock = None if path is None else FileLock(path.with_name(f".{path.name}.lock"))

    @property
    def lost(self) -> Amount:
        """What was reserved by others and not settled: by runs that were killed, in the main."""
        return sum((a for key, a in self._open.items() if key not in self._mine), Amount())

    @property
    def reserved(self) -> Amount:
        """All that may yet be spent, or was, by requests that are not settled."""
        return sum(self._open.values(), Amount())

    @property
    def under_way(self) -> int:
        """Requests of this process that are not settled."""
        return len(self._mine)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Up to date, and nobody else changes it meanwhile. Raises ``EngineFailed``."""
        with self._guard:
            if self._lock is None:
                yield
                return
            try:
                with self._lock.acquire(timeout=30):
                    self._catch_up()
                    yield
            except OSError as error:
                raise EngineFailed(
                    f"the ledger {self.path} cannot be used: {error.strerror or error}",
                    "make room, or make the file writable; the same command resumes",
                ) from None

    def reserve(self, *most: Amount) -> list[str]:
        """Set each of ``most`` aside; the reservations' ids. For use within :meth:`exclusive`.

        Each has :attr:`surplus` in it already.
        """
        keys = [os.urandom(6).hex() for _ in most]
        if not keys:
            return keys
        self._mine.update(keys)
        try:
            self._append("reserve", zip(keys, most, strict=True))
        except BaseException:
            self._mine.difference_update(keys)
            raise
        return keys

    def reserve_job(self, key: str, most: Amount, requests: int) -> None:
        """Set ``most`` aside for a job of so many requests, each with :attr:`surplus` in it, under
        a key that outlives the process. For use within :meth:`exclusive`."""
        self._mine.add(key)
        self._append("reserve", [(key, most)], requests)

    def take_over(self, key: str) -> bool:
        """Make the reservation of a job ours; false where it is settled. For use within
        :meth:`exclusive`."""
        if key in self._open:
            self._mine.add(key)
        return key in self._open

    def let_go(self, keys: Iterable[str]) -> None:
        """Let reservations of ours be for another process to settle."""
        self._mine.difference_update(keys)

    def settle(self, spent: Mapping[str, Amount]) -> None:
        """Put what was spent in the place of reservations, by their ids."""
        try:
            with self.exclusive():
                self._append("settle", spent.items())
        finally:
            self._mine.difference_update(spent)

    def sync(self) -> None:
        """Have what was written on the disk itself."""
        if self.path is None:
            return
        try:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise EngineFailed(
                f"the ledger {self.path} cannot be written: {error.strerror or error}",
                "make room; the same command resumes",
            ) from None

    def _append(
        self, kind: str, amounts: Iterable[tuple[str, Amount]], requests: int | None = None
    ) -> None:
        more = {} if requests is None else {"requests": requests}
        entries = [
            {kind: key, "tokens": amount.tokens, "cost": amount.cost, **more}
            for key, amount in amounts
        ]
        if self.path is not None:
            lines = b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
            with self.path.open("ab") as file:
                is_torn = file.tell() != self._read
                file.write(b"\n" + lines if is_torn else lines)
            if is_torn:
                self._catch_up()
                return
            self._read += len(lines)
        for entry in entries:
            self._apply(entry)

    def _catch_up(self) -> None:
        """Read what was appended since; a torn line at the end stays unread."""
        try:
            size = None if self.path is None else self.path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            size = None
        if self.path is None or size is None:
            self._read = 0
            return
        if size == self._read:  # as it is where one process works: nothing to read
            return
        with self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._read:
                self._read = 0  # it was taken away under us: what we know, we know
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._apply(_entry(line))
        self._read += len(whole)

    def _apply(self, entry: Any) -> None:
        if not isinstance(entry, dict) or (amount := _amount(entry)) is None:
            return
        if isinstance(key := entry.get("reserve"), str):
            self._open[key] = amount
            self._surplus_then[key] = self.surplus
            if isinstance(requests := entry.get("requests"), int) and requests > 0:
                self._requests[key] = requests
        elif isinstance(key := entry.get("settle"), str):
            reserved, then = self._open.pop(key, None), self._surplus_then.pop(key, None)
            if reserved is not None and then is not None:
                requests = self._requests.pop(key, 1)
                more = amount - reserved
                beyond = then + Amount(-(-more.tokens // requests), more.cost / requests)
                self.surplus = Amount(
                    max(self.surplus.tokens, beyond.tokens), max(self.surplus.cost, beyond.cost)
                )
            self.settled += amount
            self.is_measured |= amount.tokens > 0


_LEDGERS: WeakValueDictionary[Path, Ledger] = WeakValueDictionary()
_LEDGERS_GUARD = threading.Lock()


def ledger_at(path: Path | None) -> Ledger:
    """The ledger in the file ``path``, whose folder is made; a new one of no file for None.

    Raises ``EngineFailed``.
    """
    if path is None:
        return Ledger(None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path = path.resolve()
    except OSError as error:
        raise EngineFailed(
            f"cannot make the folder of the ledger {path}: {error.strerror}", "check cache_dir"
        ) from None
    with _LEDGERS_GUARD:
        ledger = _LEDGERS.get(path)
        if ledger is None:
            ledger = _LEDGERS[path] = Ledger(path)
    with ledger.exclusive():
        return ledger


def _entry(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _amount(entry: dict[str, Any]) -> Amount | None:
    tokens, cost = entry.get("tokens"), entry.get("cost")
    if not isinstance(tokens, int) or not isinstance(cost, int | float):
        return None
    if not 0 <= tokens < 2**62 or not 0 <= cost < math.inf:
        return None
    return Amount(tokens, float(cost))
