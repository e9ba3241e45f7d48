"""The policy to keep is judged once, on held-out prompts that no round saw."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefloop.pipeline import loop
from prefloop.pipeline.config import ConfigError, RunConfig
from prefloop.pipeline.plan.plan import make_plan
from prefloop.pipeline.report.headline import headline
from prefloop.pipeline.results import Run
from prefloop.pipeline.run.final_split import final_dir, final_ids
from prefloop.pipeline.run.round_guards import GuardStopped
from prefloop.pipeline.run.run_dir import EVALUATION, RunDir, RunError
from prefloop.pipeline.run.status import collect_status
from tests.helpers.runs import JUDGE, VERIFIER, run_small, small_config


def final_config(rounds: int = 2, **final: Any) -> RunConfig:
    return small_config(
        rounds=rounds,
        prompts={
            "train": {"path": "embedded:prompts", "limit": 16},
            "heldout": {"path": "embedded:heldout", "limit": 20},
        },
        label={"labelers": [JUDGE]},
        train={"learning_rate": 1e-3, "batch_size": 8},
        # So narrow an interval that what is a little better has won.
        evaluate={"confidence": 0.1, "final": {"share": 0.4, "judges": [VERIFIER], **final}},
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return run_small(tmp_path_factory.mktemp("final") / "run", final_config())


def copied(whole: RunDir, root: Path) -> RunDir:
    shutil.copytree(whole.root, root)
    return RunDir(root)


def figures(run: RunDir) -> list[dict[str, Any]]:
    kept = collect_status(run).keep
    assert kept is not None
    assert kept.round is not None
    rows = final_dir(run).round(kept.round).metrics.read(EVALUATION).to_pylist()
    return sorted(rows, key=str)


def test_no_round_sees_the_final_prompts(whole: RunDir) -> None:
    ids = whole.heldout.table()["prompt_id"].to_pylist()
    apart = final_ids(ids, final_config().evaluate.final, seed=3)
    assert 0 < len(apart) < len(ids)
    for policy in (0, 1, 2):
        answered = set(whole.answers(policy).table()["prompt_id"].to_pylist())
        assert answered == set(ids) - apart
    assert not apart & set(whole.prompts.table()["prompt_id"].to_pylist())
    final = final_dir(whole)
    kept = collect_status(whole).keep
    assert kept is not None
    assert kept.round is not None
    for policy in (0, kept.round + 1):
        assert set(final.answers(policy).table()["prompt_id"].to_pylist()) == apart
    voted = final.match_votes(kept.round + 1, 0).table()
    assert set(voted["labeler"].to_pylist()) == {"verifier"}
    names = {row["name"] for row in figures(whole)}
    assert {"win_rate", "length_controlled_win_rate", "kl", "mean_tokens"} <= names


def test_everything_that_names_a_figure_names_the_final_one(whole: RunDir) -> None:
    status = collect_status(whole)
    assert status.state == "done"
    assert status.final is not None
    assert status.final.labelled_too == ()
    rate = f"{status.final.win_rate.value:.3f}"
    said = headline(whole)
    assert f"final     round {status.final.round} against start: {rate} [" in said
    assert "judged by verifier, which labelled no training data" in said
    card = whole.card.read_text(encoding="utf-8")
    assert f"round {status.final.round} wins {rate} [" in card
    page = whole.report.read_text(encoding="utf-8")
    assert "on prompts that no decision saw</h4>" in page
    assert "the figure to quote is" in page
    run = Run(whole.root)
    [plain, controlled] = run.as_dict()["final"]
    assert (plain["name"], plain["against"]) == ("win_rate", "start")
    assert controlled["name"] == "length_controlled_win_rate"
    assert len(run.final()) == len(figures(whole))
    assert status.as_dict()["final"]["looks"] == 1


def test_killed_in_the_middle_it_goes_on(whole: RunDir, tmp_path: Path) -> None:
    before = figures(whole)
    run = copied(whole, tmp_path / "run")
    final = final_dir(run)
    # Killed while the second policy answered: no votes yet, one block of two.
    shutil.rmtree(next(final.root.glob("round-*")))
    shutil.rmtree(next(final.evaluation.glob("votes-*")))
    kept = collect_status(run).keep
    assert kept is not None
    final.answers((kept.round or 0) + 1).remove([1])
    assert collect_status(run).state == (
        "rounds done, the policy to keep not judged on the final prompts"
    )
    run_small(run.root, final_config())
    assert figures(run) == before
    times = {path: path.stat().st_mtime_ns for path in run.root.rglob("*.parquet")}
    run_small(run.root, final_config())
    assert {path: path.stat().st_mtime_ns for path in run.root.rglob("*.parquet")} == times


def test_a_run_that_ends_early_is_judged_too(
    whole: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = figures(whole)
    guarded = copied(whole, tmp_path / "guarded")
    shutil.rmtree(final_dir(guarded).root)

    def stop(*_: Any, **__: Any) -> None:
        raise GuardStopped("guard kl")

    with monkeypatch.context() as patched:
        patched.setattr(loop, "check_round", stop)
        with pytest.raises(GuardStopped, match="guard kl"):
            run_small(guarded.root, final_config())
    assert figures(guarded) == before
    ended = copied(whole, tmp_path / "ended")
    shutil.rmtree(final_dir(ended).root)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "plateau", lambda *_: "enough")
        run_small(ended.root, final_config(rounds=3))
    assert len(ended.rounds()) == 2
    assert figures(ended) == before


def test_who_judges_may_change_until_then_and_the_split_may_not(
    whole: RunDir, tmp_path: Path
) -> None:
    run = copied(whole, tmp_path / "run")
    with pytest.raises(RunError, match=r"evaluate.final.share: 0.4 -> 0.5"):
        run_small(run.root, final_config(share=0.5))
    with pytest.raises(RunError, match=r"evaluate.final.judges"):
        run_small(run.root, final_config(judges=()))
    shutil.rmtree(final_dir(run).root)
    run_small(run.root, final_config(judges=()))
    found = collect_status(run).final
    assert found is not None
    assert found.labelled_too == ("judge",)
    assert "judge labelled the training data too" in headline(run)
    # The same model under another name is no other judge.
    raw = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    raw["label"]["labelers"][0]["name"] = "another"
    raw["evaluate"]["judges"] = [{**JUDGE, "orders": "one"}]
    run.config.write_text(yaml.safe_dump(raw), encoding="utf-8")
    renamed = collect_status(run).final
    assert renamed is not None
    assert renamed.labelled_too == ("judge",)


def test_the_plan_counts_it_and_a_judge_of_another_name_is_needed(whole: RunDir) -> None:
    config = final_config(judges=[{**JUDGE, "name": "other"}])
    steps = [one for one in make_plan(config).steps if one.stage == "final"]
    asked = {one.what: one.requests for one in steps}
    apart = final_dir(whole).heldout.rows()
    assert asked["policy 0"] == asked["policy 2"] == apart
    assert asked["log-probabilities"] == 2 * apart
    assert asked["other"] == 2 * apart  # both orders
    with pytest.raises(ConfigError, match=r"evaluate.final.judges and label.labelers both have"):
        final_config(judges=[JUDGE])
    with pytest.raises(ConfigError, match=r"evaluate: final needs rounds that are evaluated"):
        small_config(evaluate={"enabled": False, "final": {}})
