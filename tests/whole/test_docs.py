"""Pages made from the code are those that the code makes."""

import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT

DOCS = ROOT / "docs"


def test_the_config_page_is_current(tmp_path: Path) -> None:
    script = "import sys; sys.path.insert(0, 'docs'); import make_config as m; print(m.page())"
    made = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=DOCS.parent
    ).stdout
    assert made.strip() == (DOCS / "config.md").read_text(encoding="utf-8").strip(), (
        "run: python docs/make_config.py"
    )
