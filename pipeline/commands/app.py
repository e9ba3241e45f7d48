"""The command line. Heavy libraries are imported by the command that needs them, not before."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from prefloop.data.errors import PrefloopError
from prefloop.pipeline.commands import datasets, judges, people, policies, runs

app = typer.Typer(
    name="prefloop",
    help="Raw prompts in, a preference dataset and a better policy out, in one resumable loop.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for group in (runs, datasets, judges, policies):
    app.add_typer(group.app)  # without a name its commands are ours
app.add_typer(people.app)

_INTERRUPTED = 130


def main() -> NoReturn:
    """Entry point: errors of the user or the machine are one line, interruptions resumable."""
    # Read when torch is imported. Threads that spin for long while they wait are a hundred times
    # slower as soon as anything else wants one of the cores (seen on two: 40 tokens/s; so, 2,000;
    # undisturbed 10,000 either way).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars would run through ours
    logging.basicConfig(level=logging.WARNING, format="prefloop: %(message)s", stream=sys.stderr)
    # Raised as KeyboardInterrupt wherever the main thread is, training included; asyncio leaves a
    # handler alone that is not Python's default.
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(standalone_mode=False) or 0  # typer returns 130 for KeyboardInterrupt
    except TyperException as error:
        print(f"prefloop: error: {error.format_message()} (see prefloop --help)", file=sys.stderr)
        sys.exit(error.exit_code)
    except PrefloopError as error:
        sys.exit(f"prefloop: error: {error}")
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}:
            raise
        sys.exit(
            f"prefloop: error: {error.filename or 'disk'}: {os.strerror(error.errno)}: make room "
            "or change the directory; the same command then goes on from here"
        )
    if code == _INTERRUPTED:
        print(
            "prefloop: interrupted; the same command on the same directory goes on from here",
            file=sys.stderr,
        )
    sys.exit(code)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
