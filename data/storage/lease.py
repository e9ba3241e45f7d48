"""A lock on objects: who may write below an address, wherever its process runs.

A claim is an object of the next number that is created once; the highest number owns. Its owner
writes a beat every quarter of the time after which others may take over, and a mark when it ends.
A machine that dies so loses the lease by itself, and one that was paused finds a higher number when
it wakes. All ages are by the store's clock; nobody waits for a process of the same machine that is
no more. Needs nothing of the store but that it refuses to create what is there.
"""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from prefloop.data.errors import StorageError
from prefloop.data.storage.objects import Found, Objects

FOLDER = "lock"
"""Where the claims lie, below the address that is locked."""
TTL = 60.0
"""Seconds without a beat after which a lease may be taken over."""
_KEPT = 8
"""Claims that stay when later ones are made: who listed before must find no number free again."""
_CLAIM = re.compile(r"(\d{8})\.(json|beat|free)")


class LeaseTaken(StorageError):
    """Somebody else works there."""


class LeaseLost(StorageError):
    """Somebody else works there now, as this process gave no sign of life."""


class Lease:
    """The right to write below ``objects``. :meth:`take` it, :meth:`require` it before what must
    not be done by two, :meth:`release` it."""

    def __init__(self, objects: Objects, *, ttl: float = TTL) -> None:
        self.objects = objects
        self.ttl = ttl
        self.nonce = secrets.token_hex(16)
        self.number = 0
        self.before: str | None = None
        """The nonce of the claim before ours, where its owner did not end in good order."""
        self._lost: LeaseLost | None = None
        self._beaten = 0.0
        self._guard = threading.Lock()

    def take(self) -> None:
        """Become the owner. Raises ``LeaseTaken`` with who is, or ``StorageError``."""
        now = self.objects.require_conditions(FOLDER)
        claims = self._listed()
        last = max(claims, default=0)
        if last:
            self._refuse_living(claims[last], now)
        self.before = None if "free" in claims.get(last, {}) else self._nonce_of(last)
        who = {
            "nonce": self.nonce, "host": platform.node(), "process": os.getpid(),
            "since": now.isoformat(timespec="seconds"), "kernel": _kernel(),
        }  # fmt: skip
        began = _now()
        if not self.objects.create(_name(last + 1, "json"), json.dumps(who).encode()):
            raise LeaseTaken(self._taken(last + 1))
        self.number, self._beaten = last + 1, began
        highest = max(self._listed(), default=0)
        if highest != self.number or self._nonce_of(highest) != self.nonce:
            raise LeaseTaken(self._taken(highest))
        self._tidy(claims)

    def beat(self) -> None:
        """Give a sign of life. Raises ``LeaseLost`` where it comes too late."""
        with self._guard:
            if self._lost:
                raise self._lost
            if not self.number:
                return
            began = _now()
            self.objects.put(_name(self.number, "beat"), self.nonce.encode())
            self._refuse_lost()
            self._beaten = began

    def require(self) -> None:
        """See that the lease is still ours: asks the store only where the last sign of life is so
        old that others may have taken over. Raises ``LeaseLost``."""
        if self._lost or _now() - self._beaten > self.ttl / 2:
            self.beat()

    def is_last(self, nonce: str) -> bool:
        """Whether the last claim has ``nonce``, and did not end in good order."""
        claims = self._listed()
        last = max(claims, default=0)
        return last > 0 and "free" not in claims[last] and self._nonce_of(last) == nonce

    def release(self) -> None:
        """End the lease in good order, where it is still ours."""
        with self._guard:
            if self.number:
                self.objects.create(_name(self.number, "free"), self.nonce.encode())
                self.number = 0

    def _refuse_lost(self) -> None:
        highest = max(self._listed(), default=0)
        if highest != self.number:
            self.number = 0
            self._lost = LeaseLost(
                f"{self.objects.address}: another process took over ({self._who(highest)}), as "
                "this one gave no sign of life: what is on the store is whole; run the same "
                "command again when the other has ended"
            )
            raise self._lost

    def _refuse_living(self, claim: dict[str, Found], now: datetime) -> None:
        if "free" in claim:
            return
        last = max(one.modified for one in claim.values())
        silent = (now - last).total_seconds()
        number = int(next(iter(claim.values())).name.rpartition("/")[2][:8])
        if silent <= self.ttl and not _is_dead(self._claim(number)):
            raise LeaseTaken(self._taken(number, self.ttl - silent))

    def _taken(self, number: int, seconds: float | None = None) -> str:
        wait = f" (if it died, in {seconds:.0f} s from now)" if seconds is not None else ""
        return (
            f"{self.objects.address} is in use by {self._who(number)}: wait for it to end{wait}, "
            "or use another --run-dir"
        )

    def _who(self, number: int) -> str:
        claim = self._claim(number)
        if not claim:
            return "another process"
        return f"process {claim.get('process')} on {claim.get('host')} since {claim.get('since')}"

    def _nonce_of(self, number: int) -> str | None:
        return self._claim(number).get("nonce")

    def _claim(self, number: int) -> dict[str, Any]:
        try:
            found = json.loads(self.objects.get(_name(number, "json")))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _listed(self) -> dict[int, dict[str, Found]]:
        """By number, the claim, its beat and its end."""
        claims: dict[int, dict[str, Found]] = {}
        for one in self.objects.walk(FOLDER):
            if match := _CLAIM.fullmatch(one.name.rpartition("/")[2]):
                claims.setdefault(int(match[1]), {})[match[2]] = one
        return {number: claim for number, claim in claims.items() if "json" in claim}

    def _tidy(self, claims: dict[int, dict[str, Found]]) -> None:
        old: Sequence[int] = sorted(claims)[:-_KEPT]
        # The claim last: without it the rest is not looked at.
        names = [one.name for number in old for _, one in sorted(claims[number].items())]
        self.objects.delete_all(names)


def _name(number: int, kind: str) -> str:
    return f"{FOLDER}/{number:08d}.{kind}"


def _kernel() -> str | None:
    """What tells apart all that number processes: the start of this machine, and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:  # not Linux
        return None


def _is_dead(claim: dict[str, Any]) -> bool:
    """Whether who made ``claim`` was a process of this very machine, and is no more."""
    process = claim.get("process")
    if claim.get("kernel") in (None, "") or claim["kernel"] != _kernel():
        return False
    if not isinstance(process, int) or process <= 0:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _now() -> float:
    """Seconds that go on while a machine sleeps, where the system has such a clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)
