"""What the report draws and tabulates of the decided pairs: lengths, margins, agreement."""

from __future__ import annotations

from dataclasses import dataclass

from prefloop.pipeline.report.formats import count
from prefloop.pipeline.report.plots import Bars, Figure, Words, histogram, length_bins, rebin
from prefloop.pipeline.report.tally import AGREEMENT_EDGES, MARGIN_EDGES, RunTally


def length_figures(tally: RunTally) -> list[Figure]:
    """Lengths of the chosen and the rejected answers, before and after the filters."""
    before, after = tally.decisions.before, tally.decisions.after
    edges = length_bins([before.chosen, before.rejected])
    figures = []
    for name, title, lengths in (
        ("lengths-before", "Length of all decided pairs", before),
        ("lengths-after", "Length of the kept pairs", after),
    ):
        if lengths.pairs:
            figures.append(
                histogram(
                    Words(name, title, f"{count(lengths.pairs)} pairs", x="tokens"),
                    edges,
                    [
                        Bars("chosen", rebin(lengths.chosen, edges)),
                        Bars("rejected", rebin(lengths.rejected, edges)),
                    ],
                )
            )
    return figures


@dataclass(frozen=True)
class LengthShares:
    """How often chosen is the longer answer; null where no two answers differ in length."""

    label: str
    decided: int
    """Pairs with a preference."""
    share_of_decided: float | None
    kept: int
    share_of_kept: float | None


def length_shares(tally: RunTally) -> list[LengthShares]:
    """For each round and for all of them."""
    rows = {f"round {index}": part for index, part in tally.rounds.items()}
    if len(rows) != 1:
        rows["all rounds"] = tally.decisions
    return [
        LengthShares(
            label=label,
            decided=part.before.pairs,
            share_of_decided=part.before.share_chosen_longer,
            kept=part.after.pairs,
            share_of_kept=part.after.share_chosen_longer,
        )
        for label, part in rows.items()
        if part.before.pairs
    ]


def decision_figures(tally: RunTally) -> list[Figure]:
    """Margins, and agreement of the labelers, of all pairs and of the kept ones."""
    decisions = tally.decisions
    figures = []
    if decisions.before.pairs:
        figures.append(
            histogram(
                Words(
                    "margins",
                    "Margin of chosen over rejected",
                    "Difference of the mean win probabilities of the two answers.",
                    x="margin",
                ),
                MARGIN_EDGES,
                [
                    Bars("all decided pairs", decisions.margins_before),
                    Bars("kept", decisions.margins_after),
                ],
            )
        )
    if decisions.agreement_before.sum():
        figures.append(
            histogram(
                Words(
                    "agreement",
                    "Agreement among labelers",
                    "Share of the labelers that share the decision on a pair.",
                    x="agreement",
                ),
                AGREEMENT_EDGES,
                [
                    Bars("all pairs", decisions.agreement_before),
                    Bars("kept", decisions.agreement_after),
                ],
            )
        )
    return figures
