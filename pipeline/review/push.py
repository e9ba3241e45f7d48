"""`prefloop review push`: pairs into Argilla, each once however often it is run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from prefloop.labelers.people import is_human
from prefloop.pipeline.review.argilla_api import PAGE, ArgillaApi, Missing
from prefloop.pipeline.review.blind import take_off_opinions
from prefloop.pipeline.review.by_criterion.criterion_questions import criteria_to_ask
from prefloop.pipeline.review.definition import (
    ANSWER_A,
    ANSWER_B,
    PROMPT,
    VERDICT,
    Mode,
    settings,
    verdict_name,
)
from prefloop.pipeline.review.drawing import Drawing, draw_pairs, note_pairs, noted
from prefloop.pipeline.review.errors import ReviewError
from prefloop.pipeline.review.folder import Review, ReviewFolder
from prefloop.pipeline.review.guidelines import guidelines
from prefloop.pipeline.review.subjects import Subject, Subjects, cut
from prefloop.pipeline.run.progress import StepProgress

_BATCH_BYTES = 2 << 20
_CHUNK = 4 * PAGE
"""Pairs read, pushed and noted at a time: what is held in memory."""
_MARKUP = re.compile(r"<(?=[A-Za-z/!?])|&(?=[#A-Za-z])")


@dataclass(frozen=True, kw_only=True)
class PushOptions(Drawing):
    """What to push, and how."""

    name: str
    workspace: str = "prefloop"
    overlap: int = 2


def push(
    api: ArgillaApi,
    subjects: Subjects,
    folder: ReviewFolder,
    options: PushOptions,
    *,
    source: str,
    is_run: bool,
) -> Review:
    """Draw pairs and put them into a dataset of Argilla, which is made if it is not there.

    A record's id is its pair's, so a push that was interrupted and is run again changes nothing
    that is there, and adds what is missing. A push with another seed, number or strategy adds its
    pairs to the same dataset. Raises :class:`ReviewError`.
    """
    review = _open(api, subjects, folder, options, source=source, is_run=is_run)
    wanted = draw_pairs(subjects, folder, options)
    questions = {
        one["name"]: one["id"]
        for one in api.request("GET", f"datasets/{review.dataset_id}/questions")["items"]
    }
    known = folder.pairs()
    with StepProgress("push", len(wanted), unit="records") as progress:
        for start in range(0, len(wanted), _CHUNK):
            chunk = list(subjects.read(wanted[start : start + _CHUNK]))
            rows = [noted(one, options.seed) for one in chunk if one.pair_id not in known]
            note_pairs(folder, rows)
            known |= {row["pair_id"]: row for row in rows}
            records = (_record(one, known[one.pair_id], review.mode, questions) for one in chunk)
            for batch in _batches(records):
                api.upsert(review.dataset_id, batch)
                progress.advance(len(batch))
    return review


def _open(
    api: ArgillaApi,
    subjects: Subjects,
    folder: ReviewFolder,
    options: PushOptions,
    *,
    source: str,
    is_run: bool,
) -> Review:
    """The review's dataset on the server, as it was made or new."""
    if folder.exists():
        review = folder.read_of("argilla")
        if review.mode != options.mode:
            raise ReviewError(
                f"{folder.root} is a review in {review.mode} mode: give this one another --name"
            )
        require_dataset(api, review, folder)
        if review.mode == "blind":
            take_off_opinions(api, review.dataset_id)
        # The embedded server may have another port than last time.
        review = replace(review, server=api.account.url)
        folder.write(review)
        if review.overlap != options.overlap:
            review = replace(review, overlap=options.overlap)
            distribution = {"strategy": "overlap", "min_submitted": options.overlap}
            api.request(
                "PATCH", f"datasets/{review.dataset_id}", json={"distribution": distribution}
            )
            folder.write(review)
        return review
    dataset_id = _make(api, subjects, folder, options)
    review = Review(
        name=options.name,
        workspace=options.workspace,
        server=api.account.url,
        dataset_id=dataset_id,
        mode=options.mode,
        overlap=options.overlap,
        source=source,
        is_run=is_run,
    )
    folder.write(review)
    return review


