"""Bodies, configs and files at random for some minutes: `make fuzz`. What it finds is kept as an
example of the property test whose kind it is, or below."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prefloop.data.config import PromptsConfig, PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences import read_preferences
from prefloop.data.prompts.load import load_prompts
from prefloop.pipeline.config import ConfigError, load_config
from tests.helpers.mutated import mutated
from tests.helpers.paths import ROOT
from tests.pipeline.engines.openai.test_any_body import BODIES, JSON, STATUSES, check

LONG = settings(
    max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
CONFIGS = [yaml.safe_load(path.read_text()) for path in sorted(ROOT.glob("examples/*.yaml"))]
ROWS = st.dictionaries(
    st.sampled_from(
        ["prompt", "messages", "chosen", "rejected", "label", "completion", "id", "reference",
         "instruction", "input", "response_a", "response_b", "score_chosen", "conversations"]
    ),
    JSON | st.sampled_from(["Say hello.", "A", 1, "\n\nHuman: a\n\nAssistant: b"])
    | st.just([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
    max_size=5,
)  # fmt: skip


def one_line_or_none(kind: type[Exception], call: Callable[[], object]) -> None:
    """Nothing but ``kind`` may come out of ``call``, and in one line."""
    said = ""
    try:
        call()
    except kind as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.fuzz
@LONG
@given(JSON | mutated(BODIES, JSON), STATUSES, st.booleans())
def test_bodies(body: Any, status: int, choices: bool) -> None:
    check(json.dumps(body).encode(), status, choices)


@pytest.mark.fuzz
@LONG
@given(mutated(CONFIGS, JSON))
def test_configs(config: dict[str, Any]) -> None:
    one_line_or_none(ConfigError, lambda: load_config(config))


@pytest.mark.fuzz
@LONG
@given(mutated(CONFIGS, JSON), st.binary(max_size=6), st.integers(0, 2_000))
@example({}, b"a: &x [*x]", 0)
def test_config_files(
    tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any], junk: bytes, at: int
) -> None:
    path = _file(tmp_path_factory, "config.yaml")
    text = yaml.safe_dump(config, allow_unicode=True).encode("utf-8", "surrogatepass")
    path.write_bytes(text[:at] + junk + text[at:])
    one_line_or_none(ConfigError, lambda: load_config(path))


@pytest.mark.fuzz
@LONG
@given(st.lists(ROWS, max_size=4), st.sampled_from(["jsonl", "json", "csv"]), st.binary(max_size=3))
def test_files(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], ending: str, junk: bytes
) -> None:
    path = _file(tmp_path_factory, f"rows.{ending}")
    lines = [json.dumps(row) for row in rows]
    text = f"[{','.join(lines)}]" if ending == "json" else "\n".join(lines)
    path.write_bytes(text.encode() + junk)
    one_line_or_none(InputError, lambda: _as_prompts(path))
    one_line_or_none(InputError, lambda: _as_preferences(path))


def _as_prompts(path: Path) -> None:
    load_prompts(PromptsConfig(train=PromptSource(path=str(path)), heldout_share=0.5), seed=0)


def _as_preferences(path: Path) -> None:
    list(read_preferences(PromptSource(path=str(path))))


def _file(factory: pytest.TempPathFactory, name: str) -> Path:
    folder = factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    return folder / name
