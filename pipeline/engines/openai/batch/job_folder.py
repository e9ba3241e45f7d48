"""Jobs on disk: what was sent to a server, and under which ids it is known there.

    JOBS/NAME/job.json         what is known of it; it is there before anything is sent
    JOBS/NAME/requests.jsonl   what is sent; gone when its answers are in the response cache

The name stands in the job's metadata at the server too, so that a job is found there whose id was
not written down any more.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from prefloop.data.shards import atomic_write_json, damaged, read_json_object
from prefloop.data.storage.whole_files import put_file

SUFFIX = ".jobs"
"""End of the name of an engine's folder of jobs, beside its ledger."""
_REMEDY = "delete its folder, and its requests are sent again"


@dataclass(frozen=True)
class JobRecord:
    """What is known of a job."""

    name: str
    model: str
    begun: float
    """When, in seconds since 1970."""
    requests: int = 0
    file_id: str | None = None
    is_asked_for: bool = False
    """The server may have been told to begin, whether it said so or not."""
    batch_id: str | None = None
    status: str = ""
    """As the server calls it."""
    done: int = 0
    """Requests that it has finished, as it says."""
    is_over: bool = False
    """Its answers were taken, or it has none."""

    @property
    def is_open(self) -> bool:
        """Whether it may be at work, or have answers that were not taken."""
        return self.is_asked_for and not self.is_over


class JobFolder:
    """The jobs of an engine. Making the object touches no disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def new_name(self) -> str:
        """A name that no job has, also none of another run at the same server."""
        return f"prefloop-{int(time.time())}-{secrets.token_hex(8)}"

    def requests(self, name: str) -> Path:
        """The file of requests of a job."""
        return self.root / name / "requests.jsonl"

    def file(self, name: str, what: str) -> Path:
        """A file of a job."""
        return self.root / name / what

    def write(self, record: JobRecord) -> None:
        """Write down what is known of a job. Raises ``StorageError``."""
        atomic_write_json(self.root / record.name / "job.json", asdict(record))

    def write_requests(self, name: str, lines: Iterable[bytes]) -> None:
        """Write the file that is sent. Raises ``StorageError``."""
        put_file(self.requests(name), b"".join(lines))

    def records(self) -> list[JobRecord]:
        """All jobs that are known, the oldest first. Raises ``StorageError`` for one that is
        damaged."""
        paths = sorted(self.root.glob("*/job.json"))
        return sorted((_read(path) for path in paths), key=lambda one: (one.begun, one.name))

    def close(self, record: JobRecord) -> None:
        """Write down that a job is over, and drop what was kept for its answers."""
        self.write(record)
        for path in (self.root / record.name).glob("*.jsonl"):
            path.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Forget a job that was never begun."""
        with suppress(OSError):
            shutil.rmtree(self.root / name)


def jobs_beside(ledger: Path) -> Path:
    """The folder of the jobs of the engine whose ledger is ``ledger``."""
    return ledger.with_name(f"{ledger.name.removesuffix('.spent.jsonl')}{SUFFIX}")


@dataclass(frozen=True)
class OpenJobs:
    """The jobs of an engine that are at work, or whose answers were not taken."""

    engine: str
    jobs: int
    requests: int
    done: int
    """Requests that the server has finished, as it said when it was last asked."""


def open_jobs(cache: Path) -> tuple[OpenJobs, ...]:
    """Those of each engine of the run whose responses are kept in ``cache``."""
    found = []
    for folder in sorted(cache.glob(f"*{SUFFIX}")):
        mine = [one for one in JobFolder(folder).records() if one.is_open]
        if mine:
            found.append(
                OpenJobs(
                    engine=folder.name.removesuffix(SUFFIX),
                    jobs=len(mine),
                    requests=sum(one.requests for one in mine),
                    done=sum(one.done for one in mine),
                )
            )
    return tuple(found)


def _read(path: Path) -> JobRecord:
    raw: dict[str, Any] = read_json_object(path, _REMEDY)
    known = {one.name: raw[one.name] for one in fields(JobRecord) if one.name in raw}
    kinds = {"name": str, "model": str, "begun": int | float, "requests": int, "done": int}
    for name, kind in kinds.items():
        if not isinstance(known.get(name), kind):
            raise damaged(path, f"no {name}", _REMEDY)
    if known["name"] != path.parent.name:
        raise damaged(path, "it is of another job", _REMEDY)
    return JobRecord(**known)
