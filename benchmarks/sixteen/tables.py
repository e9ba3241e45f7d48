"""Tables, the picture and the page of answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jinja2
import numpy as np

from benchmarks.sixteen.measure import Measured, estimate
from benchmarks.sixteen.methods import Trained
from benchmarks.sixteen.setting import Setting

Found = Mapping[str, list[Measured]]
"""For each policy, one of each seed."""


def summary(found: Found, trained: Mapping[str, list[Trained]]) -> list[str]:
    """A row a method: what it took, and what came out."""
    start = pooled(found["start"])
    lines = [
        "| method | tokens sampled | steps | reward | over the start | KL, nats | tokens an answer "
        "| minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, measured in found.items():
        rewards, kl = pooled(measured)
        took = trained.get(name, [])
        gain, half = estimate(rewards)[0] - estimate(start[0])[0], np.hypot(
            estimate(rewards)[1], estimate(start[0])[1]
        )  # fmt: skip
        cells = [
            name,
            f"{np.mean([one.generated for one in took]):,.0f}" if took else "",
            f"{np.mean([one.steps for one in took]):.0f}" if took else "",
            _shown(*estimate(rewards)),
            _shown(gain, float(half)) if took else "",
            _shown(*estimate(kl)) if took else "",
            f"{np.mean([one.tokens for one in measured]):.0f}",
            f"{np.mean([one.seconds for one in took]) / 60:.0f}" if took else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def by_prompt(found: Found, setting: Setting) -> list[str]:
    """Reward, and KL in brackets, of each prompt under each method."""
    lines = [
        "| prompt | " + " | ".join(found) + " |",
        "| --- |" + " --- |" * len(found),
    ]
    tables = {name: pooled(measured) for name, measured in found.items()}
    for row, prompt in enumerate(setting.asked):
        cells = [prompt.replace("|", "\\|")]
        for name, (rewards, kl) in tables.items():
            shown = f"{rewards[row].mean():+.2f}"
            cells.append(shown if name == "start" else f"{shown} ({kl[row].mean():.1f})")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def pooled(measured: list[Measured]) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and log-ratios [prompt, answer] of all seeds."""
    return (
        np.concatenate([np.array(one.rewards) for one in measured], axis=1),
        np.concatenate([np.array(one.kl) for one in measured], axis=1),
    )


def draw(found: Found, target: Path) -> None:
    """Mean reward over KL, with intervals of both."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8.5, 5.5))
    markers = "os^vD<>PXph*"
    for number, (name, measured) in enumerate(found.items()):
        rewards, kl = (estimate(one) for one in pooled(measured))
        if name == "start":
            axes.axhline(rewards[0], color="grey", linestyle=":", label="start")
            axes.axhspan(rewards[0] - rewards[1], rewards[0] + rewards[1], color="grey", alpha=0.15)
            continue
        axes.errorbar(
            kl[0], rewards[0], xerr=kl[1], yerr=rewards[1], label=name, capsize=2,
            marker=markers[number % len(markers)], linestyle="none",
            color=f"C{number % 10}" if number <= 10 else "black",
        )  # fmt: skip
    axes.set_xlabel("KL to the starting policy, nats an answer")
    axes.set_ylabel("mean reward of the sixteen prompts")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Answers side by side</title>
<style>
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem; color: #222 }
section { margin-bottom: 2rem }
.row { display: grid; grid-auto-flow: column; grid-auto-columns: 17rem; gap: 1rem;
  overflow-x: auto }
h3 { font-size: 13px; margin: 0 0 .3rem }
p { white-space: pre-wrap; margin: 0; background: #f6f6f4; padding: .6rem; border-radius: 4px }
</style>
<h1>Answers side by side</h1>
<p>One answer of each policy to each prompt: the one of median reward among its answers.</p>
{% for prompt, answers in rows %}
<section><h2>{{ prompt }}</h2><div class="row">
{% for name, reward, text in answers %}
<div><h3>{{ name }} · reward {{ "%+.2f" | format(reward) }}</h3><p>{{ text }}</p></div>
{% endfor %}
</div></section>
{% endfor %}
"""


def page(found: Found, setting: Setting) -> str:
    """HTML with an answer of each policy to each prompt; all text is escaped."""
    rows = []
    for index, prompt in enumerate(setting.asked):
        answers = []
        for name, measured in found.items():
            rewards = measured[0].rewards[index]
            middle = int(np.argsort(rewards)[len(rewards) // 2])
            answers.append((name, rewards[middle], measured[0].texts[index][middle]))
        rows.append((prompt, answers))
    return jinja2.Environment(autoescape=True).from_string(_PAGE).render(rows=rows)


def _shown(value: float, half: float) -> str:
    return f"{value:.2f} ± {half:.2f}"
