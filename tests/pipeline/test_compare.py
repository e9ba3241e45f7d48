"""`prefloop compare`: policies on held-out prompts, without a run."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from prefloop.data.errors import InputError
from prefloop.labelers.judges.folder import SHIPPED
from prefloop.labelers.jury.calibrator import Calibrator
from prefloop.pipeline.commands.app import app
from prefloop.pipeline.policies.answer_table import ANSWERS
from prefloop.pipeline.policies.compare import CompareOptions, compare_policies
from prefloop.pipeline.policies.comparison import Evaluation
from prefloop.pipeline.policies.comparison_page import comparison_page
from prefloop.pipeline.policies.comparison_sheet import write_sheet
from prefloop.pipeline.policies.comparison_text import policy_cells
from prefloop.pipeline.policies.named_policy import named_policy
from prefloop.pipeline.run.run_dir import JURY, RunDir, RunError
from tests.helpers.engine_models import make_adapter, make_model
from tests.helpers.runs import JUDGE, VERIFIER, run_small, small_config
from tests.helpers.servers import Handler, faulty_server, good

TRAIN = {"learning_rate": 1e-3, "batch_size": 4, "epochs": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return run_small(tmp_path_factory.mktemp("evaluated") / "run", small_config(train=TRAIN))


def test_it_says_what_the_run_measured(run: RunDir, tmp_path: Path) -> None:
    """The same policies, prompts, seeds and labelers as in the run give the same figures."""
    command = ["evaluate", str(run.round(0).policy), "--against", "embedded:policy",
               "--config", str(run.config), "--out", str(tmp_path / "out")]  # fmt: skip
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exception is None
    found = json.loads(done.stdout)
    ours = {(row["name"], row["labeler"], row["against"]): row for row in found["figures"]}
    names = ("win_rate", "length_controlled_win_rate", "kl", "mean_tokens", "truncated_share")
    compared = 0
    for row in run.round(0).metrics.table().to_pylist():
        if row["name"] not in names or row["against"] == "previous":
            continue
        against = "other" if row["against"] == "start" else None
        mine = ours[row["name"], row["labeler"], against]
        for column in ("value", "low", "high", "n"):
            assert mine[column] == pytest.approx(row[column])
        compared += 1
    assert compared >= 6
    # Asked again, everything is there.
    shards = sorted((tmp_path / "out").rglob("part-*.parquet"))
    before = [path.stat().st_mtime_ns for path in shards]
    again = CliRunner().invoke(app, command)
    assert "length-controlled" in again.stdout
    assert [path.stat().st_mtime_ns for path in shards] == before


def test_a_policy_against_itself_is_even(run: RunDir, tmp_path: Path) -> None:
    raw = yaml.safe_load(run.config.read_text())
    raw["label"]["jury"]["rule"] = "reliability"  # fitted to the votes of the match
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(raw))
    done = CliRunner().invoke(
        app,
        ["evaluate", "embedded:policy", "--against", "embedded:policy", "--config", str(config),
         "--out", str(tmp_path / "out"), "--json"],
    )  # fmt: skip
    assert done.exception is None
    figures = {(row["name"], row["labeler"]): row for row in json.loads(done.stdout)["figures"]}
    assert figures["win_rate", "jury"]["value"] == 0.5
    assert figures["kl", None]["value"] == pytest.approx(0, abs=1e-6)


def test_kl_does_not_depend_on_how_answers_are_drawn_for_win_rates(
    run: RunDir, tmp_path: Path
) -> None:
    """Greedy answers are the likeliest ones, and say nothing of KL."""
    found = {}
    for name, temperature in (("own", 1.0), ("greedy", 0.0)):
        raw = yaml.safe_load(run.config.read_text())
        raw["evaluate"] |= {"temperature": temperature, "samples_per_prompt": 2}
        raw["prompts"]["heldout"]["limit"] = 60
        config, out = tmp_path / f"{name}.yaml", tmp_path / name
        config.write_text(yaml.safe_dump(raw))
        done = CliRunner().invoke(
            app, ["evaluate", str(run.round(0).policy), "--against", "embedded:policy",
                  "--config", str(config), "--out", str(out), "--json"],
        )  # fmt: skip
        assert done.exception is None
        rows = json.loads(done.stdout)["figures"]
        found[name] = next(row for row in rows if row["name"] == "kl")
        [folder] = [path for path in out.iterdir() if path.is_dir()]
        asked = RunDir(folder)
        assert asked.untempered(1).rows() == (60 if name == "greedy" else 0)
        assert asked.untempered(0).rows() == 0
    own, greedy = found["own"], found["greedy"]
    assert (own["n"], greedy["n"]) == (120, 60)
    assert own["low"] < greedy["value"] < own["high"]


@pytest.mark.parametrize("changed", ["heldout", "judge", "calibration", "engine"])
def test_whatever_changes_an_answer_changes_the_folder(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folders = []

    async def stop(*_: object) -> None:
        raise RunError("far enough")

    def noted(root: Path) -> RunDir:
        folders.append(root)
        return RunDir(root)

    monkeypatch.setattr("prefloop.pipeline.policies.compare.answer_heldout", stop)
    monkeypatch.setattr("prefloop.pipeline.policies.compare.RunDir", noted)
    judge = tmp_path / "judge"
    shutil.copytree(SHIPPED / "pairwise", judge)
    calibration = tmp_path / "calibration.json"
    fitted = Calibrator.fit([0.7] * 30, [1.0] * 20 + [0.0] * 10, "platt")
    calibration.write_text(json.dumps({"calibration": fitted.as_dict()}))
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text(json.dumps({"prompt": "Name a fruit that is red."}))

    def compare(dtype: str) -> None:
        labeler = {**JUDGE, "judge": str(judge), "calibration": str(calibration)}
        config = small_config(
            train=TRAIN,
            label={"labelers": [labeler]},
            prompts={
                "train": {"path": "embedded:prompts", "limit": 16},
                "heldout": {"path": "~/heldout.jsonl"},
            },
            engines={"default": {"type": "transformers", "device": "cpu", "dtype": dtype}},
        )
        one = "embedded:policy"
        with pytest.raises(RunError, match="far enough"):
            asyncio.run(compare_policies(config, [one, one], CompareOptions(tmp_path / "out")))

    compare("float32")
    compare("float32")
    if changed == "heldout":
        heldout.write_text(json.dumps({"prompt": "Name a fruit that is green."}))
    elif changed == "judge":
        (judge / "prompt.jinja").write_text((judge / "prompt.jinja").read_text() + "Be strict.")
    elif changed == "calibration":
        fitted = Calibrator.fit([0.7] * 30, [1.0] * 30, "platt")
        calibration.write_text(json.dumps({"calibration": fitted.as_dict()}))
    compare("bfloat16" if changed == "engine" else "float32")
    first, same, other = folders
    assert first == same != other


def test_mistakes_are_one_line(run: RunDir, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["evaluate", str(tmp_path / "none"), "--against", "embedded:policy",
              "--config", str(run.config), "--out", str(tmp_path)],
    )  # fmt: skip
    assert "no such folder" in str(done.exception)


def compared(
    config: Any, names: list[str], out: Path, *, all_pairs: bool = False, kl: bool = True
) -> Evaluation:
    options = CompareOptions(out, all_pairs=all_pairs, kl=kl)
    return asyncio.run(compare_policies(config, names, options))


def rate(found: Evaluation, policy: str, against: str) -> dict[str, Any]:
    [row] = [
        row
        for row in found.figures
        if (row["name"], row["labeler"]) == ("win_rate", JURY)
        and (row["policy"], row["against"]) == (policy, against)
    ]
    return row


def test_three_policies_on_the_same_prompts(run: RunDir, tmp_path: Path) -> None:
    """A run's round, its start and an adapter; then in another order, which asks nobody anew."""
    adapter = make_adapter(tmp_path / "adapter", str(run.round(0).policy))
    trained = f"{run.root}:0"
    names = ["embedded:policy", trained, adapter]
    config = small_config(label={"labelers": [VERIFIER]})
    two = compared(config, names[:2], tmp_path / "out")
    shards = sorted((tmp_path / "out").rglob("part-*.parquet"))
    before = [path.stat().st_mtime_ns for path in shards]

    found = compared(config, names, tmp_path / "out", all_pairs=True)
    assert [path.stat().st_mtime_ns for path in shards] == before  # two of them were there
    assert found.matches == [(trained, names[0]), (adapter, names[0]), (adapter, trained)]
    row, alone = rate(found, trained, names[0]), rate(two, trained, names[0])
    assert [row[key] for key in ("value", "low", "high")] == [
        alone[key] for key in ("value", "low", "high")
    ]
    # Of three comparisons together each interval is wider, unless it is at its end.
    assert row["low_all"] < row["low"]
    assert row["high_all"] >= row["high"]
    assert (alone["low_all"], alone["high_all"]) == (alone["low"], alone["high"])
    assert any("3 comparisons" in note for note in found.notes)
    assert not two.notes

    table = pq.read_table(found.table)
    assert table.schema.equals(ANSWERS)
    rows = table.to_pylist()
    assert [row["policy"] for row in rows[:3]] == names
    assert len(rows) == 3 * 8
    # The figures are those of the table.
    of = {name: [row for row in rows if row["policy"] == name] for name in names}
    outcomes = [dict(row["outcomes"])[names[0]] for row in of[trained]]
    assert rate(found, trained, names[0])["value"] == pytest.approx(np.mean(outcomes))
    back = [1 - dict(row["outcomes"])[trained] for row in of[names[0]]]
    assert back == outcomes
    for name in names:
        scores = [dict(row["scores"])["verifier"] for row in of[name]]
        [mean] = [
            row for row in found.figures if (row["name"], row["policy"]) == ("mean_score", name)
        ]
        assert mean["value"] == pytest.approx(np.mean(scores))
        assert mean["n"] == 8
    kl = {row["policy"]: row["value"] for row in found.figures if row["name"] == "kl"}
    assert set(kl) == {trained, adapter}
    assert all(np.isfinite(value) for value in kl.values())
    page = found.page.read_text()
    assert all(name in page for name in names)
    head, _, *lines = found.sheet.read_text().rpartition("\n\n")[2].splitlines()
    columns = [cell.strip().replace("\\", "") for cell in head.strip("|").split(" | ")]
    assert len(lines) == 8
    for line, of_prompt in zip(lines, zip(*of.values(), strict=True), strict=True):
        cells = dict(
            zip(columns, (one.strip() for one in line.strip("|").split(" | ")), strict=True)
        )
        for answer in of_prompt:
            name = answer["policy"]
            assert cells[f"{name}: tokens"] == f"{answer['tokens']:.3g}"
            assert cells[f"{name}: verifier"] == f"{dict(answer['scores'])['verifier']:.3g}"
            if name != names[0]:
                assert cells[f"{name}: won"] == f"{dict(answer['outcomes'])[names[0]]:.3g}"

    everything = sorted((tmp_path / "out").rglob("part-*.parquet"))
    turned = compared(config, [trained, names[0]], tmp_path / "out", kl=False)
    assert sorted((tmp_path / "out").rglob("part-*.parquet")) == everything
    back_row = rate(turned, names[0], trained)
    assert back_row["value"] == pytest.approx(1 - row["value"])
    assert back_row["low"] == pytest.approx(1 - row["high"])
    assert not any(one["name"] == "kl" for one in turned.figures)


