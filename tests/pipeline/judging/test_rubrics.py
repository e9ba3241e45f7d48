"""Rubrics through a run: from the prompts' column to votes, plan, report and votes read again."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prefloop.pipeline.checking.run_check import check_before
from prefloop.pipeline.config import ConfigError, RunConfig, validate_config
from prefloop.pipeline.judging.reparse import reparse
from prefloop.pipeline.plan.plan import make_plan
from prefloop.pipeline.report.run_page import render_report
from prefloop.pipeline.review.guidelines import guidelines
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.invalid_votes import remedy_for
from tests.helpers.runs import run_small
from tests.helpers.servers import FaultyServer, Handler, Reply, faulty_server, good

PROMPTS = 12


def config(url: str, file: Path, *, columns: bool = True, **judge: Any) -> RunConfig:
    """Prompts with two answers each, judged by a rubric."""
    one = {
        "type": "judge", "name": "j", "engine": "judge", "model": "m", "judge": "rubric_rationale",
    } | judge  # fmt: skip
    served = {"type": "openai", "base_url": url, "max_retries": 0, "cache": False}
    source = {"path": str(file)} | ({"columns": {"rubric": "criteria"}} if columns else {})
    raw = {
        "seed": 1, "policy": "m", "block_size": 4,
        "engines": {"default": served, "judge": served},
        "prompts": {"train": source, "heldout_share": 0, "near_duplicates": {"enabled": False}},
        "sample": {"n": 2, "max_tokens": 8},
        "label": {"labelers": [one]},
        "filter": {"filters": [], "strategy": {"type": "all"}},
        "write": {"test_share": 0},
    }  # fmt: skip
    return validate_config(raw, "test")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Each prompt asks for its own digit; the last one's rubric is none."""
    rows: list[dict[str, Any]] = [
        {"prompt": f"Number {n:02d}?", "criteria": [f"Names {n}.", {"text": "Ends.", "weight": 3}]}
        for n in range(PROMPTS - 1)
    ]
    rows.append({"prompt": "A bad one?", "criteria": [{"text": "x", "weight": "much"}]})
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def judging(is_met: Any) -> Reply:
    """A server that samples, and says of each criterion whether it ``is_met`` by the answer."""

    def reply(handler: Handler) -> None:
        text = str(handler.body["messages"][-1]["content"])
        if "Judge an answer" not in text:
            good(f"answer {handler.body['seed']}")(handler)
            return
        answer = re.findall(r"<answer>\n(.*)\n</answer>", text)[0]
        found = dict(re.findall(r"^(criterion_\d+): (.*)$", text, re.M))
        said = {key: 2 if is_met(criterion, answer) else 1 for key, criterion in found.items()}
        good(json.dumps({"rationale": "r"} | said))(handler)

    return reply


def questions(server: FaultyServer) -> int:
    return sum("Judge an answer" in str(body["messages"]) for _, _, body in server.requests)


def test_prompts_bring_their_own_criteria(tmp_path: Path, prompts: Path) -> None:
    def is_met(criterion: str, answer: str) -> bool:
        return criterion == "Ends." or int(answer.split()[1]) % 2 == 0

    with faulty_server(judging(is_met)) as server:
        asked = config(server.url, prompts, criteria="prompt")
        planned = next(one for one in make_plan(asked).steps if one.what == "j")
        run = run_small(tmp_path / "run", asked)
        assert planned.requests == questions(server) == 2 * (PROMPTS - 1)
    [bad] = run.quarantine.table().to_pylist()
    assert (bad["row"], bad["field"], bad["reason"]) == (PROMPTS, "criteria", "bad_rubric")
    assert bad["detail"] == "criterion 1: weight: write a number"
    votes = run.round(0).votes.table().to_pylist()
    assert len(votes) == PROMPTS - 1
    for vote in votes:
        told = json.loads(vote["criteria"])
        assert told["from"] == "prompt"
        assert [one["weight"] for one in told["criteria"]] == [1.0, 3.0]
        assert vote["score_a"] == (told["criteria"][0]["a"] + 3) / 4
    page = render_report(run)
    assert "Which criteria of j decide" in page
    assert "Of 22 criteria of the prompts" in page


def test_written_criteria_are_kept_in_the_run_and_written_once(
    tmp_path: Path, prompts: Path
) -> None:
    def is_met(criterion: str, answer: str) -> bool:
        return criterion == "Even." and int(answer.split()[1]) % 2 == 0

    said = json.dumps({"criteria": [{"text": "Even.", "weight": 2}, "Odd."]})
    judge = judging(is_met)

    def reply(handler: Handler) -> None:
        text = str(handler.body["messages"][-1]["content"])
        (good(said) if "Write the criteria" in text else judge)(handler)

    def written(server: FaultyServer) -> list[str]:
        texts = [str(body["messages"]) for _, _, body in server.requests]
        return [text for text in texts if "Write the criteria" in text]

    with faulty_server(reply) as server:
        writer = {"engine": "judge", "model": "w", "most": 2}
        asked = config(server.url, prompts, columns=False, criteria=writer)
        steps = {one.what: one.requests for one in make_plan(asked).steps}
        run = run_small(tmp_path / "run", asked)
        assert len(written(server)) == steps["criteria of j"] == PROMPTS
        assert questions(server) == steps["j"] == 2 * PROMPTS
        assert not any("answer " in text.split("<request>")[1] for text in written(server))
        files = list(run.rubrics.glob("j-*/*.json"))
        assert len(files) == 3  # blocks
        told = json.loads(files[0].read_text())
        assert told["writer"]["model"] == "w"
        assert {one["said"] for one in told["rubrics"].values()} == {said}
        # A kill that took the votes: the criteria stay what they were.
        before = run.round(0).votes.table()
        run.round(0).votes.remove(run.round(0).votes.indices())
        run_small(tmp_path / "run", asked)
        assert len(written(server)) == PROMPTS
        assert run.round(0).votes.table()["criteria"].equals(before["criteria"])
    assert json.loads(before["criteria"][0].as_py())["from"] == "written"