def require_dataset(api: ArgillaApi, review: Review, folder: ReviewFolder) -> None:
    """Raise :class:`ReviewError` where the review's dataset is not on the server."""
    try:
        api.request("GET", f"datasets/{review.dataset_id}")
    except Missing:
        raise ReviewError(
            f"{api.account.url}: has no dataset {review.name} of this review (any more); what was "
            f"pulled before is kept in {folder.root}: push under another --name to begin anew"
        ) from None


def _make(api: ArgillaApi, subjects: Subjects, folder: ReviewFolder, options: PushOptions) -> str:
    import argilla as rg

    client = api.client
    # Who is shown a decision does not say what the criteria alone are worth.
    asked = criteria_to_ask(subjects.label if options.mode == "blind" else None)

    def make() -> str:
        workspace = client.workspaces(options.workspace)
        if workspace is None:
            workspace = rg.Workspace(name=options.workspace, client=client).create()
        dataset = rg.Dataset(
            name=options.name,
            workspace=workspace,
            client=client,
            settings=settings(
                guidelines=guidelines(subjects.label, options.mode, asked),
                mode=options.mode,
                overlap=options.overlap,
                labelers=subjects.labelers,
                decided=subjects.label is not None,
                criteria=asked.criteria,
            ),
        )
        there = client.datasets(options.name, workspace=workspace)
        if there is None:
            folder.write_asked(asked)  # before anybody can be asked
            dataset.create()
            return str(dataset.id)
        if any(True for _ in api.records(str(there.id))):
            raise ReviewError(
                f"{api.account.url}: has a dataset {options.name} in the workspace "
                f"{options.workspace} that was not pushed from here: give another --name"
            )
        return str(there.id)  # made by a push that was killed before it could note it

    return api.call(make)


def _record(
    subject: Subject, pushed: dict[str, Any], mode: Mode, questions: dict[str, str]
) -> dict[str, Any]:
    """What Argilla takes. A and B stand as they were first pushed, whatever the seed is now."""
    a, b = pushed["answer_a_id"], pushed["answer_b_id"]
    letters = {a: "a", b: "b"}
    decision = "tie" if subject.decision == "tie" else letters[subject.chosen_id]
    metadata: dict[str, Any] = {
        "round": subject.round,
        "length_a": len(subject.texts[a]),
        "length_b": len(subject.texts[b]),
    }
    record: dict[str, Any] = {
        "external_id": subject.pair_id,
        "fields": {
            PROMPT: [
                {"role": turn["role"], "content": shown(turn["content"])}
                for turn in subject.messages
            ],
            ANSWER_A: shown(subject.texts[a]),
            ANSWER_B: shown(subject.texts[b]),
        },
        "metadata": metadata,
    }
    if mode == "assisted":
        metadata |= _opinions(subject, a, b, decision)
        suggestion = {
            "question_id": questions[VERDICT], "value": decision, "score": subject.p_chosen,
            "agent": "jury", "type": "model",
        }  # fmt: skip
        record["suggestions"] = [suggestion]
    return record


def _opinions(subject: Subject, a: str, b: str, decision: str) -> dict[str, Any]:
    """Metadata about who wrote the answers and what the labelers think."""
    found: dict[str, Any] = {"decision": decision}
    if subject.policies:
        found |= {"policy_a": subject.policies[a], "policy_b": subject.policies[b]}
    if subject.margin is not None:
        found |= {
            "p_chosen": subject.p_chosen,
            "margin": subject.margin,
            "agreement": subject.agreement,
        }
    letters = {a: "a", b: "b"}
    for name, said in subject.verdicts.items():
        if not is_human(name):
            found[verdict_name(name)] = letters.get(said, said)
    return found


def shown(text: str) -> str:
    """``text`` as people see it in Argilla: all of it as text.

    Argilla puts the text of a field into its page as HTML, also where Markdown is off. A character
    that prints as nothing (U+2060, word joiner) behind each ``<`` and ``&`` that could begin a tag
    or an entity keeps a model's output from being either.
    """
    return _MARKUP.sub("\\g<0>\u2060", cut(text))


def _batches(records: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Records for one request each: at most PAGE of them, and about 2 MB."""
    batch: list[dict[str, Any]] = []
    size = 0
    for record in records:
        length = len(json.dumps(record, ensure_ascii=False).encode())
        if batch and (len(batch) >= PAGE or size + length > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += length
    if batch:
        yield batch
