"""Exports, read by the code of the project that they are for.

Each project is in an environment of its own, since they want other versions of what prefloop
needs: ``PREFLOOP_LLAMAFACTORY``, ``PREFLOOP_OPENRLHF``, ``PREFLOOP_AXOLOTL`` are paths of its
Python. Without one, it is this one, where the project is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import prefloop
from prefloop.data.embedded import resolve_embedded
from tests.pipeline.export.test_export import PLAIN, TALK, WITH_TOOLS, dataset

READER = Path(__file__).with_name("read_by.py")


def read_by(form: str, rows: list[dict[str, Any]], tmp_path: Path) -> list[dict[str, Any]]:
    project = "LLAMAFACTORY" if form == "alpaca" else form.upper()
    python = os.environ.get(f"PREFLOOP_{project}")
    if not python and find_spec(project.lower()):
        python = sys.executable
    if not python:
        pytest.skip(f"no {project.lower()} here, and PREFLOOP_{project} names no Python with it")
    out = tmp_path / "out"
    prefloop.export(dataset(tmp_path / "source", rows), to=form, out=out)
    done = subprocess.run(
        [python, str(READER), form, str(out), str(resolve_embedded("embedded:policy"))],
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1",
             "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("form", ["llamafactory", "alpaca"])
def test_llamafactory_reads_the_same_turns(form: str, tmp_path: Path) -> None:
    given = [PLAIN, TALK, WITH_TOOLS] if form == "llamafactory" else [PLAIN, TALK]
    found = read_by(form, given, tmp_path)
    assert [row["chosen"] for row in found] == [row["chosen"][0]["content"] for row in given]
    assert [row["rejected"] for row in found] == [row["rejected"][0]["content"] for row in given]
    for row, wanted in zip(found[:2], (PLAIN, TALK), strict=True):
        assert row["prompt"] == wanted["prompt"]
    if form == "llamafactory":
        assert [turn["role"] for turn in found[2]["prompt"]] == ["user", "function", "observation"]
        called = json.loads(found[2]["prompt"][1]["content"])
        assert called == {"name": "weather", "arguments": {"city": "Rome"}}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["openrlhf", "axolotl"])
def test_others_make_the_text_that_our_template_makes(form: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(resolve_embedded("embedded:policy")))
    found = read_by(form, [PLAIN, TALK], tmp_path)
    for row, given in zip(found, (PLAIN, TALK), strict=True):
        prompt = tokenizer.apply_chat_template(
            given["prompt"], tokenize=False, add_generation_prompt=True
        )
        assert row["prompt"] == prompt
        for side in ("chosen", "rejected"):
            whole = tokenizer.apply_chat_template(given["prompt"] + given[side], tokenize=False)
            assert row[side].rstrip() == whole[len(prompt) :].rstrip()
            assert row[side].startswith(given[side][0]["content"])
