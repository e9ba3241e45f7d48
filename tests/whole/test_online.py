"""Rounds that sample while they train, and what the next round begins with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset

from prefloop.data.embedded import resolve_embedded
from prefloop.data.errors import InputError, NothingCameOut
from prefloop.data.hashing import folder_revision
from prefloop.pipeline.config import ConfigError, RunConfig
from prefloop.pipeline.plan.plan import make_plan
from prefloop.pipeline.policies.train_alone import TrainOptions, find_sources, train_model
from prefloop.pipeline.policies.train_text import render_training
from prefloop.pipeline.run.metrics import metrics_table
from prefloop.pipeline.run.promotion import Lineage, lineage
from prefloop.pipeline.run.run_dir import EVALUATION, RunDir, RunError
from prefloop.pipeline.run.status import collect_status
from prefloop.training.config import TrainConfig
from prefloop.training.method_names import Method
from prefloop.training.methods.dpo import Dpo
from prefloop.training.methods.online import OnlineDpo
from prefloop.training.session.fit import fit
from prefloop.training.session.job import Job
from prefloop.training.session.on_policy import Prompts
from prefloop.training.session.records import summary_of
from tests.helpers.dpo_data import rows, write
from tests.helpers.engine_models import make_model
from tests.helpers.runs import JUDGE, VERIFIER, dataset_rows, run_small, small_config
from tests.whole.test_rounds import evaluated

ONLINE = {"online": True, "online_steps": 2, "learning_rate": 1e-4, "batch_size": 3}
BEST = {"filters": [{"type": "identical"}], "strategy": {"type": "best_vs_worst"}}


def online_config(**changes: Any) -> RunConfig:
    return small_config(
        **{
            "label": {"labelers": [VERIFIER]}, "filter": BEST, "train": ONLINE,
            "evaluate": {"promote": "always"}, **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def online_run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return run_small(tmp_path_factory.mktemp("online") / "run", online_config(rounds=2))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("policy"), layers=1, width=64))


def begun_with(config: RunConfig, run: RunDir, index: int) -> Lineage:
    assert config.train is not None
    return lineage(run, index, "start", config.evaluate, config.train.guards)


def losses(run: RunDir, index: int) -> list[float]:
    found = run.round(index).metrics.read(0).to_pylist()
    return [row["value"] for row in found if row["name"] == "loss"]


def test_every_leg_comes_from_the_policy_of_its_step(online_run: RunDir) -> None:
    start = None
    for index in (0, 1):
        folder = online_run.round(index)
        # 16 prompts are 2 legs of 6: 2 steps of 3 pairs.
        assert folder.prompts.indices() == [0, 1]
        assert folder.prompts.rows() == 12
        assert len(losses(online_run, index)) == 4
        revisions = [
            set(folder.candidates.read(leg)["policy_revision"].to_pylist()) for leg in (0, 1)
        ]
        assert [len(one) for one in revisions] == [1, 1]
        assert revisions[0].isdisjoint(revisions[1])
        if start:  # the first leg of a round comes from the last policy of the one before
            assert revisions[0] == {folder_revision(online_run.round(0).policy)}
        start = revisions[0]
        assert losses(online_run, index)[0] == pytest.approx(np.log(2), rel=1e-3) or index


def test_a_round_that_samples_while_training_writes_a_dataset(online_run: RunDir) -> None:
    data = load_dataset(str(online_run.dataset))
    written = sum(len(part) for part in data.values())
    kept = sum(online_run.round(index).triples.rows() for index in (0, 1))
    assert written == kept > 12
    status = collect_status(online_run)
    assert status.state == "done"
    assert [each.prompts for each in status.rounds] == [12, 12]
    assert all(part.complete for each in status.rounds for part in each.progress.values())
    planned = make_plan(online_config(rounds=2))
    assert [each.steps for each in planned.training] == [4, 4]


def test_a_killed_round_goes_on_from_what_it_has(
    online_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No leg is sampled or labelled twice, and the policy is that of an uninterrupted run."""
    from prefloop.pipeline.stages import on_policy

    config = online_config(train={**ONLINE, "save_steps": 1})
    labelled: list[int] = []
    label = on_policy.label_block

    async def once(context: Any, settings: Any, index: int, labelers: Any, **more: Any) -> Any:
        labelled.append(index)
        if len(labelled) == 2:
            raise RunError("power cut")
        return await label(context, settings, index, labelers, **more)

    monkeypatch.setattr(on_policy, "label_block", once)
    with pytest.raises(RunError, match="power cut"):
        run_small(tmp_path / "run", config)
    assert not RunDir(tmp_path / "run").round(0).policy.exists()
    run = run_small(tmp_path / "run", config)
    assert labelled == [0, 1, 1]
    first = online_run.round(0)
    assert folder_revision(run.round(0).policy) == folder_revision(first.policy)
    mine = dataset_rows(run)
    assert mine == {name: dataset_rows(online_run)[name] for name in mine}


