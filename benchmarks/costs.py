"""What a run of 1e6, 1e8 and 1e10 candidates costs, by the arithmetic of `prefloop plan`.

    python -m benchmarks.costs [--candidates 1e6 1e8 1e10] [--policy Qwen/Qwen3-8B]
                               [--judge Qwen/Qwen3-32B] [--n 4] [--block-size 64]
                               [--prompt 200] [--answer 400] [--gpu-hour 2.5]

Nothing is run. Sampling and labelling are priced as a plan prices them, with the speed of the card
that --flops, --bytes-per-second and --operation-s describe in the place of what a plan measures
here: an H100's by default, in bfloat16 and after what large products reach in practice. A judge
sees every pair of a prompt's answers in both orders and writes one token. Training is not in it: it
costs what its number of triples costs, on one machine or many.

Requests to an object store are what the run directory's layout needs: a PUT for each file, those of
single blocks that are put together later among them, and a LIST for each thousand. Stages read a
local copy; a machine that takes a run over fetches each file once more, which is not in it. Prints
a Markdown table.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from prefloop.pipeline.config import validate_config
from prefloop.pipeline.machine.speed import MachineSpeed
from prefloop.pipeline.plan.clock import Clock

WRITTEN = ("prompt", "candidate", "vote", "decision", "triple")
"""Nouns with a shard for each block."""
BY_BLOCK = ("candidate", "vote")
"""Those that are written block by block, and put together when all are there."""
PROMPTS_A_FILE = 2_048
PUT_PRICE = 5e-6
"""Dollars a request, as the large clouds ask them; a LIST costs as much as a PUT."""
RUBRIC = 250
"""Tokens of a judge's prompt beside the question and the answers."""


@dataclass(frozen=True)
class Cost:
    """Of one run."""

    candidates: float
    sample_hours: float
    """Hours of one card."""
    label_hours: float
    files: int
    """That are left when it is over."""
    requests: int
    store: float
    """Dollars of these requests."""


def cost(given: argparse.Namespace, candidates: float) -> Cost:
    """What ``candidates`` cost under the options ``given``."""
    config = validate_config(
        {
            "policy": given.policy,
            "block_size": given.block_size,
            "engines": {"default": {"type": "vllm", "max_num_seqs": given.slots}},
            "prompts": {"train": {"path": "embedded:prompts"}},
            "sample": {"n": given.n, "max_tokens": int(2 * given.answer)},
            "label": {"labelers": [{"type": "judge", "model": given.judge}]},
            "train": None,
            "evaluate": {"enabled": False},
        },
        "costs",
    )
    card = MachineSpeed(given.flops, given.bytes_per_second, given.operation_s)
    clock = Clock(config, lambda *_: card)
    prompts = candidates / given.n
    votes = prompts * math.comb(given.n, 2) * 2
    sampled = clock.answering(
        "default", given.policy, int(candidates),
        tokens=(given.prompt, given.answer, 2 * given.answer), copies=given.n,
    )  # fmt: skip
    # The question and the rubric are computed once for all pairs of a prompt; the answers are not.
    seen = 2 * given.answer + (RUBRIC + given.prompt) / (2 * math.comb(given.n, 2))
    labelled = clock.answering("default", given.judge, int(votes), tokens=(seen, 1, 1))
    blocks = math.ceil(prompts / given.block_size)
    files = len(WRITTEN) * math.ceil(prompts / max(PROMPTS_A_FILE, given.block_size))
    puts = files + len(BY_BLOCK) * blocks
    requests = puts + math.ceil(puts / 1000)
    return Cost(candidates, sampled / 3600, labelled / 3600, files, requests, requests * PUT_PRICE)


def main() -> None:
    """Price each size, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candidates", type=float, nargs="+", default=[1e6, 1e8, 1e10])
    parser.add_argument("--policy", default="Qwen/Qwen3-8B")
    parser.add_argument("--judge", default="Qwen/Qwen3-32B")
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--slots", type=int, default=256, help="sequences decoded together")
    parser.add_argument("--prompt", type=float, default=200, help="tokens of a prompt")
    parser.add_argument("--answer", type=float, default=400, help="tokens of an answer")
    parser.add_argument("--flops", type=float, default=6.5e14)
    parser.add_argument("--bytes-per-second", type=float, default=2.8e12)
    parser.add_argument("--operation-s", type=float, default=4e-6)
    parser.add_argument("--gpu-hour", type=float, default=2.5, help="dollars")
    given = parser.parse_args()
    print(
        f"{given.policy} samples {given.n} answers of {given.answer:g} tokens to prompts of "
        f"{given.prompt:g}, {given.judge} judges all pairs in both orders; blocks of "
        f"{given.block_size}; {given.gpu_hour:g} dollars an hour\n\n"
        "| candidates | sampling, GPU h | labelling, GPU h | dollars | files | requests | "
        "dollars for these |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for candidates in given.candidates:
        found = cost(given, candidates)
        hours = found.sample_hours + found.label_hours
        print(
            f"| {candidates:,.0f} | {found.sample_hours:,.1f} | {found.label_hours:,.1f} "
            f"| {hours * given.gpu_hour:,.0f} | {found.files:,} | {found.requests:,} "
            f"| {found.store:,.2f} |"
        )


if __name__ == "__main__":
    main()
