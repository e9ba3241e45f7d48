"""Guards over training: what is watched, from where on it is a warning, and when it stops.

Preference training fails quietly: the loss falls while the margin explodes (rewards of hundreds
where 1 to 10 is healthy) or while chosen answers become less likely along with the rejected ones.
A guard looks at the mean of a logged figure over the last steps, so that one odd batch trips
nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prefloop.training.config import Guards, TrainConfig

AlarmLevel = Literal["warning", "stop"]

PERFECT = 1 - 1e-9
"""An accuracy from here on is perfect."""
_RATIOS = {"length", "entropy"}
"""Guards that look at a ratio, which is 1 where nothing changed."""
_LEAST = 1e-9


@dataclass(frozen=True)
class TrainingAlarm:
    """A guard that went off."""

    guard: str
    """``margin``, ``chosen_drop`` or ``perfect_accuracy``; of answers that are sampled
    meanwhile ``kl``, ``reward_drop``, ``length``, ``entropy``, ``truncated``, ``flat_rewards``."""
    level: AlarmLevel
    step: int
    """Optimiser step, from 1."""
    value: float
    """Mean over the window."""
    limit: float
    """What it went beyond."""
    remedy: str

    def __str__(self) -> str:
        verb = "stopped training" if self.level == "stop" else "warns"
        return (
            f"guard {self.guard} {verb} at step {self.step}: {self.value:.4g} is beyond "
            f"{self.limit:.4g}: {self.remedy}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


_REMEDIES = {
    "margin": "lower learning_rate or epochs, raise beta or batch_size, or look for a shortcut "
    "that tells chosen from rejected (prefloop audit)",
    "chosen_drop": "chosen answers become less likely too: lower learning_rate, raise beta, or add "
    "the sft loss (loss: [sigmoid, sft])",
    "perfect_accuracy": "every pair is told apart: nothing is left to learn from these triples; "
    "fewer epochs or fresh data",
    "kl": "lower learning_rate, or raise beta",
    "reward_drop": "answers get worse by the very reward that is trained on: lower learning_rate, "
    "raise beta, or look for answers that the labelers cannot score",
    "length": "look at what the labelers reward (prefloop judge-eval), raise beta, or use "
    "policy_loss dr_grpo",
    "entropy": "the policy always says the same: lower learning_rate, raise beta or clip_high, or "
    "sample at a higher temperature",
    "truncated": "raise sample.max_tokens, lower learning_rate, or set mask_truncated",
    "flat_rewards": "all answers to a prompt have the same reward, so nothing is learned: other "
    "prompts, more answers each, or a labeler that tells them apart",
}


Measure = tuple[float | None, float | None]
"""What a guard looks at in a step, and its limit; null: nothing to look at, no limit."""


class GuardWatch:
    """Sees the record of every step in turn (TRL's names) and says which guards go off.

    All is measured in nats, whatever the loss. ``rewards/margins`` is beta times the difference of
    the log-ratios of chosen and rejected, and ``rewards/chosen`` beta times that of chosen. Where
    no reference goes into the loss (``has_reference`` false) these are something else, and the
    log-probabilities of the answers are compared with those of the first steps.
    """

    def __init__(self, config: Guards, *, beta: float, has_reference: bool = True) -> None:
        self.config = config
        self.beta = beta
        self.has_reference = has_reference
        self.stopped: TrainingAlarm | None = None
        self.healthy = True
        """Whether no guard is beyond its warning level at the step seen last."""
        self._windows: dict[str, deque[float]] = {}
        self._first: list[tuple[float, float]] = []
        self._warned: set[str] = set()
        self._perfect = 0

    def see(self, record: Mapping[str, float]) -> list[TrainingAlarm]:
        """The guards that go off at this step: each warns once, and the first to stop is final."""
        if not self.config.enabled or self.stopped:
            return []
        step = int(record["step"])
        limits = self._measures(record)
        trips: list[TrainingAlarm] = []
        self.healthy = True
        for name, (value, limit) in limits.items():
            if value is None or limit is None:
                continue
            mean = self._mean(name, value)
            healthy = 1.0 if name in _RATIOS else 0.0
            warning = healthy + self.config.warn_share * (limit - healthy)
            if mean > warning:
                self.healthy = False
            if mean > limit and len(self._windows[name]) == self.config.window:
                self.stopped = TrainingAlarm(name, "stop", step, mean, limit, _REMEDIES[name])
                return [*trips, self.stopped]
            if mean > warning and name not in self._warned:
                self._warned.add(name)
                trips.append(TrainingAlarm(name, "warning", step, mean, warning, _REMEDIES[name]))
        return trips + self._nothing_to_learn(record, step)

    def _measures(self, record: Mapping[str, float]) -> dict[str, Measure]:
        margin, drop = self._in_nats(record)
        return {
            "margin": (margin, self._most_margin()),
            "chosen_drop": (drop, self.config.max_chosen_drop),
        }

    def _in_nats(self, record: Mapping[str, float]) -> tuple[float | None, float | None]:
        """The margin of a step, and by how much its chosen answers became less likely."""
        if self.has_reference:
            margin, gain = record.get("rewards/margins"), record.get("rewards/chosen")
            return (
                None if margin is None else margin / self.beta,
                None if gain is None else -gain / self.beta,
            )
        chosen, rejected = record.get("logps/chosen"), record.get("logps/rejected")
        if chosen is None or rejected is None:
            return None, None
        if len(self._first) < self.config.window:
            self._first.append((chosen, chosen - rejected))
        at_first = [sum(column) / len(self._first) for column in zip(*self._first, strict=True)]
        return chosen - rejected - at_first[1], at_first[0] - chosen

    def _most_margin(self) -> float | None:
        """The limit of the margin in nats."""
        of_loss, nats = self.config.max_margin, self.config.max_margin_nats
        given = None if of_loss is None or not self.has_reference else of_loss / self.beta
        return min(filter(None, (given, nats)), default=None)

    def _nothing_to_learn(self, record: Mapping[str, float], step: int) -> list[TrainingAlarm]:
        return self._in_a_row("perfect_accuracy", record.get("rewards/accuracies"), step)

    def _in_a_row(self, name: str, accuracy: float | None, step: int) -> list[TrainingAlarm]:
        """The warning that ``accuracy`` was perfect for too many steps, the first time."""
        limit = self.config.max_perfect_steps
        if limit is None or accuracy is None:
            return []
        self._perfect = self._perfect + 1 if accuracy >= PERFECT else 0
        if self._perfect < limit or name in self._warned:
            return []
        self._warned.add(name)
        return [TrainingAlarm(name, "warning", step, float(self._perfect), limit, _REMEDIES[name])]

    def _mean(self, name: str, value: float) -> float:
        window = self._windows.setdefault(name, deque(maxlen=self.config.window))
        window.append(value)
        return sum(window) / len(window)


class AnswerWatch(GuardWatch):
    """The same for trainings on answers of the policy as it is, and their rewards. The KL is in
    nats an answer; all else is compared with the first steps, whose answers are still those of the
    policy that training began with."""

    def __init__(self, config: Guards) -> None:
        super().__init__(config, beta=1.0)
        self._at_first: dict[str, list[float]] = {}

    def _measures(self, record: Mapping[str, float]) -> dict[str, Measure]:
        config = self.config
        length, kl = record.get("completions/mean_length"), record.get("kl")
        return {
            "kl": (None if kl is None or length is None else kl * length, config.max_kl),
            "reward_drop": (self._reward_drop(record), config.max_reward_drop),
            "length": (self._ratio("completions/mean_length", record), config.max_length_ratio),
            "entropy": (self._less("entropy", record), config.max_entropy_ratio),
            "truncated": (
                self._share_gained("completions/truncated", record),
                config.max_truncated,
            ),
        }

    def _nothing_to_learn(self, record: Mapping[str, float], step: int) -> list[TrainingAlarm]:
        return self._in_a_row("flat_rewards", record.get("frac_reward_zero_std"), step)

    def _begun(self, name: str, record: Mapping[str, float]) -> tuple[float, float] | None:
        """The figure's mean over the first steps, and its value in this one."""
        value = record.get(name)
        if value is None:
            return None
        first = self._at_first.setdefault(name, [])
        if len(first) < self.config.window:
            first.append(value)
        return sum(first) / len(first), value

    def _reward_drop(self, record: Mapping[str, float]) -> float | None:
        reward, spread = self._begun("reward", record), self._begun("reward_std", record)
        if reward is None or spread is None or spread[0] <= 0:
            return None
        return (reward[0] - reward[1]) / spread[0]

    def _ratio(self, name: str, record: Mapping[str, float]) -> float | None:
        both = self._begun(name, record)
        if both is None or min(both) <= 0:
            return None
        return max(both) / min(both)

    def _less(self, name: str, record: Mapping[str, float]) -> float | None:
        """How many times less it is than in the first steps."""
        both = self._begun(name, record)
        return None if both is None or both[0] <= 0 else both[0] / max(both[1], _LEAST)

    def _share_gained(self, name: str, record: Mapping[str, float]) -> float | None:
        """Of what was not so in the first steps, the share that is so now."""
        both = self._begun(name, record)
        return None if both is None or both[0] >= 1 else (both[1] - both[0]) / (1 - both[0])


def watch_of(config: TrainConfig) -> GuardWatch:
    """The guards of a training of a policy."""
    if config.method in ("grpo", "rloo"):
        return AnswerWatch(config.guards)
    return GuardWatch(config.guards, beta=config.beta, has_reference=config.uses_reference)
