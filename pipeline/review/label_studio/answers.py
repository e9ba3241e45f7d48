"""What people answered in Label Studio, read from its exports: JSON and JSON-MIN.

A task of JSON has all annotations of all people; a row of JSON-MIN is one annotation, and skipped
ones are not in it. Predictions are of models and not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefloop.data.names import name_problem
from prefloop.data.quarantine import BadRow
from prefloop.data.utf8 import escaped, shown
from prefloop.pipeline.review.definition import REASON, VERDICT, VERDICTS
from prefloop.pipeline.review.errors import ReviewError
from prefloop.pipeline.review.folder import Review
from prefloop.pipeline.review.label_studio.labelling import PAIR, REVIEW, hash_of
from prefloop.pipeline.review.responses import DISCARDED, REMOVED, SUBMITTED

_WORDS = {said: name for name, said in VERDICTS.items()} | {name: name for name in VERDICTS}
"""What a choice may be called: by its alias, or as people see it where the alias was taken out."""
_REMEDY = "export the project as JSON or JSON-MIN"


class _Useless(ValueError):
    """A task or an annotation that is of no use: the word for counting, and what is wrong."""

    def __init__(self, reason: str, field: str | None, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.field, self.detail = reason, field, detail


@dataclass(frozen=True)
class Annotation:
    """One person's answer to one task, whatever the file's form."""

    id: object
    by: object
    """Who: a number, an address, both in an object, or nobody any more."""
    choices: list[object]
    reason: list[object]
    cancelled: bool
    created: object
    updated: object
    began: bool
    """Whether it began as a copy of a prediction."""


@dataclass
class AnswersRead:
    """What files hold for a review."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Responses (RESPONSE) by id; of several with one id the latest."""
    left_out: list[BadRow] = field(default_factory=list)
    tasks: int = 0
    """Rows and tasks of the files that are of this review."""
    began: int = 0
    """Annotations that began as copies of predictions: their people were shown an opinion."""


class LabelStudioReader:
    """Reads files for one review."""

    def __init__(
        self, review: Review, pushed: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]
    ) -> None:
        self._review, self._pushed, self._names = review, pushed, names
        self.read = AnswersRead()

    def add(self, path: Path) -> None:
        """Read one more file. Raises :class:`ReviewError` where it is no export."""
        for number, item in enumerate(_items(path), start=1):
            try:
                self._add_item(path, number, item)
            except _Useless as why:
                self._leave_out(path, number, item, why)

    def _leave_out(self, path: Path, number: int, item: object, why: _Useless) -> None:
        content = json.dumps(item, ensure_ascii=False)
        self.read.left_out.append(
            BadRow(str(path), number, why.field, why.reason, why.detail, content)
        )

    def _add_item(self, path: Path, number: int, item: object) -> None:
        data, annotations = _taken_apart(item)
        pair = data.get(PAIR)
        known = self._pushed.get(pair) if isinstance(pair, str) else None
        if known is None or data.get(REVIEW) != self._review.dataset_id:
            if annotations:
                detail = f"was not exported for this review ({self._review.name})"
                raise _Useless("foreign_task", PAIR, detail)
            return
        self.read.tasks += 1
        if annotations and hash_of(data) != known["shown"]:
            detail = "its texts are not those that were exported: what was compared is not our pair"
            raise _Useless("changed_task", None, detail)
        for annotation in annotations:
            try:
                self._add(annotation, str(pair))
            except _Useless as why:
                self._leave_out(path, number, item, why)

    def _add(self, annotation: Annotation, pair: str) -> None:
        row = self._row(annotation, pair)
        there = self.read.rows.get(row["response_id"])
        if there is not None and is_older(row, there):
            return
        self.read.rows[row["response_id"]] = row  # without a verdict, where it is none of ours
        self.read.began += annotation.began
        row["verdict"] = _verdict(annotation)

    def _row(self, annotation: Annotation, pair: str) -> dict[str, Any]:
        if isinstance(annotation.id, bool) or not isinstance(annotation.id, int | str):
            raise _Useless("unreadable", "id", "an annotation without an id")
        number = escaped(str(annotation.id))
        user, name = self._person(annotation.by)
        return {
            "response_id": f"{self._review.dataset_id}/{number}/{pair}",
            "pair_id": pair,
            "user_id": user,
            "username": name or f"{REMOVED}{number}",
            "status": DISCARDED if annotation.cancelled else SUBMITTED,
            "verdict": None,
            "reason": escaped("\n".join(one for one in annotation.reason if isinstance(one, str)))
            or None,
            "inserted_at": escaped(str(annotation.created or "")),
            "updated_at": escaped(str(annotation.updated or annotation.created or "")),
            "criteria": None,  # asked about in Argilla only
        }

    def _person(self, by: object) -> tuple[str | None, str | None]:
        """How Label Studio knows the person, and the name here; null for nobody."""
        if by in (None, {}, ""):  # an account that was removed
            return None, None
        known = [by.get("email"), by.get("id")] if isinstance(by, dict) else [by]
        keys = [
            str(one) for one in known if isinstance(one, int | str) and not isinstance(one, bool)
        ]
        keys = [key for key in keys if key]
        if not keys:
            detail = f"nobody can be told by {shown(json.dumps(by))[:80]}"
            raise _Useless("unreadable", "completed_by", detail)
        name = next((self._names[key] for key in keys if key in self._names), None)
        name = name or (f"rater-{keys[0]}" if keys[0].isdecimal() else keys[0])
        if problem := name_problem(name):
            detail = f"the name {shown(name)[:80]!r} {problem}: give --rater {shown(keys[0])}=NAME"
            raise _Useless("unreadable", "completed_by", detail)
        return keys[0], name


