"""The command line. Heavy libraries are imported by the command that needs them, not before."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

import prefloop
from prefloop.data.errors import PrefloopError
from prefloop.pipeline.commands import datasets, judges, people, policies, runs

app = typer.Typer(
    name="prefloop",
    help="Raw prompts in, a preference dataset and a better policy out, in one resumable loop.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prefloop {prefloop.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[  # its callback answers
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None: ...


for group in (runs, datasets, judges, policies):
    app.add_typer(group.app)  # without a name its commands are ours
app.add_typer(people.app)

_INTERRUPTED = 130


def main() -> NoReturn:
    """Entry point: errors of the user or the machine are one line, interruptions resumable."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars would run through ours
    _show_our_warnings()
    # Raised as KeyboardInterrupt wherever the main thread is, training included; asyncio leaves a
    # handler alone that is not Python's default.
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    sys.unraisablehook = _raise_later
    try:
        code = app(standalone_mode=False) or 0  # typer returns 130 for KeyboardInterrupt
    except TyperException as error:
        print(f"prefloop: error: {error.format_message()} (see prefloop --help)", file=sys.stderr)
        sys.exit(error.exit_code)
    except PrefloopError as error:
        sys.exit(f"prefloop: error: {error}")
    except OSError as error:
        if error.errno == errno.ENOENT:
            sys.exit(
                f"prefloop: error: {error.filename or 'a file'}: is not there any more: it was "
                "deleted or moved while prefloop worked with it"
            )
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


def _show_our_warnings() -> None:
    """On stderr, under our name. Libraries have theirs, and are shown for errors alone."""
    ours, others = logging.StreamHandler(sys.stderr), logging.StreamHandler(sys.stderr)
    ours.setFormatter(logging.Formatter("prefloop: %(message)s"))
    ours.addFilter(logging.Filter("prefloop"))
    others.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    others.addFilter(lambda record: not record.name.startswith("prefloop"))
    others.setLevel(logging.ERROR)
    logging.basicConfig(level=logging.WARNING, handlers=[ours, others])


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _raise_later(failure: sys.UnraisableHookArgs) -> None:
    """An interrupt in a finaliser, where Python drops it, comes again a moment later."""
    if issubclass(failure.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.02)
    else:
        sys.__unraisablehook__(failure)
