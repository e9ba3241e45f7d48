"""What our trainers replace of TRL and transformers is what was tried."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import pytest

from prefloop.training import trainers
from prefloop.training.trainers.overridden import KNOWN, code_of, replaced


def classes() -> Iterator[type]:
    """Those of the trainers' folder."""
    for found in pkgutil.iter_modules(trainers.__path__, f"{trainers.__name__}."):
        module = importlib.import_module(found.name)
        for one in vars(module).values():
            if inspect.isclass(one) and one.__module__ == module.__name__:
                yield one


@pytest.fixture(scope="module")
def methods() -> dict[str, Callable[..., Any]]:
    return {name: method for one in classes() for name, method in replaced(one)}


def test_every_private_method_that_is_replaced_is_known(
    methods: dict[str, Callable[..., Any]],
) -> None:
    assert methods.keys() == KNOWN.keys()


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_none_is_another_than_what_was_tried(
    methods: dict[str, Callable[..., Any]], name: str
) -> None:
    library = name.partition(".")[0]
    assert code_of(methods[name]) in KNOWN[name], (
        f"{name} is another in {library} {version(library)}: read what changed and what ours makes "
        "of it, run the tests of training, then add its digest to training/trainers/overridden.py"
    )


def test_what_is_replaced_is_found_behind_a_class_that_is_in_between() -> None:
    class Base:
        def _one(self) -> int:
            return 1

        def _two(self) -> int:
            return 2

        def three(self) -> int:
            return 3

    Base.__module__ = "trl.somewhere"

    class First:
        def _one(self) -> int:
            return -1

        def three(self) -> int:
            return -3

    class Ours(First, Base):
        pass

    assert dict(replaced(Ours)) == {"trl.Base._one": vars(Base)["_one"]}
    assert not dict(replaced(First))


def test_a_digest_is_of_the_words() -> None:
    def made() -> int:
        return 1 + 2

    def other() -> int:
        return 1 + 3

    assert code_of(made) != code_of(other)
