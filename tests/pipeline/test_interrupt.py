"""An interrupt ends the command, wherever the interpreter is when it comes."""

import subprocess
import sys

FALLS_INTO_A_FINALISER = """
import signal
from prefloop.pipeline.commands import app as room
class Last:
    def __del__(self):
        raise KeyboardInterrupt
def work(**_):
    try:
        Last()
        signal.pause()
    except KeyboardInterrupt:
        return 130
room.app = work
room.main()
"""


def test_an_interrupt_in_a_finaliser_is_not_swallowed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FALLS_INTO_A_FINALISER],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 130
    assert "interrupted; the same command" in done.stderr
    assert "Exception ignored" not in done.stderr
