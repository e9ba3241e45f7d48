"""Guards over training: by hand, and on a policy that is driven into the ground."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prefloop.data.hashing import folder_revision
from prefloop.pipeline.run.metrics import metrics_table
from prefloop.pipeline.run.round_guards import guard_alarms
from prefloop.pipeline.run.run_dir import EVALUATION, RunDir, RunError
from prefloop.training.config import Guards, TrainConfig
from prefloop.training.methods.dpo import Dpo
from prefloop.training.session import watch
from prefloop.training.session.fit import TrainResult, fit
from prefloop.training.session.guards import GuardWatch, watch_of
from prefloop.training.session.job import Job
from prefloop.training.session.snapshots import snapshots_within
from prefloop.training.session.watch import save_snapshot
from tests.helpers.dpo_data import rows, write
from tests.helpers.engine_models import make_model
from tests.helpers.runs import run_small, small_config


def record(step: int, margin: float = 1.0, chosen: float = 0.0, accuracy: float = 0.5) -> dict:
    return {
        "step": step, "rewards/margins": margin, "rewards/chosen": chosen,
        "rewards/accuracies": accuracy,
    }  # fmt: skip


def test_the_mean_of_the_window_counts() -> None:
    watch = GuardWatch(Guards(window=4, max_margin=10, warn_share=0.5), beta=0.1)
    assert watch.see(record(1, 4)) == []
    assert watch.healthy
    # 4, 8: mean 6 is beyond the warning at 5, and not beyond 10.
    [warning] = watch.see(record(2, 8))
    assert (warning.level, warning.guard) == ("warning", "margin")
    assert (warning.value, warning.limit) == pytest.approx((60, 50))  # nats, at beta 0.1
    assert not watch.healthy
    assert watch.see(record(3, 8)) == []  # it has been said
    # 4, 8, 8, 16: 9. Then 8, 8, 16, 12: 11 is beyond 10.
    assert watch.see(record(4, 16)) == []
    [stop] = watch.see(record(5, 12))
    assert (stop.level, stop.step) == ("stop", 5)
    assert (stop.value, stop.limit) == pytest.approx((110, 100))
    assert watch.stopped == stop
    assert "stopped training at step 5: 110 is beyond 100: lower learning_rate" in str(stop)
    assert watch.see(record(6, 100)) == []


def test_it_recovers_from_a_warning() -> None:
    watch = GuardWatch(Guards(window=1, max_margin=10), beta=0.1)
    watch.see(record(1, 6))
    assert not watch.healthy
    watch.see(record(2, 1))
    assert watch.healthy


def test_chosen_answers_that_become_less_likely() -> None:
    # Reward -3 at beta 0.1 is 30 nats less than under the reference.
    watch = GuardWatch(Guards(window=1, max_chosen_drop=40, warn_share=0.5), beta=0.1)
    [warning] = watch.see(record(1, chosen=-3))
    assert (warning.guard, warning.value, warning.limit) == ("chosen_drop", pytest.approx(30), 20)
    [stop] = watch.see(record(2, chosen=-4.1))
    assert stop.value == pytest.approx(41)


def test_perfect_accuracy_warns_once() -> None:
    watch = GuardWatch(Guards(max_perfect_steps=3), beta=0.1)
    said = [watch.see(record(step, accuracy=1.0)) for step in range(1, 6)]
    assert [len(alarms) for alarms in said] == [0, 0, 1, 0, 0]
    assert said[2][0].guard == "perfect_accuracy"
    watch = GuardWatch(Guards(max_perfect_steps=3), beta=0.1)
    for step in range(1, 9):  # broken off before the third
        assert watch.see(record(step, accuracy=1.0 if step % 3 else 0.75)) == []


def answers(step: int, **changes: float) -> dict:
    """What GRPO logs of a step."""
    return {
        "step": step, "kl": 0.1, "reward": 1.0, "reward_std": 0.5, "entropy": 2.0,
        "completions/mean_length": 50.0, "completions/truncated": 0.2,
        "frac_reward_zero_std": 0.0, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("guard", "astray", "value", "limit"),
    [
        ("kl", {"kl": 2.5}, 125, 100),  # nats a token, of 50 tokens
        ("reward_drop", {"reward": -0.1}, 2.2, 2),  # standard deviations of 0.5
        ("length", {"completions/mean_length": 160}, 3.2, 3),
        ("length", {"completions/mean_length": 10}, 5, 3),
        ("entropy", {"entropy": 0.125}, 16, 10),
        ("truncated", {"completions/truncated": 0.64}, 0.55, 0.5),  # of the 0.8 that were whole
    ],
)
def test_answers_that_go_astray_stop_a_reinforcement(
    guard: str, astray: dict, value: float, limit: float
) -> None:
    watch = watch_of(TrainConfig(method="grpo", guards=Guards(window=2)))
    assert [watch.see(answers(step)) for step in (1, 2, 3)] == [[], [], []]
    assert watch.healthy
    seen = [one for step in (4, 5) for one in watch.see(answers(step, **astray))]
    assert [one.level for one in seen][-1] == "stop"
    assert {one.guard for one in seen} == {guard}
    assert watch.stopped is not None
    assert (watch.stopped.step, watch.stopped.value) == (5, pytest.approx(value))
    assert watch.stopped.limit == limit
    at = 1 + (limit - 1) / 2 if guard in ("length", "entropy") else limit / 2
    assert seen[0].limit == at, "the warning comes half-way"
    off = watch_of(TrainConfig(method="rloo", guards=Guards(window=1, enabled=False)))
    assert off.see(answers(1, **astray)) == []


def test_rewards_that_tell_nothing_apart_warn_once() -> None:
    watch = watch_of(TrainConfig(method="rloo", guards=Guards(max_perfect_steps=3)))
    flat = [watch.see(answers(step, frac_reward_zero_std=1.0, reward_std=0)) for step in range(5)]
    assert [[one.guard for one in alarms] for alarms in flat] == [[], [], ["flat_rewards"], [], []]
    # Without a reference there is no KL, and TRL logs none.
    none = {key: one for key, one in answers(1).items() if key != "kl"}
    assert watch.see(none) == []


def test_limits_can_be_off() -> None:
    off = GuardWatch(Guards(enabled=False, max_margin=1), beta=0.1)
    assert off.see(record(1, 600, -600, 1.0)) == []
    no_limits = Guards(max_margin_nats=None, max_chosen_drop=None, max_perfect_steps=None)
    assert GuardWatch(no_limits, beta=0.1).see(record(1, 600, -600, 1.0)) == []
    assert GuardWatch(Guards(), beta=0.1).see({"step": 1, "loss": 0.7}) == []


def test_the_same_limit_holds_for_every_loss() -> None:
    """Tulu 3's loss at beta 5 logs 50 times what DPO at 0.1 does of the same policy."""
    for beta in (0.1, 5.0):
        watch = GuardWatch(Guards(window=1), beta=beta)
        assert watch.see(record(1, margin=60 * beta, chosen=-20 * beta)) == []
        [stop] = watch.see(record(2, margin=201 * beta))
        assert (stop.guard, stop.limit) == ("margin", 200)


