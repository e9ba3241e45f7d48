"""Requests go out as jobs, and answers come back from them: none is lost, none is sent twice.

Requests wait until nobody makes any more, or a job is full. A job is written down before it is
sent, with the ids of its requests, which are the keys of the response cache; then under which id
the server has it. Whatever ends the process, the next one finds the jobs, asks how they stand, and
sends no request that one of them has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from prefloop.data.protocol import EngineFailed, Request, RequestRejected
from prefloop.pipeline.engines.openai.batch.batch_settings import BatchSettings
from prefloop.pipeline.engines.openai.batch.gathering import Gathering
from prefloop.pipeline.engines.openai.batch.job_folder import JobFolder, JobRecord
from prefloop.pipeline.engines.openai.batch.job_lines import (
    LineAnswer,
    LinePlace,
    LinesFound,
    line_at,
    request_line,
    requests_in,
)
from prefloop.pipeline.engines.openai.batch.job_runner import BatchJob, JobRunner
from prefloop.pipeline.engines.openai.batch.job_server import JobServer
from prefloop.pipeline.engines.openai.batch.job_state import JobState
from prefloop.pipeline.engines.openai.budget import Budget, Charge
from prefloop.pipeline.engines.openai.ledger import Amount
from prefloop.pipeline.engines.openai.openai_errors import TransientError

logger = logging.getLogger(__name__)

_TOGETHER = 200
"""Answers of a job that are taken at once."""
_MOST_FULL = 6
"""Times that a server may have no room for a job of a single request."""
_UNRUN = "not begun before its job ended"
_MISSING = "no line in the files of its job"
_UNCERTAIN = "several answers that differ in the files of its job"


class AskedInJob(Protocol):
    """A request as the engine knows it."""

    @property
    def key(self) -> str:
        """What it is known by, in the response cache and in jobs."""
        ...

    @property
    def body(self) -> Mapping[str, Any]:
        """What is sent."""
        ...


Q = TypeVar("Q", bound=AskedInJob)
R = TypeVar("R")


@dataclass(frozen=True)
class Door(Generic[Q, R]):
    """What an engine does for its jobs, at its own prices.

    ``read`` reads what was answered to a request, and sets what it is charged; it raises
    ``TransientError`` for what is worth another try, ``RequestRejected`` and ``EngineFailed``.
    ``keep`` puts what it read where ``kept`` finds it. ``question`` makes one of a request that an
    earlier process asked; ``most`` is what one may take.
    """

    read: Callable[[Q, LineAnswer, Charge], R]
    keep: Callable[[Q, R], Awaitable[None]]
    kept: Callable[[Q], R | None]
    question: Callable[[str, Mapping[str, Any]], Q]
    most: Callable[[Q], Amount]


@dataclass(eq=False)
class _Entry(Generic[Q, R]):
    """A request that is waited for."""

    question: Q
    size: int
    future: asyncio.Future[R]
    waiters: int = 0
    tries: int = 0


class Jobs(Generic[Q, R]):
    """The jobs of one model of an engine. Use it from one event loop."""

    def __init__(
        self,
        settings: BatchSettings,
        server: JobServer,
        folder: JobFolder,
        budget: Budget,
        door: Door[Q, R],
    ) -> None:
        """Sends nothing."""
        self._settings = settings
        self._server = server
        self._folder = folder
        self._budget = budget
        self._door = door
        self._runner = JobRunner(settings, server, folder)
        self._gathering = Gathering(settings.gather_s)
        self._entries: dict[str, _Entry[Q, R]] = {}
        self._pending: dict[str, _Entry[Q, R]] = {}
        self._pending_bytes = 0
        self._in_job: dict[str, BatchJob] = {}
        self._open: dict[str, BatchJob] = {}
        self._most_requests = settings.max_requests
        self._one_at_a_time = False
        """The server had too much waiting once."""
        self._full_in_a_row = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._sender: asyncio.Task[None] | None = None
        self._taking_up: asyncio.Task[None] | None = None
        self._failed: Exception | None = None

    def came(self, request: Request) -> None:
        """``request`` was made, whether it will be sent or not."""
        self._gathering.came(request)

    async def ask(self, question: Q) -> R:
        """What comes of ``question`` in a job. Raises what the door raises; ``TransientError``
        where it failed in as many jobs as it is put into."""
        await self.has(question)
        if self._failed is not None:
            raise self._failed
        entry = self._entries.get(question.key)
        if entry is None:
            size = len(request_line(question.key, self._server.url, question.body))
            future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
            entry = self._entries[question.key] = _Entry(question, size, future)
            if question.key not in self._in_job:
                self._queue(entry)
        entry.waiters += 1
        try:
            return await asyncio.shield(entry.future)
        finally:
            entry.waiters -= 1
            if not entry.waiters:
                self._forget(entry)

    async def has(self, question: Q) -> bool:
        """Whether ``question`` is in a job already, also in one of an earlier process."""
        if self._taking_up is None:
            self._taking_up = asyncio.create_task(self._take_up())
        await asyncio.shield(self._taking_up)
        return question.key in self._in_job

    async def aclose(self) -> None:
        """Leave the jobs to the server, and say so. Idempotent."""
        tasks = [*self._tasks, *filter(None, (self._sender, self._taking_up))]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._budget.let_go([*self._open])
        left = [job.record for job in self._open.values() if job.record.batch_id is not None]
        left = [record for record in left if record.is_open]
        self._open.clear()
        if left:
            logger.warning(
                "%s: %d %s of %d requests, %d of them done, %s there: the same command takes %s up",
                self._server.name,
                len(left),
                "job" if len(left) == 1 else "jobs",
                sum(one.requests for one in left),
                sum(one.done for one in left),
                "goes on" if len(left) == 1 else "go on",
                "it" if len(left) == 1 else "them",
            )

    async def _take_up(self) -> None:
        """Find the jobs that earlier processes began."""
        for record in self._folder.records():
            if record.is_over or record.model != self._server.model:
                continue
            if not record.is_asked_for:  # the server knows of a file at most
                self._give_up(record.name)
                continue
            try:
                path = self._folder.requests(record.name)
                keys = [key for key, _ in await asyncio.to_thread(requests_in, path)]
            except (OSError, ValueError, KeyError):
                raise EngineFailed(
                    f"{path}: is missing or damaged, so that it is not known what the job "
                    f"{record.batch_id or record.name} was asked",
                    "delete its folder, and its requests are sent again",
                ) from None
            job = BatchJob(record, keys, was_found=True)
            if record.batch_id is None:
                state = await self._server.find(record.name, record.file_id)
                if state is None:
                    self._give_up(record.name)
                    continue
                self._runner.note(job, batch_id=state.id, status=state.status)
            self._budget.take_over(record.name)
            self._start(job)

    def _give_up(self, name: str) -> None:
        """Nothing of this job is at the server."""
        self._budget.settle(name, Amount())
        self._folder.remove(name)

    def _queue(self, entry: _Entry[Q, R]) -> None:
        """Let a request wait for the next job."""
        self._pending[entry.question.key] = entry
        self._pending_bytes += entry.size
        self._gathering.stirred()
        self._send(only_full=True)
        if self._pending and (self._sender is None or self._sender.done()):
            self._sender = asyncio.create_task(self._send_when_silent())

    def _forget(self, entry: _Entry[Q, R]) -> None:
        """Nobody waits for it any more."""
        if self._entries.get(entry.question.key) is entry:
            del self._entries[entry.question.key]
        if self._pending.pop(entry.question.key, None) is not None:
            self._pending_bytes -= entry.size

    async def _send_when_silent(self) -> None:
        while self._pending:
            await self._gathering.silence()
            self._send()
            if self._pending and self._tasks:  # one at a time
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    def _send(self, *, only_full: bool = False) -> None:
        """Begin jobs of what is pending."""
        limit = self._settings.max_bytes
        while self._pending and not (self._one_at_a_time and self._open):
            count = len(self._pending)
            if only_full and count < self._most_requests and self._pending_bytes < limit:
                return
            job = BatchJob(JobRecord(self._folder.new_name(), self._server.model, time.time()))
            size = 0
            for key, entry in self._pending.items():
                size += entry.size
                if job.keys and (size > limit or len(job.keys) == self._most_requests):
                    break
                job.keys.append(key)
            for key in job.keys:
                self._pending_bytes -= self._pending.pop(key).size
            self._start(job)

    def _start(self, job: BatchJob) -> None:
        self._open[job.name] = job
        self._in_job.update(dict.fromkeys(job.keys, job))
        task = asyncio.create_task(self._work(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, job: BatchJob) -> None:
        """All of a job's life in this process."""
        again: list[_Entry[Q, R]] = []
        try:
            state = None
            if job.record.batch_id is None:
                again = await self._cut_to_budget(job)
                state = await self._begin(job)
            if job.record.batch_id is not None:
                state = await self._runner.follow(job, state)
                again += await self._ended(job, state)
            else:
                again += self._entries_of(job.keys)
        except Exception as error:  # noqa: BLE001  # it is raised where answers are waited for
            self._fail(job, error)
            return
        self._close(job)
        for entry in again:
            key = entry.question.key
            is_sent = key in self._in_job or key in self._pending
            if self._entries.get(key) is entry and not is_sent:
                self._queue(entry)

    def _close(self, job: BatchJob) -> None:
        """Nothing of the job is left to be done."""
        self._open.pop(job.name, None)
        for key in job.keys:
            self._leave(job, key)

    def _leave(self, job: BatchJob, key: str) -> None:
        """A request is in the job no more."""
        if self._in_job.get(key) is job:
            del self._in_job[key]

    def _fail(self, job: BatchJob, error: Exception) -> None:
        """The run ends with ``error``. What is at the server stays there."""
        if not job.record.is_asked_for:
            self._give_up(job.name)
        if not job.record.is_open:
            self._close(job)
        self._failed = error
        for entry in self._entries.values():
            self._resolve(entry, error)

    async def _cut_to_budget(self, job: BatchJob) -> list[_Entry[Q, R]]:
        """Write a job down and set aside what it may take; those of its requests that there is no
        room for."""
        for entry in self._entries_of(job.keys):
            known = None if entry.future.done() else self._door.kept(entry.question)
            if known is not None:  # it has come since it was asked for
                entry.future.set_result(known)
        mosts = [self._in_job_price(self._door.most(one.question)) for one in self._waiting(job)]
        if not mosts:
            return []
        self._folder.write(job.record)
        fitting = await self._budget.set_aside(job.name, mosts)
        left, job.keys = job.keys[fitting:], job.keys[:fitting]
        for key in left:
            self._leave(job, key)
        return self._entries_of(left)

    async def _begin(self, job: BatchJob) -> JobState | None:
        """Send a job; null where nobody waits for it any more, or the server has no room."""
        entries = self._waiting(job)
        if not entries:
            self._give_up(job.name)
            return None
        url = self._server.url
        lines = [request_line(one.question.key, url, one.question.body) for one in entries]
        try:
            return await self._runner.begin(job, lines)
        except TransientError as error:
            self._give_up(job.name)
            await self._hold_back(job, str(error))
            return None

    async def _hold_back(self, job: BatchJob, why: str) -> None:
        """The server has too much waiting: jobs come one at a time, and smaller where that is not
        enough. Raises ``EngineFailed`` where nothing is."""
        self._one_at_a_time = True
        if len(self._open) == 1:
            self._most_requests = max(len(job.keys) // 2, 1)
            self._full_in_a_row += len(job.keys) == 1
        if self._full_in_a_row > _MOST_FULL:
            raise EngineFailed(
                f"{self._server.name} has no room for a job of one request: {why}",
                "wait until its other jobs are done; the same command resumes",
            )
        logger.warning(
            "%s has no room for a job of %d requests (%s): jobs are sent one at a time, of %d at "
            "most for now",
            self._server.name,
            len(job.keys),
            why,
            self._most_requests,
        )
        await asyncio.sleep(self._settings.poll_s)

    async def _ended(self, job: BatchJob, state: JobState | None) -> list[_Entry[Q, R]]:
        """Take what came of a job that is over; the requests that are to be asked again."""
        if job.was_found:  # so that those who wait for its answers have asked for them
            await self._gathering.silence()
        if state is None:
            return self._lost(job)
        if state.status == "failed":
            return await self._refused(job, state)
        again = await self._taken(job, state)
        self._most_requests = min(2 * self._most_requests, self._settings.max_requests)
        self._full_in_a_row = 0
        if state.status == "cancelled" and again:
            raise EngineFailed(
                f"{self._server.name}: the job {state.id} was cancelled there, with "
                f"{len(again)} of {len(job.keys)} requests not answered; the answers are kept",
                "the same command asks for the rest, in another job",
            )
        return again

    def _lost(self, job: BatchJob) -> list[_Entry[Q, R]]:
        """The server knows nothing of it: what it may have cost counts in full."""
        logger.warning(
            "%s knows nothing of the job %s any more: its %d requests are asked again, and what it "
            "may have cost counts in full",
            self._server.name,
            job.record.batch_id,
            len(job.keys),
        )
        self._budget.let_go([job.name])
        self._over(job)
        why = f"the job {job.record.batch_id} is not known at the server any more"
        return self._tried(self._entries_of(job.keys), TransientError(why))

    async def _refused(self, job: BatchJob, state: JobState) -> list[_Entry[Q, R]]:
        """The server has not begun it: for its size, for single lines, or for all of it."""
        self._budget.settle(job.name, Amount())
        self._over(job, status=state.status)
        if full := next((one for one in state.faults if one.is_full), None):
            await self._hold_back(job, full.words)
            return self._entries_of(job.keys)
        lines = {one.line: one for one in state.faults if one.line}
        named = [key for at, key in enumerate(job.keys, 1) if at in lines]
        if not named:
            words = "; ".join(one.words for one in state.faults[:3]) or "no reason given"
            failure = self._server.refusal(state.faults[0].error if state.faults else {}, words)
            if isinstance(failure, TransientError):
                return self._tried(self._entries_of(job.keys), failure)
            raise failure
        for at, key in enumerate(job.keys, 1):
            if at in lines and (entry := self._entries.get(key)) is not None:
                answer = LineAnswer(lines[at].status, lines[at].body)
                result = self._read(entry.question, answer, Charge(Amount()), entry)
                if isinstance(result, TransientError):
                    self._tried([entry], result)
        logger.warning(
            "%s: %d of %d requests of the job %s are refused (%s); the others are sent again",
            self._server.name,
            len(named),
            len(job.keys),
            state.id,
            next(iter(lines.values())).words,
        )
        return [one for one in self._entries_of(job.keys) if not one.future.done()]

    async def _taken(self, job: BatchJob, state: JobState) -> list[_Entry[Q, R]]:
        """Take the answers of a job; the requests that it has none for."""
        found = await self._runner.files(job, state)
        bodies: dict[str, dict[str, Any]] = {}
        spent, again, whys = Amount(), list[_Entry[Q, R]](), Counter[str]()
        for start in range(0, len(job.keys), _TOGETHER):
            keys = job.keys[start : start + _TOGETHER]
            places = [found.lines.get(key) for key in keys]
            answers = await asyncio.to_thread(_answers_at, places)
            if not bodies and any(key not in self._entries for key in keys):
                # Nobody waits for them now; they are paid, and kept for those who will.
                path = self._folder.requests(job.name)
                bodies = dict(await asyncio.to_thread(requests_in, path))
            entries = [self._entries.get(key) for key in keys]
            deliveries = []
            for key, entry, answer in zip(keys, entries, answers, strict=True):
                self._leave(job, key)
                known = entry.question if entry else self._door.question(key, bodies[key])
                came = answer or _no_answer(key, found, state)
                deliveries.append(self._deliver(known, entry, came))
            results = await asyncio.gather(*deliveries)
            for entry, (charge, error) in zip(entries, results, strict=True):
                spent += self._in_job_price(charge)
                if error is not None:
                    whys[_why(error)] += 1
                    again += self._tried([entry] if entry else [], error)
        self._budget.settle(job.name, spent)
        self._over(job, status=state.status, done=max(state.done, job.record.done))
        self._tell(job, found, whys)
        return again

    async def _deliver(
        self, question: Q, entry: _Entry[Q, R] | None, answer: LineAnswer | TransientError
    ) -> tuple[Amount, TransientError | None]:
        """Have an answer read and kept, and give it to those who wait; what it took, and why it is
        to be asked for again."""
        charge = Charge(self._door.most(question))
        if isinstance(answer, TransientError):
            return charge.most if answer.was_sent else Amount(), answer
        if answer.unrun:
            return Amount(), TransientError(_UNRUN, reason="expired", was_sent=False)
        result = self._read(question, answer, charge, entry)
        if isinstance(result, TransientError):
            return charge.spent, result
        if result is not None:
            await self._door.keep(question, result)
            if entry is not None and not entry.future.done():
                entry.future.set_result(result)
        return charge.spent, None

    def _read(
        self, question: Q, answer: LineAnswer, charge: Charge, entry: _Entry[Q, R] | None
    ) -> R | TransientError | None:
        """What an answer says; null for a refusal, which those who wait are told."""
        try:
            return self._door.read(question, answer, charge)
        except TransientError as error:
            return error
        except (RequestRejected, EngineFailed) as failure:
            if entry is not None:
                self._resolve(entry, failure)
            return None

    def _tried(self, entries: Iterable[_Entry[Q, R]], error: TransientError) -> list[_Entry[Q, R]]:
        """Those of ``entries``, which failed in a job, that are put into another."""
        left = []
        for entry in entries:
            entry.tries += 1
            if entry.tries < self._settings.max_tries:
                left.append(entry)
            else:
                self._resolve(entry, error)
        return left

    def _resolve(self, entry: _Entry[Q, R], error: Exception) -> None:
        if not entry.future.done():
            entry.future.set_exception(error)
            entry.future.exception()  # those who waited may be gone

    def _over(self, job: BatchJob, **changes: Any) -> None:
        """Write down that a job is over, and drop its files."""
        job.record = replace(job.record, is_over=True, **changes)
        self._folder.close(job.record)

    def _tell(self, job: BatchJob, found: LinesFound, whys: Counter[str]) -> None:
        """Say what is amiss in what came."""
        amiss = [f"{count} {why}" for why, count in whys.most_common(4)]
        if amiss:
            amiss = [
                f"{whys.total()} of {len(job.keys)} requests have no answer: {', '.join(amiss)}"
            ]
        if found.garbage:
            amiss.append(f"{found.garbage} lines are garbage")
        if found.foreign:
            amiss.append(f"{found.foreign} lines are of requests that it did not have")
        if amiss:
            logger.warning(
                "%s: job %s: %s", self._server.name, job.record.batch_id, "; ".join(amiss)
            )

    def _waiting(self, job: BatchJob) -> list[_Entry[Q, R]]:
        """The requests of a job that somebody waits for; the others are taken out of it."""
        entries = [one for one in self._entries_of(job.keys) if not one.future.done()]
        keys = [one.question.key for one in entries]
        for key in set(job.keys).difference(keys):
            self._leave(job, key)
        job.keys = keys
        return entries

    def _entries_of(self, keys: Iterable[str]) -> list[_Entry[Q, R]]:
        return [entry for key in keys if (entry := self._entries.get(key)) is not None]

    def _in_job_price(self, amount: Amount) -> Amount:
        return Amount(amount.tokens, amount.cost * self._settings.share)


def _answers_at(places: Sequence[LinePlace | None]) -> list[LineAnswer | None]:
    return [None if place is None else line_at(place) for place in places]


def _no_answer(key: str, found: LinesFound, state: JobState) -> TransientError:
    """Why a request has no line that counts. Of a job that was ended before all were asked, it is
    one that was not."""
    if key in found.uncertain:
        return TransientError(_UNCERTAIN, reason="unparsable_answer")
    return TransientError(_MISSING, reason="no_answer", was_sent=state.status == "completed")


def _why(error: TransientError) -> str:
    return f"failed with status {error.status}" if error.status else str(error)
