"""Text queries of the embedded Argilla: what they find, without a server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.pipeline.review.server.argilla_lite.query import compile_query, fold

TEXT = "The quick brown fox; la forêt noire, Müller's café. 東京タワーの写真 cost 3.5 EUR (re-run)"


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("fox", True), ("FOX quick", True), ("fox wolf", False), ("fo", False), ("fo*", True),
        ("foret", True), ("cafe", True), ("Muller", True), ("müller", True),
        ('"brown fox"', True), ('"fox brown"', False), ('"brown  FOX', True),
        ("wolf | fox", True), ("wolf | bear", False), ("quick (wolf | fox)", True),
        ("quick (wolf | bear)", False), ("(wolf | fox) (lion | brown)", True),
        ("fox -wolf", True), ("fox -quick", False), ("-wolf", True), ("-fox", False),
        ('-"brown fox"', False), ("-(wolf | bear)", True), ("-(wolf | fox)", False),
        ("東京", True), ("タワー", True), ("京都", False), ("写真 fox", True),
        ("3.5", True), ("re-run", True), ("+fox +quick", True),
        ("", False), ("   ", False), ("*", False), ("()", False), ("|", False), ('""', False),
        ("((fox", True), ("fox))", True), (") fox", True), ("fox |", True), ("| fox", True),
    ],
)  # fmt: skip
def test_queries(query: str, found: bool) -> None:
    assert compile_query(query)(fold(TEXT)) is found


@given(query=st.text(max_size=30))
def test_no_query_is_an_error(query: str) -> None:
    assert compile_query(query)(fold(TEXT)) in (True, False)


def test_a_hostile_query_takes_no_time() -> None:
    text = fold("a" * 200_000)
    assert not compile_query("(" * 50 + "a*b" + "|(a)" * 50)(text)
