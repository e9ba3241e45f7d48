"""What a relabelling would take, and whether its judge answers, before all of it is asked."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from prefloop.labelers.base import LabelerError
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.machine.speed import MachineSpeed
from prefloop.pipeline.relabel.relabel import relabel
from prefloop.pipeline.relabel.relabel_plan import RelabelPlan, plan_relabel
from prefloop.pipeline.relabel.wanted import Asked
from prefloop.pipeline.run.run_dir import RunDir, RunError
from tests.helpers.runs import JUDGE, run_small, small_config
from tests.helpers.servers import FaultyServer, faulty_server, good, status

LONG, SHORT = (
    {"type": "verifier", "name": name, "function": f"tests.helpers.scores:{function}"}
    for name, function in (("long", "length"), ("short", "brevity"))
)
TOP = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.5}]
ANSWER = good("A", logprobs={"content": [{"token": "A", "logprob": -0.1, "top_logprobs": TOP}]})
SPEED = MachineSpeed(flops=1e11, bytes_per_second=2e10, operation_s=1e-5)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two blocks, labelled by length."""
    config = small_config(label={"labelers": [LONG]}, filter={"filters": []})
    return run_small(tmp_path_factory.mktemp("sampled") / "run", config).root


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("redecide", "loop", "relabel.relabel"):
        monkeypatch.setattr(f"prefloop.pipeline.{module}.write_report", lambda run: None)


@pytest.fixture
def run(sampled: Path, tmp_path: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(sampled, tmp_path / "run")))


def planned(run: RunDir, judge: Any, **options: Any) -> RelabelPlan:
    return plan_relabel(run, Asked(judge, **options), speed_of=lambda *_: SPEED)


def served(server: FaultyServer, **changes: Any) -> dict[str, Any]:
    labeler = {**JUDGE, "name": "served", "engine": "server", "model": "m"}
    engine = {
        "type": "openai", "base_url": server.url, "max_retries": 0,
        "price_per_million_prompt_tokens": 2.0, "price_per_million_completion_tokens": 10.0,
    }  # fmt: skip
    return {"labelers": [labeler], "engines": {"server": engine | changes}}


def contents(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in found if not name.endswith(".lock")}


def test_votes_are_counted_as_they_are_then_asked_for(run: RunDir) -> None:
    with faulty_server(ANSWER) as server:
        before = contents(run.root)
        plan = planned(run, served(server))
        assert contents(run.root) == before
        assert not server.requests, "a plan asks nobody"
        [votes] = plan.labelers
        total = plan.as_dict()["total"]
        found = asyncio.run(relabel(run, Asked(served(server))))
        assert votes.votes == total["requests"] == found.votes["served"].asked
        assert len(server.requests) == votes.votes == 2 * votes.pairs > 20
        assert plan.folder == found.folder
        assert total["tokens"] * 2 / 1e6 < total["cost"] < total["tokens"] * 10 / 1e6
        assert 0 < total["tokens"] < total["max_tokens"]
        assert 0 < total["cost"] < total["max_cost"]
        assert total["seconds"] > 0
        [again] = planned(run, served(server)).labelers
        assert (again.there, again.pairs, again.votes) == (votes.votes, 0, 0)
        assert not planned(run, served(server)).opening_seconds


def test_only_what_is_left_is_planned(run: RunDir) -> None:
    with faulty_server(ANSWER) as server:
        found = asyncio.run(relabel(run, Asked(served(server))))
        folder = RunDir(found.folder).round(0)
        whole = found.votes["served"].asked
        lost = folder.root / "by-labeler" / "served" / folder.votes.path(1).name
        lost.unlink()
        [votes] = planned(run, served(server)).labelers
        assert 0 < votes.votes < whole
        assert votes.there == whole - votes.votes


def test_a_jury_takes_what_its_old_members_said(run: RunDir) -> None:
    asyncio.run(relabel(run, Asked(SHORT)))
    old, new = planned(run, {**SHORT, "name": "brief"}, jury=True).labelers
    pairs = run.round(0).votes.rows()
    assert (old.labeler, old.there, old.votes) == ("long", pairs, 0)
    assert (new.labeler, new.there, new.votes) == ("brief", 0, pairs)
    _, same = planned(run, SHORT, jury=True).labelers
    assert (same.there, same.votes) == (pairs, 0)  # of the other relabelling


def test_a_budget_counts_what_the_run_has_spent(run: RunDir) -> None:
    with faulty_server(ANSWER) as server:
        asyncio.run(relabel(run, Asked(served(server))))
        other = served(server, max_total_tokens=100)
        other["labelers"][0]["temperature"] = 0.5
        plan = planned(run, other)
        expected = plan.as_dict()["total"]["tokens"]
        roomy = served(server, max_total_tokens=expected + 10)
        roomy["labelers"][0]["temperature"] = 0.5
        for tight in (plan, planned(run, roomy)):
            assert any("the run will stop there" in one for one in tight.warnings)


def test_the_commands_say_it_and_ask_little(run: RunDir, tmp_path: Path) -> None:
    with faulty_server(ANSWER) as server:
        file = tmp_path / "served.yaml"
        file.write_text(yaml.safe_dump(served(server)))
        command = ["relabel", str(run.root), "--judge", str(file)]
        said = CliRunner().invoke(app, [*command, "--plan"])
        assert said.exit_code == 0, said.output
        for words in ("96 to be asked for", "cost", "about", "served (server"):
            assert words in said.output
        found = json.loads(CliRunner().invoke(app, [*command, "--plan", "--json"]).stdout)
        assert found["total"]["votes"] == 96
        assert found["labelers"][0]["labeler"] == "served"
        assert not server.requests
        checked = CliRunner().invoke(app, [*command, "--check"])
        assert checked.exit_code == 0, checked.output
        assert "label.labelers.served: of a right answer" in checked.output
        assert "sample" not in checked.output
        assert 1 <= len(server.requests) <= 3
        both = CliRunner().invoke(app, [*command, "--check", "--plan"])
        assert both.exit_code == 2


def test_a_judge_that_does_not_answer_is_a_failure(run: RunDir, tmp_path: Path) -> None:
    with faulty_server(status(401, "who are you?")) as server:
        file = tmp_path / "served.yaml"
        file.write_text(yaml.safe_dump(served(server)))
        said = CliRunner().invoke(app, ["relabel", str(run.root), "--judge", str(file), "--check"])
        assert said.exit_code == 3
        assert "who are you?" in said.output
    assert not run.relabels.exists()


def test_mistakes_are_told_by_the_plan(run: RunDir) -> None:
    with pytest.raises(LabelerError, match="nowhere"):
        planned(run, {**JUDGE, "judge": "nowhere/to/be/found"})
    shutil.rmtree(run.round(0).root)
    with pytest.raises(RunError, match="no answers yet"):
        planned(run, SHORT)
