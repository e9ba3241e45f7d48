"""Sampling with the transformers engine where answers are of very different lengths, on a CPU.

    python -m benchmarks.refill [--rows 256] [--batch 64] [--tokens 40] [--prompt 40] [--repeats 3]
                                [--width 256] [--layers 5] [--vocabulary 8192]

The rows of a block (64 prompts of a run with four samples each, by default), more than are decoded
together. Whether an answer ends is drawn at each of its tokens: after ``--tokens`` of them on
average, in one answer of twenty after ten times as many. The weights are random, in float32; in
this process and on one thread.

Batch by batch, each waits for its longest answer. Refilled, as the engine does it, rows of a batch
take the places of those of the one before as these end; both sides draw the same tokens. The limit
beside them is batch by batch with answers of one length, about as many tokens in all: what a batch
gives that is full to its end. CPU seconds, all in turn. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

LONG, ONE_IN = 10, 20


def end_answers(model: Any, vocabulary: int, tokens: int) -> list[int]:
    """Make ``model``'s answers end at the tokens returned.

    The first twentieth of the tokens are of long answers; what follows a token is of its kind. Of
    the long ones' tokens one in ten times ``tokens`` is an end, of the others' one in ``tokens``.
    """
    import torch

    long = vocabulary // ONE_IN
    bias = torch.zeros((2, vocabulary))
    bias[0, :long] = bias[1, long:] = -torch.inf

    def keep_kind(_model: Any, _: Any, asked: dict[str, Any], output: Any) -> Any:
        ids = asked["input_ids"]
        if ids.shape[1] == 1:  # not a prompt, behind which either kind may come
            output.logits += bias[(ids < long).long()]
        return output

    model.register_forward_hook(keep_kind, with_kwargs=True)
    return [*range(0, long, LONG * tokens), *range(long, vocabulary, tokens)]


def make(given: argparse.Namespace) -> Any:
    """The model, as the engine loads it."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from prefloop.labelers.scorers.attention import share_heads

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=given.vocabulary, hidden_size=given.width,
        intermediate_size=given.width * 8 // 3, num_hidden_layers=given.layers,
        num_attention_heads=given.width // 64, num_key_value_heads=given.width // 64,
        max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    share_heads(model)
    return model


def batches_of(given: argparse.Namespace) -> list[list[tuple[tuple[int, ...], int]]]:
    """Even batches of prompts with four seeds each, the shortest first."""
    draw = np.random.default_rng(0)
    lengths = sorted(draw.integers(given.prompt // 2, given.prompt + 1, -(-given.rows // 4)))
    prompts = [tuple(draw.integers(given.vocabulary, size=length).tolist()) for length in lengths]
    rows = [(prompts[row // 4], row) for row in range(given.rows)]
    parts = -(-len(rows) // given.batch)
    cuts = [part * len(rows) // parts for part in range(parts + 1)]
    return [rows[start:end] for start, end in pairwise(cuts)]


def main() -> None:
    """Sample in turn, and print tokens per CPU second."""
    import torch

    from prefloop.data.protocol import Sampling
    from prefloop.pipeline.engines.decoding.decoder import decode_batches

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("rows", 256), ("batch", 64), ("tokens", 40), ("prompt", 40)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("repeats", 3), ("width", 256), ("layers", 5), ("vocabulary", 8192)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, batches = make(given), batches_of(given)
    ends = end_answers(model, given.vocabulary, given.tokens)
    apart = [[batch] for batch in batches]

    def drawn(runs: list[Any], end_ids: list[int], longest: int) -> list[tuple[int, ...]]:
        sampling = Sampling(temperature=1.0, max_tokens=longest)
        found = []
        for run in runs:
            rows = decode_batches(model, run, sampling, end_ids=end_ids)
            found += [row.token_ids for _, row in sorted(rows, key=lambda one: one[0])]
        assert len(found) == given.rows
        return found

    most = LONG * given.tokens * 3 // 2
    expected = drawn(apart, ends, most)
    mean = round(sum(map(len, expected)) / given.rows)
    sides: dict[str, Callable[[], list[tuple[int, ...]]]] = {
        "batch by batch": lambda: drawn(apart, ends, most),
        "refilled": lambda: drawn([batches], ends, most),
        "limit: answers of one length": lambda: drawn(apart, [], mean),
    }
    rates: dict[str, list[float]] = {side: [] for side in sides}
    others = 0
    for _ in range(given.repeats):
        for side, run in sides.items():
            began = time.process_time()
            rows = run()
            rates[side].append(sum(map(len, rows)) / (time.process_time() - began))
            if side == "refilled":
                others = sum(one != other for one, other in zip(rows, expected, strict=True))
    number, longest = sum(map(len, expected)), max(map(len, expected))
    size = sum(weight.numel() for weight in model.parameters()) / 1e6
    print(
        f"{number:,} tokens in {given.rows} answers of {mean} on average and {longest} at most, in "
        f"{len(batches)} batches; {size:.0f} million parameters; refilled, {others} answers are "
        "others\n"
    )
    print("| | tokens a CPU second, median | least to most | of the limit |")
    print("| --- | --- | --- | --- |")
    medians = [statistics.median(found) for found in rates.values()]
    for (side, found), rate in zip(rates.items(), medians, strict=True):
        spread_of = f"{min(found):,.0f} to {max(found):,.0f}"
        print(f"| {side} | {rate:,.0f} | {spread_of} | {rate / medians[-1]:.0%} |")
    print(f"| **refilled to batch by batch** | **{medians[1] / medians[0]:.2f}** | | |")


if __name__ == "__main__":
    main()
