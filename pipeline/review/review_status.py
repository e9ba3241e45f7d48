"""`prefloop review status`: how far people are, how they agree, and the labelers with them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prefloop.labelers.base import LabelerError
from prefloop.labelers.judges.rubric.deciding import CRITERIA_COLUMNS
from prefloop.labelers.judges.rubric.with_people import CriterionWithPeople, criteria_with_people
from prefloop.labelers.jury.verdict_table import (
    VERDICT_COLUMNS,
    merge_votes,
    read_votes_and_pairs,
)
from prefloop.labelers.people import is_human, without_people
from prefloop.labelers.statistics.agreement import (
    MISSING,
    Agreement,
    Ratings,
    cohen_kappas,
    krippendorff_alpha,
)
from prefloop.labelers.statistics.dataset_accuracy import DatasetAccuracy, dataset_accuracy
from prefloop.labelers.statistics.estimate import Estimate
from prefloop.labelers.statistics.winrate import win_rate
from prefloop.pipeline.review.folder import Review, ReviewFolder
from prefloop.pipeline.review.responses import SUBMITTED, votes_of
from prefloop.pipeline.run.run_dir import RunDir

_MOST_SHOWN = 10
_LABELS = ("a", "tie", "b")  # both bad is a tie here
_PLACE = {"a": 0, "tie": 1, "both_bad": 1, "b": 2}


@dataclass(frozen=True)
class Difference:
    """A pair on which people see it otherwise than the decision."""

    pair_id: str
    place: str
    p_chosen: float
    """How sure the jury was."""
    people: dict[str, str]
    """What each person says: chosen, rejected, tie or both_bad."""


@dataclass(frozen=True)
class ReviewStatus:
    """Where a review stands, by what was pulled last."""

    review: Review
    pushed: int
    complete: int
    """Pairs with as many submitted responses as the overlap asks for."""
    people: dict[str, dict[str, int]]
    """Responses by person and status."""
    alpha: Agreement
    """Krippendorff's alpha (nominal) of the people's verdicts, both bad being a tie."""
    kappas: dict[tuple[str, str], Agreement]
    measured: bool
    """Whether the figures below measure the labelers: in blind mode only."""
    labelers: dict[str, Estimate]
    """Share of the pairs on which a labeler says what the majority of people says, a tie of either
    counting half; pairs that it has no verdict on are left out."""
    decision: Estimate | None
    """The same for the decisions, with people's votes left out."""
    dataset: DatasetAccuracy | None
    """Estimated share of all pairs that could be drawn whose decision people share."""
    no_dataset: str | None
    differences: tuple[Difference, ...]
    """The surest decisions first."""
    criteria: tuple[CriterionWithPeople, ...] = ()
    """What people and judges with a rubric say of the single answers, criterion by criterion."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        kappas = [{"people": list(names), **one.as_dict()} for names, one in self.kappas.items()]
        return asdict(self) | {"kappas": kappas}


def review_status(folder: ReviewFolder, *, seed: int = 0) -> ReviewStatus:
    """Where the review in ``folder`` stands, by what was pulled last."""
    review, pushed = folder.read(), folder.pairs()
    responses = folder.responses().to_pylist()
    people: dict[str, Counter[str]] = defaultdict(Counter)
    said: dict[str, dict[str, str]] = defaultdict(dict)
    for row in responses:
        people[row["username"]][row["status"]] += 1
        if row["status"] == SUBMITTED and row["verdict"]:
            said[row["pair_id"]][row["username"]] = row["verdict"]
    ratings = _ratings(said, pushed)
    majority = {pair: _majority(pushed[pair], views) for pair, views in said.items()}
    decided = {}
    for pair, liked in majority.items():
        row = pushed[pair]
        decided[pair] = _right(None if row["p_chosen"] == 0.5 else row["chosen_id"], liked)
    dataset, why = None, None
    if review.mode == "blind":
        try:
            dataset = _dataset(folder, decided, pushed)
        except LabelerError as error:
            why = str(error)
    return ReviewStatus(
        review=review,
        pushed=len(pushed),
        complete=sum(len(views) >= review.overlap for views in said.values()),
        people={name: dict(counts) for name, counts in people.items()},
        alpha=krippendorff_alpha(ratings, seed=seed),
        kappas=cohen_kappas(ratings, seed=seed),
        measured=review.mode == "blind",
        labelers=_labelers(folder, majority) if review.is_run else {},
        decision=_decision(decided, pushed),
        dataset=dataset,
        no_dataset=why,
        differences=_differences(pushed, said, decided),
        criteria=_criteria(folder, responses, pushed) if review.is_run else (),
    )


def _decision(decided: Mapping[str, float], pushed: Mapping[str, Any]) -> Estimate | None:
    prompts = [pushed[pair]["prompt_id"] for pair in decided]
    return win_rate(list(decided.values()), prompts) if decided else None


def _ratings(said: Mapping[str, Mapping[str, str]], pushed: Mapping[str, Any]) -> Ratings:
    names = sorted({name for views in said.values() for name in views})
    codes = np.full((len(said), len(names)), MISSING, np.int8)
    for row, views in enumerate(said.values()):
        for name, verdict in views.items():
            codes[row, names.index(name)] = _PLACE[verdict]
    prompts = [pushed[pair]["prompt_id"] for pair in said]
    return Ratings(tuple(names), _LABELS, codes, mirrored=True, prompts=prompts)


def _majority(pair: Mapping[str, Any], views: Mapping[str, str]) -> str | None:
    """The candidate that more people prefer than the other and than neither; null without one."""
    counts = Counter(
        {"a": pair["answer_a_id"], "b": pair["answer_b_id"]}.get(view) for view in views.values()
    )
    (first, most), *others = counts.most_common()
    return None if others and others[0][1] == most else first


def _right(preferred: str | None, liked: str | None) -> float:
    if preferred is None or liked is None:
        return 0.5
    return float(preferred == liked)


def _labelers(folder: ReviewFolder, majority: Mapping[str, str | None]) -> dict[str, Estimate]:
    """By labeler, how often its verdict is that of the people's majority."""
    import pyarrow as pa
    import pyarrow.compute as pc

    right: dict[str, list[float]] = defaultdict(list)
    prompts: dict[str, list[str]] = defaultdict(list)
    wanted = pa.array(sorted(majority), pa.string())
    for round_folder in RunDir(folder.root.parents[1]).rounds():
        for votes in round_folder.votes.batches(VERDICT_COLUMNS):
            mine = votes.filter(pc.is_in(votes["pair_id"], wanted))
            if not len(mine):
                continue
            read, pairs = read_votes_and_pairs(mine)
            verdicts = merge_votes(read, len(pairs))
            for at, pair in enumerate(pairs.to_pylist()):
                words = {1: pair["a_id"], 0: None, -1: pair["b_id"]}
                for place, name in enumerate(read.labelers):
                    if verdicts.valid[at, place] and not is_human(name):
                        preferred = words[int(verdicts.verdict[at, place])]
                        right[name].append(_right(preferred, majority[pair["pair_id"]]))
                        prompts[name].append(pair["prompt_id"])
    return {name: win_rate(right[name], prompts[name]) for name in sorted(right)}