def is_older(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the response ``row`` was given before ``other``; where a time is not known, not."""
    first, second = when(row), when(other)
    return first is not None and second is not None and first < second


def when(row: Mapping[str, Any]) -> datetime | None:
    """When a response was last changed; null where that cannot be read."""
    try:
        found = datetime.fromisoformat(row["updated_at"])
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _items(path: Path) -> list[object]:
    try:
        found = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ReviewError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ReviewError(f"{path}: is no UTF-8 text: {_REMEDY}") from None
    except (ValueError, RecursionError) as error:
        raise ReviewError(f"{path}: is no JSON ({error}): {_REMEDY}") from None
    if not isinstance(found, list):
        raise ReviewError(f"{path}: is no list of tasks: {_REMEDY}")
    return found


def _taken_apart(item: object) -> tuple[dict[str, Any], list[Annotation]]:
    """The data of a task and its annotations, of either form."""
    if not isinstance(item, dict):
        raise _Useless("unreadable", None, f"is no object: {_REMEDY}")
    if "annotation_id" in item:
        if item["annotation_id"] is None:  # a task that nobody answered
            return item, []
        return item, [_of_row(item)]
    annotations, data = item.get("annotations"), item.get("data")
    if not isinstance(annotations, list) or not isinstance(data, dict):
        raise _Useless("unreadable", None, f"has no data and annotations: {_REMEDY}")
    if not all(isinstance(one, dict) for one in annotations):
        raise _Useless("unreadable", "annotations", "an annotation that is no object")
    return data, [_of_task(one) for one in annotations]


def _of_task(annotation: dict[str, Any]) -> Annotation:
    result = annotation.get("result")
    regions = [one for one in result if isinstance(one, dict)] if isinstance(result, list) else []

    def values(name: str, key: str) -> Iterator[object]:
        for region in regions:
            if region.get("from_name") == name and isinstance(region.get("value"), dict):
                yield from _listed(region["value"].get(key))

    return Annotation(
        id=annotation.get("id"),
        by=annotation.get("completed_by"),
        choices=list(values(VERDICT, "choices")),
        reason=list(values(REASON, "text")),
        cancelled=bool(annotation.get("was_cancelled") or annotation.get("skipped")),
        created=annotation.get("created_at"),
        updated=annotation.get("updated_at"),
        began=annotation.get("parent_prediction") is not None,
    )


def _of_row(row: dict[str, Any]) -> Annotation:
    def values(name: str, key: str) -> Iterator[object]:
        for one in _listed(row.get(name)):
            yield from _listed(one.get(key)) if isinstance(one, dict) else (one,)

    return Annotation(
        id=row["annotation_id"],
        by=row.get("annotator"),
        choices=list(values(VERDICT, "choices")),
        reason=list(values(REASON, "text")),
        cancelled=False,
        created=row.get("created_at"),
        updated=row.get("updated_at"),
        began=False,
    )


def _listed(value: object) -> list[object]:
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def _verdict(annotation: Annotation) -> str | None:
    """A value of ``VERDICTS``; null where nothing was chosen."""
    found: list[str] = []
    for choice in annotation.choices:
        if not isinstance(choice, str) or choice not in _WORDS:
            detail = f"{shown(str(choice))[:80]!r} is none of {', '.join(VERDICTS.values())}"
            raise _Useless("unknown_choice", VERDICT, detail)
        found.append(_WORDS[choice])
    if len(set(found)) > 1:
        detail = f"{' and '.join(VERDICTS[one] for one in found)} at once"
        raise _Useless("several_choices", VERDICT, detail)
    return found[0] if found else None
