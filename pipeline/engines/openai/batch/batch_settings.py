"""What is set of the jobs of an engine that asks in batches."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from prefloop.data.strict import Strict

_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BatchSettings(Strict):
    """How requests become jobs of a server's batch API, and what these cost."""

    discount: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """By which share of the engine's prices an answer of a job is cheaper."""
    max_requests: PositiveInt = 50_000
    """Requests in a job, at most."""
    max_megabytes: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 200.0
    """Size of a job's file, at most, in millions of bytes."""
    max_prompts: PositiveInt = 10_000
    """Prompts that are worked on at once: all their requests wait in memory, and go into jobs
    together."""
    max_tries: PositiveInt = 3
    """Jobs that a request is put into, where it expires in one, fails there (429, 500) or has no
    line in its files."""
    gather_s: _Seconds = 2.0
    """A job is sent when no further request has come for so long, unless it is full before."""
    poll_s: _Seconds = 10.0
    """Seconds until a job is first looked at; each further wait is half as long again."""
    max_poll_s: _Seconds = 300.0
    """The longest such wait."""
    transfer_s: _Seconds = 1800.0
    """The longest time that a file may take on its way."""
    completion_window: Annotated[str, Field(pattern=r"^[1-9]\d{0,3}[hd]$")] = "24h"
    """Within which time the server is to finish a job, as it names such times."""

    @property
    def share(self) -> float:
        """Of the engine's prices, what an answer of a job costs."""
        return 1.0 - self.discount

    @property
    def max_bytes(self) -> int:
        """Bytes of a job's file, at most."""
        return int(self.max_megabytes * 1e6)