def test_a_training_that_keeps_no_pair_says_why_and_a_mended_config_goes_on(
    online_run: RunDir, tmp_path: Path
) -> None:
    none = {"filters": [{"type": "length", "min_tokens": 999}], "strategy": BEST["strategy"]}
    train = {**ONLINE, "save_steps": 1}
    with pytest.raises(NothingCameOut) as caught:
        run_small(tmp_path / "run", online_config(filter=none, train=train))
    assert "pairs were dropped" in str(caught.value)
    assert "of them by length: loosen length in `filter`" in str(caught.value)
    run = RunDir(tmp_path / "run")
    assert not run.round(0).policy.exists()
    run_small(run.root, online_config(train=train))
    first = online_run.round(0)
    assert folder_revision(run.round(0).policy) == folder_revision(first.policy)


def test_one_leg_is_plain_dpo(policy: Path, tmp_path: Path) -> None:
    """All pairs at once, one step: what the offline trainer does with the same pairs."""
    shard = write(tmp_path / "t.parquet", rows(6))
    reference = Path(make_model(tmp_path / "other", layers=1, width=64, seed=7))
    config = TrainConfig(batch_size=6, learning_rate=1e-3, warmup_ratio=0, lr_scheduler="constant")
    offline = fit(Job(policy, reference, (shard,), tmp_path / "offline", config, seed=1), Dpo())
    asked = Prompts([[{"role": "user", "content": str(n)}] for n in range(6)], 6)
    config = config.model_copy(update={"online": True})
    job = Job(policy, reference, (), tmp_path / "online", config, seed=1)
    online = fit(job, OnlineDpo(asked, lambda leg, now: [shard]))
    assert online.history[0]["loss"] == pytest.approx(offline.history[0]["loss"], rel=1e-5)
    assert online.history[0]["grad_norm"] == pytest.approx(
        offline.history[0]["grad_norm"], rel=1e-3
    )


def test_legs_with_few_pairs_and_with_none(policy: Path, tmp_path: Path) -> None:
    two = write(tmp_path / "two.parquet", rows(2))
    asked = Prompts([[{"role": "user", "content": str(n)}] for n in range(24)], 8)
    config = TrainConfig(
        online=True, online_steps=4, batch_size=2, learning_rate=1e-3, warmup_ratio=0,
        lr_scheduler="constant",
    )  # fmt: skip
    weights: list[str] = []

    def triples(leg: int, now: Any) -> list[Path]:
        weights.append(folder_revision(now()))
        return [two] if leg == 0 else []

    result = fit(Job(policy, policy, (), tmp_path / "p", config, seed=1), OnlineDpo(asked, triples))
    assert result.steps == 12
    assert "rewards/margins" in result.history[3]
    # A leg without a pair leaves the weights as they are.
    assert weights[1] == weights[2] != weights[0]
    assert result.history[8]["grad_norm"] == 0


