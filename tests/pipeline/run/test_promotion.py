"""What a round begins with, and which policy is named as the one to keep."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from prefloop.data.errors import StorageError
from prefloop.data.schemas import CANDIDATE
from prefloop.labelers.statistics.winrate import win_rate
from prefloop.pipeline.report.headline import headline
from prefloop.pipeline.results import Run
from prefloop.pipeline.run.metrics import metrics_table
from prefloop.pipeline.run.promotion import (
    PROMOTION,
    PromotionRate,
    begin_round,
    keeping,
    lineage,
    plateau,
    promotion_confidence,
    promotion_estimate,
    verdicts,
)
from prefloop.pipeline.run.run_dir import EVALUATION, RunDir
from prefloop.training.config import EvaluateConfig, Guards
from tests.helpers.synthetic_run import write_run

WON, EVEN, LOST = (0.70, 0.60, 0.80), (0.52, 0.42, 0.62), (0.30, 0.20, 0.40)


@dataclass(frozen=True)
class Played:
    """What a round's evaluation says."""

    previous: tuple[float, float, float] | None = WON
    start: tuple[float, float, float] | None = WON
    kl: float = 1.0


def played(root: Path, *rounds: Played, **evaluate: object) -> RunDir:
    """A run of rounds that ended like that."""
    run = RunDir(root)
    root.mkdir(exist_ok=True)
    config = {"rounds": 9, "train": {"guards": {"max_kl": 100}}, "evaluate": evaluate}
    run.config.write_text(yaml.safe_dump(config), encoding="utf-8")
    for index, one in enumerate(rounds):
        rows = [{"name": "kl", "value": one.kl, "against": "start"}]
        for against, rate in (("previous", one.previous), ("start", one.start)):
            if rate:
                value, low, high = rate
                row = {"name": "win_rate", "value": value, "low": low, "high": high, "n": 100}
                rows.append({**row, "against": against, "labeler": "jury"})
        table = metrics_table([{**row, "round": index} for row in rows])
        run.round(index).metrics.replace(EVALUATION, table)
    return run


def begins(run: RunDir, index: int, **evaluate: object) -> int:
    settings = EvaluateConfig.model_validate(evaluate)
    return lineage(run, index, "start", settings, Guards()).previous_index


@pytest.mark.parametrize(
    ("rounds", "promote", "next_begins", "kept", "why"),
    [
        # Won, and set off a guard: the next round may begin with it, and nobody keeps it.
        ([Played(), Played(kl=400)], "winner", 1, 1, "round 1 set off the guard kl"),
        ([Played(), Played(kl=400)], "always", 2, 1, "round 1 set off the guard kl"),
        ([Played(kl=400)], "always", 1, None, "round 0 set off the guard kl"),
        # Round 1 lost against round 0's policy; round 2 won against round 1's, and not against it.
        ([Played(), Played(LOST), Played()], "always", 3, 1, "round 2 was not compared with it"),
        # The same, but far better against the start than round 0's policy: intervals apart.
        ([Played(), Played(LOST), Played(start=(0.9, 0.85, 0.95))], "always", 3, 3, ""),
        # Better against the start than the kept one, and lost against the one it came from.
        ([Played(), Played(kl=400), Played(LOST, (0.9, 0.85, 0.95))], "always", 3, 1, "lost"),
        # Nobody kept: the starting policy is the one to beat, whatever came between.
        ([Played(LOST, LOST), Played(WON, EVEN)], "always", 2, None, "against the starting policy"),
        ([Played(LOST, LOST), Played(EVEN, WON)], "always", 2, 2, ""),
        # Without a verdict nothing is won.
        ([Played(None, None)], "winner", 0, None, "round 0 has no verdict"),
        ([Played(None, None)], "always", 1, None, "round 0 has no verdict"),
        ([Played(), Played(None, None)], "winner", 1, 1, "round 1 has no verdict"),
        ([Played(), Played()], "winner", 2, 2, ""),
    ],
)  # fmt: skip
def test_what_is_sampled_from_and_what_is_kept_are_two_questions(
    tmp_path: Path, rounds: list[Played], promote: str, next_begins: int, kept: int | None, why: str
) -> None:
    run = played(tmp_path, *rounds, promote=promote)
    assert begins(run, len(rounds), promote=promote) == next_begins
    found = keeping(run)
    assert (found.folder.index + 1 if found.folder else None) == kept
    assert why in found.because
    assert bool(why) == bool(found.because)
    policy = Run(run.root).policy
    assert policy == (run.round(kept - 1).policy if kept else None)


def test_patience_counts_guards_and_missing_verdicts(tmp_path: Path) -> None:
    assert plateau(1, played(tmp_path / "a", Played(), Played())) is None
    guarded = plateau(1, played(tmp_path / "b", Played(), Played(kl=400)))
    assert guarded
    assert "round 1 set off the guard kl" in guarded
    assert "round-000/policy" in guarded
    unread = plateau(1, played(tmp_path / "c", Played(), Played(None, None)))
    assert unread
    assert "no vote could be read" in unread
    assert plateau(2, played(tmp_path / "d", Played(), Played(kl=400))) is None


