"""Every benchmark runs, at a tiny size: what it says here means nothing but that it still can."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

SMALL = ["--width", "64", "--layers", "2"]
TINY = ["--prompts", "4", "--n", "2", "--max-tokens", "8", "--pairs", "8", "--batch", "2", *SMALL]
RUNS = {
    "audit": ["--rows", "2000"],
    "gpu": ["--parts", "transformers", "dpo", *TINY],
    "overhead": ["--rows", "20", "60"],
    "reward": ["--answers", "8", "--repeats", "1", *SMALL],
    "scale": ["2000"],
    "training": ["--pairs", "8", "--epochs", "1", "--batch", "4", *SMALL],
}
ENGINES = {
    "gpu": ["--parts", "vllm", *TINY],
    "judge": ["--pairs", "4", "--words", "8", *SMALL],
    "sampling": ["--prompts", "4", "--n", "2", "--max-tokens", "8", "--repeats", "1", *SMALL],
    "turnover": ["--repeats", "1", *SMALL],
}


def run(name: str, options: list[str]) -> str:
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


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


def test_none_is_forgotten() -> None:
    there = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__", "models"}
    # People are simulated against a real Argilla, whose own tests run that code.
    assert there - {"review"} == RUNS.keys() | ENGINES.keys()
