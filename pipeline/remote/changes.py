"""Several changes to the objects of a store, as one: all of them, or none.

What a run does to its directory between two commits (files removed, a folder renamed, a file
written) must not be half there when a machine dies. Before more than one object changes, an object
says what is about to be done:

    phase 1   objects are created that were not there; until it is over, they do not count
    phase 2   objects are replaced, by what was put beside them in phase 1, and removed

Who takes the run up undoes the first phase and finishes the second; who reads meanwhile sees it so.
A single object needs none of that.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from prefloop.data.errors import StorageError
from prefloop.data.storage.lease import FOLDER as LOCK
from prefloop.data.storage.objects import ChangedMeanwhile, Found, Objects

AT_ONCE = 12
"""Requests to the store at one time."""
_INTENT = f"{LOCK}/changes.json"
_STAGED = f"{LOCK}/staged-"

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class StoreChanges:
    """What is to be done to objects, by their names."""

    created: Mapping[str, Path | bytes] = field(default_factory=dict)
    replaced: Mapping[str, tuple[Path, str]] = field(default_factory=dict)
    """New content, and the version that it takes the place of."""
    removed: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.created) + len(self.replaced) + len(self.removed)


def all_at_once(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``work`` of each item, several at a time, in their order."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, items))


def apply(objects: Objects, changes: StoreChanges) -> dict[str, str]:
    """Make ``changes``; returns the versions of what was written. Raises ``StorageError``: then
    :func:`recover` has to come before the next."""
    if len(changes) == 1:
        return _apply_one(objects, changes)
    nonce = secrets.token_hex(8)
    staged = {name: f"{_STAGED}{nonce}-{index}" for index, name in enumerate(changes.replaced)}
    plan: dict[str, Any] = {"phase": 1, "created": [*changes.created], "staged": staged}
    written = _create(objects, _INTENT, json.dumps(plan).encode())

    def create(item: tuple[str, Path | bytes]) -> str:
        return _create(objects, *item)

    beside = [(staged[name], path) for name, (path, _) in changes.replaced.items()]
    created = all_at_once(create, [*changes.created.items(), *beside])
    versions = dict(zip(changes.created, created, strict=False))
    if changes.replaced or changes.removed:
        plan |= {"phase": 2, "removed": [*changes.removed]}
        objects.replace(_INTENT, json.dumps(plan).encode(), written)
        objects.delete_all(changes.removed)
        for name, (path, version) in changes.replaced.items():
            versions[name] = objects.replace(name, path.read_bytes(), version)
    objects.delete(_INTENT)
    objects.delete_all([*staged.values()])
    return versions


def recover(objects: Objects) -> None:
    """Undo or finish what somebody was about to do when it died."""
    plan = _read(objects)
    if plan and plan["phase"] == 1:
        objects.delete_all(plan["created"])
    elif plan:
        for name, beside in plan["staged"].items():
            objects.put(name, objects.get(beside))
        objects.delete_all(plan["removed"])
    objects.delete(_INTENT)
    objects.delete_all([one.name for one in objects.walk(LOCK) if one.name.startswith(_STAGED)])


def view(objects: Objects) -> dict[str, Found]:
    """The objects that count, by the names that they are to have; each carries its own. Those of
    the lock are not among them."""
    # The plan is read on both sides of the listing: what changed in between is listed again.
    while True:
        before = _read(objects)
        found = {one.name: one for one in objects.walk()}
        if _read(objects) == before:
            break
    plan = before or {"phase": 0, "created": [], "staged": {}, "removed": []}
    if plan["phase"] == 1:
        for name in plan["created"]:
            found.pop(name, None)
    elif plan["phase"] == 2:
        for name in plan["removed"]:
            found.pop(name, None)
        found |= {name: found[beside] for name, beside in plan["staged"].items() if beside in found}
    return {name: one for name, one in found.items() if not name.startswith(f"{LOCK}/")}


def _apply_one(objects: Objects, changes: StoreChanges) -> dict[str, str]:
    for name, content in changes.created.items():
        return {name: _create(objects, name, content)}
    for name, (path, version) in changes.replaced.items():
        return {name: objects.replace(name, path.read_bytes(), version)}
    objects.delete_all(changes.removed)
    return {}


def _create(objects: Objects, name: str, content: Path | bytes) -> str:
    if isinstance(content, bytes):
        version = objects.create_version(name, content)
    else:
        version = objects.upload(name, content)
    if version is None:
        raise ChangedMeanwhile(
            f"{objects.address}/{name} is there already, with other content: another process works "
            "there; end it, then run the same command again"
        )
    return version


def _read(objects: Objects) -> dict[str, Any] | None:
    try:
        plan = json.loads(objects.get(_INTENT))
        return {"removed": [], **plan}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise StorageError(
            f"{objects.address}/{_INTENT}: is damaged: delete it, then run the same command again"
        ) from None