def test_no_guard_stops_before_its_window() -> None:
    watch = GuardWatch(Guards(window=3), beta=0.1)
    levels = [[one.level for one in watch.see(record(step, 600))] for step in (1, 2, 3)]
    assert levels == [["warning"], [], ["stop"]]


def test_losses_without_a_reference_are_compared_with_their_first_steps() -> None:
    """What SFT's loss logs as a reward is minus log p itself: 300 nats from the first step on."""

    def seen(chosen: float, rejected: float) -> list[str]:
        logs = {"step": 1, "rewards/chosen": 0.1 * chosen, "rewards/margins": 500.0,
                "logps/chosen": chosen, "logps/rejected": rejected}  # fmt: skip
        return [f"{one.guard} {one.level}" for one in watch.see(logs)]

    watch = GuardWatch(Guards(window=1), beta=0.1, has_reference=False)
    assert seen(-300, -310) == []
    assert seen(-330, -345) == []
    assert seen(-360, -380) == ["chosen_drop warning"]
    assert seen(-410, -420) == ["chosen_drop stop"]
    watch = GuardWatch(Guards(window=1), beta=0.1, has_reference=False)
    assert [seen(-300, -310), seen(-300, -520)] == [[], ["margin stop"]]


def test_a_share_counts_beyond_the_starting_policys(tmp_path: Path) -> None:
    folder = RunDir(tmp_path).round(0)

    def alarms(now: float, start: float) -> dict[str, bool]:
        rows = [
            {"round": 0, "name": "truncated_share", "value": value, "against": against}
            for value, against in ((now, None), (start, "start"))
        ]
        folder.metrics.replace(EVALUATION, metrics_table(rows))
        return {one.guard: one.stops for one in guard_alarms(folder, Guards())}

    assert alarms(0.6, 0.6) == {}
    assert alarms(0.75, 0.6) == {"truncated": False}
    assert alarms(0.85, 0.6) == {"truncated": True}
    assert alarms(0.55, 0.0) == {"truncated": True}


