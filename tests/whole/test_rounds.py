"""What a round trains on, and when a run has had enough rounds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from prefloop.data.embedded import resolve_embedded
from prefloop.data.errors import NothingCameOut
from prefloop.data.hashing import folder_revision
from prefloop.data.prompts.load import load_prompts
from prefloop.data.shards import ShardFolder
from prefloop.pipeline.config import ConfigError, RunConfig
from prefloop.pipeline.plan.plan import make_plan
from prefloop.pipeline.report.headline import headline
from prefloop.pipeline.run.metrics import metrics_table
from prefloop.pipeline.run.promotion import PROMOTION, keeping, plateau, verdicts
from prefloop.pipeline.run.run_dir import EVALUATION, RunDir
from prefloop.pipeline.run.status import collect_status
from prefloop.pipeline.stages.dataset.layout import split_of
from prefloop.pipeline.stages.prompts import round_rows
from prefloop.training.config import TrainConfig
from prefloop.training.errors import TrainingError
from prefloop.training.inputs.pairs import add_replay, read_triples, token_pairs
from prefloop.training.methods.dpo import Dpo
from prefloop.training.policy.averaging import average_policies
from prefloop.training.policy.checkpoints import load_tokenizer
from prefloop.training.session.fit import fit
from prefloop.training.session.job import Job
from tests.helpers.dpo_data import rows, write
from tests.helpers.engine_models import make_model
from tests.helpers.runs import JUDGE, VERIFIER, dataset_rows, run_small, small_config


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("policy"), layers=1, width=64))


def answers(pairs, tokenizer) -> list[str]:
    return [tokenizer.decode(ids) for ids in pairs.chosen]


def test_replay_draws_its_share_from_earlier_rounds(policy: Path, tmp_path: Path) -> None:
    fresh = write(tmp_path / "fresh.parquet", rows(30, seed=1))
    earlier = write(tmp_path / "earlier.parquet", rows(100, seed=2))
    tokenizer = load_tokenizer(policy)

    def read(share: float, seed: int = 0):
        mixed = add_replay(read_triples([fresh]), [earlier], share=share, seed=seed)
        return token_pairs(mixed, tokenizer, max_length=512)

    # 30 fresh pairs are three quarters of 40.
    mixed = read(0.25)
    assert len(mixed) == 40
    alone = answers(token_pairs(read_triples([fresh]), tokenizer, max_length=512), tokenizer)
    assert answers(mixed, tokenizer)[:30] == alone
    assert read(0.25).digest() == mixed.digest()
    assert read(0.25, seed=1).digest() != mixed.digest()
    assert len(read(0.9)) == 130  # as far as there are so many


def test_a_curriculum_begins_with_the_largest_margin(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triples = rows(12)
    for number, row in enumerate(triples):
        row["margin"] = ((5 * number) % 12) / 12
    shard = write(tmp_path / "t.parquet", triples)
    by_margin = sorted(triples, key=lambda row: -row["margin"])
    from prefloop.training.trainers.pair_trainer import PairTrainer

    seen: list[list[int]] = []
    loss = PairTrainer._compute_loss

    def spy(self, model, inputs, return_outputs):
        mask = inputs["completion_mask"].bool()
        half = len(mask) // 2
        seen.extend(
            ids[own].tolist() for ids, own in zip(inputs["input_ids"][:half], mask, strict=False)
        )
        return loss(self, model, inputs, return_outputs)

    monkeypatch.setattr(PairTrainer, "_compute_loss", spy)
    config = TrainConfig(batch_size=4, order="margin")
    fit(Job(policy, policy, (shard,), tmp_path / "policy", config, seed=3), Dpo())
    tokenizer = load_tokenizer(policy)
    texts = [tokenizer.decode(ids[:-1]) for ids in seen]
    assert texts == [row["chosen"][0]["content"] for row in by_margin]


def test_pairs_of_like_length_share_a_batch(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triples = rows(64)
    for number, row in enumerate(triples):
        row["prompt"][0]["content"] = "word " * (1 + (17 * number) % 64)
    shard = write(tmp_path / "t.parquet", triples)
    from prefloop.training.trainers.pair_trainer import PairTrainer

    padding: dict[str, list[float]] = {"random": [], "length": []}
    loss = PairTrainer._compute_loss

    def spy(self, model, inputs, return_outputs):
        mask = inputs["attention_mask"].float()
        padding[self.settings.order].append(1 - float(mask.mean()))
        return loss(self, model, inputs, return_outputs)

    monkeypatch.setattr(PairTrainer, "_compute_loss", spy)
    for order in padding:
        config = TrainConfig(batch_size=4, order=order)
        fit(Job(policy, policy, (shard,), tmp_path / order / "policy", config, seed=3), Dpo())
    assert len(padding["length"]) == len(padding["random"]) == 16
    assert np.mean(padding["length"]) < 0.6 * np.mean(padding["random"])


@pytest.mark.parametrize("order", ["random", "length", "margin"])
def test_an_interrupted_round_ends_with_the_same_policy(
    policy: Path, tmp_path: Path, order: str
) -> None:
    shard = write(tmp_path / "t.parquet", rows(24))

    class Interrupted(Exception):
        pass

    def stop(record: dict) -> None:
        if record["step"] == 9:  # in the second of two epochs
            raise Interrupted

    def train(out: Path, **more):
        config = TrainConfig(batch_size=4, order=order, epochs=2, save_steps=4, learning_rate=1e-3)
        return fit(Job(policy, policy, (shard,), out / "policy", config, seed=3), Dpo(), **more)

    whole = train(tmp_path / "whole")
    assert whole.steps == 12
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", on_step=stop)
    parts = train(tmp_path / "parts")
    assert folder_revision(parts.policy_path) == folder_revision(whole.policy_path)


def evaluated(run: RunDir, *rates: tuple[float, float]) -> None:
    """Rounds with these win rates against the policy before, and their lower ends."""
    for index, (value, low) in enumerate(rates):
        row = {"round": index, "name": "win_rate", "value": value, "low": low, "high": 0.9, "n": 50}
        table = metrics_table(
            [
                {**row, "against": "previous", "labeler": "jury"},
                {**row, "value": 0.9, "low": 0.8, "against": "start", "labeler": "jury"},
                {**row, "value": 0.9, "low": 0.8, "against": "previous", "labeler": "judge"},
            ]
        )
        run.round(index).metrics.replace(EVALUATION, table)


@pytest.mark.parametrize(
    ("rates", "patience", "ends", "best"),
    [
        ([(0.7, 0.6)], 1, False, 0),
        ([(0.6, 0.5)], 1, True, None),  # an interval that touches a half is no win
        ([(0.7, 0.6), (0.55, 0.45)], 1, True, 0),
        ([(0.7, 0.6), (0.55, 0.45)], 2, False, 0),
        ([(0.7, 0.6), (0.55, 0.45), (0.5, 0.4)], 2, True, 0),
        ([(0.7, 0.6), (0.55, 0.45), (0.6, 0.52)], 2, False, 2),
        ([(0.4, 0.3)], None, False, None),
        ([], 1, False, None),
    ],
)
def test_when_a_run_ends(tmp_path: Path, rates, patience, ends: bool, best: int | None) -> None:
    run = RunDir(tmp_path)
    evaluated(run, *rates)
    assert len(verdicts(run)) == len(rates)
    why = plateau(patience, run)
    assert (why is not None) == ends
    found = keeping(run).folder
    assert (found.index if found else None) == best
    if why:
        assert ("is worth keeping" in why) == (best is None)


def test_a_run_that_does_not_improve_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # A learning rate that changes nothing: no policy wins against the one before it.
    config = small_config(
        rounds=3, train={"learning_rate": 1e-12, "batch_size": 16}, evaluate={"patience": 1}
    )
    run = run_small(tmp_path / "run", config)
    assert len(run.rounds()) == 1
    assert "did not win against the policy before it" in caplog.text
    assert collect_status(run).state == "done: ended after round 0, which did not win"
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*.parquet")}
    assert len(run_small(run.root, config).rounds()) == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "keep      the starting policy  (round 0 did not win against" in headline(run)
    assert isinstance(run.round(0).metrics, ShardFolder)
    # Three planned rounds share one chance: promotion goes by a wider interval than is shown.
    rows = {
        (row["name"], row["against"]): row
        for row in run.round(0).metrics.read(EVALUATION).to_pylist()
        if row["labeler"] == "jury"
    }
    for against in ("previous", "start"):
        shown, strict = rows["win_rate", against], rows[PROMOTION, against]
        assert strict["value"] == shown["value"]
        assert strict["low"] < shown["low"] <= shown["high"] < strict["high"]


def test_a_round_that_is_taken_back_leaves_the_dataset_of_those_before_it(tmp_path: Path) -> None:
    label = {"labelers": [{"type": "verifier", "function": "tests.helpers.scores:length"}]}

    def config_of(seed: int) -> RunConfig:
        return small_config(
            seed=seed, rounds=2, label=label, filter={"filters": []}, train={"batch_size": 1},
            sample={"n": 3, "max_tokens": 16, "prompts_per_round": 1}, write={"test_share": 0.5},
            evaluate={"enabled": False},
        )  # fmt: skip

    def splits(seed: int) -> list[str]:
        ids = load_prompts(config_of(seed).prompts, seed=seed).train["prompt_id"].to_pylist()
        drawn = [round_rows(len(ids), 1, index, seed)[0] for index in range(2)]
        return [split_of(ids[row], seed=seed, test_share=0.5) for row in drawn]

    config = config_of(next(seed for seed in range(50) if splits(seed) == ["train", "test"]))
    with pytest.raises(NothingCameOut, match="round 1 kept 1 of its pairs, all in the test split"):
        run_small(tmp_path / "run", config)
    run = RunDir(tmp_path / "run")
    run.require_whole_dataset()
    assert "1 triples" in run.card.read_text(encoding="utf-8")
    assert list(dataset_rows(run)) == ["train-round-000-00000.parquet"]


def test_judges_that_only_evaluate(tmp_path: Path) -> None:
    """The policy is not measured by what labelled its training data."""
    config = small_config(
        label={"labelers": [JUDGE]},
        train={"learning_rate": 1e-3, "batch_size": 8},
        evaluate={"judges": [VERIFIER, {**JUDGE, "name": "second", "orders": "one"}]},
    )
    run = run_small(tmp_path / "run", config)
    labelled = set(run.round(0).votes.table()["labeler"].to_pylist())
    compared = set(run.match_votes(1, 0).table()["labeler"].to_pylist())
    assert (labelled, compared) == ({"judge"}, {"verifier", "second"})
    rows = run.round(0).metrics.read(EVALUATION).to_pylist()
    assert {row["labeler"] for row in rows if row["name"] == "win_rate"} == {
        "jury", "verifier", "second",
    }  # fmt: skip
    planned = make_plan(config).as_dict()
    named = json.dumps(planned)
    assert "second" in named
    with pytest.raises(ConfigError, match="both have a 'judge'"):
        small_config(evaluate={"judges": [JUDGE]})
    with pytest.raises(ConfigError, match="give one or the other"):
        small_config(evaluate={"judges": [{**JUDGE, "name": "x"}], "labelers": ["judge"]})


def test_the_average_of_the_policies_is_the_reference(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    train = {"learning_rate": 1e-3, "batch_size": 8, "reference": "average"}
    config = small_config(rounds=2, train=train, evaluate={"enabled": False})
    run = run_small(tmp_path / "run", config)
    assert not (run.round(0).root / "reference").exists()
    reference = run.round(1).root / "reference"
    policies = [Path(resolve_embedded("embedded:policy")), run.round(0).policy]
    first, second = (load_file(policy / "model.safetensors") for policy in policies)
    mean = load_file(reference / "model.safetensors")
    for name, value in mean.items():
        np.testing.assert_allclose(value, (first[name] + second[name]) / 2, atol=1e-6)
    [note] = [n for n in run.notes() if n["stage"] == "train" and n["round"] == 1]
    assert note["reference_revision"] == folder_revision(reference)
    with pytest.raises(ConfigError, match="average needs whole models"):
        small_config(train={**train, "lora": {}})
    with pytest.raises(TrainingError, match="has other weights than"):
        average_policies(
            [policies[0], Path(make_model(tmp_path / "other", layers=1, width=64))], tmp_path / "x"
        )


def test_a_run_that_was_begun_under_other_defaults_trains_its_next_round_as_the_first(
    tmp_path: Path,
) -> None:
    said = {"learning_rate": 5e-7, "gradient_accumulation": 1, "beta": 0.1}
    always = {"promote": "always"}
    run = run_small(
        tmp_path / "run", small_config(train={"lora": {"r": 4}, **said}, evaluate=always)
    )
    first = folder_revision(run.round(0).policy)
    left_out = small_config(rounds=2, train={"lora": {"r": 4}}, evaluate=always)
    assert left_out.train is not None
    assert left_out.train.learning_rate == 5e-6
    run_small(run.root, left_out)
    assert folder_revision(run.round(0).policy) == first
    notes = [note for note in run.notes() if note["stage"] == "train"]
    assert [{key: note[key] for key in said} for note in notes] == [said, said]
    assert run.read_config()["train"]["learning_rate"] == 5e-7
