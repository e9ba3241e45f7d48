"""How good a judge is: its votes on pairs with gold labels, as figures with intervals.

The votes of a judge on a pair are one verdict as in ``prefloop.labelers.jury.verdict_table``: both
orders alike, or a tie; one invalid vote and the pair has none. Pairs whose gold label is a tie
count only in kappa and in ``gold_ties``: no verdict on them is right or wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.arrays import Bools, Floats, Ints
from prefloop.data.errors import InputError
from prefloop.data.preferences.gold import GoldPair
from prefloop.labelers.jury.first_shown import first_shown_share
from prefloop.labelers.jury.verdict_table import Verdicts, Votes, position_bias
from prefloop.labelers.statistics.agreement import kappa_of_mirrored
from prefloop.labelers.statistics.calibration_error import Calibration, calibration
from prefloop.labelers.statistics.estimate import Estimate
from prefloop.labelers.statistics.winrate import length_controlled_win_rate, win_rate
from prefloop.pipeline.judging.figures.best_of_n import best_of_n
from prefloop.pipeline.judging.figures.judged import read_judged

GAP_EDGES = (-1.0, -0.25, 0.25, 1.0)
"""Bins of log2(length of the better answer / length of the other): half as long or less, shorter,
within a fifth, longer, twice as long or more."""
GAP_NAMES = ("≤ ½", "shorter", "alike", "longer", "≥ 2×")


@dataclass(frozen=True)
class JudgeFigures:
    """Figures of one judge. Shares come with a 95% interval, prompts being what repeats; null where
    there is nothing to count."""

    judge: str
    pairs: int
    """Pairs with a gold label."""
    judged: int
    """Of these, pairs with a valid verdict."""
    gold_ties: int
    votes: int
    invalid_votes: int
    tie_votes: int
    accuracy: Estimate | None
    """Share of judged pairs with the right verdict, a tie counting half."""
    vote_accuracy: Estimate | None
    """Share of right ones among single votes that prefer an answer."""
    both_right: Estimate | None
    """Share of pairs seen in both orders whose two votes are right."""
    swap_agreement: Estimate | None
    """Share of pairs seen in both orders whose two votes are the same."""
    first_share: Estimate | None
    """Share of votes for the answer shown first; 0.5 is unbiased."""
    kappa: float | None
    """Cohen's kappa of verdict and gold label (a, b, tie), each pair counted both ways round, as
    which answer is a means nothing; null where both are always a tie."""
    accuracy_longer: Estimate | None
    """Accuracy on pairs whose better answer is the longer one, in characters."""
    accuracy_shorter: Estimate | None
    prefers_longer: Estimate | None
    """Share of verdicts for the longer answer, ties left out."""
    gold_longer: Estimate | None
    """The same share of the gold labels, on the same pairs."""
    length_controlled_accuracy: Estimate | None
    """Accuracy had both answers been equally long (the model of the length-controlled win rate)."""
    by_gap: tuple[Estimate | None, ...]
    """Accuracy in each bin of GAP_EDGES."""
    calibration: Calibration | None
    """Of the soft votes, if it gives any."""
    completions_per_label: float | None
    """Requests a pair; null where the votes do not say."""
    tokens_per_1000: float | None
    """Prompt and completion tokens for 1,000 pairs."""
    cost_per_1000: float | None
    """In the currency of the engine's prices."""
    best_of_n: Estimate | None
    """Share of the rows with lists of answers in which every good one beat every bad one, see
    ``prefloop.pipeline.judging.figures.best_of_n``; null where no row has several pairs."""
    best_of_n_left_out: int | None
    """Rows with lists of answers that are not whole."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def judge_figures(judge: str, votes: pa.Table, gold: Sequence[GoldPair]) -> JudgeFigures:
    """The figures of ``judge`` from its ``votes`` (schema VOTE) on pairs of ``gold``.

    Raises ``InputError`` where no pair with a decided gold label has a valid verdict.
    """
    judged = read_judged(votes, gold)
    counted, verdicts, prompts = judged.counted, judged.verdicts, judged.prompts
    truth, verdict, valid, longer = judged.truth, judged.verdict, judged.valid, judged.longer
    lengths = np.array([[len(pair.a), len(pair.b)] for pair in gold])
    rows = judged.rows
    if not rows.any():
        raise InputError(
            f"{judge}: no valid verdict on a pair with a decided gold label ({len(votes):,} votes)"
        )
    right = judged.right

    def share(outcomes: Any, counting: Bools) -> Estimate | None:
        return _share(outcomes[counting], prompts[counting])

    gap = np.log2(lengths[:, 0] / lengths[:, 1]) * truth
    # Twice and half belong to the outer bins, so that both sides are alike.
    last = len(GAP_EDGES)
    bins = np.where(gap < 0, last - np.digitize(-gap, GAP_EDGES), np.digitize(gap, GAP_EDGES))
    decided = rows & (verdict != 0) & (longer != 0)
    spent = votes["prompt_tokens"].to_numpy() + votes["completion_tokens"].to_numpy()
    asked = len(np.unique(counted.pair))
    knows_tokens = bool(spent.sum())
    lists = best_of_n(judged, gold)
    return JudgeFigures(
        judge=judge,
        pairs=len(gold),
        judged=int(valid.sum()),
        gold_ties=int((truth == 0).sum()),
        votes=len(votes),
        invalid_votes=_count(votes, "invalid"),
        tie_votes=_count(votes, "tie"),
        accuracy=share(right, rows),
        **_of_orders(counted, verdicts, truth, prompts),
        kappa=_kappa(verdict[valid], truth[valid]),
        accuracy_longer=share(right, rows & (longer == truth)),
        accuracy_shorter=share(right, rows & (longer == -truth)),
        prefers_longer=share(verdict == longer, decided),
        gold_longer=share(truth == longer, decided),
        length_controlled_accuracy=_controlled(right[rows], (lengths[:, 0] - lengths[:, 1])[rows]
                                               * truth[rows], prompts[rows]),
        by_gap=tuple(share(right, rows & (bins == at)) for at in range(len(GAP_NAMES))),
        calibration=_calibration(counted, truth, rows, prompts),
        completions_per_label=_requests(votes) / asked if knows_tokens else None,
        tokens_per_1000=1000 * float(spent.sum()) / asked if knows_tokens else None,
        cost_per_1000=1000 * pc.sum(votes["cost"]).as_py() / asked if knows_tokens else None,
        best_of_n=lists.share if lists else None,
        best_of_n_left_out=lists.left_out if lists else None,
    )  # fmt: skip


def _kappa(verdict: Any, truth: Any) -> float | None:
    return kappa_of_mirrored(1 - verdict, 1 - truth, 3)


def _requests(votes: pa.Table) -> int:
    """Requests behind the votes. One may be behind many votes (a ranking of all answers to a
    prompt), and many behind one (both answers rated, aspect by aspect)."""
    columns = [
        "prompt_id", "a_id", "b_id", "order", "completion", "prompt_hash", "prompt_tokens",
        "completion_tokens",
    ]  # fmt: skip
    rated, charged, refused = {}, 0, set()
    paid = set()
    for row in votes.select(columns).to_pylist():
        for side, replies in _ratings(row).items():
            rated[row["prompt_id"], row[f"{side}_id"]] = len(replies)
        key = row["prompt_id"], row["prompt_hash"]
        if row["prompt_tokens"] + row["completion_tokens"] > 0:
            charged += 1
            paid.add(key)
        elif row["prompt_hash"] is not None:
            refused.add(key)
    return sum(rated.values()) if rated else charged + len(refused - paid)


def _ratings(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What a rating judge answered about a and about b; empty for votes of others."""
    if row["order"] != "none" or not (row["completion"] or "").startswith("{"):
        return {}
    try:
        said = json.loads(row["completion"])
    except ValueError:
        return {}
    fits = said.keys() == {"a", "b"} and all(isinstance(one, list) for one in said.values())
    return said if fits else {}


