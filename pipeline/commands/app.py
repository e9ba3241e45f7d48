"""The command line. Heavy libraries are imported by the command that needs them, not before."""

from __future__ import annotations

import _thread
import codecs
import errno
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from io import TextIOWrapper
from types import FrameType
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

import prefloop
from prefloop.data.errors import PrefloopError
from prefloop.data.utf8 import one_line
from prefloop.pipeline.commands import datasets, judges, people, policies, runs
from prefloop.pipeline.terminal import OneLine

app = typer.Typer(
    name="prefloop",
    help="Raw prompts in, a preference dataset and a better policy out, in one resumable loop.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
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
_RESUMABLE = "prefloop: interrupted; the same command on the same directory goes on from here"
_PATIENCE_S = 10.0
"""How long an interrupted process may take to end in good order."""
_OF_THE_MACHINE = {
    errno.ENOSPC: "make room or change the directory; the same command then goes on from here",
    errno.EDQUOT: "make room or change the directory; the same command then goes on from here",
    errno.EACCES: "give yourself the right to read and write there, or choose another path",
    errno.EPERM: "give yourself the right to read and write there, or choose another path",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f); the same command then goes on",
    errno.EROFS: "choose a path where one can write",
    errno.ENOTDIR: "a file stands where a folder has to: choose another path",
    errno.EISDIR: "a folder stands where a file has to: choose another path",
    errno.EEXIST: "something else stands there: choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "it is not there (or no longer): check the path",
    errno.ELOOP: "a link leads back to itself: choose another path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk or its connection is faulty: choose another path",
    errno.ESTALE: "the network folder is gone: mount it again",
    errno.EBUSY: "something else uses it: choose another path",
    errno.EINVAL: "the file system does not take this name: choose another path",
}
"""What a user or a machine can have done to files, and what mends it."""


def main() -> NoReturn:
    """Entry point: errors of the user or the machine are one line, interruptions resumable."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars would run through ours
    _print_any_character()
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
        said = one_line(error.format_message())
        print(f"prefloop: error: {said} (see prefloop --help)", file=sys.stderr)
        sys.exit(error.exit_code)
    except PrefloopError as error:
        print(f"prefloop: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        sys.exit(f"prefloop: error: {one_line(_explain(error))}")
    if code == _INTERRUPTED:
        print(_RESUMABLE, file=sys.stderr)
    sys.exit(code)


def _print_any_character() -> None:
    """Pages and JSON are UTF-8 whatever the locale is; a terminal of another encoding shows a
    question mark for what it does not have."""
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, TextIOWrapper) or codecs.lookup(stream.encoding).name == "utf-8":
            continue
        if stream.isatty():
            stream.reconfigure(errors="replace")
        else:
            stream.reconfigure(encoding="utf-8")


def _show_our_warnings() -> None:
    """On stderr, under our name. Libraries have theirs, and are shown for errors alone."""
    ours, others = logging.StreamHandler(sys.stderr), logging.StreamHandler(sys.stderr)
    ours.setFormatter(OneLine("prefloop: %(message)s"))
    ours.addFilter(logging.Filter("prefloop"))
    others.setFormatter(OneLine("%(name)s: %(message)s"))
    others.addFilter(lambda record: not record.name.startswith("prefloop"))
    others.setLevel(logging.ERROR)
    logging.basicConfig(level=logging.WARNING, handlers=[ours, others])


def _explain(error: OSError) -> str:
    path = error.filename2 or error.filename or "disk"
    return f"{path}: {os.strerror(error.errno or 0)}: {_OF_THE_MACHINE[error.errno or 0]}"


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    # What runs in a thread (a verifier's function that loops) would keep the process for ever. Not
    # by `threading`: where the signal comes while a thread is begun, its locks are held here.
    _thread.start_new_thread(_end_soon, ())
    raise KeyboardInterrupt


def _raise_later(failure: sys.UnraisableHookArgs) -> None:
    """An interrupt in a finaliser, where Python drops it, comes again a moment later."""
    if issubclass(failure.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.02)
    else:
        sys.__unraisablehook__(failure)


def _end_soon() -> None:
    """End the process where it has not ended by itself: a run goes on from any moment."""
    time.sleep(_PATIENCE_S)
    with suppress(OSError):
        os.write(2, f"{_RESUMABLE}\n".encode())  # a stream has locks too
    os._exit(_INTERRUPTED)
