"""A round of DPO against TRL's DPOTrainer with its defaults and as an expert sets it, same pairs.

    python -m benchmarks.training [--pairs 256] [--epochs 2] [--batch 8] [--width 384] [--layers 6]
        [--vocabulary 0]

A Llama with random weights, float32 on both sides (bf16 has no use on a CPU without it); prompts of
5 to 300 words, answers of 10 to 200. Each side runs in a process of its own, whose processor time
and peak memory are measured; both are of the whole call: loading, tokenising, the reference's
log-probabilities, training and saving. Ours is run with pairs in random order, as TRL has them,
with pairs of like length together (the default), and so with activations computed twice, as is
TRL's default. TRL tuned has the reference computed ahead, no activations computed twice, and pairs
of like length together.

``--vocabulary 150000`` measures, instead, the peak memory of the reference's pass and of a step
over a batch with a vocabulary that large: by all logits at once, and by ours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.memory import peak_mib
from benchmarks.models import WORDS, make_model
from prefloop.data.schemas import TRIPLE
from tests.helpers.dpo_data import triple

LEARNING_RATE, BETA = 1e-5, 0.1
TRL = ("trl", "trl-tuned")
OURS = ("random", "length", "recomputed")
MEMORY = ("reference, all logits", "reference, ours", "step, all logits", "step, ours")
TOKENS = 256
"""Of each prompt and of each answer, where memory is measured."""


def make_triples(path: Path, pairs: int) -> None:
    """Made-up pairs of uneven length."""
    generator = np.random.default_rng(0)

    def text(low: int, high: int, mean: float) -> str:
        length = int(np.clip(generator.lognormal(mean, 0.9), low, high))
        return " ".join(generator.choice(WORDS, length))

    rows = [
        triple(index, text(10, 200, 3.7), text(10, 200, 3.7), f"{index}: {text(5, 300, 3.2)}")
        for index in range(pairs)
    ]
    pq.write_table(pa.Table.from_pylist(rows, TRIPLE), path)


def ours(folder: Path, options: dict[str, Any], side: str) -> list[float]:
    """The losses of prefloop's training: ``random``, ``length`` or ``recomputed``."""
    from prefloop.training.config import TrainConfig
    from prefloop.training.methods.dpo import Dpo
    from prefloop.training.session.fit import fit
    from prefloop.training.session.job import Job

    config = TrainConfig(
        learning_rate=LEARNING_RATE, beta=BETA, batch_size=options["batch"],
        epochs=options["epochs"], order="random" if side == "random" else "length", max_length=2048,
        gradient_checkpointing=side == "recomputed",
    )  # fmt: skip
    model, out = folder / "model", folder / side / "policy"
    result = fit(Job(model, model, (folder / "t.parquet",), out, config, seed=0), Dpo())
    return [log["loss"] for log in result.history]


