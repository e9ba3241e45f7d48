"""What becomes of people's answers, wherever they gave them: kept in the review's folder, made
votes, put into the run, and the run decided again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.prompts.criteria import Criterion
from prefloop.data.schemas import VOTE
from prefloop.data.shards import write_shard
from prefloop.labelers.base import Order, Preference
from prefloop.labelers.people import HUMAN
from prefloop.pipeline.adoption import finish_adoption
from prefloop.pipeline.config import load_config
from prefloop.pipeline.redecide import Redecided, mark_undecided, redecide
from prefloop.pipeline.review.by_criterion.criterion_questions import told_by_person
from prefloop.pipeline.review.folder import RESPONSE, ReviewFolder
from prefloop.pipeline.run.run_dir import RunDir

SUBMITTED, DISCARDED, GONE, REPLACED = "submitted", "discarded", "gone", "replaced"
"""Statuses of a response; see ``RESPONSE``."""
REMOVED = "removed-"
"""Beginning of the name of a person whom the server no longer knows."""


@dataclass(frozen=True)
class TakenIn:
    """What a review's responses are now, and what they changed."""

    statuses: dict[str, int]
    """Responses by status: submitted, draft, discarded, replaced, gone."""
    people: dict[str, int]
    """Submitted responses by person."""
    removed_people: int
    """Responses of people whom the server no longer knows."""
    unreadable: int
    """Submitted responses without a verdict: of another form of the question."""
    rounds: tuple[Redecided, ...]
    """What it did to the dataset of a run; empty where no vote changed."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def take_in(folder: ReviewFolder, responses: Sequence[Mapping[str, Any]]) -> TakenIn:
    """Keep ``responses`` (RESPONSE), all that the review has; of a run, turn the submitted ones
    into votes and decide again.

    Asked again with the same it changes nothing, and killed in the middle it is finished by the
    next call.
    """
    pushed = folder.pairs()
    rows = sorted(responses, key=lambda row: (row["pair_id"], row["response_id"]))
    folder.write_responses(pa.Table.from_pylist(rows, RESPONSE))
    votes = votes_of(rows, pushed, folder.asked().criteria)
    rounds: list[Redecided] = []
    if folder.read().is_run:
        run = RunDir(folder.root.parents[1])
        with run.lock():
            finish_adoption(run)
            ours = {row["response_id"] for row in rows}
            # After a kill nothing changes any more, but what did is not decided yet.
            if _put_votes(run, votes, set(pushed), ours) or run.decides_again():
                rounds = redecide(load_config(run.config), run)
    else:
        write_shard(votes, folder.root / "votes.parquet", VOTE)
    submitted = [row for row in rows if row["status"] == SUBMITTED]
    return TakenIn(
        statuses=dict(Counter(row["status"] for row in rows)),
        people=dict(Counter(row["username"] for row in submitted)),
        removed_people=sum(row["user_id"] is None for row in rows),
        unreadable=sum(row["verdict"] is None for row in submitted),
        rounds=tuple(rounds),
    )


def votes_of(
    responses: Iterable[Mapping[str, Any]],
    pushed: Mapping[str, Any],
    criteria: Sequence[Criterion] = (),
) -> pa.Table:
    """The submitted responses (RESPONSE) as votes (schema VOTE), A and B put back in their places.

    A person's vote is about the candidates with the smaller and the larger id as a and b, its
    ``order`` says which was shown as A. "Both bad" is a tie; what was said stands in
    ``completion``, with its time; what was said of ``criteria``, those of the review, where a
    judge's vote has its values.
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
                "criteria": told_by_person(row["criteria"], criteria, swapped=order == "ba"),
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, VOTE)


def _put_votes(run: RunDir, votes: pa.Table, pushed: set[str], responses: set[str]) -> bool:
    """Put the votes of people behind those of the labelers; whether anything changed.

    Votes that came of ``responses`` before, those of this review, are replaced; what people said
    about its pairs elsewhere stands beside them.
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
            of_people = pc.starts_with(old["labeler"], HUMAN)
            people = [
                row
                for row in old.filter(of_people).to_pylist()
                if row["pair_id"] not in here or _response_of(row) not in responses
            ]
            people += [row for pair in here for row in by_pair.get(pair, ())]
            # In an order of their own, so that two reviews do not change places in turn.
            people.sort(key=lambda row: (row["pair_id"], _response_of(row)))
            kept = old.filter(pc.invert(of_people))
            table = pa.concat_tables([kept, pa.Table.from_pylist(people, VOTE)])
            if not table.equals(old):
                mark_undecided(run)
                folder.votes.replace(index, table)
                changed = True
    return changed


def _response_of(vote: Mapping[str, Any]) -> str:
    """The id of the response that a person's vote was made of, as ``votes_of`` notes it."""
    try:
        said = json.loads(vote["completion"] or "null")
    except ValueError:
        return ""
    return str(said.get("response_id", "")) if isinstance(said, dict) else ""
