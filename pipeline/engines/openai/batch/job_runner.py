"""A job's way: sent, followed until it is over, its files fetched. Each step is written down."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.engines.openai.batch.batch_settings import BatchSettings
from prefloop.pipeline.engines.openai.batch.job_folder import JobFolder, JobRecord
from prefloop.pipeline.engines.openai.batch.job_lines import LinesFound, look_through
from prefloop.pipeline.engines.openai.batch.job_server import JobServer, NotBegun, most_bytes
from prefloop.pipeline.engines.openai.batch.job_state import JobState
from prefloop.pipeline.engines.openai.openai_errors import TransientError

_LOOKS_FOR_FILES = 3
"""Times that a job which is over is looked at again where files or lines are missing."""
_LONGER = 1.5
_SILENT_LOOKS = 6
"""Looks at a job, in a row, that may fail, each tried several times, before the run ends."""


@dataclass(eq=False)
class BatchJob:
    """A job on its way: its record, and the keys of its requests in the order of its file."""

    record: JobRecord
    keys: list[str] = field(default_factory=list)
    was_found: bool = False
    """Begun by an earlier process."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.record.name


class JobRunner:
    """Runs jobs at one server. Use it from one event loop."""

    def __init__(self, settings: BatchSettings, server: JobServer, folder: JobFolder) -> None:
        self._settings = settings
        self._server = server
        self._folder = folder

    def note(self, job: BatchJob, **changes: Any) -> None:
        """Write down what is new of a job."""
        record = replace(job.record, **changes)
        if record != job.record:
            job.record = record
            self._folder.write(record)

    async def begin(self, job: BatchJob, lines: Sequence[bytes]) -> JobState:
        """Send the requests of a job and have it begun.

        Raises ``TransientError`` where the server has too much to do, and ``EngineFailed``.
        """
        await asyncio.to_thread(self._folder.write_requests, job.name, lines)
        self.note(job, requests=len(lines))
        file_id = await self._server.upload(self._folder.requests(job.name), job.name)
        self.note(job, file_id=file_id, is_asked_for=True)
        try:
            state = await self._server.create(file_id, job.name)
        except NotBegun:
            self.note(job, is_asked_for=False)
            raise
        self.note(job, batch_id=state.id, status=state.status)
        _say(f"{self._server.name}: job {state.id} of {len(lines)} requests was begun")
        return state

    async def follow(self, job: BatchJob, state: JobState | None) -> JobState | None:
        """A job when it is over; null where the server does not know it any more. ``state`` is how
        it stood a moment ago. Raises ``EngineFailed``."""
        assert job.record.batch_id is not None
        wait, failed, over = self._settings.poll_s, 0, 0
        while True:
            if state is not None and state.is_over:
                over += 1
                if state.output_file or state.error_file or over > _LOOKS_FOR_FILES:
                    return state
                if state.status != "completed" or state.total == 0:
                    return state
            if state is not None:
                await asyncio.sleep(wait)
                wait = min(wait * _LONGER, self._settings.max_poll_s)
            try:
                state = await self._server.look(job.record.batch_id)
            except TransientError as error:
                failed += 1
                if failed > _SILENT_LOOKS:
                    raise EngineFailed(
                        f"{self._server.name} does not tell how the job {job.record.batch_id} "
                        f"stands: {error}",
                        "nothing is lost: the same command goes on with it",
                    ) from None
                await asyncio.sleep(wait)
                continue
            failed = 0
            if state is None:
                state = await self._server.find(job.name, job.record.file_id)
                if state is None:
                    return None
            self._told(job, state, wait)

    async def files(self, job: BatchJob, state: JobState) -> LinesFound:
        """What the files of a job that is over hold. Raises ``EngineFailed``."""
        most = most_bytes(len(job.keys))
        wanted = frozenset(job.keys)
        named = [("output.jsonl", state.output_file), ("errors.jsonl", state.error_file)]
        for tried in range(_LOOKS_FOR_FILES):
            if tried:
                await asyncio.sleep(self._settings.poll_s)
            paths: list[Path] = []
            for name, file_id in named:
                path = self._folder.file(job.name, name)
                if file_id and await self._server.download(file_id, path, most):
                    paths.append(path)
            found = await asyncio.to_thread(look_through, paths, wanted)
            if len(found.lines) + len(found.uncertain) >= min(state.done, len(wanted)):
                break
        return found

    def _told(self, job: BatchJob, state: JobState, wait: float) -> None:
        """Write down how a job stands, and say it where that is news."""
        if (state.status, state.done) == (job.record.status, job.record.done):
            return
        self.note(job, batch_id=state.id, status=state.status, done=min(state.done, 2**31))
        more = "" if state.is_over else f"; asked again in {wait:.0f} s"
        _say(
            f"{self._server.name}: job {state.id}: {state.status}, {state.done:,} of "
            f"{job.record.requests:,} requests done{more}"
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
