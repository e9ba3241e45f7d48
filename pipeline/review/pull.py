"""`prefloop review pull`: every response of every person, and what it changes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.schemas import VOTE
from prefloop.data.shards import write_shard
from prefloop.labelers.base import Order, Preference
from prefloop.labelers.people import HUMAN
from prefloop.pipeline.adoption import finish_adoption
from prefloop.pipeline.config import load_config
from prefloop.pipeline.redecide import Redecided, mark_undecided, redecide
from prefloop.pipeline.review.argilla_api import ArgillaApi
from prefloop.pipeline.review.definition import REASON, VERDICT, VERDICTS
from prefloop.pipeline.review.folder import RESPONSE, ReviewFolder
from prefloop.pipeline.review.push import require_dataset
from prefloop.pipeline.run.run_dir import RunDir

SUBMITTED, GONE = "submitted", "gone"
REMOVED = "removed-"
"""Beginning of the name of a person whom the server no longer knows."""


@dataclass(frozen=True)
class Pulled:
    """What a pull brought."""

    statuses: dict[str, int]
    """Responses by status: submitted, draft, discarded, gone."""
    people: dict[str, int]
    """Submitted responses by person."""
    new: int
    """Responses that were not there before, or say something else now."""
    removed_people: int
    """Responses of people whom the server no longer knows."""
    unreadable: int
    """Submitted responses without a verdict: of another form of the question."""
    foreign: int
    """Records on the server that were not pushed from here."""
    rounds: tuple[Redecided, ...]
    """What it did to the dataset of a run; empty where no vote changed."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def pull(api: ArgillaApi, folder: ReviewFolder) -> Pulled:
    """Fetch all responses; of a run, turn the submitted ones into votes and decide again.

    Asked again it changes nothing, however many people are at work meanwhile. Raises
    :class:`ReviewError`, and then nothing here has changed.
    """
    review = folder.read()
    require_dataset(api, review, folder)
    names = api.users()
    pushed = folder.pairs()
    before = {row["response_id"]: row for row in folder.responses().to_pylist()}
    found: dict[str, dict[str, Any]] = {}
    foreign = 0
    for record in api.records(review.dataset_id):
        if record["external_id"] not in pushed:
            foreign += 1
            continue
        for response in record.get("responses") or ():
            row = _row(response, record["external_id"], names, before)
            found[row["response_id"]] = row
    lost = [_lost(row, names) for key, row in before.items() if key not in found]
    rows = sorted([*found.values(), *lost], key=lambda row: (row["pair_id"], row["response_id"]))
    folder.write_responses(pa.Table.from_pylist(rows, RESPONSE))
    votes = votes_of(rows, pushed)
    rounds: list[Redecided] = []
    if review.is_run:
        run = RunDir(folder.root.parents[1])
        with run.lock():
            finish_adoption(run)
            # After a kill nothing changes any more, but what did is not decided yet.
            if _put_votes(run, votes, set(pushed)) or run.decides_again():
                rounds = redecide(load_config(run.config), run)
    else:
        write_shard(votes, folder.root / "votes.parquet", VOTE)
    submitted = [row for row in rows if row["status"] == SUBMITTED]
    return Pulled(
        statuses=dict(Counter(row["status"] for row in rows)),
        people=dict(Counter(row["username"] for row in submitted)),
        new=sum(before.get(row["response_id"]) != row for row in found.values()),
        removed_people=sum(row["user_id"] is None for row in rows),
        unreadable=sum(row["verdict"] is None for row in submitted),
        foreign=foreign,
        rounds=tuple(rounds),
    )


def votes_of(responses: Iterable[Mapping[str, Any]], pushed: Mapping[str, Any]) -> pa.Table:
    """The submitted responses (RESPONSE) as votes (schema VOTE), A and B put back in their places.

    A person's vote is about the candidates with the smaller and the larger id as a and b, its
    ``order`` says which was shown as A. "Both bad" is a tie; what was said stands in
    ``completion``, with its time.
    """
    rows = []
    for row in responses:
        if row["status"] != SUBMITTED or row["verdict"] is None:
            continue
        pair = pushed[row["pair_id"]]
        shown = (pair["answer_a_id"], pair["answer_b_id"])
        a, b = sorted(shown)
        order: Order = "ab" if shown[0] == a else "ba"
        letters: dict[str, Preference] = {"a": "a", "b": "b"}
        preference: Preference = letters.get(row["verdict"], "tie")
        if order == "ba" and preference != "tie":
            preference = "b" if preference == "a" else "a"
        said = {name: row[name] for name in ("verdict", "inserted_at", "updated_at", "response_id")}
        rows.append(
            {
                "pair_id": row["pair_id"], "prompt_id": pair["prompt_id"], "round": pair["round"],
                "a_id": a, "b_id": b, "labeler": f"{HUMAN}{row['username']}", "order": order,
                "preference": preference, "p_a": None, "score_a": None, "score_b": None,
                "rationale": row["reason"], "completion": json.dumps(said, ensure_ascii=False),
                "choice_logprobs": None, "prompt_hash": None, "prompt_tokens": 0,
                "completion_tokens": 0, "cost": 0.0,
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, VOTE)


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


def _put_votes(run: RunDir, votes: pa.Table, pushed: set[str]) -> bool:
    """Put the votes of people where those of the labelers are; whether anything changed.

    Votes that people gave before on the pairs of this review are replaced.
    """
    changed = False
    by_pair: dict[str, list[dict[str, Any]]] = {}
    for row in votes.to_pylist():
        by_pair.setdefault(row["pair_id"], []).append(row)
    for folder in run.rounds():
        for index in folder.votes.indices():
            old = folder.votes.read(index)
            here = set(pc.unique(old["pair_id"]).to_pylist()) & pushed
            if not here:
                continue
            human = pc.starts_with(old["labeler"], HUMAN)
            ours = pc.and_(human, pc.is_in(old["pair_id"], pa.array(sorted(here))))
            kept = old.filter(pc.invert(ours))
            new = [row for pair in sorted(here) for row in by_pair.get(pair, ())]
            table = pa.concat_tables([kept, pa.Table.from_pylist(new, VOTE)])
            if not table.equals(old):
                mark_undecided(run)
                folder.votes.replace(index, table)
                changed = True
    return changed
