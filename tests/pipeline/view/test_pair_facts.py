"""Filters, orders and draws, and what is marked as different."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from prefloop.data.errors import InputError
from prefloop.pipeline.view.pair_facts import FACTS, PairQuery, drawn, select, some
from prefloop.pipeline.view.word_diff import cut_parts, differences

ROWS = [
    # round, fate, split, margin, agreement, chosen, rejected, labelers
    (0, "kept", "train", 0.5, 1.0, 10, 20, ["judge", "verifier"]),
    (0, "tie", None, 0.0, 0.5, 30, 0, ["judge"]),
    (1, "kept", "test", 0.9, 1.0, 40, 20, ["verifier"]),
    (1, "length_ratio", None, None, None, 90, 30, None),
]


def facts_of(rows: list[tuple[object, ...]]) -> pa.Table:
    names = ("round", "fate", "split", "margin", "agreement", "chosen_length", "rejected_length",
             "labelers")  # fmt: skip
    return pa.Table.from_pylist(
        [
            {**dict(zip(names, row, strict=True)), "part": 0, "row": at, "pair_id": f"p{at:04d}"}
            for at, row in enumerate(rows)
        ],
        schema=FACTS,
    )


FACTS_OF_FOUR = facts_of(list(ROWS))


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ({}, [0, 1, 2, 3]),
        ({"round": "1"}, [2, 3]),
        ({"split": "test"}, [2]),
        ({"fate": "kept"}, [0, 2]),
        ({"fate": "dropped"}, [1, 3]),
        ({"fate": "tie"}, [1]),
        ({"labeler": "verifier"}, [0, 2]),
        ({"margin_min": "0.5"}, [0, 2]),
        ({"margin_max": "0.5"}, [0, 1]),  # a pair without a margin is in no range of it
        ({"ratio_min": "2", "ratio_max": "3"}, [2, 3]),
        ({"length_min": "31"}, [2, 3]),
        ({"round": "1", "fate": "kept", "agreement_min": "1"}, [2]),
        ({"labeler": "nobody"}, []),
        ({"sort": "margin"}, [1, 0, 2, 3]),
        ({"sort": "margin", "descending": "1"}, [2, 0, 1, 3]),  # the unknown stand last
        ({"sort": "ratio", "descending": "1"}, [1, 3, 2, 0]),
        ({"sort": "place", "descending": "1"}, [3, 2, 1, 0]),
    ],
)
def test_pairs_are_filtered_and_sorted(query: dict[str, str], rows: list[int]) -> None:
    wanted = PairQuery.of({"sort": "place", **query})
    assert select(FACTS_OF_FOUR, wanted, None, 0).tolist() == rows


def test_what_the_pair_strategy_did_not_choose_is_not_dropped() -> None:
    row = (1, "pair_strategy", None, 0.2, 1.0, 5, 6, ["judge"])
    facts = facts_of([*ROWS, row])
    for fate, rows in (("dropped", [1, 3]), ("pair_strategy", [4])):
        wanted = PairQuery.of({"sort": "place", "fate": fate})
        assert select(facts, wanted, None, 0).tolist() == rows


def test_a_search_narrows_a_filter() -> None:
    wanted = PairQuery.of({"fate": "kept", "sort": "place"})
    assert select(FACTS_OF_FOUR, wanted, np.array([1, 2]), 0).tolist() == [2]


@pytest.mark.parametrize("query", [{"sort": "shoe size"}, {"margin_min": "much"}])
def test_a_query_that_says_nothing_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(InputError, match="is no"):
        PairQuery.of(query)


def test_a_draw_goes_by_seed_and_not_by_place() -> None:
    facts = facts_of([ROWS[0]] * 50)
    moved = facts.take(pa.array(range(49, -1, -1)))
    ids = [table["pair_id"].take(pa.array(drawn(table, 3))).to_pylist() for table in (facts, moved)]
    assert ids[0] == ids[1]
    assert drawn(facts, 3).tolist() != drawn(facts, 4).tolist()
    assert select(facts, PairQuery.of({}), None, 3).tolist() == drawn(facts, 3).tolist()


def test_a_page_has_all_pairs_or_a_draw_and_the_extremes() -> None:
    rows = [(0, "kept", "train", at / 100, at / 100, at, 100, ["judge"]) for at in range(100)]
    facts = facts_of(rows)
    assert some(facts, 100, 0)["all"].tolist() == list(range(100))
    taken = some(facts, 20, 0)
    sizes = {why: len(found) for why, found in taken.items()}
    assert sizes.pop("drawn") == 10
    assert set(sizes.values()) == {2}
    every = np.concatenate(list(taken.values()))
    assert len(set(every.tolist())) == len(every) == 20
    left = [row for row in range(100) if row not in taken["drawn"].tolist()]
    assert taken["lowest margin"].tolist() == left[:2]
    assert taken["highest margin"].tolist() == left[:-3:-1]


def test_extremes_of_what_nobody_knows_are_not_taken() -> None:
    facts = facts_of([(None, "kept", "train", None, None, at, 10, None) for at in range(50)])
    assert set(some(facts, 20, 0)) == {
        "drawn", "chosen longest beside rejected", "rejected longest beside chosen",
    }  # fmt: skip


def test_words_that_differ_are_marked() -> None:
    found = differences("The red fox ran.", "The  old fox\nran!")
    assert found is not None
    assert found[0] == [("The ", False), ("red ", True), ("fox ran", False), (".", True)]
    assert found[1] == [("The  ", False), ("old ", True), ("fox\nran", False), ("!", True)]


def test_scripts_without_spaces_are_compared_by_character() -> None:
    found = differences("散乱のため", "海のため")
    assert found == ([("散乱", True), ("のため", False)], [("海", True), ("のため", False)])


@pytest.mark.parametrize("text", ["", " \n a\tb ", "a b c\r\n", "\u2028x", "🦊!?"])
def test_pieces_are_the_text(text: str) -> None:
    one, other = differences(text, "a c") or ([], [])
    assert "".join(piece for piece, _ in one) == text
    assert "".join(piece for piece, _ in other) == "a c"


def test_texts_too_long_to_compare_are_not_compared() -> None:
    assert differences("word " * 3_001, "word") is None


def test_answers_that_repeat_themselves_are_compared() -> None:
    one, other = differences("x " * 1_400, "x y " * 700) or ([], [])
    assert sum(len(text) for text, differs in one if differs) == len("x " * 700)
    assert [text for text, differs in other if differs] == ["y "] * 700


def test_pieces_are_cut_as_one_text() -> None:
    parts = [("abc", False), ("def", True), ("ghi", False)]
    assert list(cut_parts(parts, 5)) == [("abc", False), ("de", True)]
    assert list(cut_parts(parts, None)) == parts
