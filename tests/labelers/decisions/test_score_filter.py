"""The filter ``score``: what one labeler says of single answers decides which pairs stay."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError

from prefloop.labelers.base import Vote, votes_table
from prefloop.labelers.config import FilterConfig, LabelConfig
from prefloop.labelers.decisions.candidate_scores import scores_by
from prefloop.labelers.decisions.filters import apply_filters
from prefloop.pipeline.config import ConfigError
from tests.helpers.runs import VERIFIER, run_small, small_config
from tests.labelers.decisions.test_filters import make_rows

GUARD = {
    "type": "verifier", "name": "guard", "function": "tests.helpers.scores:length",
    "decides": False,
}  # fmt: skip


def reasons(scores: list[tuple[float | None, float | None]], *filters: dict) -> list[str | None]:
    """Why pairs are dropped whose chosen and rejected answers have these scores by ``guard``."""
    decisions, candidates = make_rows([{} for _ in scores])
    known = {
        decisions[f"{side}_id"][row].as_py(): score
        for row, pair in enumerate(scores)
        for side, score in zip(("chosen", "rejected"), pair, strict=True)
        if score is not None
    }
    config = FilterConfig(strategy={"type": "all"}, filters=filters)
    out = apply_filters(decisions, candidates, config, seed=0, scores={"guard": known})
    found: list[str | None] = out["reason"].to_pylist()
    return found


def test_scores_out_of_bounds_are_dropped_with_the_labelers_name() -> None:
    scores = [(0.9, 0.8), (0.9, 0.2), (0.2, 0.9), (0.5, 0.5)]
    bound = {"type": "score", "labeler": "guard", "min": 0.5}
    why = "score:guard"
    assert reasons(scores, bound) == [None, why, why, None]
    assert reasons(scores, bound | {"which": "chosen"}) == [None, None, why, None]
    assert reasons(scores, bound | {"which": "rejected"}) == [None, why, None, None]
    assert reasons(scores, {"type": "score", "labeler": "guard", "max": 0.5}) == [why] * 3 + [None]
    between = bound | {"max": 0.85}
    assert reasons(scores, between) == [why, why, why, None]


def test_an_answer_without_a_score_is_not_known_to_be_within() -> None:
    bound = {"type": "score", "labeler": "guard", "max": 1.0}
    assert reasons([(None, 0.1), (0.1, None), (0.1, 0.1)], bound) == ["score:guard"] * 2 + [None]
    assert reasons([(0.1, None)], bound | {"which": "chosen"}) == [None]
    kept = bound | {"unscored": "keep"}
    assert reasons([(None, 0.1), (None, None), (None, 1.1)], kept) == [None, None, "score:guard"]


def test_each_labeler_may_have_a_filter_of_its_own_and_the_first_is_the_reason() -> None:
    bound = {"type": "score", "labeler": "guard", "min": 0.5}
    other = {"type": "score", "labeler": "other", "min": 0.5}
    assert reasons([(0.1, 0.9), (0.9, 0.9)], bound, other) == ["score:guard", "score:other"]
    with pytest.raises(ValidationError, match="'score:guard' is listed twice"):
        FilterConfig(filters=[bound, bound | {"min": 0.1}])
    for bad, said in (
        ({"type": "score", "labeler": "guard"}, "neither min nor max"),
        ({"type": "score", "labeler": "guard", "min": 1, "max": 0}, "min 1 is above max 0"),
    ):
        with pytest.raises(ValidationError, match=said):
            FilterConfig(filters=[bad])


def test_scores_are_means_over_a_labelers_votes_and_of_it_alone() -> None:
    def vote(a: str, b: str, labeler: str, score_a: float | None, score_b: float | None) -> Vote:
        return Vote(
            pair_id=a + b, prompt_id="p", round=0, a_id=a, b_id=b, labeler=labeler, order="none",
            preference="tie", score_a=score_a, score_b=score_b,
        )  # fmt: skip

    votes = votes_table(
        [
            vote("x", "y", "guard", 1.0, None),
            vote("x", "z", "guard", 3.0, 5.0),
            vote("x", "z", "other", 9.0, 9.0),
        ]
    )
    assert scores_by(votes, ["guard", "none"]) == {"guard": {"x": 2.0, "z": 5.0}, "none": {}}
    assert scores_by(votes, []) == {}


def test_a_labeler_that_does_not_decide_filters(tmp_path: Path) -> None:
    label = {"labelers": [VERIFIER, GUARD]}
    strategy = {"strategy": {"type": "all"}}
    run = run_small(
        tmp_path / "run",
        small_config(
            label=label,
            filter=strategy | {"filters": [{"type": "score", "labeler": "guard", "max": 150}]},
        ),
    )
    folder = run.round(0)
    lengths = {
        row["candidate_id"]: len(row["text"]) for row in folder.candidates.table().to_pylist()
    }
    decisions = folder.decisions.table().to_pylist()
    dropped = [row for row in decisions if row["reason"] == "score:guard"]
    kept = [row for row in decisions if row["kept"]]
    assert dropped
    assert kept
    for row in decisions:
        assert row["labelers"] in ([], ["verifier"])
        longest = max(lengths[row["chosen_id"]], lengths[row["rejected_id"]])
        assert not (row["kept"] and longest > 150)
    assert all(max(lengths[row["chosen_id"]], lengths[row["rejected_id"]]) > 150 for row in dropped)
    assert pa.compute.any(pa.compute.equal(folder.votes.table()["labeler"], "guard")).as_py()


def test_the_labeler_has_to_be_there_and_somebody_to_decide() -> None:
    with pytest.raises(ConfigError, match=r"labeler 'nobody'.*only verifier"):
        small_config(
            label={"labelers": [VERIFIER]},
            filter={"filters": [{"type": "score", "labeler": "nobody", "min": 1}]},
        )
    with pytest.raises(ValidationError, match="no labeler decides"):
        LabelConfig.model_validate({"labelers": [GUARD]})
    found = small_config(label={"labelers": [VERIFIER, GUARD]})
    assert [one.name for one in found.evaluators] == ["verifier"]
