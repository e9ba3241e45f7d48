"""What pairs are sorted and filtered by, a row a pair: figures and names, no texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import Ints
from prefloop.data.errors import InputError
from prefloop.labelers.decisions.reasons import PAIR_STRATEGY

KEPT, DROPPED = "kept", "dropped"
"""As what became of a pair; ``dropped`` stands for every reason but that the pair strategy chose
others."""

FACTS = pa.schema(
    [
        pa.field("round", pa.int32()),
        pa.field("part", pa.int32(), nullable=False),  # the shard or file it lies in
        pa.field("row", pa.int64(), nullable=False),  # in that shard, from 0
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("fate", pa.string(), nullable=False),  # kept, or why not
        pa.field("split", pa.string()),  # of the dataset; null where the pair is not in it
        pa.field("margin", pa.float64()),
        pa.field("agreement", pa.float64()),
        pa.field("p_chosen", pa.float64()),
        pa.field("chosen_length", pa.int64()),  # both in one unit
        pa.field("rejected_length", pa.int64()),
        pa.field("labelers", pa.list_(pa.string())),
    ]
)

RANGES = ("margin", "agreement", "ratio", "length")
SORTS = ("drawn", "place", "margin", "agreement", "p_chosen", "ratio", "length")
_NAMES = ("round", "split", "fate", "labeler")


@dataclass(frozen=True)
class PairQuery:
    """Which pairs are asked for, and in which order."""

    names: Mapping[str, str]
    """Of round, split, fate and labeler, as far as they are asked for."""
    ranges: Mapping[str, tuple[float, float]]
    """Lowest and highest value of a figure. Pairs without the figure are left out."""
    search: str = ""
    sort: str = "drawn"
    descending: bool = False

    @classmethod
    def of(cls, query: Mapping[str, str]) -> PairQuery:
        """Read from a query, as the page writes it. Raises ``InputError``."""
        ranges = {}
        for name in RANGES:
            low, high = (query.get(f"{name}_{end}", "") for end in ("min", "max"))
            if low or high:
                ranges[name] = (_number(low, -math.inf), _number(high, math.inf))
        sort = query.get("sort", "drawn")
        if sort not in SORTS:
            raise InputError(f"sort {sort!r}: is none of {', '.join(SORTS)}")
        return cls(
            names={name: query[name] for name in _NAMES if query.get(name)},
            ranges=ranges,
            search=query.get("search", "").strip(),
            sort=sort,
            descending=query.get("descending") == "1",
        )


def _number(text: str, default: float) -> float:
    try:
        found = float(text or default)
    except ValueError:
        raise InputError(f"{text!r}: is no number") from None
    return default if math.isnan(found) else found


def figure(facts: pa.Table, name: str) -> pa.ChunkedArray:
    """A figure of every pair; ``ratio`` is chosen to rejected, ``length`` the longer one's."""
    if name == "ratio":
        return pc.divide(
            facts["chosen_length"].cast(pa.float64()),
            pc.max_element_wise(facts["rejected_length"], 1).cast(pa.float64()),
        )
    if name == "length":
        return pc.max_element_wise(facts["chosen_length"], facts["rejected_length"])
    return facts[name]


def select(facts: pa.Table, wanted: PairQuery, found: Ints | None, seed: int) -> Ints:
    """The rows of ``facts`` that are ``wanted``, in its order.

    ``found`` are the rows in which the searched words stand, null where nothing is searched for.
    """
    rows = pa.array(np.arange(len(facts)))
    mask: Any = pa.chunked_array([pa.array(np.ones(len(facts), bool))])
    for name, value in wanted.names.items():
        mask = pc.and_(mask, _is(facts, name, value))
    for name, (low, high) in wanted.ranges.items():
        values = figure(facts, name)
        mask = pc.and_(mask, pc.fill_null(_within(values, low, high), False))
    kept = rows.filter(mask.combine_chunks()).to_numpy()
    if found is not None:
        kept = kept[np.isin(kept, found)]
    return _sorted(facts, kept, wanted, seed)


def _is(facts: pa.Table, name: str, value: str) -> Any:
    if name == "labeler":
        column = facts["labelers"].combine_chunks()
        there = pc.equal(pc.list_flatten(column), value)
        mask = np.zeros(len(facts), bool)
        mask[pc.list_parent_indices(column).filter(there).to_numpy()] = True
        return pa.array(mask)
    if name == "fate" and value == DROPPED:
        return pc.invert(pc.is_in(facts["fate"], pa.array([KEPT, PAIR_STRATEGY])))
    return pc.fill_null(pc.equal(facts[name].cast(pa.string()), value), False)


def _within(values: Any, low: float, high: float) -> Any:
    return pc.and_(pc.greater_equal(values, low), pc.less_equal(values, high))


def _sorted(facts: pa.Table, rows: Ints, wanted: PairQuery, seed: int) -> Ints:
    if wanted.sort == "place":
        return rows[::-1] if wanted.descending else rows
    if wanted.sort == "drawn":
        order = drawn(facts, seed)
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))
        return rows[np.argsort(ranks[rows])]
    values = figure(facts, wanted.sort).take(pa.array(rows, pa.int64()))
    way = "descending" if wanted.descending else "ascending"
    places = pc.sort_indices(values, sort_keys=[("", way)])  # null stands last
    found: Ints = rows[places.to_numpy()]
    return found


def drawn(facts: pa.Table, seed: int) -> Ints:
    """All rows in an order that is drawn by ``seed``, whatever order they stand in."""
    keys = [("pair_id", "ascending"), ("round", "ascending")]
    by_id = pc.sort_indices(facts, sort_keys=keys).to_numpy()
    found: Ints = by_id[np.random.default_rng(seed).permutation(len(by_id))].astype(np.int64)
    return found


_EXTREMES = (
    ("lowest margin", "margin", False),
    ("highest margin", "margin", True),
    ("lowest agreement", "agreement", False),
    ("chosen longest beside rejected", "ratio", True),
    ("rejected longest beside chosen", "ratio", False),
)


def some(facts: pa.Table, most: int, seed: int) -> dict[str, Ints]:
    """At most ``most`` rows and why they are taken: all, or half of them drawn by ``seed`` and the
    other half the extremes of the rest."""
    if len(facts) <= most:
        return {"all": np.arange(len(facts), dtype=np.int64)}
    order = drawn(facts, seed)
    share = most // 2 // len(_EXTREMES)
    found = {"drawn": order[: most - share * len(_EXTREMES)]}
    taken = set(found["drawn"].tolist())
    for why, name, descending in _EXTREMES:
        wanted = PairQuery({}, {}, sort=name, descending=descending)
        ordered = _sorted(facts, order, wanted, seed)
        known = pc.is_valid(figure(facts, name).take(pa.array(ordered))).to_numpy(
            zero_copy_only=False
        )
        picks = [row for row in ordered[known].tolist() if row not in taken][:share]
        taken.update(picks)
        if picks:
            found[why] = np.array(picks, np.int64)
    return found
