"""Shells complete commands and options, without loading what the commands need."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("words", "expected"),
    [("prefloop judge-", ["judge-eval"]), ("prefloop run --swe", ["--sweep"]),
     ("prefloop nothing-", [])],
)  # fmt: skip
def test_bash_is_told_what_goes_on_from_here(words: str, expected: list[str]) -> None:
    asked = {
        "_PREFLOOP_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    code = (
        "import sys\nfrom prefloop.pipeline.commands import app\nsys.argv = ['prefloop']\n"
        "try:\n    app.main()\n"
        "finally:\n    assert not {'torch', 'datasets', 'pyarrow'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout.split() == expected
    assert "Traceback" not in done.stderr
