"""Between numpy and Arrow nothing is lost, and values are found where they stand."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from prefloop.data.arrays import NOWHERE, as_arrow, as_numpy, as_text, as_texts, places_in

NUMBERS = st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), max_size=40)


@given(NUMBERS, st.integers(0, 9), st.sampled_from(["int32", "int64", "float64", "bool"]))
def test_numbers_and_truth_values_go_both_ways(
    values: list[int | None], begin: int, kind: str
) -> None:
    mask = np.array([one is None for one in values], np.bool_)
    plain = np.array([one or 0 for one in values]).astype(kind)
    array = as_arrow(plain, mask)
    expected = pa.array(plain, mask=mask)
    assert array.type == expected.type
    assert array.equals(expected)
    assert as_arrow(plain).equals(pa.array(plain))
    for some in (array.slice(begin), pa.chunked_array([array.slice(begin), array])):
        wanted = [np.nan if one is None else one for one in some.to_pylist()]
        np.testing.assert_array_equal(as_numpy(some), wanted)
    np.testing.assert_array_equal(as_numpy(as_arrow(plain).slice(begin)), plain[begin:])


def test_a_column_of_nulls_alone_is_not_a_number() -> None:
    assert np.isnan(as_numpy(pa.nulls(2))).all()
    assert np.isnan(as_numpy(pa.nulls(2, pa.float64()))).all()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=10))
def test_texts_stay_as_they_are(texts: list[str]) -> None:
    assert as_texts(texts).equals(pa.array(texts, pa.string()))
    for text in texts:
        assert as_text(text).as_py() == text


@given(st.lists(st.sampled_from("abcdef")), st.lists(st.sampled_from("abcdefg")))
def test_values_are_found_where_they_stand_first(known: list[str], wanted: list[str]) -> None:
    column, values = (pa.chunked_array([as_texts(one)]) for one in (known, wanted))
    expected = [known.index(one) if one in known else NOWHERE for one in wanted]
    first, second = places_in(column, values, column)
    assert first.tolist() == expected
    assert second.tolist() == [known.index(one) for one in known]
