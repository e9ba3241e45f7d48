"""The README's Python quickstart, cell by cell in a notebook kernel; ``test_docs`` runs it as a
script."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.paths import ROOT


def quickstart() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if block.startswith("import prefloop\n")]
    assert len(block.strip().splitlines()) <= 10
    return str(block)


@pytest.mark.slow
def test_the_quickstart_runs_in_a_notebook(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell(quickstart()),
        nbformat.v4.new_code_cell("run"),
        nbformat.v4.new_code_cell("prefloop.status(run)"),
    ]
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    shown = [cell.outputs[-1]["data"] for cell in notebook.cells[1:]]
    assert all({"text/plain", "text/html"} <= set(data) for data in shown)
    assert "dataset" in shown[0]["text/html"]
    assert "done" in shown[1]["text/plain"]