def test_what_sampling_in_training_does_not_go_with() -> None:
    fitted = {"labelers": [JUDGE, VERIFIER], "jury": {"rule": "dawid_skene"}}
    with pytest.raises(ConfigError, match="fitted to a whole round's votes"):
        online_config(label=fitted)
    with pytest.raises(ConfigError, match="needs a whole round's pairs"):
        online_config(filter={"filters": [{"type": "length_balance"}]})
    grpo = {"method": "grpo", "batch_size": 8}
    with pytest.raises(ConfigError, match=r"\(8\) must be a multiple"):
        online_config(train=grpo)
    for drawn in ({"temperature": 0.0}, {"top_p": 0.9}, {"top_k": 50}, {"temperature": None}):
        with pytest.raises(ConfigError, match="drawn from the whole distribution"):
            online_config(train={**grpo, "batch_size": 6}, sample={"n": 3, **drawn})
    with pytest.raises(ConfigError, match=r"leave out sample\.pool"):
        online_config(train={**grpo, "batch_size": 6}, sample={"n": 3, "pool": [{"name": "a"}]})


def test_too_few_prompts_for_a_leg(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="samples 40 prompts, and there are only 16"):
        run_small(tmp_path / "run", online_config(train={**ONLINE, "batch_size": 20}))


def test_reinforcement_is_one_line_of_the_config(tmp_path: Path) -> None:
    """The labelers' votes are the reward, and answers and votes are kept as in any round."""
    for method, reward in (("grpo", "wins"), ("rloo", "score")):
        train = {"method": method, "reward": reward, "batch_size": 12, "learning_rate": 1e-4}
        run = run_small(tmp_path / method, online_config(train=train))
        folder = run.round(0)
        assert folder.prompts.indices() == [0, 1, 2, 3]  # four prompts of three answers a step
        samples = np.sum(folder.candidates.table(["copies"])["copies"].to_numpy())
        assert samples == 16 * 3
        rewards = [r["value"] for r in folder.metrics.read(0).to_pylist() if r["name"] == "reward"]
        assert len(rewards) == 4
        if reward == "wins":  # every pair has one winner, or is a tie
            assert rewards == pytest.approx([0.5] * 4, abs=0.1)
        assert collect_status(run).state == "done"
        assert run.report.exists()


def test_a_guard_stops_a_reinforcement_and_the_run_can_go_on(tmp_path: Path) -> None:
    """After its first step; the answers that it would have sampled next are nobody's."""
    guards = {"window": 1, "max_entropy_ratio": 1 + 1e-12, "max_kl": None}
    train = {"method": "grpo", "batch_size": 12, "learning_rate": 1e-1, "guards": guards}
    config = online_config(train=train)
    with pytest.raises(RunError, match=r"guard entropy stopped training at step [23] .*go_on"):
        run_small(tmp_path / "run", config)
    with pytest.raises(RunError, match="guard entropy stopped training"):  # and again
        run_small(tmp_path / "run", config)
    then = online_config(train={**train, "guards": {**guards, "then": "go_on"}})
    run = run_small(tmp_path / "run", then)
    record = summary_of(run.round(0).policy)
    assert record is not None
    assert record["guard"]["restored_step"] < record["guard"]["step"]
    assert collect_status(run).state == "done"
    assert run.report.exists()


