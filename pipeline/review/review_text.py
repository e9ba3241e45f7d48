"""What comes of a review, as people read it in a terminal."""

from __future__ import annotations

from prefloop.labelers.statistics.agreement import Agreement
from prefloop.labelers.statistics.estimate import Estimate
from prefloop.pipeline.review.pull import GONE, Pulled
from prefloop.pipeline.review.review_status import ReviewStatus


def render_pulled(found: Pulled) -> str:
    """What a pull brought, and what it changed."""
    counts = ", ".join(f"{count:,} {status}" for status, count in found.statuses.items())
    said = [f"responses: {counts or 'none yet'}; {found.new:,} new or changed"]
    said += [f"  {name}: {count:,} submitted" for name, count in sorted(found.people.items())]
    if found.removed_people:
        said.append(
            f"{found.removed_people:,} responses are of people who were removed from the "
            "server: they are kept and counted, under the name known before"
        )
    if found.statuses.get(GONE):
        said.append(
            f"{found.statuses[GONE]:,} responses were pulled before and are no longer on the "
            "server, their records having been removed: they are kept and not counted"
        )
    if found.unreadable:
        said.append(f"{found.unreadable:,} submitted responses have no verdict: left out")
    if found.foreign:
        said.append(f"{found.foreign:,} records were not pushed from here: left out")
    for each in found.rounds:
        said += each.lines()
    return "\n".join(said)


def render_review_status(found: ReviewStatus) -> str:
    """Progress, agreement of people, and the labelers with them."""
    review = found.review
    said = [
        f"{review.name} ({review.mode}, {review.server}): {found.complete:,} of {found.pushed:,} "
        f"pairs complete at {review.overlap} response{'s' if review.overlap > 1 else ''} each"
    ]
    for name, counts in sorted(found.people.items()):
        listed = ", ".join(f"{number:,} {status}" for status, number in counts.items())
        said.append(f"  {name}: {listed}")
    said.append(f"agreement of people (Krippendorff's alpha): {_figure(found.alpha)}")
    for (one, other), kappa in found.kappas.items():
        said.append(f"  Cohen's kappa, {one} and {other}: {_figure(kappa)}")
    if not found.measured:
        said.append(
            "assisted mode: people saw the decision, so what follows says nothing about how "
            "good the labelers are"
        )
    for name, share in found.labelers.items():
        said.append(f"{name} agrees with people: {_share(share)}")
    if found.decision:
        said.append(f"decisions agree with people: {_share(found.decision)}")
    if found.dataset:
        said.append(
            f"estimated for all {found.dataset.pairs:,} pairs: {_share(found.dataset.estimate)} "
            "(prediction-powered)"
        )
    elif found.no_dataset:
        said.append(f"no estimate for all pairs: {found.no_dataset}")
    if found.differences:
        said.append("where they differ most:")
    for each in found.differences:
        views = ", ".join(f"{name}: {view}" for name, view in each.people.items())
        said.append(f"  {each.place}: chosen with {each.p_chosen:.2f}; {views}")
    return "\n".join(said)


def _figure(found: Agreement) -> str:
    if found.value is None:
        return f"none ({found.reason})"
    if found.low is None:
        return f"{found.value:.3f} of {found.n:,} pairs"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}] of {found.n:,} pairs"


def _share(found: Estimate) -> str:
    value, low, high = (100 * one for one in (found.value, found.low, found.high))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}] of {found.n:,}"
