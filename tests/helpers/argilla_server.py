"""A real Argilla server for tests, its environment made once and kept beside the repository's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from prefloop.pipeline.review.account import Account
from prefloop.pipeline.review.argilla_api import ArgillaApi
from prefloop.pipeline.review.errors import ReviewError
from prefloop.pipeline.review.server.home import Home
from prefloop.pipeline.review.server.up import running_server
from prefloop.pipeline.review.server.venv import ensure_venv
from tests.helpers.paths import ROOT

VENV = ROOT / ".venv-argilla"


@dataclass
class Server:
    """The server and its owner."""

    home: Home
    url: str

    @property
    def api(self) -> ArgillaApi:
        return ArgillaApi(Account(self.url, self.home.owner().api_key))

    def sign_in(self, username: str, password: str) -> httpx.Client:
        """A client that acts for a person."""
        form = {"username": username, "password": password}
        token = httpx.post(f"{self.url}/api/v1/token", data=form).raise_for_status().json()
        headers = {"Authorization": f"Bearer {token['access_token']}"}
        return httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, timeout=60)


@pytest.fixture(scope="session")
def argilla_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home without data; the tests that need one are skipped where pip cannot install it."""
    home = Home(tmp_path_factory.mktemp("argilla"), venv=VENV)
    try:
        ensure_venv(home)
    except ReviewError as error:
        pytest.skip(f"no Argilla server here: {error}")
    return home


@pytest.fixture(scope="session")
def argilla(argilla_home: Home) -> Iterator[Server]:
    """A running server, the same for all tests."""
    with running_server(argilla_home) as running:
        yield Server(argilla_home, running.url)