def test_kto_trains_on_every_candidate_that_was_judged(tmp_path: Path) -> None:
    config = online_config(
        train={"method": "kto", "batch_size": 8, "learning_rate": 1e-4}, write={"test_share": 0.2}
    )
    run = run_small(tmp_path / "run", config)
    data = load_dataset(str(run.dataset), "unpaired")
    answers = [row for part in data.values() for row in part]
    decisions = run.round(0).decisions.table().to_pylist()
    score: dict[str, list[float]] = {}
    for row in decisions:
        if row["reason"] != "no_valid_vote":
            score.setdefault(row["chosen_id"], []).append(row["p_chosen"])
            score.setdefault(row["rejected_id"], []).append(1 - row["p_chosen"])
    means = {name: float(np.mean(values)) for name, values in score.items()}
    assert {row["candidate_id"]: row["label"] for row in answers} == {
        name: mean > 0.5 for name, mean in means.items() if mean != 0.5
    }
    texts = {row["candidate_id"]: row for row in run.round(0).candidates.table().to_pylist()}
    for row in answers:
        assert row["completion"][0]["content"] == texts[row["candidate_id"]]["text"]
        assert row["score"] == pytest.approx(means[row["candidate_id"]])
    # More than the pairs have: those are the best and the worst answer of a prompt.
    assert len(answers) > 2 * run.round(0).triples.rows()
    [note] = [note for note in run.notes() if note["stage"] == "train"]
    assert note["method"] == "kto"
    train = {row["prompt_id"] for row in data["train"]}
    assert train.isdisjoint(row["prompt_id"] for row in data["test"])

    # TRL's own trainer takes them as they are.
    from trl import KTOConfig, KTOTrainer

    arguments = KTOConfig(
        output_dir=str(tmp_path / "trl"), max_steps=1, per_device_train_batch_size=4, bf16=False,
        use_cpu=True, report_to="none", save_strategy="no",
    )  # fmt: skip
    theirs = KTOTrainer(
        model=resolve_embedded("embedded:policy"), args=arguments, train_dataset=data["train"]
    )
    # Policy and reference are the same model: the loss of every answer is 1 - sigma(0).
    assert theirs.train().training_loss == pytest.approx(0.5, abs=1e-3)

    # The same from the command line, on the run's files.
    for method, files in ((Method.kto, "unpaired"), (Method.sft, "data")):
        sources = find_sources([run.root], method=method)
        assert {path.parent.name for path in sources.train} == {files}
        options = TrainOptions(
            method, base="embedded:policy", out=tmp_path / method, overrides=["batch_size=8"]
        )
        made = train_model(sources, options)
        assert f"{made.examples} answers" in render_training(made)
        assert (tmp_path / method / "model.safetensors").exists()
        if method is Method.kto:
            assert made.examples == len(data["train"])
    with pytest.raises(InputError, match="nothing else compares"):
        train_model(sources, TrainOptions(Method.sft, base="x", out=tmp_path / "y", reference="z"))


def test_a_warm_up_begins_the_first_round(tmp_path: Path) -> None:
    train = {"learning_rate": 1e-4, "batch_size": 8, "sft_warmup": {"learning_rate": 1e-3}}
    run = run_small(tmp_path / "run", online_config(rounds=2, train=train))
    warm = run.round(0).warm_up
    notes = [note for note in run.notes() if note["stage"] == "train"]
    assert notes[0]["policy_revision"] == notes[0]["reference_revision"] == folder_revision(warm)
    assert notes[1]["policy_revision"] == folder_revision(run.round(0).policy)
    assert notes[1]["reference_revision"] == folder_revision(warm)
    record = json.loads((warm / "training.jsonl").read_text().splitlines()[0])
    assert (record["settings"]["method"], record["settings"]["learning_rate"]) == ("sft", 1e-3)
    # What all policies began with is no longer there: no other reference takes its place.
    run.round(1).metrics.remove()
    shutil.rmtree(run.round(1).policy)
    weights = warm / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    said = rf"{warm} is damaged \(model.safetensors has .*put it back from a copy, or use a new"
    with pytest.raises(RunError, match=said):
        run_small(run.root, online_config(rounds=2, train=train))
    shutil.rmtree(warm)
    with pytest.raises(RunError, match=rf"{warm} is missing: put it back"):
        run_small(run.root, online_config(rounds=2, train=train))


