"""Repeated, contradictory and circular preferences, found in hashes alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prefloop.data.arrays import Bools
from prefloop.data.checks.text_hashes import Hashes, combine


@dataclass(frozen=True)
class Repeats:
    """What N pairs say together (bool [N] each)."""

    identical: Bools
    """Chosen and rejected are one text."""
    duplicate: Bools
    """An earlier pair has the same prompt, chosen and rejected."""
    contradictory: Bools
    """Another pair of the same prompt prefers the two answers the other way round."""
    circular: Bools
    """In a cycle (A over B, B over C, C over A) of its prompt that is left when contradictory
    pairs are taken out."""
    partner: npt.NDArray[np.int64]
    """The first pair that a duplicate repeats, or that a contradictory one contradicts; else -1."""
    contradictions: int
    """Distinct pairs of answers that are preferred both ways."""
    cycles: int
    """Strongly connected components of more than one answer behind ``circular``."""
    prompts: int
    """Distinct prompts."""
    prompts_with_several: int
    """Of these, the ones with more than one pair."""


def find_repeats(prompt: Hashes, chosen: Hashes, rejected: Hashes) -> Repeats:
    """Compare pairs given as hashes of their three texts (uint64 [N] each)."""
    _, of_prompt, pairs_of_prompt = np.unique(prompt, return_inverse=True, return_counts=True)
    identical = chosen == rejected
    either_way, of_group = np.unique(
        combine(prompt, np.minimum(chosen, rejected), np.maximum(chosen, rejected)),
        return_inverse=True,
    )
    direction = (chosen < rejected).astype(np.int64)
    directed, first, of_directed = np.unique(
        of_group * 2 + direction, return_index=True, return_inverse=True
    )
    ways = np.bincount(directed // 2, minlength=len(either_way))
    contradictory = ways[of_group] == 2
    duplicate = first[of_directed] != np.arange(len(prompt))
    partner = np.where(duplicate, first[of_directed], -1)
    opposite = np.searchsorted(directed, (of_group * 2 + 1 - direction)[contradictory])
    partner[contradictory] = first[opposite]
    # A cycle has three pairs at least.
    possible = ~identical & ~contradictory & ~duplicate & (pairs_of_prompt[of_prompt] >= 3)
    circular, cycles = _cycles(prompt, chosen, rejected, possible)
    # Repetitions of a pair in a cycle are in it too.
    circular = circular[first][of_directed] if len(prompt) else circular
    return Repeats(
        identical=identical,
        duplicate=duplicate,
        contradictory=contradictory,
        circular=circular,
        partner=partner,
        contradictions=int((ways == 2).sum()),
        cycles=cycles,
        prompts=len(pairs_of_prompt),
        prompts_with_several=int((pairs_of_prompt > 1).sum()),
    )


def _cycles(prompt: Hashes, chosen: Hashes, rejected: Hashes, rows: Bools) -> tuple[Bools, int]:
    """The pairs of ``rows`` in a strongly connected component, and how many such there are."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    circular = np.zeros(len(prompt), dtype=bool)
    count = int(rows.sum())
    if not count:
        return circular, 0
    answers = combine(
        np.concatenate([prompt[rows], prompt[rows]]),
        np.concatenate([chosen[rows], rejected[rows]]),
    )
    names, nodes = np.unique(answers, return_inverse=True)
    better, worse = nodes[:count], nodes[count:]
    graph = coo_array((np.ones(count, np.int8), (better, worse)), shape=(len(names), len(names)))
    _, component = connected_components(graph, directed=True, connection="strong")
    inside = component[better] == component[worse]
    circular[np.flatnonzero(rows)[inside]] = True
    return circular, len(np.unique(component[better[inside]]))
