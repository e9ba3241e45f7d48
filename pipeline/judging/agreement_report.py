"""`prefloop agreement`: how far the annotators of a table of labels, or of a run, agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from prefloop.data.errors import InputError
from prefloop.labelers.jury.every_verdict import VERDICTS, every_verdict
from prefloop.labelers.jury.verdict_table import VERDICT_COLUMNS, PositionBias
from prefloop.labelers.statistics.agreement import (
    MISSING,
    Agreement,
    KappaWeights,
    Majority,
    Ratings,
    cohen_kappas,
    fleiss_kappa,
    krippendorff_alpha,
    majority,
    raw_agreement,
    unanimous_share,
)
from prefloop.pipeline.judging.label_table import LabelColumns, Labels, ratings_of, read_labels
from prefloop.pipeline.run.run_dir import RunDir

_MOST_PAIRS = 1_000
"""Pairs of annotators for which a kappa is computed at most."""
_NO_NUMBERS = "the labels are no numbers"


@dataclass(frozen=True)
class AgreementReport:
    """Everything that `prefloop agreement` prints."""

    source: str
    ratings: Ratings
    raw: Agreement
    unanimous: Agreement
    majority: Majority
    cohen: Mapping[tuple[str, str], Agreement]
    weighted: Mapping[KappaWeights, Mapping[tuple[str, str], Agreement]]
    """Weighted kappas, where there are more than two labels and they have an order."""
    fleiss: Agreement
    alphas: Mapping[str, Agreement]
    """Krippendorff's alpha by level of measurement."""
    position: Mapping[str, PositionBias]
    """By judge; of runs only."""
    labels: Labels
    cohen_left_out: int = 0
    """Pairs of annotators beyond the first _MOST_PAIRS."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; what is undefined is null, never NaN."""
        ratings, read = self.ratings, self.labels
        given = ratings.counts.sum(axis=1)
        per_item = {str(k): int(v) for k, v in enumerate(np.bincount(given)) if v}
        return {
            "source": self.source,
            "items": len(ratings.codes),
            "annotators": list(ratings.annotators),
            "labels": list(ratings.labels),
            "labels_by_annotator": {
                name: _counted(ratings, ratings.codes[:, index])
                for index, name in enumerate(ratings.annotators)
            },
            "items_by_number_of_labels": per_item,
            "majority": {
                "counts": self.majority.counts,
                "no_majority": self.majority.none,
                "unlabelled": self.majority.unlabelled,
            },
            "raw_agreement": self.raw.as_dict(),
            "unanimous": self.unanimous.as_dict(),
            "cohen_kappa": _by_annotators(self.cohen),
            "weighted_kappa": {how: _by_annotators(one) for how, one in self.weighted.items()},
            "cohen_kappa_left_out": self.cohen_left_out,
            "fleiss_kappa": self.fleiss.as_dict(),
            "krippendorff_alpha": {level: one.as_dict() for level, one in self.alphas.items()},
            "position": {
                name: {
                    "shown": one.shown,
                    "first_share": one.first_share,
                    "swapped": one.swapped,
                    "consistency": one.consistency,
                }
                for name, one in self.position.items()
            },
            "rows": {
                "read": read.rows,
                "missing_labels": read.missing,
                "repeated_labels": read.repeated,
                "conflicting_labels": len(read.conflicts),
                "conflicting_examples": read.conflict_lines,
                "unreadable": dict(read.bad),
                "unreadable_examples": read.examples,
            },
        }


def file_agreement(
    path: str,
    columns: LabelColumns,
    *,
    levels: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> AgreementReport:
    """Agreement in a file; see ``prefloop.pipeline.judging.label_table`` for the columns and the
    errors. ``levels`` are the labels in ascending order."""
    labels = read_labels(path, columns)
    return _report(path, labels, ratings_of(path, labels, levels), {}, resamples, seed)


def run_agreement(run: RunDir, *, resamples: int = 1000, seed: int = 0) -> AgreementReport:
    """Agreement of a run's labelers: items are the pairs of all rounds, labels a, b and tie.

    A judge that saw both orders has one verdict, a tie where the two differ; an invalid vote is a
    missing label. Raises ``InputError`` where the run has no votes.
    """
    said = every_verdict(
        votes for folder in run.rounds() for votes in folder.votes.batches(VERDICT_COLUMNS)
    )
    if not said.labelers:
        raise InputError(f"{run.root}: has no votes yet: label first (`prefloop run`)")
    ratings = Ratings(
        said.labelers,
        VERDICTS,
        said.codes,
        values=np.array([1.0, 0.5, 0.0]),
        ordered=True,
        mirrored=True,
        prompts=said.prompts,
    )
    labels = Labels(rows=len(said.codes), missing=said.invalid)
    return _report(str(run.root), labels, ratings, said.position, resamples, seed)


def _report(
    source: str,
    labels: Labels,
    ratings: Ratings,
    position: Mapping[str, PositionBias],
    resamples: int,
    seed: int,
) -> AgreementReport:
    more: dict[str, Any] = {"resamples": resamples, "seed": seed}
    first = ratings
    pairs = math.comb(len(ratings.annotators), 2)
    if pairs > _MOST_PAIRS:
        busiest = np.argsort(-(ratings.codes != MISSING).sum(axis=0), kind="stable")
        some = np.sort(busiest[: math.isqrt(2 * _MOST_PAIRS)])
        names = tuple(ratings.annotators[index] for index in some)
        first = replace(ratings, annotators=names, codes=ratings.codes[:, some])
    cohen = cohen_kappas(first, **more)
    weighted: dict[KappaWeights, Mapping[tuple[str, str], Agreement]] = {}
    if ratings.ordered and len(ratings.labels) > 2:
        for how in get_args(KappaWeights):
            weighted[how] = cohen_kappas(first, weights=how, **more)
    nominal = krippendorff_alpha(ratings, "nominal", **more)
    ordinal = Agreement(None, reason=f"{_NO_NUMBERS}: give their order with --levels")
    interval = Agreement(None, reason=_NO_NUMBERS)
    if ratings.ordered:
        ordinal = krippendorff_alpha(ratings, "ordinal", **more)
    if ratings.values is not None:
        interval = krippendorff_alpha(ratings, "interval", **more)
    alphas = {"nominal": nominal, "ordinal": ordinal, "interval": interval}
    if ratings.from_nothing:
        alphas["ratio"] = krippendorff_alpha(ratings, "ratio", **more)
    return AgreementReport(
        source=source,
        ratings=ratings,
        raw=raw_agreement(ratings, **more),
        unanimous=unanimous_share(ratings, **more),
        majority=majority(ratings),
        cohen=cohen,
        weighted=weighted,
        fleiss=fleiss_kappa(ratings, **more),
        alphas=alphas,
        position=position,
        labels=labels,
        cohen_left_out=pairs - len(cohen),
    )


def _by_annotators(kappas: Mapping[tuple[str, str], Agreement]) -> list[dict[str, Any]]:
    return [{"annotators": list(names), **found.as_dict()} for names, found in kappas.items()]


def _counted(ratings: Ratings, codes: Any) -> dict[str, int]:
    times = np.bincount(codes[codes != MISSING], minlength=len(ratings.labels))
    return dict(zip(ratings.labels, times.tolist(), strict=True))
