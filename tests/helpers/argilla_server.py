"""What tests say to a real Argilla server, and where its environment is kept."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from prefloop.pipeline.review.account import Account
from prefloop.pipeline.review.argilla_api import ArgillaApi
from prefloop.pipeline.review.server.home import Home
from tests.helpers.paths import ROOT

VENV = ROOT / ".venv-argilla"
"""Made once, and kept beside the repository's."""


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
