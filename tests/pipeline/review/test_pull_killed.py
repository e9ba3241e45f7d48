"""A pull killed between the votes and their decisions, and run again. No server is needed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from prefloop.pipeline import redecide as redeciding
from prefloop.pipeline.review import pull as pulling
from prefloop.pipeline.review import responses
from prefloop.pipeline.review.folder import PUSHED, Review, ReviewFolder
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.run.status import collect_status
from tests.helpers.runs import dataset_rows
from tests.pipeline.review.decided_run import decided_run


class Server:
    """Every pair was answered by one person, with B."""

    account = SimpleNamespace(url="http://x")

    def __init__(self, pairs: list[str]) -> None:
        self._pairs = pairs

    def request(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}

    def users(self) -> dict[str, str]:
        return {"u": "ann"}

    def records(self, _: str) -> list[dict[str, Any]]:
        said = {"user_id": "u", "status": "submitted", "values": {"verdict": {"value": "b"}},
                "inserted_at": "t", "updated_at": "t"}  # fmt: skip
        return [
            {"external_id": pair, "responses": [{"id": f"r-{pair}", **said}]}
            for pair in self._pairs
        ]


def pushed(root: Path) -> tuple[RunDir, ReviewFolder, Server]:
    run = decided_run(root)
    folder = ReviewFolder(run.root / "review" / "r")
    folder.write(Review("r", "w", "http://x", "d", "blind", 1, str(root), is_run=True))
    rows = [
        {
            "pair_id": row["pair_id"], "prompt_id": row["prompt_id"], "round": 0, "place": "x",
            "answer_a_id": row["chosen_id"], "answer_b_id": row["rejected_id"],
            "chosen_id": row["chosen_id"], "p_chosen": row["p_chosen"],
        }
        for row in run.round(0).decisions.table().to_pylist()
        if row["kept"]
    ]  # fmt: skip
    folder.pushed.write(0, pa.Table.from_pylist(rows, PUSHED))
    return run, folder, Server([row["pair_id"] for row in rows])


@pytest.mark.parametrize("step", ["votes", "redecide"])
def test_a_killed_pull_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(redeciding, "write_report", lambda run: None)
    clean, folder, server = pushed(tmp_path / "clean")
    before = dataset_rows(clean)
    assert pulling.pull(server, folder).rounds
    assert dataset_rows(clean) != before

    run, folder, server = pushed(tmp_path / "killed")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if step == "votes":  # after the first of two shards
            real = responses.mark_undecided
            marked: list[int] = []

            def second(run: RunDir) -> None:
                if marked:
                    killed()
                marked.append(1)
                real(run)

            patched.setattr(responses, "mark_undecided", second)
        else:
            patched.setattr(responses, "redecide", killed)
        with pytest.raises(KeyboardInterrupt):
            pulling.pull(server, folder)
    assert dataset_rows(run) == before
    assert "votes changed" in collect_status(run).state
    assert pulling.pull(server, folder).rounds
    assert dataset_rows(run) == dataset_rows(clean)
    assert not run.decides_again()
    assert not pulling.pull(server, folder).rounds
