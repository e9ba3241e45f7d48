"""Labelling a run's answers again: who is asked, what counts, what it is compared with."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

import prefloop
from prefloop.data.errors import PrefloopError
from prefloop.data.protocol import EngineFailed
from prefloop.labelers.config import JudgeLabeler
from prefloop.labelers.judges.folder import SHIPPED
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.redecide import redecide
from prefloop.pipeline.relabel import relabel as relabelling
from prefloop.pipeline.relabel.relabel import relabel
from prefloop.pipeline.relabel.relabelled import Relabelled, VotesFrom
from prefloop.pipeline.relabel.wanted import Asked, wanted_labels
from prefloop.pipeline.report.run_page import render_report
from prefloop.pipeline.run.run_dir import RunDir, RunError
from prefloop.pipeline.stages import label as labelling
from tests.helpers.runs import JUDGE, VERIFIER, dataset_rows, run_small, small_config
from tests.helpers.servers import faulty_server, good

LONG, SHORT, NONE = (
    {"type": "verifier", "name": name, "function": f"tests.helpers.scores:{function}"}
    for name, function in (("long", "length"), ("short", "brevity"), ("none", "nothing"))
)
TOP = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.5}]
ANSWER = good("A", logprobs={"content": [{"token": "A", "logprob": -0.1, "top_logprobs": TOP}]})


def config_of(*labelers: dict[str, Any], **changes: Any) -> RunConfig:
    label = {"labelers": list(labelers)} | changes.pop("label", {})
    return small_config(label=label, **({"filter": {"filters": []}} | changes))


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two blocks, labelled by the embedded judge and by length."""
    return run_small(tmp_path_factory.mktemp("sampled") / "run", config_of(JUDGE, LONG)).root


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all the rest."""
    for module in ("redecide", "loop", "relabel.relabel"):
        monkeypatch.setattr(f"prefloop.pipeline.{module}.write_report", lambda run: None)


@pytest.fixture
def run(sampled: Path, tmp_path: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(sampled, tmp_path / "run")))


def again(run: RunDir, judge: Any = None, **options: Any) -> Relabelled:
    asked = {key: options.pop(key) for key in ("jury", "model", "engine") if key in options}
    return asyncio.run(relabel(run, Asked(judge, **asked), **options))


def fresh(run: RunDir, *labelers: dict[str, Any]) -> RunDir:
    """What a run is that was labelled so from the beginning."""
    root = Path(shutil.copytree(run.root, run.root.parent / "fresh"))
    for name in ("vote", "decision", "triple", "written.json"):
        path = root / "round-000" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(root / "dataset")
    return run_small(root, config_of(*labelers))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "relabels" not in path.parts and not path.name.startswith(".")
    }


def test_labels_beside_are_those_of_a_run_labelled_so_from_the_beginning(run: RunDir) -> None:
    other = {**JUDGE, "name": "other", "temperature": 1.0, "orders": "one"}
    before = contents(run.root)
    found = again(run, {"labelers": [other, SHORT]})
    assert contents(run.root) == before
    expected, directory = fresh(run, other, SHORT), RunDir(found.folder)
    assert directory.round(0).votes.table().equals(expected.round(0).votes.table())
    assert directory.round(0).decisions.table().equals(expected.round(0).decisions.table())
    assert dataset_rows(directory) == dataset_rows(expected)
    assert found.rows["train"] == len(prefloop.Run(found.folder).load_dataset("train"))
    votes = expected.round(0).votes.rows()
    assert sum(one.asked for one in found.votes.values()) == votes
    once_more = again(run, {"labelers": [other, SHORT]})
    assert once_more.folder == found.folder
    assert once_more.difference == found.difference
    assert sum(one.there for one in once_more.votes.values()) == votes
    assert not any(one.asked or one.taken for one in once_more.votes.values())


def test_old_and_new_decide_together_and_nobody_is_asked_twice(run: RunDir) -> None:
    apart = again(run, SHORT)
    together = again(run, SHORT, jury=True)
    assert together.folder.name == "short-jury"
    pairs = apart.votes["short"].asked
    assert together.votes["short"] == VotesFrom(taken=pairs)
    assert together.votes["long"] == VotesFrom(taken=pairs)
    assert together.votes["judge"].asked == 0
    expected, directory = fresh(run, JUDGE, LONG, SHORT), RunDir(together.folder)
    assert directory.round(0).decisions.table().equals(expected.round(0).decisions.table())
    assert dataset_rows(directory) == dataset_rows(expected)
    assert dataset_rows(RunDir(apart.folder)) != dataset_rows(expected)
    assert set(together.difference.labelers) == {(name, "short") for name in ("judge", "long")}


def test_what_differs_is_counted(run: RunDir) -> None:
    by_length = RunDir(again(run, LONG, name="by-length").folder)
    same = again(by_length, {**LONG, "weight": 2.0}).difference
    pairs = same.pairs
    assert pairs == same.same > 20
    assert same.decisions.kappa.value == same.decisions.raw.value == 1
    assert same.kept["kept"] == same.kept["kept_before"] > 0
    assert same.examples == ()
    turned = again(by_length, SHORT).difference
    ties = sum(reason == "tie" for reason in reasons(by_length))
    assert (turned.pairs, turned.turned, turned.same) == (pairs, pairs - ties, ties)
    assert turned.decisions.raw.value == pytest.approx(ties / pairs)
    kappa = turned.labelers["long", "short"].kappa
    assert kappa.value is not None
    assert kappa.value < 0
    assert kappa.n == pairs
    example = turned.examples[0]
    assert (example.before, example.now) in {("first", "second"), ("second", "first")}
    longer = max(("first", "second"), key=lambda side: len(getattr(example, side)))
    assert example.before == longer
    nothing = again(by_length, NONE).difference
    assert nothing.now_tie == pairs - ties
    assert nothing.kept["kept"] == 0
    assert nothing.kept["removed"] == same.kept["kept"]


def reasons(run: RunDir) -> list[str | None]:
    found: list[str | None] = run.round(0).decisions.table(["reason"])["reason"].to_pylist()
    return found


def test_a_kill_in_the_middle_loses_no_vote(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load(run.config.read_text())
    run.config.write_text(yaml.safe_dump(config | {"blocks_in_flight": 1}))
    real = labelling.label_block

    async def killed(context: Any, settings: Any, index: int, *more: Any) -> pa.Table:
        if index:
            raise KeyboardInterrupt
        return await real(context, settings, index, *more)

    with monkeypatch.context() as patched:
        patched.setattr(labelling, "label_block", killed)
        with pytest.raises(KeyboardInterrupt):
            again(run, SHORT)
    for step in ("_put_together", "filter_round", "write_round", "compare_labels", "write_report"):
        with monkeypatch.context() as patched:
            patched.setattr(relabelling, step, raises_interrupt)
            with pytest.raises(KeyboardInterrupt):
                again(run, SHORT)
    found = again(run, SHORT)
    assert found.votes["short"] == VotesFrom(there=found.difference.spent["short"].votes)
    assert dataset_rows(RunDir(found.folder)) == dataset_rows(fresh(run, SHORT))


def raises_interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_what_only_decides_is_changed_for_nothing(run: RunDir) -> None:
    wanted = {"labelers": [LONG, SHORT], "jury": {"rule": "majority"}}
    tied = again(run, wanted)
    assert tied.difference.kept["kept"] == 0
    wanted["labelers"] = [LONG, {**SHORT, "weight": 2.0}]
    found = again(run, wanted)
    assert found.folder == tied.folder
    assert not any(one.asked for one in found.votes.values())
    assert found.difference.kept["kept"] > 0
    assert chosen(RunDir(found.folder)) == chosen(RunDir(again(run, SHORT).folder))


def chosen(run: RunDir) -> set[tuple[str, str]]:
    rows = [row for rows in dataset_rows(run).values() for row in rows]
    return {(row["chosen_id"], row["rejected_id"]) for row in rows}


def test_votes_on_other_pairs_are_not_taken_over(run: RunDir) -> None:
    again(run, SHORT)
    fewer = again(run, {"labelers": [SHORT], "pairs_per_prompt": 1})
    assert fewer.folder.name == "short-2"
    assert fewer.votes["short"] == VotesFrom(asked=16)
    assert fewer.difference.pairs == 16


def test_votes_of_people_count_as_before(run: RunDir) -> None:
    folder = run.round(0)
    votes = folder.votes.read(0)
    [row] = [
        one for one in votes.to_pylist() if one["labeler"] == "long" and one["preference"] == "a"
    ][:1]
    said = row | {"labeler": "human:ann", "preference": "b", "p_a": None}
    said |= {"score_a": None, "score_b": None}
    folder.votes.replace(0, pa.concat_tables([votes, pa.Table.from_pylist([said], votes.schema)]))
    redecide(config_of(JUDGE, LONG), run)
    found = again(run, {**LONG, "name": "lengthy"})
    decisions = RunDir(found.folder).round(0).decisions.read(0).to_pylist()
    [decision] = [one for one in decisions if one["pair_id"] == row["pair_id"]]
    assert decision["chosen_id"] == row["b_id"]
    assert "human:ann" in decision["labelers"]
    assert found.difference.labelers["human:ann", "lengthy"].raw.n == 1
    folder.votes.replace(0, votes)  # taken back
    again(run, {**LONG, "name": "lengthy"})
    decisions = RunDir(found.folder).round(0).decisions.read(0).to_pylist()
    [decision] = [one for one in decisions if one["pair_id"] == row["pair_id"]]
    assert decision["chosen_id"] == row["a_id"]


def test_a_server_is_asked_within_the_run_s_budget_and_cache(run: RunDir) -> None:
    with faulty_server(ANSWER) as server, faulty_server(ANSWER) as second:
        engine = {"type": "openai", "base_url": server.url, "max_retries": 0}
        labeler = {**JUDGE, "name": "served", "engine": "server", "model": "m", "orders": "one"}

        def judge(**changes: Any) -> dict[str, Any]:
            return {"labelers": [labeler], "engines": {"server": engine | changes}}

        found = again(run, judge())
        [name] = [path.name for path in run.cache.iterdir() if path.is_dir()]
        asked = len(server.requests)
        assert asked == found.votes["served"].asked > 0
        shutil.rmtree(found.folder)
        again(run, judge())
        assert len(server.requests) == asked, "the response cache is the run's"
        spent = found.difference.spent["served"]
        most = spent.prompt_tokens + spent.completion_tokens + 1
        other = {**labeler, "temperature": 0.5}
        with pytest.raises(EngineFailed, match="budget reached"):
            again(run, judge(max_total_tokens=most) | {"labelers": [other]})
        assert len(server.requests) == asked
        again(run, judge(base_url=second.url))
        assert len(second.requests) == asked, "answers of one server are no other's"
        assert len([path for path in run.cache.iterdir() if path.is_dir()]) == 2
        assert name.startswith("server-")


def test_who_writes_criteria_is_asked_at_the_file_s_server_too() -> None:
    at = "http://127.0.0.1:{}/v1"
    rubric = {
        "type": "judge", "name": "strict", "judge": "rubric", "engine": "server", "model": "m",
        "criteria": {"engine": "server", "model": "writer"},
    }  # fmt: skip
    ours = {
        "default": {"type": "transformers"},
        "server": {"type": "openai", "base_url": at.format(1)},
    }
    config = config_of(JUDGE, engines=ours)
    theirs = {"server": {"type": "openai", "base_url": at.format(2)}}
    found = wanted_labels(config, Asked({"labelers": [rubric], "engines": theirs})).config
    [labeler] = found.label.labelers
    assert isinstance(labeler, JudgeLabeler)
    assert {name for name, _ in labeler.asked} == {labeler.engine}
    asked = found.engines[labeler.engine]
    assert isinstance(asked, OpenAIEngine)
    assert asked.addresses == (at.format(2),)
    assert rubric["criteria"] == {"engine": "server", "model": "writer"}


def test_a_judge_is_named_by_its_folder(run: RunDir, tmp_path: Path) -> None:
    mine = judge_folder(tmp_path / "mine")
    template = mine / "prompt.jinja"
    first = again(run, str(mine), model="embedded:judge", engine="default")
    assert first.labelers == ("mine",)
    template.write_text(template.read_text() + "\nBe strict.")
    second = again(run, mine)
    assert second.folder.name == "mine-2"
    assert second.votes["mine"].asked == first.votes["mine"].asked > 0
    assert again(run).votes == {
        "judge": VotesFrom(taken=96),
        "long": VotesFrom(taken=48),  # by the same file of its function
    }


@pytest.mark.parametrize(
    ("judge", "options", "message"),
    [
        ("no/judge.yaml", {}, "no such file"),
        ("nobody", {}, "no folder with a judge.yaml"),
        (LONG, {"model": "m"}, "--model and --engine are for"),
        ({"label": {"labelers": [LONG]}, "train": {}}, {}, "train: has nothing to do with labels"),
        ({"labelers": "long"}, {}, "`labelers` must be a list"),
        ({"labelers": [LONG], "jurry": {}}, {}, "label.jurry: unknown key, did you mean 'jury'"),
        (
            {**LONG, "engines": {"x": {"type": "openai", "seed": 1}}},
            {},
            r"engines\.x\S*\.seed: unknown",
        ),
        ({**JUDGE, "engine": "far"}, {}, "names the engine 'far'"),
        ({**LONG, "weight": 2}, {"jury": True}, "'long' is named like one of the run's"),
        (SHORT, {"name": "../x"}, "separator of folders"),
        (SHORT, {"name": "before-1"}, "begins with before-"),
    ],
)
def test_a_mistake_is_one_line_and_asks_nobody(
    run: RunDir, judge: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PrefloopError, match=message) as failed:
        again(run, judge, **options)
    assert "\n" not in str(failed.value)
    assert not list(run.root.glob("relabels/*/round-000/by-labeler"))


def test_a_name_that_others_have_is_refused(run: RunDir) -> None:
    again(run, SHORT, name="mine")
    with pytest.raises(RunError, match="give another --name"):
        again(run, NONE, name="mine")
    assert again(run, NONE).folder.name == "none"


def test_answers_that_were_sampled_again_are_labelled_again(run: RunDir) -> None:
    found = again(run, SHORT)
    folder = run.round(0)
    rows = folder.candidates.read(1).to_pylist()
    rows[0] |= {"text": "Quite another one!", "candidate_id": "f" * 32}
    folder.candidates.replace(1, pa.Table.from_pylist(rows, folder.candidates.schema))
    folder.votes.path(1).unlink()
    second = again(run, SHORT)
    assert second.folder == found.folder
    assert second.votes["short"].asked == second.votes["short"].there == 24
    ids = {row["candidate_id"] for row in rows}
    of_block = RunDir(found.folder).round(0).decisions.read(1)
    assert ids >= set(of_block["chosen_id"].to_pylist()) | set(of_block["rejected_id"].to_pylist())
    assert "f" * 32 in {*of_block["chosen_id"].to_pylist(), *of_block["rejected_id"].to_pylist()}
    assert second.difference.pairs == 24, "what the run has no votes on is not compared"


def test_the_policy_can_judge_its_own_answers(run: RunDir, tmp_path: Path) -> None:
    lenient = judge_folder(tmp_path / "lenient")
    settings = lenient / "judge.yaml"
    settings.write_text(settings.read_text() + "\nmin_mass: 0.000001\n")
    itself = {**JUDGE, "name": "itself", "judge": str(lenient), "model": "policy", "orders": "one"}
    assert again(run, itself).votes["itself"].asked == 48


def judge_folder(folder: Path) -> Path:
    return Path(shutil.copytree(SHIPPED / "pairwise_short", folder))


def test_a_run_without_answers_has_nothing_to_label(run: RunDir) -> None:
    shutil.rmtree(run.round(0).root)
    with pytest.raises(RunError, match="no answers yet"):
        again(run, SHORT)


def test_the_command_says_what_changed(run: RunDir, tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    file.write_text(yaml.safe_dump(SHORT))
    said = CliRunner().invoke(app, ["relabel", str(run.root), "--judge", str(file)])
    assert said.exit_code == 0, said.output
    for words in ("kappa", "turned round", "48 votes asked for", "relabels/short/dataset"):
        assert words in said.output
    as_json = ["relabel", str(run.root), "--judge", str(file), "--json"]
    found = json.loads(CliRunner().invoke(app, as_json).stdout)
    assert found["votes"]["short"] == {"there": 48, "taken": 0, "asked": 0}
    assert found["difference"]["decisions"]["kappa"]["low"] is not None
    kept = json.loads((run.relabels / "short" / "comparison.json").read_text())
    assert kept == found
    (run.relabels / "other").mkdir()
    (run.relabels / "other" / "comparison.json").write_text('{"labelers": 3}')
    page = render_report(run)
    assert page.count('<th scope="row">short</th>') == 1
    assert "labelled again" in page
    shutil.rmtree(run.relabels / "other")
    file.write_text(yaml.safe_dump(NONE))
    nothing = CliRunner().invoke(app, ["relabel", str(run.root), "--judge", str(file)])
    assert "kept 0 pairs" in nothing.output
    assert nothing.exception.exit_code == 3
    assert VERIFIER["name"] not in nothing.output
