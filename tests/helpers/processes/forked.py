"""Programs in processes of their own, forked from one that has the libraries loaded: importing them
takes longer than most of what tests run."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.helpers.paths import ROOT


def forked(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process that runs ``function``, begun. The first one waits for the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.processes.preloaded"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def run_module(
    name: str, arguments: list[str], **environment: str
) -> subprocess.CompletedProcess[str]:
    """What ``python -m NAME ARGUMENTS`` does in the project's folder."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = forked(_as_main, name, arguments, environment, out, err)
        process.join()
        assert process.exitcode is not None
        said = (file.read_text(encoding="utf-8") for file in (out, err))
        return subprocess.CompletedProcess([name, *arguments], process.exitcode, *said)


def _as_main(
    name: str, arguments: list[str], environment: dict[str, str], out: Path, err: Path
) -> None:
    os.environ.update(environment)
    os.chdir(ROOT)
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [name, *arguments]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which a process of multiprocessing leaves out
