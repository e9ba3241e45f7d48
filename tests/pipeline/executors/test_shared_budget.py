"""A budget is one for all processes that spend it at the same time, as workers of a cluster do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT
from tests.helpers.servers import faulty_server, good

TOKENS = 15  # that an answer of ``good`` takes
ASKING = """
import sys
from pathlib import Path
from prefloop.data.protocol import EngineFailed
from tests.helpers.served import ask, question
url, folder, first = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
questions = [question(str(first + number), max_tokens=5) for number in range(30)]
outcomes = ask(url, *questions, folder=folder, max_total_tokens=300, max_concurrency=4)
print(sum(isinstance(one, EngineFailed) for one in outcomes))
"""


def test_two_processes_at_once_keep_within_one_budget_and_so_do_those_that_come_later(
    tmp_path: Path,
) -> None:
    with faulty_server(good(seconds=0.05)) as server:
        for start in range(2):
            before = len(server.requests)
            processes = [
                subprocess.Popen(
                    [sys.executable, "-c", ASKING, server.url, str(tmp_path / "e"), str(first)],
                    cwd=ROOT, stdout=subprocess.PIPE, text=True,
                )
                for first in (60 * start, 60 * start + 30)
            ]  # fmt: skip
            refused = sum(int(process.communicate()[0]) for process in processes)
            sent = len(server.requests)
            assert refused == 2 * 30 - (sent - before)
            # Who finds the rest set aside for requests of the other stops before it is spent.
            assert 300 - 2 * 4 * (TOKENS + 1) <= sent * TOKENS <= 300
