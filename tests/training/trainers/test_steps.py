"""What goes into an optimiser step: the order of rows, and passes that are not too large."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefloop.training.config import TrainConfig
from prefloop.training.methods.dpo import Dpo
from prefloop.training.methods.kto import Kto, mismatched_answers
from prefloop.training.methods.offline import train_offline
from prefloop.training.methods.online import OnlineDpo
from prefloop.training.methods.reinforcement import Reinforcement
from prefloop.training.session.checkpoint_folder import MARKER
from prefloop.training.session.fit import fit
from prefloop.training.session.job import Job
from prefloop.training.session.on_policy import Group, Prompts
from prefloop.training.session.steps import GROUPED, SHUFFLED
from tests.helpers.dpo_data import WORDS, rows, triple, write
from tests.helpers.engine_models import make_model

ASKED = [[{"role": "user", "content": f"Write one sentence. {n}"}] for n in range(8)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("policy"), layers=1, width=64))


# Order


def lengths_of(n: int = 1000) -> np.ndarray:
    return np.random.default_rng(0).lognormal(4, 0.7, n).astype(int)


def batches_of(sampler: Any, size: int) -> list[np.ndarray]:
    order = np.array(list(sampler))
    assert sorted(order) == list(range(len(order)))  # each row once
    return [order[start : start + size] for start in range(0, len(order), size)]


def test_like_lengths_share_a_batch_and_batches_come_in_no_order_of_length() -> None:
    from prefloop.training.trainers.order import GroupedLengths, LikeLengths

    lengths = lengths_of()
    for seed in range(5):
        sampler = LikeLengths(lengths, 8, seed)
        batches = batches_of(sampler, 8)
        means = np.array([lengths[batch].mean() for batch in batches])
        within = np.mean([lengths[batch].std() for batch in batches])
        assert within < 0.1 * lengths.std()
        place = np.arange(len(means))
        assert abs(np.corrcoef(place, means)[0, 1]) < 0.25
        # That of earlier versions falls from long to short.
        old = batches_of(GroupedLengths(lengths, 8, seed), 8)
        stretch = [lengths[batch].mean() for batch in old[: len(old) // 4]]
        assert np.corrcoef(np.arange(len(stretch)), stretch)[0, 1] < -0.7
        assert lengths.max() in lengths[batches[0]]  # what is too long fails at once
        sampler.set_epoch(1)
        again = batches_of(sampler, 8)
        assert not np.array_equal(np.concatenate(again), np.concatenate(batches))
        assert {*map(frozenset, map(tuple, again))} != {*map(frozenset, map(tuple, batches))}


@pytest.mark.parametrize("rows", [1000, 1003, 37, 5, 1])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_sees_short_and_long_rows(rows: int, accumulation: int) -> None:
    from prefloop.training.trainers.order import LikeLengths

    lengths = lengths_of(rows)
    batches = batches_of(LikeLengths(lengths, 8, 3, accumulation=accumulation), 8)
    full = len(batches) // accumulation if rows >= 1000 else 0
    means = [
        np.mean([lengths[batch].mean() for batch in batches[step * accumulation :][:accumulation]])
        for step in range(full)
    ]
    if full and accumulation == 4:
        alone = np.std([lengths[batch].mean() for batch in batches])
        assert np.std(means) < alone / 3  # a draw among all would give a half


def test_rows_are_drawn_by_seed_and_epoch() -> None:
    from prefloop.training.trainers.order import EpochRows, LikeLengths

    for make in (lambda seed: EpochRows(50, seed), lambda seed: LikeLengths(range(50), 4, seed)):
        one, same, other = make(1), make(1), make(2)
        assert list(one) == list(same) != list(other)
        one.set_epoch(3)
        assert list(one) != list(same)
        same.set_epoch(3)  # as a resumed training does
        assert list(one) == list(same)


def uneven(n: int = 24) -> list[dict[str, Any]]:
    draw = np.random.default_rng(4)

    def text(end: str) -> str:
        return " ".join(draw.choice(WORDS, int(draw.integers(1, 12)))) + end

    return [triple(row, text("!"), text(".")) for row in range(n)]


class KilledError(Exception):
    """Stands for kill -9 between two steps."""


def kill_at(step: int) -> Any:
    def on_step(record: dict[str, float]) -> None:
        if record["step"] == step:
            raise KilledError

    return on_step


def trained(policy: Path, folder: Path, shard: Path, on_step: Any = None, **settings: Any) -> Any:
    config = TrainConfig(
        **{"batch_size": 4, "learning_rate": 1e-3, "save_steps": 2, "epochs": 2, **settings}
    )
    job = Job(policy, policy, (shard,), folder / "policy", config, seed=1)
    return train_offline(job, on_step=on_step)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation": 2},
        {"method": "sft"},
        {"method": "kto"},
        {"method": "kto", "order": "random"},
    ],
)
def test_a_resumed_training_goes_on_in_its_order(
    policy: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    shard = write(tmp_path / "t.parquet", uneven())
    whole = trained(policy, tmp_path / "whole", shard, **settings)
    assert whole.how["batches"] == SHUFFLED
    with pytest.raises(KilledError):
        trained(policy, tmp_path / "cut", shard, kill_at(5), **settings)
    steps: list[Any] = []
    resumed = trained(policy, tmp_path / "cut", shard, steps.append, **settings)
    assert steps[0]["step"] == 5
    assert resumed.history == whole.history
    # Where nothing is learned, an epoch in the same order would be the same again.
    still = trained(policy, tmp_path / "still", shard, **{**settings, "learning_rate": 1e-30})
    first, second = np.array_split([step["entropy"] for step in still.history], 2)
    assert not np.allclose(first, second, rtol=1e-6)


def test_an_interrupted_training_of_an_earlier_version_goes_on_in_the_earlier_order(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write(tmp_path / "t.parquet", uneven())
    from prefloop.training.session import fit as fit_module

    with monkeypatch.context() as earlier:
        earlier.setattr(fit_module, "order_begun", lambda *_: GROUPED)
        whole = trained(policy, tmp_path / "whole", shard)
        with pytest.raises(KilledError):
            trained(policy, tmp_path / "cut", shard, kill_at(5))
    marks = list((tmp_path / "cut").glob(f".policy.checkpoints/*/{MARKER}"))
    assert marks
    assert all(len(one.read_text().split()) == 1 for one in marks)  # the bare fingerprint
    resumed = trained(policy, tmp_path / "cut", shard)
    assert resumed.history == whole.history
    assert resumed.how["batches"] == GROUPED
    now = trained(policy, tmp_path / "now", shard)
    assert now.history != whole.history
    # And one of this version is none that an earlier one would go on with.
    with pytest.raises(KilledError):
        trained(policy, tmp_path / "new", shard, kill_at(5))
    [mark, *_] = (tmp_path / "new").glob(f".policy.checkpoints/*/{MARKER}")
    assert mark.read_text().split()[1:] == [SHUFFLED]
    record = json.loads((now.policy_path / "training.jsonl").read_text().splitlines()[0])
    assert record["how"]["batches"] == SHUFFLED


def test_no_answer_stands_behind_its_own_prompt() -> None:
    """Also where the last batch is one answer, and where prompts have several."""
    for answers_each in (1, 2, 4):
        prompts = [np.array([n // answers_each], dtype=np.int32) for n in range(7)]
        for batch_size in (2, 3, 6):
            # Each answer says whose it is.
            shifted = mismatched_answers(prompts, prompts, batch_size)
            assert all(one[0] != other[0] for one, other in zip(prompts, shifted, strict=True))


# Passes


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def assert_same_step(one: Path, other: Path, start: Path) -> None:
    """Both moved from ``start``, by the same."""
    first, second, begun = weights(one), weights(other), weights(start)
    moved = math.sqrt(sum(float((first[name] - begun[name]).square().sum()) for name in begun))
    apart = math.sqrt(sum(float((first[name] - second[name]).square().sum()) for name in begun))
    assert moved > 1e-3
    assert apart < 1e-5 * moved


STEP: dict[str, Any] = {
    "learning_rate": 1.0, "warmup_ratio": 0, "lr_scheduler": "constant", "max_grad_norm": 0,
}  # fmt: skip


@pytest.fixture
def plain_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights move by the gradient itself: Adam's first step has but its sign."""
    import torch
    from transformers import Trainer

    def create(self: Any, *_: Any) -> Any:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        return self.optimizer

    monkeypatch.setattr(Trainer, "create_optimizer", create)


