"""`prefloop judge-eval` with real judges, with verdict files, and on public verdicts."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences.gold import read_gold
from prefloop.labelers.jury.calibrator import read_calibrator
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.config import ConfigError
from prefloop.pipeline.judging.gold_eval import JudgeEval, JudgeEvalOptions, judge_eval, load_judges
from prefloop.pipeline.judging.judges_page import judge_page
from prefloop.pipeline.judging.verdict_file import read_verdicts
from tests.helpers.paths import PUBLIC, ROOT
from tests.helpers.runs import JUDGE, VERIFIER, run_small, small_config

LLMBAR = PUBLIC / "llmbar"


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def config(path: Path, **what: Any) -> Path:
    path.write_text(yaml.safe_dump(what))
    return path


def evaluate(path: str, tmp_path: Path, **more: Any) -> JudgeEval:
    return asyncio.run(judge_eval(path, JudgeEvalOptions(out=tmp_path / "out", **more)))


@pytest.fixture(scope="module")
def gold_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pairs of the embedded policy's answers, the gold label by the constraints of the prompt."""
    folder = tmp_path_factory.mktemp("gold")
    run = run_small(
        folder / "run",
        small_config(label={"labelers": [VERIFIER]}, filter={"filters": [],
                     "strategy": {"type": "all"}}),
    )  # fmt: skip
    prompts = {row["prompt_id"]: row for row in run.prompts.table().to_pylist()}
    rows = [
        {
            "prompt": prompts[row["prompt_id"]]["messages"], "chosen": row["chosen"],
            "rejected": row["rejected"],
            "constraints": json.loads(prompts[row["prompt_id"]]["metadata"])["constraints"],
        }
        for row in run.round(0).triples.table().to_pylist()
    ]  # fmt: skip
    assert len(rows) >= 15
    return write(folder / "gold.jsonl", rows)


def test_real_judges_side_by_side(gold_file: str, tmp_path: Path) -> None:
    one = config(tmp_path / "one.yaml", **JUDGE)
    two = config(tmp_path / "two.yaml", labelers=[VERIFIER, {**JUDGE, "orders": "one"}])
    found = evaluate(gold_file, tmp_path, judges=[one, two])
    by_name = {figures.judge: figures for figures in found.figures}
    assert list(by_name) == ["judge", "verifier", "judge (two)"]
    verifier, judge = by_name["verifier"], by_name["judge"]
    assert verifier.accuracy is not None
    assert verifier.accuracy.value == 1.0
    assert verifier.first_share is None
    assert verifier.completions_per_label is None
    assert judge.accuracy is not None
    assert judge.accuracy.value > 0.6
    assert judge.completions_per_label == 2
    assert judge.calibration is not None
    assert by_name["judge (two)"].completions_per_label == 1
    assert by_name["judge (two)"].swap_agreement is None
    json.dumps(found.as_dict(), allow_nan=False)
    page = judge_page(found)
    assert page.count('<svg class="plot"') == 3
    # What was voted is kept, and the same question is not asked again.
    shards = sorted((tmp_path / "out").rglob("part-*.parquet"))
    before = [path.stat().st_mtime_ns for path in shards]
    again = evaluate(gold_file, tmp_path, judges=[one, two])
    assert again.figures == found.figures
    assert [path.stat().st_mtime_ns for path in shards] == before


