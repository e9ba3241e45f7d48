"""Criteria through the real server: asked, answered, pulled, and compared with the judge's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa

from prefloop.data.schemas import VOTE
from prefloop.labelers.judges.folder import load_judge
from prefloop.labelers.judges.settings import RubricSettings
from prefloop.pipeline.config import dump_config
from prefloop.pipeline.report.run_page import render_report
from prefloop.pipeline.review.folder import ReviewFolder
from prefloop.pipeline.review.pull import pull
from prefloop.pipeline.review.push import PushOptions, push
from prefloop.pipeline.review.review_status import review_status
from prefloop.pipeline.review.review_text import render_review_status
from prefloop.pipeline.review.subjects import RunSubjects
from prefloop.pipeline.review.users import add_person
from prefloop.pipeline.run.run_dir import RunDir
from tests.helpers.argilla_server import Server
from tests.helpers.runs import JUDGE, small_config
from tests.pipeline.review.decided_run import decided_run


def run_with_a_rubric(root: Path) -> RunDir:
    """The judge says of every pair that a meets all criteria best and b worst."""
    run = decided_run(root)
    config = small_config(label={"labelers": [JUDGE | {"judge": "rubric"}]})
    run.config.write_text(dump_config(config))
    settings = load_judge("rubric").settings
    assert isinstance(settings, RubricSettings)
    told = [one.model_dump(mode="json") | {"a": 1.0, "b": 0.0} for one in settings.criteria]
    criteria = json.dumps({"from": "judge", "criteria": told})
    votes = run.round(0).votes
    for index in votes.indices():
        table = votes.read(index)
        pairs = {row["pair_id"]: row for row in table.to_pylist()}
        rubric = [row | {"labeler": "judge", "criteria": criteria, "order": "none",
                         "preference": "a", "p_a": 0.9} for row in pairs.values()]  # fmt: skip
        votes.replace(index, pa.concat_tables([table, pa.Table.from_pylist(rubric, VOTE)]))
    return run


def test_people_answer_by_criterion(argilla: Server, tmp_path: Path) -> None:
    run = run_with_a_rubric(tmp_path / "run")
    folder = ReviewFolder(run.root / "review" / "blind")

    def put(n: int) -> str:
        options = PushOptions(name=f"criteria-{tmp_path.name}", n=n, overlap=1, strategy="random")
        review = push(
            argilla.api, RunSubjects(run), folder, options, source=str(run.root), is_run=True
        )
        return review.dataset_id

    dataset = put(4)
    asked = folder.asked().criteria
    assert len(asked) == 6
    assert "By criterion" in argilla.api.request("GET", f"datasets/{dataset}")["guidelines"]
    questions = argilla.api.request("GET", f"datasets/{dataset}/questions")["items"]
    assert len(questions) == 2 + 2 * 6
    assert [one["name"] for one in questions if one["required"]] == ["verdict"]

    name = f"eve-{tmp_path.name}"
    path = add_person(argilla.api, name, "prefloop", tmp_path / "eve.json")
    eve = argilla.sign_in(name, json.loads(path.read_text())["password"])
    pushed = folder.pairs()
    votes = {row["pair_id"]: row for row in run.round(0).votes.table().to_pylist()}
    records = list(argilla.api.records(dataset))
    for record in records:
        pair = record["external_id"]
        best = pushed[pair]["answer_a_id"] == votes[pair]["a_id"]
        a, b = ("a", "b") if best else ("b", "a")
        values = {"verdict": "tie", f"criterion_1_{a}": "3", f"criterion_1_{b}": "1",
                  f"criterion_2_{a}": "1", f"criterion_2_{b}": "1",
                  # A fault, that the judge sees in b only, and so does Eve.
                  f"criterion_5_{a}": "1", f"criterion_5_{b}": "2"}  # fmt: skip
        sent = eve.post(
            f"/records/{record['id']}/responses",
            json={"status": "submitted", "values": {k: {"value": v} for k, v in values.items()}},
        )
        assert sent.status_code == 201, sent.text
    assert pull(argilla.api, folder).new == len(records)
    again = pull(argilla.api, folder)
    assert (again.new, again.rounds) == (0, ())

    status = review_status(folder)
    found = {one.name: one for one in status.criteria}
    assert set(found) == {"does what was asked", "correct", "padding"}
    assert (found["does what was asked"].same.value, found["padding"].same.value) == (1.0, 1.0)
    assert (found["correct"].same.value, found["correct"].same.n) == (0.5, 2 * len(records))
    assert found["correct"].apart is None
    assert found["padding"].apart is not None
    assert found["padding"].apart.value == 1.0
    assert "judge, correct: 50.0 %" in render_review_status(status)
    json.dumps(status.as_dict(), allow_nan=False)
    [_, told] = render_report(run).split("Where judge and people disagree, criterion by criterion")
    rows = re.findall(r'<th scope="row">(.*?)</th>\s*<td>(.*?) \[', told.partition("</table>")[0])
    assert [name for name, _ in rows] == ["correct", "does what was asked", "padding"]
    assert rows[0][1].startswith("50")

    # More pairs are asked about by what was asked first.
    put(6)
    assert folder.asked().criteria == asked
