"""The one way from a path that a user gave to a folder: an address of an object store becomes the
working copy of what lies there, any other path stays what it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefloop.data.storage.objects import Objects, as_address, is_address
from prefloop.pipeline.remote.working_copy import WorkingCopy, copy_of

_HELD: dict[Path, int] = {}
"""Working copies that this process works in, and how often it was asked for."""
_GUARD = threading.Lock()
_OF_A_RUN = ("config.yaml", "manifest.json")


def local_path(path: str | Path, *, weights: bool = False, is_new: bool = False) -> Path:
    """``path``, or the folder with what lies there now, for who only reads it. ``weights``: those
    of models are wanted too; ``is_new``: there may be nothing yet.

    An address may be within a run, such as that of its dataset; a path, in a working copy. Raises
    ``StorageError`` where nothing is there.
    """
    if is_address(path):
        address = as_address(path)
        run = _run_around(address)
        copy: WorkingCopy | None = WorkingCopy(run)
        found = WorkingCopy(run).root / address[len(run) :].lstrip("/")
    else:
        found, copy = Path(path), copy_of(Path(path))
    if copy is not None and copy.root not in _HELD:
        copy.look(weights=weights, is_new=is_new)
    return found


def given_path(path: str) -> str:
    """``path`` as it was given, or for an address the folder or file with what lies there now."""
    return str(local_path(path)) if is_address(path) else path


@contextmanager
def worked_on(path: str | Path) -> Iterator[Path]:
    """``path``, or its working copy, for who changes what is there; on the store nobody else can
    meanwhile, and it has all changes at the end.

    Raises ``StorageError``, also where somebody works there.
    """
    if is_address(path):
        address = as_address(path)
        run = _run_around(address)
        with _held(WorkingCopy(run)) as root:
            yield root / address[len(run) :].lstrip("/")
        return
    found = copy_of(Path(path))
    if found is None:
        yield Path(path)
        return
    with _held(found):
        yield Path(path)


def shown_path(path: Path) -> str:
    """``path`` as a user is to read it: on a store, where it has one there."""
    found = copy_of(path)
    if found is None:
        return str(path)
    return f"{found.address}/{path.resolve().relative_to(found.root)}".removesuffix("/.")


@contextmanager
def _held(copy: WorkingCopy) -> Iterator[Path]:
    with _GUARD:
        nested = copy.root in _HELD
        _HELD[copy.root] = _HELD.get(copy.root, 0) + 1
    try:
        if nested:
            yield copy.root
            return
        with copy.held():
            yield copy.root
    finally:
        with _GUARD:
            _HELD[copy.root] -= 1
            if not _HELD[copy.root]:
                del _HELD[copy.root]


def _run_around(address: str) -> str:
    """The address of the run that ``address`` is within: what is within one lies in its working
    copy. ``address`` itself where it is in none."""
    scheme, _, rest = address.partition("://")
    names = rest.split("/")
    for count in range(1, len(names)):
        outer = f"{scheme}://{'/'.join(names[:count])}"
        if all(Objects(outer).find(name) for name in _OF_A_RUN):
            return outer
    return address
