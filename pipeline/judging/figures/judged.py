"""What a judge said of pairs with gold labels, as numbers: one verdict a pair beside its truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from prefloop.data.arrays import Bools, Floats, Ints
from prefloop.data.preferences.gold import GoldPair
from prefloop.labelers.jury.verdict_table import Verdicts, Votes, merge_votes, read_votes


@dataclass(frozen=True)
class Judged:
    """The verdicts of one judge on P pairs; 1 is a, 0 a tie, -1 b."""

    counted: Votes
    verdicts: Verdicts
    truth: Ints
    """[P], the gold label."""
    verdict: Ints
    """[P]"""
    valid: Bools
    """[P], whether there is a verdict."""
    prompts: Ints
    """[P], number of each pair's prompt: pairs of one prompt tend to be alike."""
    longer: Ints
    """[P], which answer is the longer one in characters; 0 where they are equally long."""

    @property
    def rows(self) -> Bools:
        """[P], which pairs have a verdict and a gold label that is no tie."""
        found: Bools = self.valid & (self.truth != 0)
        return found

    @property
    def right(self) -> Floats:
        """[P], 1 for the right verdict, half for a tie, 0 for the wrong one; where ``rows``."""
        return rightness(self.verdict, self.truth)


def rightness(verdict: Ints, truth: Ints) -> Floats:
    """How right each verdict is: a tie half."""
    found: Floats = np.where(verdict == 0, 0.5, (verdict == truth).astype(float))
    return found


def read_judged(votes: pa.Table, gold: Sequence[GoldPair]) -> Judged:
    """The votes of one judge (schema VOTE) on pairs of ``gold``, as one verdict a pair."""
    names = ["pair_id", "prompt_id", "a_id", "b_id"]
    pairs = pa.table({name: [getattr(pair, name) for pair in gold] for name in names})
    counted = read_votes(votes, pairs)
    verdicts = merge_votes(counted, len(pairs))
    if verdicts.verdict.shape[1] != 1:
        raise ValueError("the votes must be those of one judge")
    lengths = np.array([[len(pair.a), len(pair.b)] for pair in gold])
    return Judged(
        counted=counted,
        verdicts=verdicts,
        truth=np.array([{"a": 1, "tie": 0, "b": -1}[pair.gold] for pair in gold]),
        verdict=verdicts.verdict[:, 0],
        valid=verdicts.valid[:, 0],
        prompts=np.unique(pairs["prompt_id"].to_pylist(), return_inverse=True)[1],
        longer=np.sign(lengths[:, 0] - lengths[:, 1]),
    )
