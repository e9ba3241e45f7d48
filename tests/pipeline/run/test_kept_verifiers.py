"""A verifier keeps its processes from round to round."""

import asyncio
from pathlib import Path

from prefloop.labelers.config import VerifierLabeler
from prefloop.pipeline.run.models import Models
from tests.helpers import functions
from tests.helpers.runs import small_config


def test_a_verifier_is_kept_until_its_processes_have_to_go() -> None:
    labeler = VerifierLabeler(function=f"{functions.__name__}:length_of_answer")
    models = Models(small_config())

    async def opened() -> int:
        one, again = [await models.labeler(labeler) for _ in range(2)]
        assert one is again
        [pid] = one._pool.pids
        del one, again
        assert Path(f"/proc/{pid}").exists()
        await models.release()
        return pid

    assert not Path(f"/proc/{asyncio.run(opened())}").exists()
