"""What a training made, as people read it in a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping

from prefloop.pipeline.policies.train_alone import Trained
from prefloop.pipeline.report.formats import count, duration, figure
from prefloop.training.method_names import Method


def render_training(trained: Trained) -> str:
    """The model, its steps, how good it is where that was measured, and how to use it."""
    kind = "reward model" if trained.method is Method.reward else "policy"
    examples = "answers" if trained.method in (Method.kto, Method.sft) else "pairs"
    lines = [
        f"{kind:<13} {trained.model}",
        f"trained       {count(trained.steps)} steps on {count(trained.examples)} {examples} in "
        f"{duration(trained.seconds)}" + _counted(trained.dropped),
    ]
    if trained.method in (Method.reward, Method.dpo):
        lines.append(_accuracy(trained))
    if trained.method is Method.reward:
        path = json.dumps(str(trained.model))
        lines += ["use it        label:", "                labelers:"]
        lines.append(
            f"                  - {{type: reward_model, name: reward_model, model: {path}}}"
        )
    return "\n".join(lines)


def _accuracy(trained: Trained) -> str:
    found = trained.heldout
    if found is None and trained.heldout_dropped:
        return "accuracy      not measured: no held-out pair is left" + _counted(
            trained.heldout_dropped
        )
    if found is None:
        return "accuracy      not measured: no held-out pairs (--test PATH names some)"
    return (
        f"accuracy      {figure(found.value)} [{found.low:.3f}, {found.high:.3f}] of "
        f"{count(found.n)} held-out pairs" + _counted(trained.heldout_dropped)
    )


def _counted(dropped: Mapping[str, int]) -> str:
    if not dropped:
        return ""
    reasons = ", ".join(f"{count(number)} {reason}" for reason, number in dropped.items())
    return f" (dropped: {reasons})"
