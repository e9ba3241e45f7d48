"""The embedded judge with and without computing once what its requests share.

    python -m benchmarks.prefixes [--prompts 128] [--n 4] [--judge pairwise_short] [--repeats 5]
                                  [--threads 1] [--model embedded:judge]

All pairs of ``--n`` answers to each of the demo's prompts, in both orders, 64 prompts a block as in
a run; the answers are sampled from the embedded policy first. Both sides are the whole labelling
with the same engine, requests rendered and votes read, in turn; the plain one has the sharing
switched off, which leaves the batches and the arithmetic of before. Seconds are CPU seconds of this
process, tokens those that go through the model, padding included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest import mock

from prefloop.data.embedded import resolve_embedded
from prefloop.data.hashing import content_id, pair_id
from prefloop.data.protocol import Request, Sampling
from prefloop.labelers.base import Answer, Pair, Vote
from prefloop.labelers.config import JudgeLabeler
from prefloop.labelers.factory import build_labeler
from prefloop.pipeline.engines import prefixes
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.engines.settings import TransformersEngine

BLOCK = 64
"""Prompts a block, as in a run."""


async def sampled(prompts: list[str], n: int, threads: int) -> list[list[str]]:
    """Different answers to each of ``prompts``, ``n`` at most."""
    engine = await build_engine(
        TransformersEngine(threads=threads), resolve_embedded("embedded:policy")
    )
    requests = [
        Request(
            f"{row}", ({"role": "user", "content": prompt},),
            Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=64),
            tuple(range(row * n, row * n + n)), block="sampled", block_size=len(prompts),
        )
        for row, prompt in enumerate(prompts)
    ]  # fmt: skip
    found = await asyncio.gather(*map(engine.generate, requests))
    await engine.aclose()
    return [list(dict.fromkeys(answer.text for answer in answers)) for answers in found]


def pairs_of(prompt: str, answers: list[str]) -> list[Pair]:
    """All pairs of ``answers``."""
    name = content_id("prompt", prompt)
    made = [Answer(content_id(name, text), text, 1, "sampled") for text in answers]
    return [
        Pair(
            pair_id=pair_id(name, a.candidate_id, b.candidate_id), prompt_id=name, round=0,
            messages=({"role": "user", "content": prompt},), reference=None, metadata={}, a=a, b=b,
        )
        for a, b in combinations(made, 2)
    ]  # fmt: skip


async def label(judge: Any, blocks: list[list[Pair]]) -> list[Vote]:
    """The votes on all blocks, one after the other."""
    return [
        vote for at, pairs in enumerate(blocks) for vote in await judge.label(pairs, block=str(at))
    ]


def difference(votes: list[Vote], others: list[Vote]) -> float:
    """Between the verdicts' log-probabilities of the two sides, at most."""
    found = [
        [json.loads(vote.choice_logprobs or "{}") for vote in side] for side in (votes, others)
    ]
    return max(
        abs(one[choice] - other[choice])
        for one, other in zip(*found, strict=True)
        for choice in one
    )


async def measure(options: argparse.Namespace) -> None:
    """Both sides in turn, and a table."""
    lines = Path(resolve_embedded("embedded:prompts")).read_text(encoding="utf-8").splitlines()
    prompts = [str(json.loads(line)["prompt"]) for line in lines[: options.prompts]]
    answers = await sampled(prompts, options.n, options.threads)
    blocks = [
        [
            pair
            for row in range(start, min(start + BLOCK, len(prompts)))
            for pair in pairs_of(prompts[row], answers[row])
        ]
        for start in range(0, len(prompts), BLOCK)
    ]
    engine: Any = await build_engine(
        TransformersEngine(threads=options.threads), resolve_embedded(options.model)
    )
    config = JudgeLabeler(model=options.model, judge=options.judge)
    judge = build_labeler(config, engine=engine, seed=0)
    computed = [0]

    def count(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        computed[0] += (given[0] if given else named["input_ids"]).numel()

    engine._model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    seconds: dict[str, list[float]] = {"each prompt alone": [], "what is shared once": []}
    tokens: dict[str, int] = {}
    votes: dict[str, list[Vote]] = {}
    await label(judge, blocks[:1])  # warms up
    for _ in range(options.repeats):
        for side in seconds:
            apart = side == "each prompt alone"
            off = mock.patch.object(prefixes, "trees_of", return_value=None)
            computed[0] = 0
            with off if apart else nullcontext():
                began = time.process_time()
                votes[side] = await label(judge, blocks)
                seconds[side].append(time.process_time() - began)
            tokens[side] = computed[0]
    await engine.aclose()
    medians = {side: statistics.median(found) for side, found in seconds.items()}
    print(f"{len(votes['each prompt alone'])} votes; load {os.getloadavg()[0]:.1f}")
    print("| | computed tokens | CPU s, median | least to most |")
    print("| --- | --- | --- | --- |")
    for side, found in seconds.items():
        spread = f"{min(found):.2f} to {max(found):.2f}"
        print(f"| {side} | {tokens[side]:,} | {medians[side]:.2f} | {spread} |")
    (plain, shared), (more, fewer) = medians.values(), tokens.values()
    print(f"| ratio | {more / fewer:.2f} | **{plain / shared:.2f}** | |")
    print(f"log-probabilities differ by {difference(*votes.values()):.1e} at most")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--judge", default="pairwise_short")
    parser.add_argument("--model", default="embedded:judge")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
