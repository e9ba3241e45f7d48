"""The rule ``ensemble``: scores by hand, and reward models of which one is fooled."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from scipy.special import expit

from prefloop.data.hashing import content_id
from prefloop.labelers.base import LabelerError, Vote, votes_table
from prefloop.labelers.config import Jury, LabelConfig
from prefloop.labelers.decisions.decide import decide
from prefloop.labelers.decisions.pairs import propose_pairs
from prefloop.labelers.jury.ensemble import fit_scales
from prefloop.labelers.jury.round_jury import RoundJury
from prefloop.labelers.jury.rules import FittedJury

Scores = dict[str, list[list[float | None]]]
"""By labeler: of each prompt, the scores of its answers."""


def world(scores: Scores) -> tuple[pa.Table, pa.Table, list[dict[str, str]]]:
    """Candidates, votes of all labelers on all pairs, and the pairs."""
    prompts = [len(each) for each in next(iter(scores.values()))]
    ids = [[content_id("c", p, i) for i in range(n)] for p, n in enumerate(prompts)]
    rows = [(one, content_id("p", p)) for p, each in enumerate(ids) for one in each]
    candidates = pa.table(
        {
            "candidate_id": [one for one, _ in rows],
            "prompt_id": [prompt for _, prompt in rows],
            "tokens": pa.array([5] * len(rows), pa.int32()),
        }
    )
    pairs = propose_pairs(candidates, per_prompt=None, seed=0).to_pylist()
    votes = []
    for name, found in scores.items():
        of = {
            c: s
            for each, given in zip(ids, found, strict=True)
            for c, s in zip(each, given, strict=True)
        }
        for pair in pairs:
            a, b = of[pair["a_id"]], of[pair["b_id"]]
            said = {"preference": "invalid"}
            if a is not None and b is not None:
                preference = "tie" if a == b else "a" if a > b else "b"
                said = {
                    "preference": preference,
                    "p_a": float(expit(a - b)),
                    "score_a": a,
                    "score_b": b,
                }
                if a == b:
                    said["p_a"] = 0.5
            votes.append(Vote(**pair, round=0, labeler=name, order="none", **said))
    return candidates, votes_table(votes), pairs


def decided(
    scores: Scores, penalty: float = 1.0, weights: dict[str, float] | None = None
) -> list[dict]:
    candidates, votes, pairs = world(scores)
    jury = Jury(rule="ensemble", penalty=penalty, tie_band=0)
    ready = RoundJury(jury, weights or {}, fit_scales([votes], list(scores)))
    return decide(votes, pa.Table.from_pylist(pairs), candidates, ready).to_pylist()


def p_of_first(scores: Scores, **more: object) -> float:
    """P(the first answer of the first prompt is preferred to the second)."""
    first = content_id("c", 0, 0)
    [row] = [one for one in decided(scores, **more) if one["prompt_id"] == content_id("p", 0)]
    return row["p_chosen"] if row["chosen_id"] == first else 1 - row["p_chosen"]


def test_an_ensemble_of_one_model_twice_says_what_it_says() -> None:
    scores = [[1.5, -0.5], [3.0, 0.25]]
    for penalty in (0.0, 1.0, 10.0):
        found = p_of_first({"one": scores, "two": scores}, penalty=penalty)
        assert found == pytest.approx(expit(2.0))


def test_scores_are_standardised_and_disagreement_is_taken_off() -> None:
    # One in its own unit, ten times as large and moved: the same model but for the first prompt.
    one = [[1.0, 0.0], [-1.0, 0.0]]
    two = [[5.0, 15.0], [-5.0, 5.0]]
    deviation_one, deviation_two = np.std(one), np.std(two)
    z_one, z_two = 1.0 / deviation_one, (np.array([5.0, 15.0]) - 5.0) / deviation_two
    a = ((z_one + z_two[0]) / 2, abs(z_one - z_two[0]) / 2)
    b = ((0.0 + z_two[1]) / 2, abs(0.0 - z_two[1]) / 2)
    unit = (deviation_one + deviation_two) / 2
    for penalty in (0.0, 0.5, 1.0):
        gap = (a[0] - penalty * a[1]) - (b[0] - penalty * b[1])
        found = p_of_first({"one": one, "two": two}, penalty=penalty)
        assert found == pytest.approx(expit(unit * gap))


def test_weights_count_in_mean_and_deviation() -> None:
    one, two = [[1.0, 0.0], [-1.0, 0.0]], [[0.0, 1.0], [0.0, -1.0]]
    deviation = float(np.std(one))
    z = 1.0 / deviation
    # Weights 3 and 1: means 3z/4 and z/4, deviations sqrt(3)/4 z of both.
    found = p_of_first({"one": one, "two": two}, weights={"one": 3.0})
    assert found == pytest.approx(expit(deviation * z / 2))


def test_an_answer_that_fools_one_model_does_not_win() -> None:
    """Three models see the same quality with noise; one of them loves a trick."""
    draw = np.random.default_rng(0)
    quality = draw.normal(size=(300, 2))
    tricky = draw.random((300, 2)) < 0.2
    scores: Scores = {}
    for name in ("x", "y", "fooled"):
        seen = quality + 0.3 * draw.normal(size=quality.shape)
        scores[name] = (seen + (6.0 * tricky if name == "fooled" else 0.0)).tolist()

    def share_right(penalty: float) -> float:
        better = {content_id("c", p, int(row.argmax())) for p, row in enumerate(quality)}
        found = decided(scores, penalty=penalty)
        return sum(row["chosen_id"] in better for row in found) / len(found)

    assert share_right(0.0) == pytest.approx(0.89)
    assert share_right(1.0) == pytest.approx(0.943, abs=1e-3)
    assert share_right(2.0) < share_right(0.0)  # too much of it prefers what all know little of


def test_who_has_no_scores_or_cannot_score_a_pair_is_left_out() -> None:
    scores: Scores = {
        "one": [[1.0, 0.0], [2.0, 0.0]],
        "flat": [[7.0, 7.0], [7.0, 7.0]],
        "silent": [[None, None], [None, None]],
        "gaps": [[None, 1.0], [0.0, 3.0]],
    }
    _, votes, _ = world(scores)
    fitted = fit_scales([votes], list(scores))
    assert fitted.scales is not None
    assert fitted.scales.keys() == {"one", "gaps"}
    assert [note.split(" gives")[0] for note in fitted.notes] == ["flat", "silent"]
    # Alone on the first pair, `one` says what it says.
    assert p_of_first(scores) == pytest.approx(expit(1.0))
    assert FittedJury.from_dict(fitted.as_dict()) == fitted


def test_nobody_with_a_score_leaves_a_pair_undecided() -> None:
    rows = decided({"one": [[None, None], [1.0, 0.0]], "two": [[None, 0.0], [2.0, 0.0]]})
    assert {row["reason"] for row in rows} == {None, "no_valid_vote"}


def test_an_answer_counts_once_however_many_pairs_it_is_in() -> None:
    scores: Scores = {"one": [[0.0, 1.0, 5.0], [2.0, 3.0]]}
    _, votes, _ = world(scores)
    scales = fit_scales([votes], ["one"]).scales
    assert scales is not None
    values = [0.0, 1.0, 5.0, 2.0, 3.0]
    assert scales["one"] == pytest.approx({"mean": np.mean(values), "deviation": np.std(values)})


def test_it_is_refused_where_it_cannot_work() -> None:
    candidates, votes, pairs = world({"one": [[1.0, 0.0]], "two": [[1.0, 0.0]]})
    with pytest.raises(LabelerError, match="ensemble needs what is fitted"):
        decide(votes, pa.Table.from_pylist(pairs), candidates, RoundJury(Jury(rule="ensemble")))
    models = [{"type": "reward_model", "name": name, "model": name} for name in ("x", "y")]
    LabelConfig.model_validate({"labelers": models, "jury": {"rule": "ensemble", "penalty": 2}})
    for more, said in (
        ({"labelers": models[:1], "jury": {"rule": "ensemble"}}, "needs two labelers"),
        ({"jury": {"rule": "ensemble"}, "people": "jury"}, "people give none"),
        ({"jury": {"penalty": 2}}, r"jury\.penalty is given, but jury\.rule is mean"),
    ):
        with pytest.raises(ValidationError, match=said):
            LabelConfig.model_validate({"labelers": models, **more})
