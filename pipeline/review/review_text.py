"""What comes of a review, as people read it in a terminal."""

from __future__ import annotations

from prefloop.labelers.judges.rubric.with_people import CriterionWithPeople
from prefloop.labelers.statistics.agreement import Agreement
from prefloop.labelers.statistics.estimate import Estimate
from prefloop.pipeline.review.label_studio.importing import ImportedAnswers
from prefloop.pipeline.review.label_studio.tasks import ExportedTasks
from prefloop.pipeline.review.pull import Pulled
from prefloop.pipeline.review.responses import GONE, REPLACED, TakenIn
from prefloop.pipeline.review.review_status import ReviewStatus

_LONGEST_NAME = 80


def render_pulled(found: Pulled) -> str:
    """What a pull brought, and what it changed."""
    said = _responses(found, found.new)
    if found.statuses.get(GONE):
        said.append(
            f"{found.statuses[GONE]:,} responses were pulled before and are no longer on the "
            "server, their records having been removed: they are kept and not counted"
        )
    if found.foreign:
        said.append(f"{found.foreign:,} records were not pushed from here: left out")
    return "\n".join([*said, *_rounds(found)])


def render_imported_answers(found: ImportedAnswers) -> str:
    """What an import brought, and what it changed."""
    said = _responses(found, found.new)
    if found.statuses.get(REPLACED):
        said.append(
            f"{found.statuses[REPLACED]:,} responses were replaced by a later one of the same "
            "person to the same pair: they are kept and not counted"
        )
    if found.statuses.get(GONE):
        said.append(
            f"{found.statuses[GONE]:,} responses of earlier imports are in none of the files: they "
            "are kept and not counted"
        )
    if found.unseen and not found.statuses.get(GONE):
        said.append(
            f"{found.unseen:,} responses of earlier imports are in none of the files: they stand "
            "(--whole takes them out)"
        )
    if found.older:
        said.append(f"{found.older:,} responses are known in a later state: left as they are")
    if found.began:
        said.append(
            f"{found.began:,} responses began as copies of predictions: their people were shown an "
            "opinion, and measure nobody"
        )
    for reason, count in sorted(found.left_out.items()):
        said.append(f"left out: {count:,} times {reason}")
    if found.left_out:
        said.append(f"each with its reason: {found.left_out_file}")
    return "\n".join([*said, *_rounds(found)])


def render_exported_tasks(found: ExportedTasks) -> str:
    """What was written for Label Studio, and what to do with it."""
    said = [f"{found.pairs:,} pairs in all; new files of tasks: {len(found.new) or 'none'}"]
    said += [f"  {path}" for path in found.new]
    people = "1 person" if found.review.overlap == 1 else f"{found.review.overlap} people"
    said += [
        f"labelling interface: {found.interface}",
        f"instructions: {found.instructions}",
        "In Label Studio: make a project, paste the interface (Settings > Labeling Interface > "
        f"Code), import the new files, and let {people} answer each task",
    ]
    return "\n".join(said)


def _responses(found: TakenIn, new: int) -> list[str]:
    counts = ", ".join(f"{count:,} {status}" for status, count in found.statuses.items())
    said = [f"responses: {counts or 'none yet'}; {new:,} new or changed"]
    said += [f"  {name}: {count:,} submitted" for name, count in sorted(found.people.items())]
    if found.removed_people:
        said.append(
            f"{found.removed_people:,} responses are of people who were removed from the "
            "server: they are kept and counted, under the name known before"
        )
    if found.unreadable:
        said.append(f"{found.unreadable:,} submitted responses have no verdict: left out")
    return said


def _rounds(found: TakenIn) -> list[str]:
    return [line for each in found.rounds for line in each.lines()]


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
    if found.criteria:
        said.append("by criterion, the choice of a judge is that of a person:")
    said += [f"  {_criterion(one)}" for one in found.criteria]
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


def _criterion(found: CriterionWithPeople) -> str:
    said = f"{found.labeler}, {found.name[:_LONGEST_NAME]}: {_share(found.same)} answers"
    if found.apart:
        said += f"; prefers the same answer by it: {_share(found.apart)} pairs"
    if found.people:
        said += f"; two people: {_share(found.people)}"
    return said


def _figure(found: Agreement) -> str:
    if found.value is None:
        return f"none ({found.reason})"
    if found.low is None:
        return f"{found.value:z.3f} of {found.n:,} pairs"
    return f"{found.value:z.3f} [{found.low:z.3f}, {found.high:z.3f}] of {found.n:,} pairs"


def _share(found: Estimate) -> str:
    value, low, high = (100 * one for one in (found.value, found.low, found.high))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}] of {found.n:,}"
