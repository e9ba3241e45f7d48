"""Which pairs people get to see, and which answer of each stands as A: drawn by seed, and noted
before anybody sees them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.hashing import derive_seed
from prefloop.labelers.statistics.review_draw import Strategy, chances, draw
from prefloop.pipeline.review.definition import Mode
from prefloop.pipeline.review.folder import CHANCE, PUSHED, ReviewFolder
from prefloop.pipeline.review.subjects import Population, Subject, Subjects

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How pairs are drawn."""

    n: int = 200
    strategy: Strategy = "mixed"
    mode: Mode = "blind"
    seed: int = 0


def draw_pairs(subjects: Subjects, folder: ReviewFolder, drawing: Drawing) -> list[str]:
    """The ids of the pairs to show, in the order in which to; the chances of all are noted.

    A draw that was made stays as it is, whatever became of the pairs since: votes of people change
    how sure the jury is, and another round brings more. Drawn again by other chances than those
    that are noted, pairs would count for more or less in the estimates than they do.
    """
    population = subjects.population()
    name = f"{drawing.strategy}-{drawing.n}-{drawing.seed}"
    made = folder.draw(name)
    if made is None or _is_of(made, population, drawing):
        made = _drawn(population, drawing)
        folder.add_draw(name, made)
    new = len(set(population.pair_ids).difference(made["pair_id"].to_pylist()))
    if new:
        logger.warning(
            "%s: %s of the %s pairs were not there when %s pairs were drawn with --seed %d, and "
            "that draw stays as it is: another --seed draws from all",
            folder.root,
            f"{new:,}",
            f"{len(population.pair_ids):,}",
            f"{drawing.n:,}",
            drawing.seed,
        )
    drawn = made.filter(pc.is_valid(made["place"])).sort_by("place")
    ids: list[str] = drawn["pair_id"].to_pylist()
    return ids


def _drawn(population: Population, drawing: Drawing) -> pa.Table:
    """A draw (CHANCE) from ``population``."""
    found = population.p_chosen, population.agreement, drawing.n, drawing.strategy
    index = draw(population.pair_ids, *found, seed=drawing.seed).index
    if drawing.mode == "blind":  # in no order that tells anything
        index = np.random.default_rng(drawing.seed).permutation(index)
    places = np.full(len(population.pair_ids), -1, np.int32)
    places[index] = np.arange(len(index), dtype=np.int32)
    columns = [
        pa.array(population.pair_ids, pa.string()),
        pa.array(chances(*found)),
        pa.array(population.p_chosen),
        pa.array(places, mask=places < 0),
    ]
    return pa.table(columns, schema=CHANCE)


def _is_of(made: pa.Table, population: Population, drawing: Drawing) -> bool:
    """Whether a draw of a version that did not say which pairs are in it was made from
    ``population``: then it is found by drawing again."""
    if made["place"].null_count < len(made):
        return False
    now = _drawn(population, drawing)
    names = ["pair_id", "chance", "p_chosen"]
    return bool(made.select(names).equals(now.select(names)))


def noted(subject: Subject, seed: int, shown: str | None = None) -> dict[str, Any]:
    """The row (PUSHED) of a pair that is about to be shown, its sides drawn by pair."""
    a, b = sorted(subject.texts)
    if derive_seed(seed, subject.pair_id, "review") % 2:
        a, b = b, a
    return {
        "pair_id": subject.pair_id, "prompt_id": subject.prompt_id, "round": subject.round,
        "answer_a_id": a, "answer_b_id": b, "chosen_id": subject.chosen_id,
        "p_chosen": subject.p_chosen, "place": subject.place, "shown": shown,
    }  # fmt: skip


def note_pairs(folder: ReviewFolder, rows: Sequence[dict[str, Any]]) -> int | None:
    """Keep ``rows`` (PUSHED); the number of the part that holds them, null without any.

    It comes before they are shown: what people see and nobody here knows could not be read back.
    """
    if not rows:
        return None
    table = pa.Table.from_pylist(list(rows), PUSHED)
    part = max(folder.pushed.indices(), default=-1) + 1
    while not folder.pushed.write(part, table):  # somebody else notes at the same time
        part += 1
    return part