@pytest.mark.parametrize("loss", [("sigmoid",), ("sigmoid", "sft", "soft"), ("orpo",)])
@pytest.mark.usefixtures("plain_descent")
def test_an_online_step_of_many_pairs_goes_through_the_model_in_parts(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: tuple[str, ...]
) -> None:
    from prefloop.training.trainers.pair_trainer import PairTrainer

    sizes: list[int] = []
    compute = PairTrainer._compute_loss

    def spy(self: Any, model: Any, inputs: Any, return_outputs: bool) -> Any:
        sizes.append(len(inputs["input_ids"]) // 2)
        return compute(self, model, inputs, return_outputs)

    monkeypatch.setattr(PairTrainer, "_compute_loss", spy)
    shard = write(tmp_path / "t.parquet", uneven(10))
    reference = Path(make_model(tmp_path / "reference", layers=1, width=64, seed=5))

    def once(name: str, **more: Any) -> Any:
        config = TrainConfig(online=True, loss=loss, **STEP, **more)
        job = Job(policy, reference, (), tmp_path / name, config, seed=1)
        return fit(job, OnlineDpo(Prompts(ASKED, 8), lambda leg, now: [shard]))

    whole = once("whole", batch_size=10)
    assert sizes == [10]
    for more in ({"batch_size": 4}, {"batch_size": 2, "gradient_accumulation": 2}):
        sizes.clear()
        parts = once(f"parts-{more['batch_size']}", **more)
        assert len(sizes) == math.ceil(10 / more["batch_size"])
        assert max(sizes) <= more["batch_size"]
        assert_same_step(parts.policy_path, whole.policy_path, policy)
        [one], [other] = parts.history, whole.history
        for name in ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
@pytest.mark.usefixtures("plain_descent")
def test_reinforcement_in_parts_is_that_in_one(policy: Path, tmp_path: Path, method: str) -> None:
    other = Path(make_model(tmp_path / "reference", layers=1, width=64, seed=5))
    draw = np.random.default_rng(2)
    groups = [
        Group(
            [" ".join(draw.choice(WORDS, 1 + int(draw.integers(6)))) for _ in range(3)],
            [True, False, True], draw.normal(size=3).tolist(),
        )
        for _ in range(4)
    ]  # fmt: skip

    def once(name: str, **more: Any) -> Path:
        config = TrainConfig(method=method, beta=0.1, **STEP, **more)
        made = Reinforcement(
            Prompts(ASKED[:4], 4), lambda leg, now: groups, group_size=3, temperature=1.0,
            max_tokens=40,
        )  # fmt: skip
        return fit(Job(policy, other, (), tmp_path / name, config, seed=1), made).policy_path

    whole = once("whole", batch_size=12)
    for size in (6, 3):
        parts = once(f"parts-{size}", batch_size=size, gradient_accumulation=12 // size)
        assert_same_step(parts, whole, policy)


def test_offline_passes_are_of_batch_size(policy: Path, tmp_path: Path) -> None:
    shard = write(tmp_path / "t.parquet", rows(10))
    config = TrainConfig(batch_size=4, gradient_accumulation=2)
    result = fit(Job(policy, policy, (shard,), tmp_path / "p", config, seed=1), Dpo())
    assert result.steps == 2
    config = TrainConfig(method="kto", batch_size=4, gradient_accumulation=2)
    result = fit(Job(policy, policy, (shard,), tmp_path / "k", config, seed=1), Kto())
    assert result.steps == math.ceil(math.ceil(result.examples / 4) / 2)
