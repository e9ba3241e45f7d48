"""A real Argilla server for the tests of this folder, started once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from filelock import FileLock

from prefloop.pipeline.review.errors import ReviewError
from prefloop.pipeline.review.server.home import Home
from prefloop.pipeline.review.server.up import running_server
from prefloop.pipeline.review.server.venv import ensure_venv
from tests.helpers.argilla_server import VENV, Server

ALONE = FileLock(f"{VENV}.lock")
"""The tests of another process may be making the same environment, or taking the same port."""


@pytest.fixture(scope="session")
def argilla_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home without data; the tests that need one are skipped where pip cannot install it."""
    home = Home(tmp_path_factory.mktemp("argilla"), venv=VENV)
    try:
        with ALONE:
            ensure_venv(home)
    except ReviewError as error:
        pytest.skip(f"no Argilla server here: {error}")
    return home


@pytest.fixture(scope="session")
def argilla(argilla_home: Home) -> Iterator[Server]:
    """A running server, the same for all tests."""
    with ExitStack() as stack:
        with ALONE:
            running = stack.enter_context(running_server(argilla_home))
        yield Server(argilla_home, running.url)
