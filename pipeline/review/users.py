"""People who may answer: accounts on the server, their passwords in files of their own."""

from __future__ import annotations

import secrets
from pathlib import Path

from prefloop.data.names import name_problem
from prefloop.pipeline.review.argilla_api import ArgillaApi
from prefloop.pipeline.review.errors import ReviewError
from prefloop.pipeline.review.server.home import write_secret

_PASSWORD_BYTES = 12


def add_person(api: ArgillaApi, name: str, workspace: str, out: Path) -> Path:
    """Make an annotator ``name`` who may answer in ``workspace``; the file with their password.

    The file can be read by its owner only, and the password is nowhere else. Raises
    :class:`ReviewError` where the name is taken or the file exists.
    """
    import argilla as rg

    problem = name_problem(name)
    if problem:
        raise ReviewError(f"the user name {name!r} {problem}")
    if out.exists():
        raise ReviewError(f"{out}: exists: it may hold somebody's password; give another --out")
    client = api.client
    password = secrets.token_urlsafe(_PASSWORD_BYTES)

    def make() -> None:
        if client.users(name) is not None:
            raise ReviewError(f"{api.account.url}: has a user {name} already: choose another name")
        place = client.workspaces(workspace)
        if place is None:
            place = rg.Workspace(name=workspace, client=client).create()
        user = rg.User(username=name, password=password, role="annotator", client=client).create()
        user.add_to_workspace(place)

    out.parent.mkdir(parents=True, exist_ok=True)
    api.call(make)
    write_secret(out, {"url": api.account.url, "username": name, "password": password})
    return out
