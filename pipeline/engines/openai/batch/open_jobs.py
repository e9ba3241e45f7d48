"""Jobs that an engine began and takes up no more."""

from __future__ import annotations

import logging
from pathlib import Path

from prefloop.data.errors import StorageError
from prefloop.pipeline.engines.openai.batch.job_folder import JobFolder, jobs_beside

logger = logging.getLogger(__name__)


def warn_of_open_jobs(ledger: Path, model: str, engine: str) -> None:
    """Say, of an engine that asks at once, what its jobs beside ``ledger`` are still about."""
    try:
        records = JobFolder(jobs_beside(ledger)).records()
    except StorageError:  # who asks for jobs says so
        return
    mine = [one for one in records if one.is_open and one.model == model]
    if mine:
        logger.warning(
            "%s: %d requests are in jobs that were begun in mode: batch, which takes them up; "
            "mode: live asks for all that has no answer yet, and both are paid",
            engine,
            sum(one.requests for one in mine),
        )
