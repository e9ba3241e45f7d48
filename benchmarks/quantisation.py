"""What the 4 bits of a weights file cost on IFEval, told without the weights of before.

    python -m benchmarks.quantisation [--out runs/real] [--halves heldout train] [--seed 1]
                                      [--engine transformers|vllm] [--threads N] [--max-tokens 640]

The only copy of SmolLM2-135M-Instruct that can be had without a hub is quantised (Q4_1): blocks of
32 weights between their least and their greatest in 15 steps, so that each is wrong by up to half a
step, evenly. What that did cannot be seen; what the same does a second time can. Weights get an
error of the same size once more, both models answer greedily, and as far as a loss grows with the
variance of the error, it lost as much the first time.

The answers of the weights as they are come from `python -m benchmarks.real` with the same --out and
are made where they are not there. What is there is not done again. --model and --prompts are for
trying it out. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np

from benchmarks.models import SMOLLM2, NotFetched, fetch_smollm2
from benchmarks.real import (
    HELDOUT,
    IFEVAL,
    MODES,
    TRAIN,
    Measured,
    config_of,
    interval,
    levels,
    measure,
    shown,
    split,
)

BLOCK, STEPS = 32, 15
"""Of Q4_1: weights that share a least and a greatest one, and the steps between these."""


def noisy(model: Path, folder: Path, seed: int) -> Path:
    """``model`` (safetensors) in ``folder``, with the error of Q4_1 added to its matrices, but for
    those of tokens, which the file has in 8 bits."""
    import torch
    from safetensors.torch import load_file, save_file

    if (folder / "config.json").exists():
        return folder
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(model, beside, ignore=shutil.ignore_patterns("*.safetensors"))
    generator = torch.Generator().manual_seed(seed)
    for file in sorted(model.glob("*.safetensors")):
        weights = load_file(file)
        for name, weight in weights.items():
            if weight.dim() != 2 or "embed" in name or "lm_head" in name:
                continue
            blocks = weight.view(len(weight), -1, BLOCK)
            step = (blocks.amax(-1, keepdim=True) - blocks.amin(-1, keepdim=True)) / STEPS
            error = (torch.rand(blocks.shape, generator=generator) - 0.5) * step
            weights[name] = (blocks + error).reshape(weight.shape).contiguous()
        save_file(weights, beside / file.name, metadata={"format": "pt"})
    beside.rename(folder)
    return folder


def table(before: Measured, after: Measured) -> list[str]:
    """Both, in percent, and what the second has over the first."""
    lines = [
        "| IFEval, % | the file's weights | wrong by as much once more | difference |",
        "| --- | --- | --- | --- |",
    ]
    for mode in MODES:
        old, new = before.per_prompt(mode), after.per_prompt(mode)
        bounds = [*map(np.stack, (interval(old), interval(new), interval(new, old)))]
        values = [levels(old), levels(new), levels(new) - levels(old)]
        for at, what in enumerate(("prompt", "instruction", "mean of both")):
            cells = [
                shown(value[at], *bound[:, at]) for value, bound in zip(values, bounds, strict=True)
            ]
            lines.append(f"| {what}, {mode} | " + " | ".join(cells) + " |")
    cells = [f"{one.tokens:.0f} tokens, {one.cut:.0%} cut" for one in (before, after)]
    return [*lines, "| answers | " + " | ".join(cells) + " | |"]


def main() -> None:
    """Fetch, disturb, measure both; print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--halves", nargs="+", choices=[HELDOUT, TRAIN], default=[HELDOUT, TRAIN])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--threads", type=int, help="of the transformers engine")
    parser.add_argument("--max-tokens", type=int, default=640, help="of an answer")
    parser.add_argument("--model", type=Path, help="another model than the one that is fetched")
    parser.add_argument("--prompts", type=Path, default=IFEVAL)
    parser.set_defaults(rounds=2, prompts_per_round=96, set=[])
    options = parser.parse_args()
    try:
        model = options.model or fetch_smollm2(options.out / "model")
    except NotFetched as reason:
        print(f"skipped: {SMOLLM2} could not be fetched: {reason}")
        return
    halves = split(options.prompts, options.out / "data")
    found = []
    for name, policy in (
        ("start", model),
        (
            f"noisy-{options.seed}",
            noisy(model, options.out / f"model-{options.seed}", options.seed),
        ),
    ):
        config = config_of(options, policy, halves)
        parts = [
            measure(config, str(policy), half, options.out / f"{name}-{half}", options.max_tokens)
            for half in options.halves
        ]
        found.append(parts[0] if len(parts) == 1 else parts[0].and_(parts[1]))
    print(f"{len(found[0].marks['strict'])} prompts, greedy answers\n")
    print("\n".join(table(*found)))


if __name__ == "__main__":
    main()
