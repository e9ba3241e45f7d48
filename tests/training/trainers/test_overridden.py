"""The libraries' private methods that ours stand in for: still those that ours were written for?"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from typing import Any

import pytest

from prefloop.training.trainers.overridden import OVERRIDDEN, WRITTEN_FOR
from tests.helpers.paths import ROOT

LIBRARIES = tuple(WRITTEN_FOR)


def classes() -> Iterator[type]:
    """Ours that stand on a class of one of the libraries."""
    places = [*(ROOT / "training" / "trainers").glob("*.py"),
              ROOT / "pipeline" / "engines" / "kv_cache.py"]  # fmt: skip
    for path in places:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield from (
            one
            for one in vars(import_module(f"prefloop.{name}")).values()
            if inspect.isclass(one) and one.__module__.startswith("prefloop.")
        )


def replaced() -> dict[str, Any]:
    """The libraries' functions that a method of ours is called in the place of, by name: private
    ones, and those of classes that are not made to be subclassed."""
    found = {}
    for kind in classes():
        lineage = kind.__mro__
        for at, own in enumerate(lineage):
            if not own.__module__.startswith("prefloop."):
                continue
            for name in vars(own):
                theirs = next((one for one in lineage[at + 1 :] if name in vars(one)), None)
                library = theirs.__module__.split(".")[0] if theirs else ""
                if theirs and library in LIBRARIES and _is_internal(theirs, name):
                    found[f"{library}: {theirs.__name__}.{name}"] = vars(theirs)[name]
    return found


def _is_internal(theirs: type, name: str) -> bool:
    private = name.startswith("_") and not name.startswith("__")
    return inspect.isfunction(vars(theirs)[name]) and (private or theirs.__name__ == "DynamicLayer")


def digest(function: Any) -> str:
    """Of what it does, comments and line breaks aside."""
    lines = inspect.getsource(function).splitlines()
    code = " ".join(line for line in lines if not line.strip().startswith("#"))
    return hashlib.sha256(re.sub(r"\s+", " ", code).strip().encode()).hexdigest()[:12]


def test_all_that_is_replaced_is_listed() -> None:
    assert set(replaced()) == set(OVERRIDDEN)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_what_is_replaced_is_what_it_was(name: str) -> None:
    library = name.split(":")[0]
    found = digest(replaced()[name])
    assert found == OVERRIDDEN[name], (
        f"{library} {version(library)} has another {name.split()[1]} than {WRITTEN_FOR[library]}, "
        f"which ours was written for: read what changed, mend ours, then put {found!r} into "
        "training/trainers/overridden.py"
    )
