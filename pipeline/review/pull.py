"""`prefloop review pull`: every response of every person, and what it changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefloop.pipeline.review.argilla_api import ArgillaApi
from prefloop.pipeline.review.by_criterion.criterion_questions import said_of_criteria
from prefloop.pipeline.review.definition import REASON, VERDICT, VERDICTS
from prefloop.pipeline.review.folder import ReviewFolder
from prefloop.pipeline.review.push import require_dataset
from prefloop.pipeline.review.responses import GONE, REMOVED, TakenIn, take_in


@dataclass(frozen=True)
class Pulled(TakenIn):
    """What a pull brought."""

    new: int
    """Responses that were not there before, or say something else now."""
    foreign: int
    """Records on the server that were not pushed from here."""


def pull(api: ArgillaApi, folder: ReviewFolder) -> Pulled:
    """Fetch all responses; of a run, turn the submitted ones into votes and decide again.

    Asked again it changes nothing, however many people are at work meanwhile. Raises
    :class:`ReviewError`, and then nothing here has changed.
    """
    review = folder.read_of("argilla")
    require_dataset(api, review, folder)
    names = api.users()
    pushed, criteria = folder.pairs(), folder.asked().criteria
    before = {row["response_id"]: row for row in folder.responses().to_pylist()}
    found: dict[str, dict[str, Any]] = {}
    foreign = 0
    for record in api.records(review.dataset_id):
        if record["external_id"] not in pushed:
            foreign += 1
            continue
        for response in record.get("responses") or ():
            row = _row(response, record["external_id"], names, before)
            row["criteria"] = said_of_criteria(response.get("values") or {}, criteria)
            found[row["response_id"]] = row
    lost = [_lost(row, names) for key, row in before.items() if key not in found]
    taken = take_in(folder, [*found.values(), *lost])
    return Pulled(
        **vars(taken),
        new=sum(before.get(row["response_id"]) != row for row in found.values()),
        foreign=foreign,
    )


def _row(
    response: Mapping[str, Any],
    pair: str,
    names: Mapping[str, str],
    before: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    identity, user = str(response["id"]), response.get("user_id")
    known = before.get(identity)
    if user is not None and user in names:
        name = names[user]
    else:  # removed from the server: under the name that it had
        name, user = (known["username"] if known else f"{REMOVED}{identity[:8]}"), None
    values = response.get("values") or {}
    verdict = (values.get(VERDICT) or {}).get("value")
    return {
        "response_id": identity,
        "pair_id": pair,
        "user_id": user,
        "username": name,
        "status": str(response["status"]),
        "verdict": verdict if verdict in VERDICTS else None,
        "reason": (values.get(REASON) or {}).get("value") or None,
        "inserted_at": str(response["inserted_at"]),
        "updated_at": str(response["updated_at"]),
    }


def _lost(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A response that the server has no more.

    It takes responses away with the account of their person: what they said still stands. Where the
    person is still there, somebody removed the record, and the response does not count any more.
    """
    if row["user_id"] is None or row["user_id"] not in names:
        return {**row, "user_id": None}
    return {**row, "status": GONE}
