"""A server's API of files and batches: what is asked of it, and tried again where that helps."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar
from urllib.parse import quote

from prefloop.data.protocol import EngineFailed, RequestRejected
from prefloop.pipeline.engines.endpoints.endpoint import Endpoint
from prefloop.pipeline.engines.openai.batch.job_state import TAG, JobState, read_state
from prefloop.pipeline.engines.openai.connections.response import (
    LARGEST_BODY,
    Response,
    TransportError,
)
from prefloop.pipeline.engines.openai.openai_errors import TransientError, retry_after
from prefloop.pipeline.engines.openai.server_words import load_body, said_by
from prefloop.pipeline.engines.openai.transport import Target, Upload
from prefloop.pipeline.engines.settings import OpenAIEngine

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_BACKOFF_S = 0.5
_PAGE = 100
_MOST_PAGES = 100
_RESUMES = "nothing is lost: the same command goes on with the jobs that were begun"
_UNKNOWN = frozenset([404, 410])
_NO_API = frozenset([404, 405, 410, 501])


class NotBegun(EngineFailed):
    """A job is not begun, for sure: the server has said no."""


class JobServer:
    """One server's files and batches. Use it from one event loop.

    Every method raises ``EngineFailed`` where the server cannot be used, or no try helps.
    """

    def __init__(self, endpoint: Endpoint, config: OpenAIEngine, model: str) -> None:
        self._endpoint = endpoint
        self._config = config
        self.model = model
        path = "chat/completions" if config.api == "chat" else "completions"
        self.url = f"/v1/{path}"
        """What each request of a job is sent to, as the API names it."""

    @property
    def name(self) -> str:
        """What the server is called in messages."""
        return self._endpoint.name

    async def upload(self, path: Path, name: str) -> str:
        """Send the file of requests of the job ``name``; its id."""

        async def send() -> str:
            upload = Upload(path, f"{name}.jsonl", {"purpose": "batch"})
            response = await self._endpoint.transport.upload(
                "/files", upload, self._config.batch.transfer_s
            )
            body = self._body(response, "a file of requests (POST /files)")
            found = body.get("id") if isinstance(body, dict) else None
            if not isinstance(found, str) or not found:
                raise TransientError("garbage instead of the id of a file")
            return found

        return await self._tried(send, "takes no file of requests")

    async def create(self, file_id: str, name: str) -> JobState:
        """Begin the job ``name`` once, whatever happens to what the server says: where it may have
        begun it, it is looked for before it is asked again.

        Raises ``TransientError`` where it has too much to do, and ``NotBegun`` where it refuses.
        """
        asked = {
            "input_file_id": file_id,
            "endpoint": self.url,
            "completion_window": self._config.batch.completion_window,
            "metadata": {TAG: name},
        }
        was_sent = False

        async def begin() -> JobState:
            nonlocal was_sent
            if was_sent and (found := await self._found(name, file_id)):
                return found
            try:
                response = await self._endpoint.transport.post("/batches", asked)
            except TransportError as error:
                was_sent |= error.was_sent
                raise
            was_sent |= response.status >= 500 or response.status < 300  # it may have begun
            return self._state(response, "a job (POST /batches)")

        try:
            return await self._tried(begin, "begins no job", told="busy")
        except EngineFailed as failed:
            if was_sent:
                raise
            raise NotBegun(failed.problem, failed.remedy) from None

    async def look(self, batch_id: str) -> JobState | None:
        """How a job stands; null where the server knows none of this id. Raises ``TransientError``
        where no try helps."""

        async def look() -> JobState | None:
            path = f"/batches/{quote(batch_id, safe='')}"
            response = await self._endpoint.transport.get(path)
            if response.status in _UNKNOWN:
                return None
            return self._state(response, f"to tell of the job {batch_id}")

        return await self._tried(look, "", told="all")

    async def find(self, name: str, file_id: str | None) -> JobState | None:
        """The job whose metadata has ``name``, or that has the file ``file_id``; null where there
        is none."""
        return await self._tried(
            lambda: self._found(name, file_id), "does not list its jobs (GET /batches)"
        )

    async def download(self, file_id: str, path: Path, most: int) -> bool:
        """Put the content of a file into ``path``; false where the server has no such file."""

        async def fetch() -> bool:
            asked = f"/files/{quote(file_id, safe='')}/content"
            response = await self._endpoint.transport.download(
                asked, Target(path, most), self._config.batch.transfer_s
            )
            if response.status in _UNKNOWN:
                return False
            if response.status != 200:
                self._body(response, f"the file {file_id}")
                raise TransientError(f"status {response.status} for a file")
            return True

        return await self._tried(fetch, f"does not give the file {file_id}")

    async def problem(self) -> str:
        """What is wrong with the server's batch API; empty where it lists jobs."""
        try:
            if await self._listed("?limit=1") is None:
                return f"{self.name} has no batch API (GET /batches)"
        except (TransientError, TransportError) as error:
            return self._endpoint.key.blot(str(error))
        except EngineFailed as failed:
            return str(failed)
        return ""

    def refusal(self, error: Mapping[str, Any], words: str) -> Exception:
        """What it means that a whole job failed for ``error``, in ``words``: ``TransientError`` or
        ``EngineFailed``."""
        said = replace(said_by({"error": dict(error)}), words=self._endpoint.key.blot(words))
        status = said.status or 400
        failure = self._endpoint.failures.classify(status, said, {}, {"model": self.model})
        if isinstance(failure, TransientError | EngineFailed):
            return failure
        return EngineFailed(
            f"{self.name} refuses a whole job ({said.words})",
            "change what it names, or set mode: live; the same command resumes",
        )

    async def _found(self, name: str, file_id: str | None) -> JobState | None:
        """One pass through the list of jobs."""
        after = ""
        for _ in range(_MOST_PAGES):
            body = await self._listed(f"?limit={_PAGE}{after}")
            if body is None:
                logger.warning(
                    "%s does not list its jobs: whether %s was begun there cannot be seen, and it "
                    "is begun anew",
                    self.name,
                    name,
                )
                return None
            rows = [read_state(row) for row in body["data"]]
            jobs = [row for row in rows if row is not None]
            for job in jobs:
                if job.tag == name or (file_id is not None and job.input_file == file_id):
                    return job
            if not jobs or body.get("has_more") is not True:
                return None
            following = f"&after={quote(jobs[-1].id, safe='')}"
            if following == after:
                return None
            after = following
        return None

    async def _listed(self, query: str) -> dict[str, Any] | None:
        """A page of jobs; null where the server has no such list."""
        response = await self._endpoint.transport.get(f"/batches{query}")
        if response.status in _NO_API:
            return None
        body = self._body(response, "to list its jobs (GET /batches)")
        if not isinstance(body, dict) or not isinstance(body.get("data"), list):
            raise TransientError("garbage instead of a list of jobs")
        return body

    def _state(self, response: Response, what: str) -> JobState:
        state = read_state(self._body(response, what))
        if state is None:
            words = self._endpoint.said(response).words
            raise TransientError(f"garbage instead of the state of a job: {words}")
        return state

    def _body(self, response: Response, what: str) -> Any:
        """The JSON in a good response. Raises what another means."""
        if not 200 <= response.status < 300:
            self._refuse(response, what)
        try:
            return load_body(response.body)
        except ValueError:
            raise TransientError("garbage instead of JSON") from None

    def _refuse(self, response: Response, what: str) -> NoReturn:
        said = self._endpoint.said(response)
        shown = f"status {response.status}: {said.words or 'no reason given'}"
        failure = self._endpoint.failures.classify(
            response.status, said, response.headers, {"model": self.model}
        )
        if isinstance(failure, TransientError):
            raise TransientError(
                shown,
                retry_after(response.headers),
                is_busy=failure.is_busy,
                status=response.status,
            )
        if response.status in _NO_API:
            raise EngineFailed(
                f"{self.name} refuses {what}, and may have no batch API ({shown})",
                "set mode: live, or take a server with /files and /batches; check base_url",
            )
        if isinstance(failure, RequestRejected):
            raise EngineFailed(
                f"{self.name} refuses {what} ({shown})",
                "change what it names, or set mode: live; the same command resumes",
            )
        raise failure

    async def _tried(
        self,
        ask: Callable[[], Awaitable[T]],
        failing: str,
        *,
        told: Literal["", "busy", "all"] = "",
    ) -> T:
        """What ``ask`` gives, tried as often as the config says. ``told``: which failures are left
        to the caller, those of a server that has too much to do or all."""
        tries = 0
        while True:
            try:
                return await ask()
            except TransportError as error:
                failure = TransientError(str(error), was_sent=error.was_sent)
            except TransientError as error:
                failure = error
            tries += 1
            if tries > self._config.max_retries:
                if told == "all" or (told and failure.is_busy):
                    raise failure
                times = f"{tries} {'try' if tries == 1 else 'tries'}"
                raise EngineFailed(f"{self.name} {failing}: {failure}, after {times}", _RESUMES)
            longest = self._config.max_backoff_s
            backoff = min(longest, _FIRST_BACKOFF_S * 2.0 ** min(tries - 1, 60))
            wait = max(random.uniform(0, backoff), min(failure.retry_after or 0, 10 * longest))
            await asyncio.sleep(wait)


def most_bytes(requests: int) -> int:
    """The longest file that answers of so many requests can make."""
    return (requests + 1) * LARGEST_BODY
