"""Imports between the four rooms run downwards only, and heavy libraries stay where they are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

ALLOWED = {
    "data": set(),
    "labelers": {"data"},
    "training": {"data", "labelers"},
    "pipeline": {"data", "labelers", "training"},
}


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        parts = [name.split(".") for name in names]
        found |= {each[1] for each in parts if each[0] == "prefloop" and len(each) > 1}
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_no_import_runs_back(room: str) -> None:
    offences = {
        str(path.relative_to(ROOT)): extra
        for path in (ROOT / room).rglob("*.py")
        if (extra := imported_rooms(path) - ALLOWED[room] - {room})
    }
    assert not offences


def test_the_check_itself_sees_imports() -> None:
    assert imported_rooms(ROOT / "pipeline" / "run" / "models.py") >= {"data", "pipeline"}


@pytest.mark.parametrize(
    "module",
    ["prefloop.pipeline.commands.app", "prefloop.pipeline.config", "prefloop.pipeline.run.status"],
)
def test_light_modules_do_not_load_heavy_libraries(module: str) -> None:
    script = (
        f"import sys, {module}; heavy = {{'torch', 'transformers', 'trl', 'vllm', 'datasets',"
        " 'matplotlib', 'openai'} & set(sys.modules); sys.exit(', '.join(sorted(heavy)) or None)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr
