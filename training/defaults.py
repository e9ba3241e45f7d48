"""What keys of a training mean that a config leaves out, where other keys decide it.

One value does not fit all: SimPO's beta is twenty times DPO's, and an adapter takes ten times the
learning rate of full weights. What a config says always wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefloop.data.yaml_files import read_yaml
from prefloop.training.presets import PRESETS, STEP

BATCH_SIZE = 8
ADAPTER_RATE = 10.0
"""How much higher the learning rate of an adapter is than that of full weights (Schulman 2025,
"LoRA Without Regret"; the alignment handbook's recipes differ by as much)."""

RATES = {"sft": 1e-5, "grpo": 1e-6, "rloo": 1e-6}
"""Learning rate of full weights by method, where it is not 5e-7: TRL's for reinforcement."""
RATES_OF_LOSSES = {"orpo": 8e-6}
"""The same by loss: ORPO's holds the NLL of supervised training (Hong et al. 2024)."""
BETAS = {"grpo": 0.04, "rloo": 0.05}
"""Beta by method, where it is not 0.1: Shao et al. 2024, section 4.2; TRL."""
BETAS_OF_LOSSES = {"simpo": 2.0, "sigmoid_norm": 5.0}
"""The same by loss: Meng et al. 2024, section 4; Lambert et al. 2024, section 5."""
BETAS_OF_POLICY_LOSSES = {"dr_grpo": 0.0, "dapo": 0.0}
"""The same by the loss of ``grpo``: both papers leave the KL out (Liu et al. 2025, section 3.2; Yu
et al. 2025, section 2.3)."""
CLIP_HIGH = 0.28
"""``clip_high`` of DAPO (Yu et al. 2025, section 3.1)."""
PASSES = 4
"""Forward passes a step where neither they nor the size of a pass is given: 32 pairs a step, in
however many processes."""

RESOLVED = ("learning_rate", "beta", "gradient_accumulation", "scale_rewards", "clip_high")
"""The keys that have no one default."""
_DECIDE = ("preset", "method", "loss", "policy_loss", "batch_size")
"""The keys that decide them, beside whether there is an adapter."""
_DEFAULTS = {
    "preset": None,
    "method": "dpo",
    "loss": "sigmoid",
    "policy_loss": "grpo",
    "batch_size": BATCH_SIZE,
}


def left_out(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values for what the settings ``given`` of a policy's training leave out."""
    named = given.get("preset")
    preset = dict(PRESETS.get(named, {})) if isinstance(named, str) else {}
    per_step = preset.pop(STEP, None)
    known = {**_DEFAULTS, **preset, **given}
    method, losses = known["method"], _names(known["loss"])
    policy_loss = known["policy_loss"] if method == "grpo" else None
    values = {
        "learning_rate": _of(RATES, method) or _first(RATES_OF_LOSSES, method, losses) or 5e-7,
        "beta": _first_number(
            _of(BETAS_OF_POLICY_LOSSES, policy_loss),
            _of(BETAS, method),
            _first(BETAS_OF_LOSSES, method, losses),
            0.1,
        ),
        "gradient_accumulation": _passes(given, per_step),
    }
    if policy_loss == "dr_grpo":
        values["scale_rewards"] = False
    if policy_loss == "dapo":
        values["clip_high"] = CLIP_HIGH
    if known.get("reference") == "ema":
        values["precompute_reference_logprobs"] = False  # it moves
    values |= preset
    if given.get("lora") is not None:
        values["learning_rate"] = of_adapter(values["learning_rate"])
    return {key: value for key, value in values.items() if key not in given}


def reward_left_out(given: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """The same of a reward model's training, ``rate`` being that of full weights."""
    adapter = given.get("lora") is not None
    return {"learning_rate": of_adapter(rate)} if adapter and "learning_rate" not in given else {}


def as_begun(given: set[str], now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a training was begun with of keys that its config leaves out.

    ``given``: the keys that the config has; ``now``: what it makes of all keys, as JSON;
    ``before``: the same when it was begun. Nothing where a key changed that decides them.
    """

    def decisive(settings: Mapping[str, Any]) -> list[Any]:
        return [settings.get(key, _DEFAULTS[key]) for key in _DECIDE] + [
            settings.get("lora") is not None,
            processes_of(settings),
        ]

    if decisive(now) != decisive(before):
        return {}
    return {key: before[key] for key in RESOLVED if key in before and key not in given}


def of_adapter(rate: float) -> float:
    """The learning rate of an adapter, by that of full weights."""
    return float(f"{rate * ADAPTER_RATE:.6g}")  # 5e-6, and no digits of binary numbers behind it


def _passes(given: Mapping[str, Any], per_step: int | None) -> int:
    size = given.get("batch_size", BATCH_SIZE)
    if not isinstance(size, int) or size < 1:
        return 1  # is refused
    at_once = size * processes_of(given)
    if per_step is not None:
        return max(1, round(per_step / at_once))
    return 1 if "batch_size" in given else max(1, round(PASSES * BATCH_SIZE / at_once))


def processes_of(given: Mapping[str, Any]) -> int:
    """Processes that train together by the settings ``given``: a cluster's, or those of the file of
    accelerate. One where they say nothing that is known: that is refused elsewhere."""
    cluster, file = given.get("cluster") or {}, given.get("accelerate")
    if cluster or not isinstance(file, str | Path):
        is_raw = isinstance(cluster, Mapping)
        found = cluster.get("workers") if is_raw else getattr(cluster, "workers", None)
    else:
        try:
            found = read_yaml(Path(file))["num_processes"]
        except (OSError, ValueError, KeyError, TypeError):
            return 1
    return found if type(found) is int and found > 0 else 1


def _names(loss: Any) -> tuple[str, ...]:
    found = (loss,) if isinstance(loss, str) else loss
    if not isinstance(found, list | tuple):
        return ()  # is refused
    return tuple(name for name in found if isinstance(name, str))


def _of(table: Mapping[str, float], name: Any) -> float | None:
    return table.get(name) if isinstance(name, str) else None


def _first(table: Mapping[str, float], method: Any, losses: tuple[str, ...]) -> float | None:
    """The value of the first of the losses, ``sft`` aside, which only goes along with others."""
    leading = [name for name in losses if name != "sft"]
    return table.get(leading[0]) if method == "dpo" and leading else None


def _first_number(*values: float | None) -> float:
    return next(value for value in values if value is not None)