def _count(votes: pa.Table, preference: str) -> int:
    return int(pc.sum(pc.equal(votes["preference"], preference)).as_py() or 0)


def _share(outcomes: Any, clusters: Any) -> Estimate | None:
    return win_rate(outcomes.astype(float), clusters) if len(outcomes) else None


def _of_orders(
    votes: Votes, verdicts: Verdicts, truth: Any, prompts: Ints
) -> dict[str, Estimate | None]:
    """What depends on single votes and their orders."""
    said = np.array([1, -1, 0, 0])[votes.preference]  # a, b, tie, invalid
    takes_side = (said != 0) & (truth[votes.pair] != 0)
    single = _share((said == truth[votes.pair])[takes_side], prompts[votes.pair[takes_side]])
    swapped, same = verdicts.swapped[:, 0], verdicts.unanimous[:, 0]
    both = swapped & (truth != 0)
    right = same & (verdicts.verdict[:, 0] == truth)
    [bias] = position_bias(votes, verdicts, prompts).values() or [None]
    return {
        "vote_accuracy": single,
        "both_right": _share(right[both], prompts[both]),
        "swap_agreement": _share(same[swapped], prompts[swapped]),
        "first_share": None if bias is None else first_shown_share(bias),
    }


def _controlled(right: Floats, difference: Any, prompts: Ints) -> Estimate | None:
    try:
        return length_controlled_win_rate(right, difference, prompts)
    except ValueError:  # the answers differ in length by the same amount in all pairs
        return None