def test_each_policy_is_asked_with_its_own_tokenizer(tmp_path: Path) -> None:
    """Whoever is named first: a policy of another family answers as it does by itself."""
    other = make_model(tmp_path / "other")
    config = small_config(label={"labelers": [VERIFIER]})
    names = [other, "embedded:policy"]
    texts = []
    for out, order in (("one", names), ("two", names[::-1])):
        found = compared(config, order, tmp_path / out)
        assert any("no KL" in note and "other tokens" in note for note in found.notes)
        rows = pq.read_table(found.table).to_pylist()
        texts.append({(row["policy"], row["prompt_id"]): row["text"] for row in rows})
    assert texts[0] == texts[1]


def test_policies_at_a_server_go_by_their_names(tmp_path: Path) -> None:
    def reply(handler: Handler) -> None:
        good(f"I am {handler.body['model']}.")(handler)

    with faulty_server(reply) as server:
        engines = {"default": {"type": "openai", "base_url": server.url, "max_retries": 0}}
        config = small_config(engines=engines, label={"labelers": [VERIFIER]})
        found = compared(config, ["big", "small"], tmp_path / "out")
        with pytest.raises(RunError, match="is a folder, and the engine 'default' is a server"):
            named_policy(str(tmp_path), config)
        again = len(server.requests)
        compared(config, ["big", "small"], tmp_path / "out")
        assert len(server.requests) == again
    texts = {row["policy"]: row["text"] for row in pq.read_table(found.table).to_pylist()}
    assert texts == {"big": "I am big.", "small": "I am small."}
    assert found.notes == ("no KL: big is on a server",)


