"""`prefloop review import`: the answers in Label Studio's exports, and what they change."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefloop.data.names import name_problem
from prefloop.data.quarantine import quarantine_table
from prefloop.pipeline.review.errors import ReviewError
from prefloop.pipeline.review.folder import ReviewFolder
from prefloop.pipeline.review.label_studio.answers import LabelStudioReader, is_older, when
from prefloop.pipeline.review.responses import GONE, REPLACED, SUBMITTED, TakenIn, take_in

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class ImportedAnswers(TakenIn):
    """What an import brought."""

    new: int
    """Responses that were not there before, or say something else now."""
    older: int
    """Responses of the files that were changed after the files were made, as an import before
    knows: they are left as they are."""
    unseen: int
    """Responses of earlier imports that are not in the files: they stand, unless the files are said
    to be whole."""
    began: int
    """Annotations that began as copies of predictions: their people were shown an opinion."""
    left_out: dict[str, int]
    """What was of no use, by reason; it is in ``left_out_file``."""
    left_out_file: str


def import_answers(
    folder: ReviewFolder,
    files: Sequence[Path],
    *,
    names: Mapping[str, str] | None = None,
    whole: bool = False,
) -> ImportedAnswers:
    """Read what people answered from ``files``; of a run, make votes of it and decide again.

    ``names`` are people's by how Label Studio knows them (a number or an address); they are kept.
    ``whole``: the files hold all there is, and what an earlier import had beyond it counts no more.
    The same files again change nothing. Raises :class:`ReviewError`, and then nothing here has
    changed.
    """
    review, pushed = folder.read_of("label-studio"), folder.pairs()
    given = dict(names or {})
    for name in given.values():
        if problem := name_problem(name):
            raise ReviewError(f"--rater: the name {name!r} {problem}")
    before = {row["response_id"]: row for row in folder.responses().to_pylist()}
    known = {row["user_id"]: row["username"] for row in before.values() if row["user_id"]}
    reader = LabelStudioReader(review, pushed, known | given)
    for path in files:
        reader.add(path)
    read = reader.read
    if not read.tasks:
        why = f": {read.left_out[0]}" if read.left_out else ""
        raise ReviewError(
            f"{', '.join(map(str, files))}: no task of the review {review.name} is in it{why}"
        )
    older = [key for key, row in read.rows.items() if key in before and is_older(row, before[key])]
    rows = {key: _renamed(row, given, whole=whole) for key, row in before.items()}
    rows |= {key: row for key, row in read.rows.items() if key not in older}
    for key in older:
        rows[key] = _renamed(before[key], given, whole=False)
    rows = {row["response_id"]: row for row in _latest(rows.values())}
    folder.write_left_out(quarantine_table("review", read.left_out))
    taken = take_in(folder, list(rows.values()))
    return ImportedAnswers(
        **vars(taken),
        new=sum(before.get(key) != rows[key] for key in read.rows),
        older=len(older),
        unseen=sum(row["status"] != GONE for key, row in before.items() if key not in read.rows),
        began=read.began,
        left_out=dict(Counter(row.reason for row in read.left_out)),
        left_out_file=str(folder.left_out),
    )


def _renamed(row: Mapping[str, Any], names: Mapping[str, str], *, whole: bool) -> dict[str, Any]:
    """A response of an earlier import, with the name that its person has now."""
    status = SUBMITTED if row["status"] == REPLACED else row["status"]
    name = names.get(row["user_id"] or "", row["username"])
    return {**row, "username": name, "status": GONE if whole else status}


def _latest(rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """``rows``, of which a person's earlier answers to a pair are marked as replaced."""
    answers: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["status"] == SUBMITTED and row["verdict"] is not None:
            answers[row["pair_id"], row["username"]].append(row)
        else:
            yield row
    for several in answers.values():
        several.sort(key=lambda row: (when(row) or _LONG_AGO, row["response_id"]))
        yield several[-1]
        yield from ({**row, "status": REPLACED} for row in several[:-1])