@pytest.mark.parametrize(
    ("rates", "promote", "begins"),
    [
        ([(0.7, 0.6), (0.7, 0.6)], "winner", [0, 1, 2]),
        ([(0.5, 0.4), (0.7, 0.6)], "winner", [0, 0, 2]),
        ([(0.7, 0.6), (0.5, 0.4)], "winner", [0, 1, 1]),
        ([(0.5, 0.4), (0.5, 0.4)], "winner", [0, 0, 0]),
        ([(0.5, 0.4), (0.5, 0.4)], "always", [0, 1, 2]),
        ([], "winner", [0, 1, 2]),  # nobody measured them
    ],
)
def test_a_round_goes_on_from_the_policy_that_won(
    tmp_path: Path, rates: Any, promote: str, begins: list[int]
) -> None:
    run = RunDir(tmp_path)
    evaluated(run, *rates)
    config = online_config(evaluate={"promote": promote})
    found = [begun_with(config, run, index) for index in range(3)]
    assert [one.previous_index for one in found] == begins
    paths = [Path("start"), run.round(0).policy, run.round(1).policy]
    assert [one.previous for one in found] == [paths[index] for index in begins]
    assert found[-1].before[-1] == found[-1].previous
    assert len(set(found[-1].before)) == len(found[-1].before)


def test_a_policy_that_set_off_a_guard_is_not_promoted(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    won = {"round": 0, "name": "win_rate", "value": 0.9, "low": 0.8, "high": 1.0, "n": 50}
    rows = [{**won, "against": "previous", "labeler": "jury"}]
    rows.append({"round": 0, "name": "kl", "value": 60.0, "against": "start"})
    run.round(0).metrics.replace(EVALUATION, metrics_table(rows))
    for limit, begins in ((100.0, 1), (50.0, 0)):
        train = {**ONLINE, "guards": {"max_kl": limit, "then": "go_on"}}
        config = online_config(train=train, evaluate={})
        assert begun_with(config, run, 1).previous_index == begins


def test_a_policy_that_did_not_win_is_not_promoted(tmp_path: Path) -> None:
    train = {"learning_rate": 1e-12, "batch_size": 8}
    run = run_small(tmp_path / "run", online_config(rounds=2, train=train, evaluate={}))
    notes = [note for note in run.notes() if note["stage"] == "train"]
    assert notes[0]["policy_revision"] == notes[1]["policy_revision"]
    sampled = {
        revision
        for index in (0, 1)
        for revision in run.round(index).candidates.table()["policy_revision"].to_pylist()
    }
    assert sampled == {notes[0]["policy_revision"]}
    # Its opponent is the policy that it came from.
    assert run.match_votes(2, 0).indices()
    assert not run.match_votes(2, 1).indices()


def test_a_fixed_opponent_is_compared_with_every_round(tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", layers=1, width=64)
    config = online_config(
        rounds=2, train={"learning_rate": 1e-4, "batch_size": 8},
        evaluate={"opponent": {"model": str(other)}, "promote": "always"},
    )  # fmt: skip
    run = run_small(tmp_path / "run", config)
    answers = run.answers("opponent").table()
    assert set(answers["policy_revision"].to_pylist()) == {folder_revision(Path(other))}
    for index in (0, 1):
        against = {row["against"] for row in run.round(index).metrics.read(EVALUATION).to_pylist()}
        assert "opponent" in against
        assert run.match_votes(index + 1, "opponent").rows() > 0
    assert "Win rate against the fixed opponent" in run.report.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"evaluate.opponent.engine names the engine 'none'"):
        online_config(evaluate={"opponent": {"model": "m", "engine": "none"}})


def test_a_begun_run_does_not_change_when_it_samples(tmp_path: Path) -> None:
    before = online_config(train=None, evaluate={})
    run = run_small(tmp_path / "run", before)
    with pytest.raises(RunError, match=r"train\.online: .* -> true"):
        run_small(run.root, online_config(evaluate={}))
    # Training on what was sampled may still be added.
    run_small(run.root, online_config(train={"learning_rate": 1e-4}, evaluate={"enabled": False}))
    assert run.round(0).policy.exists()
    other = run_small(tmp_path / "other", online_config(evaluate={"enabled": False}))
    with pytest.raises(RunError, match=r"train\.batch_size: 3 -> 6"):
        run_small(
            other.root,
            online_config(train={**ONLINE, "batch_size": 6}, evaluate={"enabled": False}),
        )
