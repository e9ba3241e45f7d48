"""Guards over a round's new policy, by what its evaluation measured on held-out prompts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prefloop.pipeline.run.run_dir import EVALUATION, TRAINING_CURVES, RoundDir, RunError
from prefloop.training.config import Guards
from prefloop.training.session.guards import PERFECT

logger = logging.getLogger(__name__)

_REMEDIES = {
    "kl": "raise beta, lower learning_rate or epochs, or train against the previous policy "
    "(train.reference)",
    "length": "drop pairs by length (length_balance, length_ratio), look at the judge with "
    "`prefloop judge-eval`, or use sigmoid_norm as the loss",
    "repetitive": "raise beta, lower learning_rate or epochs, or add the sft loss (loss: [sigmoid, "
    "sft])",
    "overfit": "every training pair is told apart and held-out pairs are not: fewer epochs, more "
    "or fresh data, or a look at how training and held-out prompts differ",
    "truncated": "raise sample.max_tokens, or drop truncated answers (the filter `truncated`)",
}


class GuardStopped(RunError):
    """A guard ended the run: of a round's training, or over its new policy."""


@dataclass(frozen=True)
class GuardAlarm:
    """A figure of a round's policy that is beyond its warning level."""

    guard: str
    value: float
    limit: float
    stops: bool
    """Beyond the limit itself."""

    def __str__(self) -> str:
        verb = "is beyond its limit" if self.stops else "comes near its limit"
        return (
            f"guard {self.guard} of the new policy {verb}: {self.value:.4g}, limit "
            f"{self.limit:.4g}: {_REMEDIES[self.guard]}"
        )


def guard_alarms(folder: RoundDir, guards: Guards | None) -> list[GuardAlarm]:
    """The guards that the policy of a round sets off; none before it was evaluated, and none
    without training (no ``guards``).

    ``length`` is the ratio of mean lengths of its held-out answers and the starting policy's, the
    larger over the smaller; ``truncated`` and ``repetitive`` are shares beyond the starting
    policy's. ``overfit`` only warns: training tells all pairs apart, and of held-out pairs no more
    than chance (the interval of the reward's accuracy reaches down to a half).
    """
    if guards is None or not guards.enabled or not folder.metrics.exists(EVALUATION):
        return []
    rows = folder.metrics.read(EVALUATION).to_pylist()

    def figure(name: str, against: str | None = None) -> float | None:
        found = [r["value"] for r in rows if (r["name"], r["against"]) == (name, against)]
        return found[0] if found else None

    now, start = figure("mean_tokens"), figure("mean_tokens", "start")
    ratio = max(now / start, start / now) if now and start else None
    watched: list[tuple[str, float | None, float | None, float]] = [
        ("kl", figure("kl", "start"), guards.max_kl, 0.0),
        ("length", ratio, guards.max_length_ratio, 1.0),
    ]
    for name, most in (("truncated", guards.max_truncated), ("repetitive", guards.max_repetitive)):
        # What the starting policy does as well, training did not do.
        begun = figure(f"{name}_share", "start") or 0.0
        beyond = None if most is None else begun + (1 - begun) * most
        watched.append((name, figure(f"{name}_share"), beyond, begun))
    alarms = []
    for name, value, limit, healthy in watched:
        if value is None or limit is None:
            continue
        if value > healthy + guards.warn_share * (limit - healthy):
            alarms.append(GuardAlarm(name, value, limit, stops=value > limit))
    heldout_accuracy_low = _low(rows, "reward_accuracy")
    if (
        heldout_accuracy_low is not None
        and heldout_accuracy_low <= 0.5
        and _perfect(folder, guards.window)
    ):
        alarms.append(GuardAlarm("overfit", heldout_accuracy_low, 0.5, stops=False))
    return alarms


def _low(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Lower end of the interval of a figure that has no opponent; null where there is none."""
    found = [row["low"] for row in rows if (row["name"], row["against"]) == (name, None)]
    return found[0] if found else None


def _perfect(folder: RoundDir, window: int) -> bool:
    """Whether the last ``window`` steps of the training told every pair apart."""
    if not folder.metrics.exists(TRAINING_CURVES):
        return False
    curves = folder.metrics.read(TRAINING_CURVES).to_pylist()
    seen = [row["value"] for row in curves if row["name"] == "rewards/accuracies"]
    return len(seen) >= window and min(seen[-window:]) >= PERFECT


def check_round(folder: RoundDir, guards: Guards, *, promote: Literal["winner", "always"]) -> None:
    """Say which guards the round's policy sets off.

    Raises :class:`GuardStopped` where one is beyond its limit and the run is not to go on after
    that.
    """
    for alarm in guard_alarms(folder, guards):
        if alarm.stops and guards.then == "stop":
            raise GuardStopped(
                f"round {folder.index}: {alarm}. To go on with it all the same: "
                "--set train.guards.then=go_on"
            )
        not_promoted = alarm.stops and promote == "winner"
        then = "; the next round begins with the policy before it" if not_promoted else ""
        logger.warning("round %d: %s%s", folder.index, alarm, then)