def test_snapshots_of_large_models_are_fewer() -> None:
    assert snapshots_within(10, 540 * 10**6) == 10
    assert snapshots_within(10, 28 * 10**9) == 2
    assert snapshots_within(10, 12 * 10**9) == 5
    assert snapshots_within(1, 300 * 10**9) == 1


def test_what_a_snapshot_writes_is_known_before(policy: Path, shard: Path, tmp_path: Path) -> None:
    sizes: dict[str, list[int]] = {}

    def noting(name: str):
        def save(trainer, folder, step):
            save_snapshot(trainer, folder, step)
            written = sum(one.stat().st_size for one in (folder / str(step)).glob("*.safetensors"))
            sizes.setdefault(name, []).append(abs(written - watch.saved_bytes(trainer)))

        return save

    for name, lora in (("weights", None), ("adapter", {"r": 2})):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(watch, "save_snapshot", noting(name))
            train(policy, shard, tmp_path / name, lora=lora, max_pairs=4, epochs=1)
    assert sizes.keys() == {"weights", "adapter"}
    assert max(max(each) for each in sizes.values()) < 10_000  # of their headers


TIGHT = {"max_margin": 2.0, "window": 5, "snapshots": 40}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("policy"), layers=1, width=64))


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("triples") / "part-0.parquet", rows(64))


def train(policy: Path, shard: Path, out: Path, **settings) -> TrainResult:
    config = TrainConfig(**{"learning_rate": 1e-2, "batch_size": 1, "epochs": 3, **settings})
    return fit(Job(policy, policy, (shard,), out / "policy", config, seed=1), Dpo())


