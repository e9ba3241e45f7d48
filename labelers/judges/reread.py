"""Reading a judge's stored answers again: a better parser or threshold costs no request."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from prefloop.data.schemas import VOTE
from prefloop.labelers.base import Preference
from prefloop.labelers.judges.asking import KeptReplies
from prefloop.labelers.judges.folder import Judge
from prefloop.labelers.judges.listwise_judge import ranked
from prefloop.labelers.judges.pairwise_judge import about_a_and_b
from prefloop.labelers.judges.rankings import listings, read_ranking
from prefloop.labelers.judges.rating_judge import rating_vote
from prefloop.labelers.judges.rubric.rubric_judge import reread_rubric
from prefloop.labelers.judges.settings import (
    ListwiseSettings,
    PairwiseSettings,
    RatingSettings,
    RubricSettings,
)
from prefloop.labelers.judges.stored_logprobs import restore_logprobs
from prefloop.labelers.judges.thoughts import NO_ANSWER
from prefloop.labelers.judges.verdicts import read_verdict

_READ: dict[str, Any] = {"p_a": None, "score_a": None, "score_b": None, "rationale": None}
"""The fields of a vote that are read from an answer, besides ``preference``."""


def reread(votes: pa.Table, judge: Judge, *, seed: int) -> pa.Table:
    """``votes`` (schema VOTE, all of one labeler and one call) as ``judge`` reads them now.

    ``seed`` is the run's: a listwise judge drew by it in which order it listed the answers.
    Votes for which there was no answer stay as they are. Rows keep their order.
    """
    rows = votes.to_pylist()
    settings = judge.settings
    orders = _listings(rows, seed) if isinstance(settings, ListwiseSettings) else {}
    for row in rows:
        if not has_answer(row):
            continue
        if isinstance(settings, PairwiseSettings):
            found = _pairwise(row, settings)
        elif isinstance(settings, RatingSettings):
            found = rating_vote(KeptReplies.of_vote(row), settings)
        elif isinstance(settings, RubricSettings):
            found = reread_rubric(row, settings)
        else:
            found = _listwise(row, orders[row["prompt_id"]])
        row.update(_READ | found)
    return pa.Table.from_pylist(rows, schema=VOTE)


def has_answer(vote: dict[str, Any]) -> bool:
    """Whether a judge answered: an invalid vote without a rationale is one it was not asked for."""
    return vote["preference"] != "invalid" or vote["rationale"] is not None


def _pairwise(row: dict[str, Any], settings: PairwiseSettings) -> dict[str, Any]:
    kept = row["choice_logprobs"]
    logprobs = None if kept is None else restore_logprobs(json.loads(kept))
    verdict = read_verdict(
        row["completion"],
        logprobs,
        settings,
        row["finish_reason"],
        has_thought=row["reasoning"] is not None or bool(row["reasoning_tokens"]),
    )
    preference, p_a = about_a_and_b(verdict, row["order"])
    return {"preference": preference, "p_a": p_a, "rationale": verdict.note}


def _listwise(row: dict[str, Any], orders: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    ids = next(
        ids
        for ids in orders
        if (ids.index(row["a_id"]) < ids.index(row["b_id"])) == (row["order"] == "ab")
    )
    preference: Preference = "invalid"
    try:
        if (row["reasoning"] or row["reasoning_tokens"]) and not row["completion"].strip():
            raise ValueError(NO_ANSWER)
        places, rationale = read_ranking(row["completion"], len(ids), row["finish_reason"])
    except ValueError as error:
        rationale = f"unparsable: {error}"
    else:
        preference = ranked(places[ids.index(row["a_id"])], places[ids.index(row["b_id"])])
    return {"preference": preference, "rationale": rationale}


def _listings(rows: list[dict[str, Any]], seed: int) -> dict[str, tuple[tuple[str, ...], ...]]:
    """The listings of each prompt, as the judge drew them from the ids of its candidates."""
    ids: dict[str, set[str]] = {}
    for row in rows:
        ids.setdefault(row["prompt_id"], set()).update((row["a_id"], row["b_id"]))
    return {
        prompt_id: listings(sorted(found), seed, rows[0]["labeler"], "listing", prompt_id)
        for prompt_id, found in ids.items()
    }
