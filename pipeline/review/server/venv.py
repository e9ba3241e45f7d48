"""The virtual environment that the embedded Argilla runs in, made on first use."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from prefloop.pipeline.review.errors import ReviewError
from prefloop.pipeline.review.server.home import Home

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"
_TAIL = 400


def ensure_venv(home: Home) -> Path:
    """The Python of the server's environment; makes it (about a minute) where it is not there.

    A half-made one is made anew, and so is one for other requirements than the present ones.
    Raises :class:`ReviewError` where pip cannot install them.
    """
    python = home.venv / "bin" / "python"
    stamp = home.venv / ".prefloop"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(
        f"installing Argilla's server into {home.venv} (once, about a minute)",
        file=sys.stderr,
        flush=True,
    )
    shutil.rmtree(home.venv, ignore_errors=True)
    home.root.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(home.venv)])
    _run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--requirement", str(REQUIREMENTS)]
    )  # fmt: skip
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(f"{done.stdout}{done.stderr}".split())[-_TAIL:]
        raise ReviewError(
            f"Argilla's server could not be installed ({said}): see that pip reaches its index, or "
            "use an existing server with --server URL"
        )
