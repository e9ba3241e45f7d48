"""An instruction set with people's answers only, made into preferences: do margins explode?

    python -m benchmarks.self_instruct [--out runs/self-instruct] [--pairs 200] [--rate 5e-5 ...]
                                       [--tokens 96] [--condition NAME ...] [--threads N]
                                       [--model FOLDER]

Chosen is what a person wrote, rejected what the frozen starting policy (SmolLM2-135M-Instruct; see
``benchmarks.models``) is sampled at temperature 0.9 and top_k 50. It is the cheapest recipe there
is, and the one of which a reward margin of 599 at step 150 was reported (TRL issue 1236): the two
answers have different authors, so they are told apart by style alone. prefloop's own loop samples
and writes the pairs; then each condition trains on the same ones, once through: pair by pair, or in
batches of 16 by accumulation; with nothing that holds it, with the guard, with the margin cap.

What is in --out is not done again. Prints a Markdown table and writes ``margins.svg`` there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.models import SMOLLM2, NotFetched, fetch_smollm2
from prefloop.pipeline.run.models import checkpoint
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.training.session.records import RECORD, summary_of

TASKS = Path(__file__).parents[1] / "tests" / "public" / "self_instruct"
BETA = 0.1
PUBLISHED_AT = 150
"""Pairs after which the margin of 599 was reported."""
NO_GUARD: dict[str, Any] = {"guards": {"enabled": False}}
CONDITIONS: dict[str, dict[str, Any]] = {
    "batch 1": NO_GUARD,
    "batch 1, guard": {"guards": {"then": "go_on"}},
    "batch 1, cap": {**NO_GUARD, "loss": "clipped"},
    "batch 16": {**NO_GUARD, "gradient_accumulation": 16},
    "batch 16, cap": {**NO_GUARD, "gradient_accumulation": 16, "loss": "clipped"},
}


def tasks(target: Path) -> Path:
    """The instructions with their inputs, and each one's first answer, as JSON lines."""
    rows = []
    for name in ("seed_tasks", "user_oriented_instructions"):
        for line in (TASKS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            task = json.loads(line)
            first = task["instances"][0]
            asked = "\n\n".join(part for part in (task["instruction"], first["input"]) if part)
            rows.append({"prompt": asked, "reference": first["output"]})
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return target


def pairs(options: argparse.Namespace, model: str) -> RunDir:
    """The run that samples the rejected answers and writes the pairs."""
    import prefloop

    config = {
        "policy": model,
        "engines": {"default": {"type": "transformers", "threads": options.threads}},
        "prompts": {
            "train": {
                "path": str(tasks(options.out / "tasks.jsonl")),
                "columns": {"prompt": "prompt", "reference": "reference"},
                "limit": options.pairs,
            },
            "heldout_share": 0.0,
            "near_duplicates": {"enabled": False},
        },
        "sample": {"n": 1, "temperature": 0.9, "top_k": 50, "max_tokens": options.tokens},
        "label": {"labelers": [{"type": "reference"}]},
        "filter": {"filters": [{"type": "identical"}]},
        "write": {"test_share": 0.0},
        "train": None,
        "evaluate": {"enabled": False},
    }
    run = RunDir(options.out / "pairs")
    prefloop.run(config, run_dir=run.root)
    return run


def trained(
    name: str, rate: float, run: RunDir, options: argparse.Namespace, model: str
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Summary and steps of one training; what was trained before is read."""
    import prefloop

    out = options.out / f"{name.replace(', ', '-').replace(' ', '-')}-{rate:g}"
    settings = {
        "beta": BETA, "learning_rate": rate, "lr_scheduler": "constant", "warmup_ratio": 0.0,
        "batch_size": 1, "gradient_accumulation": 1, "epochs": 1, "order": "random",
        "max_length": 512,
    }  # fmt: skip
    prefloop.train(
        run.root, method="dpo", base=model, out=out, overrides=settings | CONDITIONS[name]
    )
    lines = (out / RECORD).read_text(encoding="utf-8").splitlines()[1:]
    return summary_of(out) or {}, [json.loads(line) for line in lines]


def table(found: dict[str, tuple[dict[str, Any], list[dict[str, float]]]]) -> list[str]:
    """A row a condition: how far its margins went."""
    lines = [
        "| condition | steps | margin after 150 pairs | largest margin | in nats "
        "| chosen, nats over the start, last tenth | pairs told apart, last tenth | guard |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, (summary, steps) in found.items():
        margins = np.array([step["rewards/margins"] for step in steps])
        end = slice(-max(1, len(steps) // 10), None)
        at = min(len(steps) - 1, round(len(steps) * PUBLISHED_AT / summary["examples"]))
        guard = summary.get("guard")
        cells = [
            name, str(len(steps)), f"{margins[at]:.1f}", f"{margins.max():.1f}",
            f"{margins.max() / BETA:.0f}",
            f"{np.mean([step['rewards/chosen'] for step in steps[end]]) / BETA:+.0f}",
            f"{np.mean([step['rewards/accuracies'] for step in steps[end]]):.0%}",
            f"{guard['guard']} at step {guard['step']}" if guard else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw(found: dict[str, tuple[dict[str, Any], list[dict[str, float]]]], target: Path) -> None:
    """Margin over the pairs seen."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9.5, 4.5))
    styles = ("-", "--", ":")
    for number, (name, (summary, steps)) in enumerate(found.items()):
        seen = np.linspace(0, summary["examples"], len(steps) + 1)[1:]
        axes.plot(  # some lie on others: those beneath are wider
            seen, [step["rewards/margins"] for step in steps], label=name,
            linestyle=styles[number % len(styles)], linewidth=3 - 2 * number / len(found),
        )  # fmt: skip
    axes.axhspan(1, 10, color="grey", alpha=0.15, label="1 to 10")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_xlabel("pairs trained on")
    axes.set_ylabel("reward margin (beta 0.1)")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Sample, train under each condition, and say how far the margins went."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/self-instruct"))
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=96, help="of a sampled answer")
    parser.add_argument("--rate", type=float, action="append", help="learning rate")
    parser.add_argument("--condition", action="append", choices=[*CONDITIONS])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--model", help="another model than the one that is fetched")
    options = parser.parse_args()
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    try:
        named = options.model or str(fetch_smollm2(options.out / "model"))
    except NotFetched as reason:
        print(f"skipped: {SMOLLM2} could not be fetched: {reason}")
        return
    model = checkpoint(named, served=False)
    run = pairs(options, model)
    found = {}
    for rate in options.rate or [5e-5]:
        for name in options.condition or CONDITIONS:
            print(f"{name}, rate {rate:g}", flush=True)
            found[f"{name}, rate {rate:g}"] = trained(name, rate, run, options, model)
    print("\n".join(table(found)))
    draw(found, options.out / "margins.svg")


if __name__ == "__main__":
    main()