def test_without_held_out_prompts_every_policy_is_promoted(tmp_path: Path) -> None:
    run = played(tmp_path)
    run.round(0).policy.mkdir(parents=True)
    assert begins(run, 1) == 1
    found = keeping(run)
    assert (found.folder, found.evaluated, found.because) == (
        None, False, "round 0 is not evaluated",
    )  # fmt: skip


def test_a_round_goes_on_with_what_it_was_begun_with(tmp_path: Path) -> None:
    run = played(tmp_path, Played(None, None), Played())
    settings = EvaluateConfig()
    # An older version took no verdict for a win, sampled from that policy and kept no note.
    run.round(1).candidates.write(0, CANDIDATE.empty_table())
    assert begins(run, 1) == 1
    assert begins(run, 2) == 2
    # A round that begins now keeps a note, which stands whatever becomes of the figures.
    assert begin_round(run, 2, "start", settings, Guards()).previous_index == 2
    run.round(1).metrics.remove([EVALUATION])
    played(run.root, Played(), Played(LOST, LOST))
    assert begins(run, 2) == 2
    run.round(2).begins_with.write_text("[]", encoding="utf-8")
    with pytest.raises(StorageError, match=r"begins-with.json: is damaged .* delete it"):
        begins(run, 2)


def test_the_headline_names_what_to_keep_and_why(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    # Of the figures written there, round 0 won against its predecessor, which was the start.
    first = run.round(0)
    rows = first.metrics.read(EVALUATION).to_pylist()
    for row in rows:
        if row["labeler"] == "jury" and row["against"] == "previous":
            row["low"] = 0.52
    first.metrics.write(EVALUATION, metrics_table(rows))
    said = headline(run)
    assert f"keep      {first.policy}  (round 1 did not win against it" in said


def test_the_rounds_share_the_chance_of_a_false_promotion(tmp_path: Path) -> None:
    settings = EvaluateConfig()
    assert [promotion_confidence(settings, rounds) for rounds in (1, 2)] == [0.95, 0.95]
    assert promotion_confidence(settings, 5) == pytest.approx(0.98)
    alone = EvaluateConfig(promote_error="round")
    assert promotion_confidence(alone, 5) == 0.95
    # The stricter interval decides where there is one, and the shown one stays.
    run = played(tmp_path, Played())
    rows = run.round(0).metrics.read(EVALUATION).to_pylist()
    strict = [
        {**row, "name": PROMOTION, "low": 0.49} for row in rows if row["name"] == "win_rate"
    ]  # fmt: skip
    run.round(0).metrics.replace(EVALUATION, metrics_table([*rows, *strict]))
    [verdict] = verdicts(run)
    assert (verdict.won, keeping(run).folder, begins(run, 1)) == (False, None, 0)


def promotions_of_no_better_policies(
    rounds: int, *, prompts: int, varied: bool, shared: bool
) -> float:
    """Share of 20,000 runs that promote a policy in one of their rounds, where none is better than
    the one before it. ``varied``: each prompt has a chance of its own that the new policy's answer
    wins, the same in all rounds. ``shared``: the rounds share the chance of a false promotion."""
    confidence = promotion_confidence(EvaluateConfig(), rounds) if shared else 0.95
    rng = np.random.default_rng(13)
    shape = (20_000, prompts)
    chance = rng.beta(2.0, 2.0, size=shape) if varied else np.full(shape, 0.5)
    wins = np.stack([(rng.random(shape) < chance).sum(1) for _ in range(rounds)])
    found = [
        win_rate([1.0] * won + [0.0] * (prompts - won), confidence=confidence)
        for won in range(prompts + 1)
    ]
    low = np.array([(promotion_estimate(one) if shared else one).low for one in found])
    return float((low[wins] > 0.5).any(axis=0).mean())


def test_false_promotions_of_a_run_are_held_to_what_is_promised() -> None:
    each = partial(promotions_of_no_better_policies, shared=False)
    whole = partial(promotions_of_no_better_policies, shared=True)
    # One run in seven or eight, by five intervals of 95 % one after the other.
    assert each(5, prompts=100, varied=False) == pytest.approx(1 / 7.5, abs=0.015)
    for rounds, prompts in ((3, 60), (5, 100), (10, 60)):
        for varied in (False, True):
            assert each(rounds, prompts=prompts, varied=varied) > 0.06
            assert whole(rounds, prompts=prompts, varied=varied) <= 0.05


def test_an_interval_of_all_rounds_is_called_so() -> None:
    """It is wider than the one that is shown beside it."""
    assert str(PromotionRate(0.5, 0.406, 0.594)) == "0.500 [0.406, 0.594]"
    assert str(PromotionRate(0.5, 0.38, 0.62, of_all_rounds=True)) == (
        "0.500 [0.380, 0.620] for all rounds together"
    )