def test_batch_size_1_blows_the_margin_up_and_the_guard_catches_it(
    policy: Path, shard: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unguarded = train(policy, shard, tmp_path / "a", guards={"enabled": False})
    assert unguarded.guard is None
    assert max(log["rewards/margins"] for log in unguarded.history) > 5
    guarded = train(policy, shard, tmp_path / "b", guards=TIGHT)
    guard = guarded.guard
    assert guard is not None
    assert (guard["guard"], guard["level"]) == ("margin", "stop")
    assert guarded.steps == guard["step"] < unguarded.steps
    assert 0 < guard["restored_step"] < guard["step"]
    assert "guard margin warns" in caplog.text
    assert "guard margin stopped training" in caplog.text
    # What is saved are the weights of the step that was put aside: those of a training that ends
    # there by itself would have another schedule, so they are compared with the history.
    assert folder_revision(guarded.policy_path) != folder_revision(policy)
    at = guarded.history[guard["restored_step"] - 1]
    assert at["rewards/margins"] < guard["limit"]
    assert not (tmp_path / "b" / ".policy.checkpoints").exists()
    # The same call finds what it did.
    again = train(policy, shard, tmp_path / "b", guards=TIGHT)
    assert again.guard == guard


def test_without_healthy_weights_the_first_ones_are_kept(
    policy: Path, shard: Path, tmp_path: Path
) -> None:
    result = train(policy, shard, tmp_path, guards={"max_margin": 1e-6, "window": 1})
    assert result.guard is not None
    assert result.guard["restored_step"] == 0
    [weights] = result.policy_path.glob("*.safetensors")
    assert weights.read_bytes() == next(policy.glob("*.safetensors")).read_bytes()


def test_a_killed_training_remembers_what_its_guards_saw(
    policy: Path, shard: Path, tmp_path: Path
) -> None:
    settings = {"guards": TIGHT, "save_steps": 5}
    whole = train(policy, shard, tmp_path / "whole", **settings)
    assert whole.guard is not None
    script = f"""
import json, os, signal
from pathlib import Path
from prefloop.training.methods.dpo import Dpo
from prefloop.training.config import TrainConfig
from prefloop.training.session.fit import fit
from prefloop.training.session.job import Job
seen = []
def on_step(record):
    if record["step"] == {whole.guard["step"] - 1}:
        os.kill(os.getpid(), signal.SIGKILL)
settings = json.loads('''{json.dumps(settings)}''')
config = TrainConfig(learning_rate=1e-2, batch_size=1, epochs=3, **settings)
job = Job(Path({str(policy)!r}), Path({str(policy)!r}), (Path({str(shard)!r}),),
          Path({str(tmp_path / "killed" / "policy")!r}), config, seed=1)
fit(job, Dpo(), on_step=on_step)
"""
    (tmp_path / "killed").mkdir()
    killed = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    resumed = train(policy, shard, tmp_path / "killed", **settings)
    assert resumed.guard == whole.guard
    [one], [other] = (path.policy_path.glob("*.safetensors") for path in (resumed, whole))
    assert one.read_bytes() == other.read_bytes()


def test_a_run_stops_and_goes_on_as_configured(tmp_path: Path) -> None:
    train = {"learning_rate": 1e-3, "batch_size": 4, "guards": {"max_margin": 1e-4, "window": 1}}
    run = RunDir(tmp_path / "run")
    with pytest.raises(RunError, match=r"guard margin stopped training at step .*=go_on"):
        run_small(run.root, small_config(train=train))
    with pytest.raises(RunError, match="guard margin stopped training"):  # and again
        run_small(run.root, small_config(train=train))
    # Killed before the journal got its line: the guard counts all the same, and the line is made.
    lines = run.journal.read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"stage": "train"' not in line]
    assert len(kept) == len(lines) - 1
    run.journal.write_text("".join(kept))
    with pytest.raises(RunError, match="guard margin stopped training"):
        run_small(run.root, small_config(train=train))
    [note] = [note for note in run.notes() if note["stage"] == "train"]
    assert note["learning_rate"] == 1e-3
    assert note["guard"]["restored_step"] < note["guard"]["step"]
    train["guards"]["then"] = "go_on"
    run_small(run.root, small_config(train=train))
    assert run.round(0).metrics.exists(EVALUATION)
    assert run.report.exists()


@pytest.mark.parametrize(
    ("accuracies", "low", "warns"),
    [
        ([1.0] * 12, 0.45, True),
        ([0.5] * 4 + [1.0] * 10, 0.5, True),
        ([1.0] * 12, 0.55, False),  # held-out pairs are told apart too
        ([1.0] * 11 + [0.9], 0.45, False),
        ([1.0] * 4, 0.45, False),  # too few steps to say
    ],
)
def test_training_that_knows_its_pairs_by_heart(
    tmp_path: Path, accuracies: list[float], low: float, warns: bool
) -> None:
    run = RunDir(tmp_path / "run")
    curves = [
        {"round": 0, "name": "rewards/accuracies", "value": value, "step": step}
        for step, value in enumerate(accuracies, start=1)
    ]
    run.round(0).metrics.write(0, metrics_table(curves))
    heldout = {"round": 0, "name": "reward_accuracy", "value": 0.6, "low": low, "high": 0.9}
    run.round(0).metrics.replace(EVALUATION, metrics_table([heldout]))
    alarms = guard_alarms(run.round(0), Guards())
    assert [(alarm.guard, alarm.stops) for alarm in alarms] == [("overfit", False)] * warns


def test_a_policy_that_went_astray_is_found_in_the_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Far enough for eight answers to tell: nearer, the estimate may be below 0 by chance.
    train = {"learning_rate": 1e-2, "batch_size": 4, "guards": {"max_kl": 1e-6, "then": "go_on"}}
    config = small_config(train=train)
    run = run_small(tmp_path / "run", config)
    assert "guard kl of the new policy is beyond its limit" in caplog.text
    assert config.train is not None
    alarms = {alarm.guard: alarm for alarm in guard_alarms(run.round(0), config.train.guards)}
    assert alarms["kl"].stops
    values = {
        (row["name"], row["against"]): row["value"]
        for row in run.round(0).metrics.read(EVALUATION).to_pylist()
    }
    assert alarms["kl"].value == values["kl", "start"]
    train["guards"]["then"] = "stop"
    with pytest.raises(RunError, match="guard kl of the new policy is beyond its limit"):
        run_small(run.root, small_config(train=train))
    lengths = values["mean_tokens", None] / values["mean_tokens", "start"]
    ratio = max(lengths, 1 / lengths)
    limits = {"max_length_ratio": 1 + (ratio - 1) / 2 if ratio > 1 else 1.0001, "max_kl": None}
    other = Guards.model_validate(limits)
    assert {alarm.guard for alarm in guard_alarms(run.round(0), other)} == (
        {"length"} if ratio > 1 else set()
    )
    assert guard_alarms(run.round(0), Guards(enabled=False)) == []
    assert guard_alarms(run.round(0), None) == []
