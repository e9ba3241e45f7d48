"""A run asks a server for nothing twice, whatever was lost of it."""

import shutil
from pathlib import Path

import pytest

from prefloop.pipeline.config import RunConfig
from tests.helpers.runs import JUDGE, dataset_rows, run_small, small_config
from tests.helpers.servers import faulty_server, good

TOP = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.5}]
ANSWER = good("A", logprobs={"content": [{"token": "A", "logprob": -0.1, "top_logprobs": TOP}]})


def config(url: str, **engine: object) -> RunConfig:
    served = {"type": "openai", "base_url": url, "max_retries": 1, **engine}
    judge = {**JUDGE, "engine": "server", "model": "served", "orders": "one"}
    return small_config(
        engines={"default": {"type": "transformers"}, "server": served},
        label={"labelers": [judge]},
        filter={"filters": []},
    )


@pytest.mark.parametrize(("engine", "asked_again"), [({}, False), ({"cache": False}, True)])
def test_lost_votes_are_not_paid_for_again(
    tmp_path: Path, engine: dict[str, object], asked_again: bool
) -> None:
    with faulty_server(ANSWER) as server:
        run = run_small(tmp_path, config(server.url, **engine))
        asked = len(server.requests)
        votes, rows = run.round(0).votes.table(), dataset_rows(run)
        assert asked == len(votes)
        for folder in (run.round(0).votes.folder, run.round(0).decisions.folder):
            shutil.rmtree(folder)
        run_small(tmp_path, config(server.url, **engine))
        assert len(server.requests) == asked * (2 if asked_again else 1)
    assert run.round(0).votes.table().equals(votes)
    assert dataset_rows(run) == rows
    assert (tmp_path / "cache" / "server").exists() != asked_again
