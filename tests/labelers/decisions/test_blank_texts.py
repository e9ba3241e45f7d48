"""Texts without anything to read are those that the pattern knows."""

import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st

from prefloop.data.utf8 import is_blank
from prefloop.labelers.decisions.blank_texts import are_blank

TEXTS = st.text(st.sampled_from("a !~\x7f\x00\t\n\u00a0\u200bé字"), max_size=4)


@given(st.lists(TEXTS, max_size=12), st.integers(0, 3))
@example([], 0)
@example(["", ""], 0)
def test_they_are_those_of_the_pattern(texts: list[str], begin: int) -> None:
    column = pa.chunked_array([pa.array(texts, pa.string())]).slice(begin)
    assert are_blank(column).tolist() == [is_blank(one) for one in texts[begin:]]