def test_what_a_check_has_written_is_not_kept(tmp_path: Path, prompts: Path) -> None:
    """Its question is no prompt of the run."""
    said = json.dumps({"criteria": ["It names the capital of France."]})
    judge = judging(lambda _, answer: "Paris" in answer)

    def reply(handler: Handler) -> None:
        text = str(handler.body["messages"][-1]["content"])
        (good(said) if "Write the criteria" in text else judge)(handler)

    with faulty_server(reply) as server:
        asked = config(
            server.url, prompts, columns=False, criteria={"engine": "judge", "model": "w"}
        )
        run = RunDir(tmp_path / "run")
        models = Models(asked, cache=run.cache, rubrics=run.rubrics)
        asyncio.run(check_before(asked, run, models))
        assert any("Write the criteria" in str(body) for _, _, body in server.requests)
    assert not run.rubrics.exists()


def test_a_plan_counts_criteria_once_a_prompt(tmp_path: Path, prompts: Path) -> None:
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text("\n".join(json.dumps({"prompt": f"Held out {n}?"}) for n in range(5)))
    raw = config("http://127.0.0.1:1/v1", prompts, columns=False, criteria={"model": "w"})
    changed = raw.model_dump(mode="json") | {"rounds": 3, "policy": "embedded:policy"}
    changed["engines"]["default"] = {"type": "transformers"}
    changed["prompts"]["heldout"] = {"path": str(heldout)}
    changed["train"] = {}
    steps = make_plan(validate_config(changed, "test")).steps
    counts = Counter(
        {(one.stage, one.round): one.requests for one in steps if one.what == "criteria of j"}
    )
    assert counts == {("label", 0): PROMPTS, ("evaluate", 0): 5}
    assert sum(one.what == "j" and one.stage == "label" for one in steps) == 3


def test_the_deciding_criterion_is_told_and_weights_are_read_again(
    tmp_path: Path, prompts: Path
) -> None:
    folder = tmp_path / "judge"
    folder.mkdir()
    shipped = Path("prefloop/labelers/judges/shipped/rubric_rationale/prompt.jinja")
    (folder / "prompt.jinja").write_text(shipped.read_text())

    def write(weight: int) -> None:
        criteria = [{"text": "Even.", "weight": 2}, {"text": "Odd.", "weight": weight}, "Ends."]
        settings = {"kind": "rubric", "parser": "json", "max_tokens": 99, "criteria": criteria}
        (folder / "judge.yaml").write_text(json.dumps(settings))

    def is_met(criterion: str, answer: str) -> bool:
        even = int(answer.split()[1]) % 2 == 0
        return criterion == "Ends." or even == (criterion == "Even.")

    write(1)
    with faulty_server(judging(is_met)) as server:
        run = run_small(tmp_path / "run", config(server.url, prompts, judge=str(folder)))
        before = questions(server)
        preferred = _preferred(run)
        decided = sum(one != "tie" for one in preferred)
        assert decided
        page = render_report(run)
        assert "Of 3 criteria, 1 decides at least one pair, and 1 tells no two" in page
        rows = re.findall(r'<th scope="row">(Even|Odd|Ends)\.</th>(.*?)</tr>', page)
        assert [name for name, _ in rows] == ["Even", "Ends", "Odd"]
        # The other way round, for nothing.
        write(4)
        found = reparse(run, write=True)
        assert found.votes == {"j": len(preferred)}
        turned = {"a": "b", "b": "a", "tie": "tie"}
        assert _preferred(run) == [turned[one] for one in preferred]
        assert questions(server) == before


def _preferred(run: RunDir) -> list[str]:
    found: list[str] = run.round(0).votes.table()["preference"].to_pylist()
    return found


def test_a_rubric_that_no_prompt_brings_along_is_refused(prompts: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"j\.criteria is prompt.*prompts\.train\.columns\.rubric"
    ):
        config("http://127.0.0.1:1/v1", prompts, columns=False, criteria="prompt")


def test_the_remedy_is_the_key_that_went_wrong(prompts: Path) -> None:
    writer = {"engine": "judge", "model": "w"}
    url = "http://127.0.0.1:1/v1"
    [labeler] = config(url, prompts, columns=False, criteria=writer).label.labelers
    cut = "unwritten_rubric: there is no JSON object; the answer was cut off at its token limit"
    assert remedy_for(labeler, cut).startswith("raise label.labelers.j.criteria.max_tokens")
    assert "rubrics of the prompts" in remedy_for(labeler, "bad_rubric: criterion 1 has no text")


def test_people_are_told_the_criteria_that_hold_for_all_prompts(prompts: Path) -> None:
    told = guidelines(config("http://127.0.0.1:1/v1", prompts).label, "blind")
    assert "- It can be understood and used as it stands. (not at all, in part, fully)" in told
    assert "adds what nobody asked for. (no, yes) A fault." in told
    assert "Without it an answer cannot win." in told
    own = guidelines(config("http://127.0.0.1:1/v1", prompts, criteria="prompt").label, "blind")
    assert "It can be understood" not in own
    assert "Judge an answer to a request by several criteria" in own
    assert "criteria stand here" not in own