def _criteria(
    folder: ReviewFolder, responses: Sequence[Mapping[str, Any]], pushed: Mapping[str, Any]
) -> tuple[CriterionWithPeople, ...]:
    """The judges beside the people of this review: others may have been shown an opinion."""
    import pyarrow as pa
    import pyarrow.compute as pc

    criteria = folder.asked().criteria
    people = votes_of(responses, pushed, criteria).select(CRITERIA_COLUMNS)
    people = people.filter(pc.is_valid(people["criteria"]))
    if not len(people):
        return ()
    found = [people]
    wanted = pc.unique(people["pair_id"])
    for round_folder in RunDir(folder.root.parents[1]).rounds():
        for votes in round_folder.votes.iter(columns=CRITERIA_COLUMNS):
            found.append(without_people(votes.filter(pc.is_in(votes["pair_id"], wanted))))
    return tuple(criteria_with_people([pa.concat_tables(found)]))


def _dataset(
    folder: ReviewFolder, decided: Mapping[str, float], pushed: Mapping[str, Any]
) -> DatasetAccuracy:
    inclusion, confidence = folder.inclusion(), folder.confidence()
    drawn = [pair for pair in decided if pair in inclusion]
    return dataset_accuracy(
        [decided[pair] for pair in drawn],
        [confidence[pair] for pair in drawn],
        list(confidence.values()),
        [inclusion[pair] for pair in drawn],
        [pushed[pair]["prompt_id"] for pair in drawn],
    )


def _differences(
    pushed: Mapping[str, Any], said: Mapping[str, Mapping[str, str]], decided: Mapping[str, float]
) -> tuple[Difference, ...]:
    found = []
    for pair, right in decided.items():
        if right == 1.0:
            continue
        row = pushed[pair]
        letters = {"a": row["answer_a_id"], "b": row["answer_b_id"]}
        views = {
            name: ("chosen" if letters[view] == row["chosen_id"] else "rejected")
            if view in letters
            else view
            for name, view in said[pair].items()
        }
        found.append(
            (right, -row["p_chosen"], Difference(pair, row["place"], row["p_chosen"], views))
        )
    found.sort(key=lambda one: (one[0], one[1], one[2].pair_id))
    return tuple(each for *_, each in found[:_MOST_SHOWN])
