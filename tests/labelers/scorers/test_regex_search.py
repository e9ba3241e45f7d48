"""Patterns out of data end, whatever they are."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefloop.labelers.scorers.check_types import ConstraintError
from prefloop.labelers.scorers.constraints import check
from prefloop.labelers.scorers.regex_search import PatternError, RegexSearch

SLOW = r"(?=([\s\S]*[\s\S]*[\s\S]*[\s\S]*[\s\S]*[\s\S]*[\s\S]*[\s\S]*\u2603))"
SEARCH = RegexSearch(seconds=0.05)


@pytest.mark.parametrize("pattern", [SLOW, r"(a|a)*?(a|aa)+$x", r"(x+x+)+y"])
def test_a_pattern_that_takes_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError, match=r"takes more than 0\.05 s"):
        SEARCH.found(pattern, "a" * 300 + "x" * 300)
    assert SEARCH.found("^b", "bc")  # the next search is another one


def test_a_killed_process_is_started_again() -> None:
    search = RegexSearch()
    assert search.found("a", "a")
    assert search._process is not None
    search._process.kill()
    search._process.wait()
    assert not search.found("a", "b")
    search.close()
    assert search.found("b", "b")
    search.close()


def test_a_constraint_says_why() -> None:
    with pytest.raises(ConstraintError, match="is not a regular expression: error: missing"):
        check({"type": "regex", "pattern": "("}, "text")


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab(|)*+?[^]\\w.{1,}$é\ud800\n", max_size=8), st.text(max_size=20))
@example(r"\bé", "é")
@example("a$", "a\n")
def test_what_is_found_is_what_re_finds(pattern: str, text: str) -> None:
    try:
        wanted: bool | str = re.search(pattern, text) is not None
    except Exception:  # noqa: BLE001 - whatever re raises, the pattern is none
        with pytest.raises(PatternError):
            SEARCH.found(pattern, text)
        return
    assert SEARCH.found(pattern, text) is wanted
