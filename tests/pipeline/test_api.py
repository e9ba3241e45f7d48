"""The Python API: what the commands do, for configs and data as people have them in memory."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset

import prefloop
from prefloop.data.errors import InputError
from prefloop.data.sources.in_memory import to_arrow
from prefloop.pipeline.config import ConfigError
from prefloop.pipeline.run.run_dir import RunError
from prefloop.training.session.records import summary_of

PROMPTS = [{"prompt": f"Write one sentence with the word {word}."} for word in ("fox", "lamp")]
BY_LENGTH = {"type": "verifier", "name": "length", "function": "tests.helpers.scores:length"}
PAIRS = {
    "prompt": ["Say hello.", "Say goodbye.", "Say hello."],
    "chosen": ["Hello there.", "Goodbye then.", "Hello there."],
    "rejected": ["No.", "Goodbye then.", "No."],
}


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "run_dir": str(folder / "run"),
        "prompts": {"train": {"path": "embedded:prompts", "limit": 6}, "heldout_share": 0},
        "sample": {"n": 2, "max_tokens": 16},
        "label": {"labelers": [{"type": "verifier", "name": "verifier"}]},
        "filter": {"filters": []},
        "write": {"test_share": 0},
    } | changes


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> prefloop.Run:
    return prefloop.run(config(tmp_path_factory.mktemp("finished")))


def test_every_name_is_there_and_documented() -> None:
    for name in prefloop.__all__:
        value = getattr(prefloop, name)
        assert name == "__version__" or value.__doc__, name
    assert set(prefloop.__all__) <= set(dir(prefloop))
    with pytest.raises(AttributeError, match="no attribute 'frobnicate'"):
        prefloop.frobnicate  # type: ignore[attr-defined]  # noqa: B018


def test_a_run_from_a_mapping_prints_well(finished: prefloop.Run) -> None:
    assert "triples)" in str(finished)
    assert repr(finished).startswith("Run(")
    assert "<pre>" in finished._repr_html_()
    rows = finished.load_dataset("train")
    assert rows.column_names[:3] == ["prompt", "chosen", "rejected"]
    assert finished.as_dict()["dataset"] == str(finished.dataset_path)
    assert len(finished.win_rates()) == 0


def test_the_same_config_as_a_file_and_as_an_object_resumes(
    finished: prefloop.Run, tmp_path: Path
) -> None:
    before = (finished.path / "journal.jsonl").read_text()
    file = tmp_path / "config.yaml"
    raw = config(finished.path.parent)
    file.write_text(json.dumps(raw))  # JSON is YAML
    for form in (file, str(file), prefloop.load_config(raw)):
        assert prefloop.run(form).path == finished.path
    assert (finished.path / "journal.jsonl").read_text() == before


def test_overrides_are_strings_or_a_mapping(tmp_path: Path) -> None:
    raw = config(tmp_path)
    for overrides in (["sample.n=5"], {"sample.n": 5}):
        assert prefloop.load_config(raw, overrides).sample.n == 5
    assert raw["sample"]["n"] == 2
    assert prefloop.load_config(prefloop.load_config(raw), {"seed": 7}).seed == 7
    with pytest.raises(ConfigError, match=r"sample.n"):
        prefloop.load_config(raw, {"sample.n": "many"})


@pytest.mark.parametrize(
    "form",
    [pd.DataFrame, Dataset.from_list, pa.Table.from_pylist, list],
    ids=["pandas", "datasets", "arrow", "dicts"],
)
def test_prompts_from_memory_are_kept_with_the_run(form: Any, tmp_path: Path) -> None:
    raw = config(tmp_path, label={"labelers": [BY_LENGTH]}, sample={"n": 4, "max_tokens": 16})
    del raw["prompts"]
    again = [prefloop.run(raw, prompts=form(PROMPTS)) for _ in range(2)]
    (kept,) = (again[0].path / "inputs").iterdir()
    counts = prefloop.status(again[1]).as_dict()["prompts"]
    assert counts["read"] == 2
    assert str(kept) in (again[0].path / "config.yaml").read_text()
    with pytest.raises(RunError, match="differs"):
        prefloop.run(raw, prompts=form(PROMPTS[:1]))


def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path) -> None:
    raw = config(tmp_path)
    with pytest.raises(InputError, match="is a int: give a path"):
        prefloop.run(raw, prompts=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"is a mapping \(train\): give one of its tables"):
        prefloop.run(raw, prompts={"train": PROMPTS})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="several sources go into the config"):
        prefloop.run(raw, prompts=["a.jsonl", "b.jsonl"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="a column must hold values of one type"):
        prefloop.run(raw, prompts=[{"prompt": "a"}, {"prompt": 3}])
    mixed = pd.DataFrame({"prompt": ["a", 3]})
    with pytest.raises(InputError, match="a column must hold values of one type"):
        prefloop.run(raw, prompts=mixed)


def test_a_column_that_only_later_dicts_have_is_not_lost() -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "answer": "c"}]
    assert to_arrow(rows, "rows").to_pylist() == [{"prompt": "a", "answer": None}, rows[1]]


def test_plan_and_status_print_as_the_commands_do(finished: prefloop.Run, tmp_path: Path) -> None:
    planned = prefloop.plan(config(tmp_path), prompts=pd.DataFrame(PROMPTS))
    assert planned.as_dict()["prompts"]["kept"] == 2
    assert not (tmp_path / "run").exists()
    found = prefloop.status(str(finished.path))
    assert found.state == "done"
    assert "done" in repr(found)
    assert found._repr_html_().startswith("<pre")
    assert prefloop.report(finished) == finished.path / "report.html"
    with pytest.raises(RunError, match="not a run directory"):
        prefloop.status(tmp_path)


def test_an_audit_of_a_table_in_memory(tmp_path: Path) -> None:
    of_table = prefloop.audit(pd.DataFrame(PAIRS), fix=tmp_path / "clean")
    file = tmp_path / "pairs.jsonl"
    pd.DataFrame(PAIRS).to_json(file, orient="records", lines=True)
    of_file = prefloop.audit(file)
    counts = ("rows", "pairs")
    assert [of_table.as_dict()[key] for key in counts] == [of_file.as_dict()[key] for key in counts]
    names = [one["name"] for one in of_table.as_dict()["findings"]]
    assert names == [one["name"] for one in of_file.as_dict()["findings"]]
    assert (tmp_path / "clean" / "README.md").exists()


def test_agreement_of_a_table_and_of_a_run(finished: prefloop.Run) -> None:
    table = pd.DataFrame(
        {"item": [1, 1, 2, 2], "who": ["a", "b"] * 2, "label": ["x", "x", "x", "y"]}
    )
    found = prefloop.agreement(table, item="item", annotator="who", label="label", bootstrap=20)
    assert "item" in json.dumps(found.as_dict())
    assert prefloop.agreement(finished, bootstrap=5).as_dict()


def test_everything_works_inside_a_running_loop(tmp_path: Path) -> None:
    async def notebook() -> prefloop.Run:
        return prefloop.run(config(tmp_path))

    assert "triples)" in str(asyncio.run(notebook()))


def test_a_policy_is_trained_on_a_table_in_memory(finished: prefloop.Run, tmp_path: Path) -> None:
    rows = finished.load_dataset("train")
    assert len(rows)
    trained = prefloop.train(
        rows,
        method="dpo",
        base="embedded:policy",
        out=tmp_path / "policy",
        overrides={"batch_size": 2, "learning_rate": 1e-5},
    )
    assert (tmp_path / "policy" / "model.safetensors").exists()
    assert trained.steps >= 1
    with pytest.raises(InputError, match="'ppo' is none of"):
        prefloop.train(rows, method="ppo", base="embedded:policy", out=tmp_path / "p")


def test_a_run_is_trained_on_behind_the_prompts_that_it_was_sampled_with(tmp_path: Path) -> None:
    """Else a policy that was sampled without thinking would be trained where it is to think."""
    runs = []
    for tone in ("dry", "warm"):
        sample = {"n": 2, "max_tokens": 16, "chat_template_kwargs": {"tone": tone}}
        runs.append(prefloop.run(config(tmp_path / tone, sample=sample)))

    def variables(data: Any, name: str, **more: Any) -> Any:
        out = tmp_path / name
        settings = {"batch_size": 2, "max_pairs": 2}
        prefloop.train(
            data, method="sft", base="embedded:policy", out=out, overrides=settings, **more
        )
        return (summary_of(out) or {})["settings"].get("template_kwargs")

    assert variables(runs[0], "own") == {"tone": "dry"}
    assert variables(runs[0], "said", chat_template_kwargs={"tone": "flat"}) == {"tone": "flat"}
    with pytest.raises(InputError, match=r"\{'tone': 'dry'\}, and .* say which with --template"):
        variables(runs, "both")
    assert variables(runs, "which", chat_template_kwargs={}) is None


def test_judges_and_settings_are_mappings_too(finished: prefloop.Run, tmp_path: Path) -> None:
    gold = pd.DataFrame(
        {"prompt": ["Say hello.", "Greet me."], "a": ["Hello.", "No."], "b": ["No.", "Hello."],
         "label": ["a", "b"]}
    )  # fmt: skip
    judge = BY_LENGTH | {"name": "longer"}
    found = prefloop.judge_eval(gold, judges=[judge], out=tmp_path / "votes")
    [figures] = found.as_dict()["judges"]
    assert (figures["judge"], figures["pairs"]) == ("longer", 2)
    rows = finished.load_dataset("train")
    trained = prefloop.train(
        rows, method="sft", base="embedded:policy", out=tmp_path / "sft", config={"batch_size": 3}
    )
    assert trained.method == "sft"