def test_votes_are_kept_for_what_was_shown_and_by_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another code of a verifier, other metadata or another reference: another vote."""
    monkeypatch.syspath_prepend(str(tmp_path))
    code = tmp_path / "scoring_here.py"
    code.write_text("def score(text, *, metadata, **_):\n    return text == metadata['wanted']\n")
    rows = [{"prompt": f"say {n}", "chosen": f"a{n}", "rejected": f"b{n}", "wanted": f"a{n}"}
            for n in range(6)]  # fmt: skip
    path = write(tmp_path / "gold.jsonl", rows)
    judge = config(tmp_path / "v.yaml", type="verifier", function="scoring_here:score")

    def accuracy() -> float:
        [found] = evaluate(path, tmp_path, judges=[judge]).figures
        assert found.accuracy is not None
        return found.accuracy.value

    assert accuracy() == 1.0
    write(tmp_path / "gold.jsonl", [{**row, "wanted": row["rejected"]} for row in rows])
    assert accuracy() == 0.0
    code.write_text("def score(text, **_):\n    return 1\n")
    monkeypatch.delitem(sys.modules, "scoring_here", raising=False)
    assert accuracy() == 0.5


def test_an_interrupted_evaluation_goes_on(gold_file: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("prefloop.pipeline.judging.gold_eval.BLOCK", 4)
    one = config(tmp_path / "one.yaml", **JUDGE)
    found = evaluate(gold_file, tmp_path, judges=[one])
    shards = sorted((tmp_path / "out").rglob("part-*.parquet"))
    assert len(shards) > 2
    shards[1].unlink()
    kept = shards[0].stat().st_mtime_ns
    assert evaluate(gold_file, tmp_path, judges=[one]).figures == found.figures
    assert shards[0].stat().st_mtime_ns == kept


PAIRS = [
    {"input": f"q{i}", "output_1": f"one {i}", "output_2": f"two {i}", "label": 1 + i % 2}
    for i in range(30)
]


def test_verdicts_find_their_pairs_by_what_they_are_about(tmp_path: Path) -> None:
    path = write(tmp_path / "gold.jsonl", PAIRS)
    verdict = [{"input": row["input"], "output_1": row["output_2"], "output_2": row["output_1"],
                "verdict": 3 - row["label"]} for row in reversed(PAIRS)]  # fmt: skip
    by_text = write(tmp_path / "by_text.jsonl", verdict)
    by_row = write(
        tmp_path / "by_row.jsonl",
        [{"row": i + 1, "verdict": row["label"], "p_first": 0.9 if row["label"] == 1 else 0.1,
          "swapped": bool(i % 2)} for i, row in enumerate(PAIRS)],
    )  # fmt: skip
    found = evaluate(path, tmp_path, verdicts=[by_text, by_row])
    for figures in found.figures:
        assert figures.accuracy is not None
        assert figures.accuracy.value == 1.0
        assert figures.pairs == figures.judged == 30
    assert found.figures[0].first_share is None
    # Row i has label 1 + i % 2 and shows the second first where i is odd: always the first shown.
    assert found.figures[1].first_share is not None
    assert found.figures[1].first_share.value == 1.0
    assert found.figures[1].calibration is not None
    assert found.figures[1].calibration.brier == pytest.approx(0.01)


def test_votes_of_an_evaluation_can_be_given_back(gold_file: str, tmp_path: Path) -> None:
    asked = evaluate(gold_file, tmp_path, judges=[config(tmp_path / "one.yaml", **JUDGE)])
    [folder] = {path.parent for path in (tmp_path / "out").glob("judge-*/part-*.parquet")}
    given = evaluate(gold_file, tmp_path, verdicts=[str(folder / "*.parquet")])
    assert [one.as_dict() for one in given.figures] == [one.as_dict() for one in asked.figures]


def test_verdicts_that_are_none(tmp_path: Path) -> None:
    path = write(tmp_path / "gold.jsonl", PAIRS)
    gold, _ = read_gold(PromptSource(path=path))
    rows = [
        {"row": 1, "verdict": 1}, {"row": 99, "verdict": 1}, {"row": 2, "verdict": "left"},
        {"row": 3, "verdict": None}, {"row": 4, "verdict": 2, "p_first": 0.9},
        {"row": 5, "verdict": 1, "p_first": "high"},
    ]  # fmt: skip
    found = read_verdicts(write(tmp_path / "v.jsonl", rows), gold)
    assert found.refused == {"other_pair": 1, "bad_verdict": 3}
    [votes] = found.votes.values()
    assert sorted(votes["preference"].to_pylist()) in (["a", "invalid"], ["b", "invalid"])
    with pytest.raises(InputError, match="no verdict on any of the 30 pairs"):
        read_verdicts(write(tmp_path / "o.jsonl", [{"row": 77, "verdict": 1}]), gold)
    with pytest.raises(InputError, match="has no `results`, no `preference` and no `verdict`"):
        read_verdicts(write(tmp_path / "n.jsonl", [{"row": 1}]), gold)


def test_gold_labels_and_what_is_none(tmp_path: Path) -> None:
    rows = [
        *PAIRS[:2], PAIRS[0],
        {"input": "x", "output_1": "same", "output_2": "same", "label": 1},
        {"input": "y", "output_1": "p", "output_2": "q", "label": 0},
        {"input": "z", "output_1": True, "output_2": "q", "label": 1},
    ]  # fmt: skip
    gold, refused = read_gold(PromptSource(path=write(tmp_path / "g.jsonl", rows)))
    assert [row.reason for row in refused] == ["duplicate", "identical", "wrong_type"]
    assert [pair.gold == "tie" for pair in gold] == [False, False, True]
    for pair, row in zip(gold, [*rows[:2], rows[4]], strict=True):
        better = {"a": pair.a, "b": pair.b, "tie": None}[pair.gold]
        assert better == (row[f"output_{row['label']}"] if row["label"] else None)
        assert (pair.a if pair.listed_first == "a" else pair.b) == row["output_1"]
    many, _ = read_gold(PromptSource(path=write(tmp_path / "many.jsonl", [
        {"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(200)
    ])))  # fmt: skip
    assert 70 < sum(pair.gold == "a" for pair in many) < 130
    with pytest.raises(InputError, match="no known layout; columns found: q"):
        read_gold(PromptSource(path=write(tmp_path / "q.jsonl", [{"q": 1}])))
    with pytest.raises(InputError, match="holds no pair with a gold label"):
        read_gold(PromptSource(path=write(tmp_path / "e.jsonl", rows[3:4])))


EXAMPLES = ROOT / "examples" / "judges"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_are_judges(path: Path) -> None:
    [labeler] = load_judges(path).label.labelers
    assert labeler.name == path.stem


def test_a_key_that_nobody_reads_is_named(tmp_path: Path) -> None:
    path = tmp_path / "judges.yaml"
    path.write_text("labelers: [{type: verifier}]\nengine: {default: {type: openai}}\n")
    with pytest.raises(ConfigError, match=r"judges\.yaml: unknown key engine: beside `labelers`"):
        load_judges(path)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "gold.jsonl", PAIRS)
    with pytest.raises(InputError, match="give --judge CONFIG or --verdicts FILE"):
        evaluate(path, tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        evaluate(path, tmp_path, judges=[tmp_path / "none.yaml"])
    with pytest.raises(ConfigError, match="jugde"):
        evaluate(path, tmp_path, judges=[config(tmp_path / "x.yaml", **{**JUDGE, "jugde": "x"})])


def test_the_command_writes_a_calibration(tmp_path: Path) -> None:
    path = write(tmp_path / "gold.jsonl", PAIRS)
    rows = [{"row": i + 1, "verdict": 1, "p_first": 0.9} for i in range(30)]
    rows = [row if i % 5 else {"row": i + 1, "verdict": 2, "p_first": 0.2}
            for i, row in enumerate(rows)]  # fmt: skip
    verdicts = write(tmp_path / "v.jsonl", rows)
    command = ["judge-eval", path, "--verdicts", verdicts, "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--json", "--calibrate", str(tmp_path / "c")])
    found = json.loads(done.stdout)
    assert found["calibrations"][0]["n"] == 30
    # Right half of the time whatever it says: no opinion is left.
    assert read_calibrator(tmp_path / "c" / "v.json").apply([0.9])[0] < 0.62
    assert "accuracy" in CliRunner().invoke(app, command).stdout
    assert CliRunner().invoke(app, [*command, "--html"]).stdout.startswith("<!doctype html>")


@pytest.mark.parametrize("subset", ["Natural", "Manual"])
@pytest.mark.parametrize("judge", ["GPT-4", "ChatGPT"])
def test_llmbar(tmp_path: Path, subset: str, judge: str) -> None:
    path = LLMBAR / "evaluators" / f"{subset}_{judge}_Vanilla.json"
    rows = json.loads(path.read_text())
    said = [[one["winner"] for one in row["results"][0].values()] for row in rows]
    right = [
        [one == str(row["label"]) for one in each] for each, row in zip(said, rows, strict=True)
    ]
    found = evaluate(str(LLMBAR / f"{subset}.json"), tmp_path, verdicts=[str(path)])
    [figures] = found.figures
    assert figures.pairs == len(rows) == figures.judged
    # LLMBar's own figures: accuracy of the two orders on average, and how often they agree.
    assert figures.vote_accuracy is not None
    assert figures.vote_accuracy.value == pytest.approx(sum(map(sum, right)) / (2 * len(rows)))
    assert figures.swap_agreement is not None
    same = sum(one == other for one, other in said) / len(rows)
    assert figures.swap_agreement.value == pytest.approx(same)
    assert figures.both_right is not None
    assert figures.both_right.value == pytest.approx(sum(map(all, right)) / len(rows))
    outputs = [one["completion"][0] for row in rows for one in row["results"][0].values()]
    assert figures.first_share is not None
    assert figures.first_share.value == pytest.approx(outputs.count("Output (a)") / len(outputs))


def test_a_reference_that_is_one_of_the_answers_gives_nothing_away(tmp_path: Path) -> None:
    rows = [
        {"prompt": "1?", "chosen": "one", "rejected": "two", "reference": "one "},
        {"prompt": "2?", "chosen": "one", "rejected": "two", "reference": "two"},
        {"prompt": "3?", "chosen": "one", "rejected": "two", "reference": "a third"},
    ]
    path = write(tmp_path / "gold.jsonl", rows)
    found, _ = read_gold(PromptSource(path=path))
    assert [pair.reference for pair in found] == [None, None, "a third"]
