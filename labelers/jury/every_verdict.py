"""The verdicts of all labelers on all pairs of a run, a byte each, for what is told of them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefloop.data.arrays import Ints
from prefloop.labelers.jury.verdict_table import (
    PositionBias,
    merge_votes,
    position_bias,
    read_votes_and_pairs,
)
from prefloop.labelers.statistics.agreement import MISSING

VERDICTS = ("a", "tie", "b")
"""What a labeler may say of a pair, by the number that stands for it."""


@dataclass(frozen=True)
class EveryVerdict:
    """L labelers on N pairs, in the order in which these were first voted on."""

    labelers: tuple[str, ...]
    codes: NDArray[np.int8]
    """[N, L]: place in VERDICTS, or MISSING where a labeler gave no valid vote."""
    prompts: Ints
    """Number of each pair's prompt [N]; the same prompt has the same one in every round."""
    position: Mapping[str, PositionBias]
    """By labeler that was shown an order."""
    invalid: int
    """Labelers and pairs without a valid vote, in tables that have votes of the labeler."""


def every_verdict(tables: Iterable[pa.Table]) -> EveryVerdict:
    """What tables of votes (VERDICT_COLUMNS) say; all votes on a pair have to be in one of them.

    Raises ``LabelerError`` as ``prefloop.labelers.jury.verdict_table.read_votes``.
    """
    position: dict[str, PositionBias] = {}
    parts: list[tuple[tuple[str, ...], NDArray[np.int8]]] = []
    prompts: list[pa.DictionaryArray] = []
    invalid = 0
    for votes in tables:
        read, pairs = read_votes_and_pairs(votes)
        verdicts = merge_votes(read, len(pairs))
        codes = np.where(verdicts.valid, 1 - verdicts.verdict, MISSING)
        parts.append((read.labelers, codes.astype(np.int8)))
        invalid += int((~verdicts.valid).sum())
        prompts.append(pairs["prompt_id"].combine_chunks().dictionary_encode())
        of_pairs = _numbers(prompts[-1])
        for name, bias in position_bias(read, verdicts, of_pairs).items():
            position[name] = position.get(name, PositionBias()) + bias
    names = sorted({name for part, _ in parts for name in part})
    whole = np.full((sum(len(codes) for _, codes in parts), len(names)), MISSING, np.int8)
    at = 0
    for part, codes in parts:
        whole[at : at + len(codes), [names.index(name) for name in part]] = codes
        at += len(codes)
    return EveryVerdict(tuple(names), whole, _in_common(prompts), position, invalid)


def _numbers(encoded: pa.DictionaryArray) -> Ints:
    found: Ints = encoded.indices.to_numpy().astype(np.int64)
    return found


def _in_common(parts: list[pa.DictionaryArray]) -> Ints:
    """The values of all parts as numbers of one list."""
    if not parts:
        return np.zeros(0, np.int64)
    unified = pa.chunked_array(parts).unify_dictionaries()
    return np.concatenate([_numbers(part) for part in unified.chunks])
