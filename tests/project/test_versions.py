"""What pyproject.toml allows is what was tested at both ends."""

from __future__ import annotations

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.helpers.paths import ROOT


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    wanted = (line.partition("==") for line in lines if not line.startswith("#"))
    return {package: Version(version) for package, _, version in wanted}


def allowed() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = map(Requirement, project["dependencies"])
    return {one.name: one for one in found}


OLDEST, NEWEST, TESTED = map(
    pins, ("constraints-oldest.txt", "constraints-newest.txt", "constraints.txt")
)


@pytest.mark.parametrize("package", sorted(OLDEST))
def test_the_ends_are_those_that_were_tested(package: str) -> None:
    bounds = {one.operator: Version(one.version) for one in allowed()[package].specifier}
    oldest, newest = OLDEST[package], NEWEST[package]
    assert bounds.keys() == {">=", "<"}
    assert bounds[">="].release[:2] == oldest.release[:2]
    assert bounds[">="] <= oldest
    assert bounds["<"] == Version(f"{newest.major}.{newest.minor + 1}")
    assert oldest <= TESTED[package] <= newest


def test_both_ends_are_of_the_same_packages() -> None:
    assert OLDEST.keys() == NEWEST.keys()


def test_every_package_is_tested_in_a_version_that_is_allowed() -> None:
    for name, requirement in allowed().items():
        versions = {one.lower().replace("_", "-"): version for one, version in TESTED.items()}
        assert requirement.specifier.contains(versions[name.lower().replace("_", "-")]), name
