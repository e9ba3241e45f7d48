"""Which pairs people get to see, and which answer of each stands as A: drawn by seed, and noted
before anybody sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from prefloop.data.hashing import derive_seed
from prefloop.labelers.statistics.review_draw import Strategy, chances, draw
from prefloop.pipeline.review.definition import Mode
from prefloop.pipeline.review.folder import CHANCE, PUSHED, ReviewFolder
from prefloop.pipeline.review.subjects import Subject, Subjects


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How pairs are drawn."""

    n: int = 200
    strategy: Strategy = "mixed"
    mode: Mode = "blind"
    seed: int = 0


def draw_pairs(subjects: Subjects, folder: ReviewFolder, drawing: Drawing) -> list[str]:
    """The ids of the pairs to show, in the order in which to; the chances of all are noted."""
    population = subjects.population()
    found = population.p_chosen, population.agreement, drawing.n, drawing.strategy
    drawn = draw(population.pair_ids, *found, seed=drawing.seed)
    table = pa.table([population.pair_ids, chances(*found), population.p_chosen], schema=CHANCE)
    folder.add_draw(f"{drawing.strategy}-{drawing.n}-{drawing.seed}", table)
    index = drawn.index
    if drawing.mode == "blind":  # in no order that tells anything
        index = np.random.default_rng(drawing.seed).permutation(index)
    return [population.pair_ids[place] for place in index.tolist()]


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
