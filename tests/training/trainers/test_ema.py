"""A reference that follows the policy: where it is after some steps, and after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prefloop.data.hashing import folder_revision
from prefloop.training.config import TrainConfig
from prefloop.training.methods.dpo import Dpo
from prefloop.training.session.fit import fit
from prefloop.training.session.job import Job
from prefloop.training.trainers import ema
from tests.helpers.dpo_data import rows, write
from tests.helpers.engine_models import make_model

DECAY = 0.75


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("policy"), layers=1, width=64))


def train(policy: Path, out: Path, on_step: Any = None, **settings: Any) -> Any:
    shard = write(out.with_suffix(".parquet"), rows(16))
    config = TrainConfig(
        **{
            "reference": "ema", "ema_decay": DECAY, "batch_size": 4, "learning_rate": 1e-3,
            "warmup_ratio": 0, "save_steps": 2, **settings,
        }
    )  # fmt: skip
    return fit(Job(policy, policy, (shard,), out, config, seed=3), Dpo(), on_step=on_step)


def test_the_reference_is_the_moving_average_of_the_policy(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, Any]] = []

    class Listening(ema.EmaReference):
        def _now(self) -> tuple[Any, Any]:
            trained = self.trainer.accelerator.unwrap_model(self.trainer.model)
            return tuple(
                next(model.parameters()).detach().clone() for model in (trained, self.reference)
            )

        def on_train_begin(self, *args: Any, **more: Any) -> None:
            super().on_train_begin(*args, **more)
            seen.append(self._now())

        def on_step_end(self, *args: Any, **more: Any) -> None:
            super().on_step_end(*args, **more)
            seen.append(self._now())

    monkeypatch.setattr(ema, "EmaReference", Listening)
    result = train(policy, tmp_path / "p")
    by_hand = seen[0][0]
    assert len(seen) == 5
    for trained, reference in seen[1:]:
        by_hand = DECAY * by_hand + (1 - DECAY) * trained
        assert (reference - by_hand).abs().max() < 1e-6
        assert (reference - trained).abs().max() > 1e-5
    # The loss compares with it: the margin to a reference that stays is larger by then.
    fixed = train(policy, tmp_path / "fixed", reference="start")
    ours, theirs = (one.history[-1]["rewards/margins"] for one in (result, fixed))
    assert 0 < ours < theirs


def test_a_resumed_training_has_the_reference_that_it_had(policy: Path, tmp_path: Path) -> None:
    def stop(record: dict[str, float]) -> None:
        if record["step"] == 4:
            raise Stopped

    whole = train(policy, tmp_path / "whole", epochs=2)
    with pytest.raises(Stopped):
        train(policy, tmp_path / "parts", stop, epochs=2)
    steps: list[float] = []
    parts = train(policy, tmp_path / "parts", lambda one: steps.append(one["step"]), epochs=2)
    assert steps[0] == 3  # from the checkpoint of step 2
    assert folder_revision(parts.policy_path) == folder_revision(whole.policy_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": {}}, "ema needs whole models"),
        ({"online": True}, "ema is not for online training"),
        ({"method": "kto"}, "ema is not for method kto"),
        ({"accelerate": "a.yaml"}, "leave out accelerate"),
        ({"precompute_reference_logprobs": True}, "leave out precompute"),
    ],
)
def test_where_no_reference_can_follow(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate({"reference": "ema", **settings})
