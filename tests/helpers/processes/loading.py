"""What a process loads to do something."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.helpers.paths import ROOT


def loaded_by(code: str) -> set[str]:
    """The names of the modules that a new process has loaded once it has run ``code``."""
    script = f"{code}\nimport json, sys\nprint('\\n' + json.dumps([*sys.modules]))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))
