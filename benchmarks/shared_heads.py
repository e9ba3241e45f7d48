"""Sampling with the transformers engine on a CPU, from a model whose heads share keys and values.

    python -m benchmarks.shared_heads [--rows 48] [--tokens 384] [--prompt 100] [--repeats 3]
                                      [--width 576] [--layers 30] [--vocabulary 49152]

A Llama of SmolLM2-135M's shape by default, three heads to each set of keys and values, with random
weights in float32, in this process and on one thread. transformers copies keys and values for each
head where there is a mask, which padding always brings; prefloop does not. Both sides are the same
loop, decode the same prompts of uneven lengths with the same seeds, and give the same tokens.

The limit beside them is what the machine's products of large matrices would allow if they were all
there is to a token. CPU seconds, both in turn. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np


def make(given: argparse.Namespace) -> Any:
    """The model, as transformers attends."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    heads = given.width // 64
    config = LlamaConfig(
        vocab_size=given.vocabulary, hidden_size=given.width,
        intermediate_size=given.width * 8 // 3, num_hidden_layers=given.layers,
        num_attention_heads=heads, num_key_value_heads=heads // 3,
        max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def decoded(model: Any, given: argparse.Namespace) -> tuple[float, list[tuple[int, ...]]]:
    """CPU seconds of sampling, prompts included, and the tokens."""
    from prefloop.data.protocol import Sampling
    from prefloop.pipeline.engines.decoding.decoder import decode

    draw = np.random.default_rng(0)
    lengths = draw.integers(given.prompt // 2, given.prompt + 1, given.rows)
    prompts = [tuple(draw.integers(given.vocabulary, size=length).tolist()) for length in lengths]
    sampling = Sampling(temperature=1.0, max_tokens=given.tokens)
    began = time.process_time()
    found = decode(model, prompts, range(given.rows), sampling, end_ids=[])
    return time.process_time() - began, [row.token_ids for row in found]


def main() -> None:
    """Sample in turn, and print tokens per CPU second."""
    import torch

    from prefloop.labelers.scorers.attention import share_heads
    from prefloop.pipeline.machine.speed import measure

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("rows", 48), ("tokens", 384), ("prompt", 100), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("width", 576), ("layers", 30), ("vocabulary", 49_152)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = make(given)
    seconds: dict[str, list[float]] = {"transformers' attention": [], "prefloop's": []}
    tokens = []
    for _ in range(given.repeats):
        for side in seconds:
            model.set_attn_implementation("sdpa")
            if side == "prefloop's":
                share_heads(model)
            spent, drawn = decoded(model, given)
            seconds[side].append(spent)
            tokens.append(drawn)
    number = given.rows * given.tokens
    # A tied head is multiplied with every token, though its weights are the embedding's.
    each = 2 * sum(weight.numel() for weight in model.parameters())
    limit = measure("cpu", "float32").flops / each
    same = "the same" if all(one == tokens[0] for one in tokens) else "NOT the same"
    print(f"{number:,} tokens, {same} on both sides; {each / 2e6:.0f} million parameters\n")
    print("| | tokens a CPU second, median | least to most | of the limit |")
    print("| --- | --- | --- | --- |")
    for side, spent in seconds.items():
        rate, low, high = (number / f(spent) for f in (statistics.median, max, min))
        print(f"| {side} | {rate:,.0f} | {low:,.0f} to {high:,.0f} | {rate / limit:.0%} |")
    plain, shared = (statistics.median(spent) for spent in seconds.values())
    print(f"| **ratio** | **{plain / shared:.2f}** | | |")
    print(f"| limit | {limit:,.0f} | | |")


if __name__ == "__main__":
    main()