def theirs(folder: Path, options: dict[str, Any], *, tuned: bool) -> list[float]:
    """The losses of TRL's trainer as its documentation starts it, or ``tuned``."""
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    data = load_dataset("parquet", data_files=str(folder / "t.parquet"), split="train",
                        cache_dir=str(folder / "cache"))  # fmt: skip
    data = data.select_columns(["prompt", "chosen", "rejected"])
    more: dict[str, Any] = {}
    if tuned:
        data = data.map(lambda row: {"length": sum(len(row[side][0]["content"]) for side in row)})
        more = {
            "precompute_ref_log_probs": True, "gradient_checkpointing": False,
            "train_sampling_strategy": "group_by_length", "length_column_name": "length",
            # With them goes the column of lengths.
            "remove_unused_columns": False,
        }  # fmt: skip
    arguments = DPOConfig(
        output_dir=str(folder / "trl"), learning_rate=LEARNING_RATE, beta=BETA,
        per_device_train_batch_size=options["batch"], num_train_epochs=options["epochs"],
        logging_steps=1, report_to="none", save_strategy="no", bf16=False, use_cpu=True,
        warmup_steps=0.1, max_length=2048, seed=0, disable_tqdm=True, **more,
    )  # fmt: skip
    trainer = DPOTrainer(model=str(folder / "model"), args=arguments, train_dataset=data)
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def passes(options: dict[str, Any], side: str) -> float:
    """MiB that a pass over a batch takes beyond the model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from prefloop.training.policy.bundles import Bundle, batch_of
    from prefloop.training.policy.logprobs import sequence_logprobs
    from prefloop.training.policy.passes import passes_of

    torch.manual_seed(0)
    width = options["width"]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=options["vocabulary"], hidden_size=width, intermediate_size=3 * width,
            num_hidden_layers=options["layers"], num_attention_heads=width // 32,
            num_key_value_heads=width // 64, tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip
    draw = np.random.default_rng(0)
    asked, one, other = (
        [draw.integers(options["vocabulary"], size=TOKENS).astype(np.int32) for _ in range(count)]
        for count in (options["batch"],) * 3
    )
    passes_of(model)
    before = peak_mib()
    if side == "reference, ours":
        sequence_logprobs(model, asked * 2, one + other, batch_size=2 * options["batch"])
        return peak_mib() - before
    bundles = [Bundle(*both[:1], both[1:]) for both in zip(asked, one, other, strict=True)]
    if side == "step, ours":
        log_probs = passes_of(model).scores(batch_of(bundles, model.device)).log_probs
        log_probs.sum().backward()
        return peak_mib() - before
    batch = batch_of([alone for pair in bundles for alone in pair.apart()], model.device)
    with torch.set_grad_enabled(side == "step, all logits"):
        logits = model(batch.ids, use_cache=False).logits[:, :-1].log_softmax(-1)
        log_probs = logits.gather(2, batch.ids[:, 1:, None])
        if log_probs.requires_grad:
            log_probs.sum().backward()
    return peak_mib() - before


def one_side(name: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What a process of its own measures."""
    if name in MEMORY:
        return {"memory": passes(options, name)}
    began, used = time.perf_counter(), time.process_time()
    if name in TRL:
        losses = theirs(folder, options, tuned=name == "trl-tuned")
    else:
        losses = ours(folder, options, name)
    return {
        "seconds": time.perf_counter() - began,
        "processor": time.process_time() - used,
        "losses": losses,
        "memory": peak_mib(),
    }


def measure(name: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """``one_side`` in its process."""
    command = [sys.executable, "-m", "benchmarks.training", "--side", name, str(folder),
               json.dumps(options)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(folder: Path, options: dict[str, Any]) -> None:
    """Print the table of trainings."""
    make_model(folder / "model", options["width"], options["layers"])
    make_triples(folder / "t.parquet", options["pairs"])
    print("| | seconds | processor seconds | pairs/s | peak memory | mean loss, last quarter |")
    print("| --- | --- | --- | --- | --- | --- |")
    used = {}
    for side in (*TRL, *OURS):
        found = measure(side, folder, options)
        used[side] = found["processor"]
        losses = found["losses"]
        last = float(np.mean(losses[-max(1, len(losses) // 4) :]))
        rate = options["pairs"] * options["epochs"] / found["seconds"]
        cells = [f"{found['seconds']:.1f}", f"{used[side]:.1f}", f"{rate:.2f}",
                 f"{found['memory']:,.0f} MiB", f"{last:.4f}"]  # fmt: skip
        print("|", " | ".join([side, *cells]), "|", flush=True)
    for peer in TRL:
        for side in OURS:
            ratio = used[peer] / used[side]
            print(f"| **{side}, ratio of processor seconds to {peer}** | | **{ratio:.2f}** | | | |")
    print(f"\nLoad of the machine at the end: {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores.")


def compare_memory(folder: Path, options: dict[str, Any]) -> None:
    """Print the table of passes over a large vocabulary."""
    print(
        f"Vocabulary {options['vocabulary']:,}, {options['batch']} pairs of {TOKENS} tokens each."
    )
    print("\n| | peak memory beyond the model |\n| --- | --- |")
    for side in MEMORY:
        print(f"| {side} | {measure(side, folder, options)['memory']:,.0f} MiB |", flush=True)


def main() -> None:
    """Measure the sides in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=0)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        name, folder, options = given.side
        print(json.dumps(one_side(name, Path(folder), json.loads(options))))
        return
    options = {name: value for name, value in vars(given).items() if name != "side"}
    with tempfile.TemporaryDirectory() as name:
        (compare_memory if given.vocabulary else compare)(Path(name), options)


if __name__ == "__main__":
    main()