def test_an_engine_may_be_named() -> None:
    server = {"type": "openai", "base_url": "http://127.0.0.1:9/v1"}
    config = small_config(engines={"default": {"type": "transformers"}, "cloud": server})
    there, here = (named_policy(name, config) for name in ("gpt@cloud", "embedded:policy"))
    assert (there.model, there.engine, there.is_served) == ("gpt", "cloud", True)
    assert (here.engine, here.is_served) == ("default", False)
    assert there.family != here.family


def test_policies_that_are_not_there_are_one_line(run: RunDir, tmp_path: Path) -> None:
    config = small_config()
    with pytest.raises(RunError, match=r"has no policy of round 7: it has those of 0"):
        named_policy(f"{run.root}:7", config)
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(RunError, match="it has no policy to keep"):
        named_policy(str(begun), config)
    with pytest.raises(InputError, match="two policies or more"):
        compared(config, ["embedded:policy"], tmp_path / "out")


def test_a_page_takes_no_markup_out_of_answers(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    rows = [
        {
            "prompt_id": "p", "prompt": json.dumps([{"role": attack, "content": attack}]),
            "sample_index": 0, "policy": attack, "text": attack, "reasoning": attack, "tokens": 1,
            "characters": 1, "finish_reason": "length", "scores": [(attack, 0.5)],
            "outcomes": [(attack, 1.0)],
        }
    ]  # fmt: skip
    figures = [
        {
            "name": name, "policy": attack, "against": attack, "labeler": attack, "value": 0.5,
            "low": 0.4, "high": 0.6, "n": 1,
        }
        for name in ("win_rate", "mean_score")
    ]  # fmt: skip
    page = tmp_path / "page.html"
    sheet = tmp_path / "page.md"
    found = Evaluation((attack, attack), tmp_path, figures, page, tmp_path / "t", sheet, (attack,))
    comparison_page(found, pa.Table.from_pylist(rows, schema=ANSWERS))
    written = page.read_text()
    assert "<script" not in written
    assert "<img" not in written
    assert written.count("&lt;script&gt;") >= 8


def test_a_sheet_takes_no_markup_out_of_answers(tmp_path: Path) -> None:
    attack = "a | b\n\n# <b>`x`</b> ![i](http://x) *y* _z_ \\ &lt;"
    rows = [
        {
            "prompt_id": "p", "prompt": json.dumps([{"role": "user", "content": attack}]),
            "sample_index": 0, "policy": attack, "text": "t", "reasoning": None, "tokens": 1,
            "characters": 1, "finish_reason": "stop", "scores": [(attack, 0.5)], "outcomes": [],
        }
    ]  # fmt: skip
    sheet = tmp_path / "page.md"
    found = Evaluation(
        (attack, "b"), tmp_path, [], tmp_path / "h", tmp_path / "t", sheet, (attack,)
    )
    write_sheet(found, pa.Table.from_pylist(rows, schema=ANSWERS))
    text = sheet.read_text()
    assert attack.split()[4] not in text
    bare = re.sub(r"\\.", "", text).replace("`won`", "")
    assert not set(bare) & set("<>`[]*_&$~\\")
    table = text.rpartition("\n\n")[2].splitlines()
    assert len(table) == 3
    assert {line.replace("\\|", "").count("|") for line in table} == {7}


def test_answers_of_more_than_a_thousand_characters_have_all_their_digits(tmp_path: Path) -> None:
    figures = [
        {
            "name": "mean_chars", "policy": name, "against": None, "labeler": None, "value": value,
            "low": None, "high": None, "n": 4,
        }
        for name, value in (("a", 1843.5), ("b", 999.75))
    ]  # fmt: skip
    rows = [
        {
            "prompt_id": "p", "prompt": json.dumps([{"role": "user", "content": "q"}]),
            "sample_index": 0, "policy": name, "text": "t", "reasoning": None, "tokens": 1234,
            "characters": 5678, "finish_reason": "stop", "scores": [("judge", 1234.5)],
            "outcomes": [],
        }
        for name in ("a", "b")
    ]  # fmt: skip
    answers = pa.Table.from_pylist(rows, schema=ANSWERS)
    files = (tmp_path / "page.html", tmp_path / "t", tmp_path / "page.md")
    found = Evaluation(("a", "b"), tmp_path, figures, *files)
    assert policy_cells(found).rows == (("a", "1,844"), ("b", "1,000"))
    write_sheet(found, answers)
    assert found.sheet.read_text().rstrip().endswith("| 1,234 | 1,234 | 1,234 | – | 1,234 |")
    comparison_page(found, answers)
    assert "1,234 tokens, 5,678 characters · judge 1,234" in found.page.read_text()
