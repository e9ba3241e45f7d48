"""Filter and write load nothing that they do not need."""

import subprocess
import sys
from pathlib import Path

from benchmarks.scale import make_up
from prefloop.pipeline.run.run_dir import RunDir
from tests.helpers.paths import ROOT

SCRIPT = """
import asyncio, sys
from pathlib import Path
from benchmarks.scale import filter_and_write, settings
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.run_dir import RunDir

before = set(sys.modules)
config, run = settings(), RunDir(Path(sys.argv[1]))
asyncio.run(filter_and_write(config, RunContext.of(config, run).round(0)))
sys.exit(", ".join({"pandas", "scipy", "torch"} & (set(sys.modules) - before)) or None)
"""


def test_a_round_is_filtered_and_written_without_heavy_libraries(tmp_path: Path) -> None:
    """pandas, which Arrow imports where it is handed Python values, takes as long as thousands of
    rows do."""
    run = RunDir(tmp_path)
    make_up(run, 64)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert run.round(0).triples.rows()