def _calibration(votes: Votes, truth: Any, rows: Bools, prompts: Ints) -> Calibration | None:
    """Of the mean probability over a pair's votes, also where these contradict each other."""
    soft = np.bincount(votes.pair, weights=votes.soft, minlength=len(truth))
    given = np.bincount(votes.pair, minlength=len(truth))
    total = np.bincount(votes.pair, weights=votes.p_a, minlength=len(truth))
    use = rows & (given > 0) & (soft == given)
    if not use.any():
        return None
    return calibration(total[use] / given[use], truth[use] == 1, prompts[use])


def side_by_side(figures: Sequence[JudgeFigures]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Rows of a table with a column for each judge: a name and an estimate or number each."""
    names = {
        "pairs with a verdict": "judged",
        "accuracy": "accuracy",
        "accuracy of single votes": "vote_accuracy",
        "right in both orders": "both_right",
        "same verdict when swapped": "swap_agreement",
        "first shown preferred": "first_share",
        "kappa to gold": "kappa",
        "accuracy, longer is better": "accuracy_longer",
        "accuracy, shorter is better": "accuracy_shorter",
        "prefers the longer": "prefers_longer",
        "gold prefers the longer": "gold_longer",
        "length-controlled accuracy": "length_controlled_accuracy",
        "invalid votes": "invalid_votes",
        "tie votes": "tie_votes",
        "requests a pair": "completions_per_label",
        "tokens per 1,000 pairs": "tokens_per_1000",
        "price per 1,000 pairs": "cost_per_1000",
    }
    table: list[tuple[str, list[Any]]] = [
        (name, [getattr(one, attribute) for one in figures]) for name, attribute in names.items()
    ]
    if any(one.best_of_n_left_out is not None for one in figures):
        for name, attribute in (("best of n, by row", "best_of_n"),
                                ("rows left out of it", "best_of_n_left_out")):  # fmt: skip
            table.append((name, [getattr(one, attribute) for one in figures]))
    for name, attribute in (("calibration error (ECE)", "ece"),
                            ("ECE of a perfect judge, mean", "ece_perfect"),
                            ("ECE of a perfect judge, 95 % below", "ece_perfect_high"),
                            ("Brier score", "brier"),
                            ("log loss", "log_loss")):  # fmt: skip
        row = [one.calibration and getattr(one.calibration, attribute) for one in figures]
        table.append((name, row))
    return table
