"""A GPU's acceptance: what is installed there of transformers, vLLM and TRL, measured in one go.

    make gpu
    python -m benchmarks.gpu [--parts transformers vllm dpo] [--prompts 256] [--n 4]
                             [--max-tokens 128] [--pairs 128] [--batch 8]
                             [--width 1024] [--layers 28] [--minutes 9]

A policy of Qwen3-0.6B's shape with random weights is made on the spot, so no hub is needed; with a
small width and few layers all of it runs on a CPU. Each part runs in processes of its own and may
fail without the others: sampling through the pipeline against raw `generate` on the same prompts,
with vLLM's engine and with transformers'; one-token verdicts in both orders; a LoRA adapter and
whole weights swapped into the running engine, with the comparison of log-probabilities; vLLM asleep
and awake; steps of DPO against TRL's trainer with its reference computed before, in bf16, with
pairs of like length together. Peak memory is what torch allocated on the GPU, for vLLM what the
whole GPU had in use, and on a CPU that of the process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge import english_tokenizer, make_rows
from benchmarks.memory import peak_mib
from benchmarks.sampling import make_prompts
from benchmarks.training import make_triples
from prefloop.pipeline.config import RunConfig, validate_config
from prefloop.pipeline.engines.vllm_engine import VllmInProcess
from prefloop.pipeline.run.models import Models
from tests.helpers.engine_models import make_adapter

LEARNING_RATE, BETA = 1e-6, 0.1
POSITIONS = 4096
WARM_STEPS = 2


@dataclass(frozen=True)
class Figure:
    """A line of the table: ``peer`` is what it is compared with, where there is something."""

    what: str
    value: float | None
    unit: str
    peer: float | None = None
    memory: float | None = None
    """GiB at most."""
    note: str = ""

    def row(self) -> str:
        """As Markdown."""
        ratio = ""
        if self.value and self.peer:
            better = self.peer / self.value if self.unit == "s" else self.value / self.peer
            ratio = f"{better:.2f}"
        cells = [
            self.what,
            self.note if self.value is None else f"{self.value:,.4g} {self.unit}",
            "" if self.peer is None else f"{self.peer:,.4g} {self.unit}",
            ratio,
            "" if self.memory is None else f"{self.memory:.1f} GiB",
        ]
        return "| " + " | ".join(cells) + " |"


# The model --------------------------------------------------------------------------------------


def make_policy(folder: Path, options: argparse.Namespace, *, seed: int = 0) -> str:
    """Qwen3-0.6B's shape, or a smaller one, with random weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = english_tokenizer()
    real = options.width >= 1024
    config = Qwen3Config(
        vocab_size=151_936 if real else len(tokenizer), hidden_size=options.width,
        intermediate_size=3 * options.width, num_hidden_layers=options.layers,
        num_attention_heads=16 if real else max(options.width // 32, 1),
        num_key_value_heads=8 if real else max(options.width // 64, 1),
        head_dim=128 if real else 32, max_position_embeddings=POSITIONS, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        # Only tokens that the tokenizer knows are likely: answers are then texts.
        weight = model.get_input_embeddings().weight
        weight[: len(tokenizer)] *= 8
        weight[len(tokenizer) :] = 0
    model.to(torch.bfloat16 if on_gpu() else torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def on_gpu() -> bool:
    """Whether there is one."""
    import torch

    return bool(torch.cuda.is_available())


def peak_memory(*, whole_device: bool = False) -> float:
    """GiB; of the whole GPU what is in use now."""
    import torch

    if not on_gpu():
        return peak_mib() / 1024
    if whole_device:
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**30
    return torch.cuda.max_memory_allocated() / 2**30


def config_of(folder: Path, options: argparse.Namespace, engine: dict[str, Any]) -> RunConfig:
    """The run that sampling takes its requests from."""
    return validate_config(
        {
            "run_dir": str(folder / "run"),
            "policy": str(folder / "policy"),
            "engines": {"default": engine},
            "prompts": {
                "train": {"path": str(folder / "prompts.jsonl")},
                "heldout_share": 0.0,
                "near_duplicates": {"enabled": False},
            },
            "sample": {"n": options.n, "max_tokens": options.max_tokens},
            "label": {"labelers": [{"type": "verifier", "name": "none"}]},
        },
        "benchmark",
    )


def prompt_ids(folder: Path) -> list[list[int]]:
    """The prompts as token ids, as every side is given them."""
    from prefloop.data.conversations.chat import render_tokens
    from prefloop.pipeline.engines.weights import load_tokenizer

    tokenizer = load_tokenizer(str(folder / "policy"))
    lines = (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        render_tokens(tokenizer, [{"role": "user", "content": json.loads(line)["prompt"]}])
        for line in lines
    ]


# Sampling and judging through the pipeline ------------------------------------------------------


async def sampled(config: RunConfig, models: Models) -> float:
    """Tokens a second of the sample stage, shards in and shards out."""
    from prefloop.pipeline.run.context import RunContext
    from prefloop.pipeline.run.run_dir import RunDir
    from prefloop.pipeline.stages.prompts import draw_prompts, read_prompts
    from prefloop.pipeline.stages.sample import sample_round

    run = RunDir(Path(config.run_dir))
    context = RunContext.of(config, run).round(0)
    read_prompts(context, config.prompts, block_size=config.block_size)
    models.take_probes(run.prompts, None)
    blocks = draw_prompts(context, per_round=None, per_leg=None, block_size=config.block_size)
    await models.engine("default", "policy")
    await warm_up(models)
    began = time.perf_counter()
    await sample_round(context, config.sample, models, blocks)
    seconds = time.perf_counter() - began
    table = run.round(0).candidates.table(["tokens", "copies"])
    return float(np.dot(table["tokens"], table["copies"])) / seconds


async def warm_up(models: Models) -> None:
    """One short answer, so that nothing is compiled while it is timed."""
    from prefloop.data.protocol import Request, Sampling

    engine = await models.engine("default", "policy")
    prompt = ({"role": "user", "content": "Say something."},)
    await engine.generate(Request("warm", prompt, Sampling(max_tokens=4), seeds=(0, 1)))


async def judged(models: Models, pairs: int) -> float:
    """Labels a second: pairs with a verdict in both orders."""
    from prefloop.data.hashing import content_id, pair_id
    from prefloop.labelers.base import Answer, Pair
    from prefloop.labelers.config import JudgeLabeler
    from prefloop.labelers.factory import build_labeler

    made = []
    for row in make_rows(pairs, 60):
        question = str(row["instruction"])
        texts = row["generations"]
        assert isinstance(texts, list)
        prompt = content_id("prompt", question)
        a, b = (Answer(content_id(prompt, text), text, 1, "sampled") for text in texts)
        asked = ({"role": "user", "content": question},)
        name = pair_id(prompt, a.candidate_id, b.candidate_id)
        made.append(Pair(name, prompt, 0, asked, None, {}, a, b))
    engine = await models.engine("default", "policy")
    judge = build_labeler(
        JudgeLabeler(model="policy", judge="pairwise", orders="both"), engine=engine, seed=0
    )
    await judge.label(made[:4], block="warm")
    began = time.perf_counter()
    votes = await judge.label(made, block="timed")
    assert len(votes) == 2 * pairs
    return pairs / (time.perf_counter() - began)


# transformers -----------------------------------------------------------------------------------


def raw_transformers(folder: Path, options: argparse.Namespace) -> list[Figure]:
    """Tokens a second of `generate`, prompts of like length together, as many as ours at once."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if on_gpu() else "cpu"
    dtype = torch.bfloat16 if on_gpu() else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=dtype).to(device).eval()
    prompts = sorted(prompt_ids(folder), key=len)
    size = max(64 // options.n, 1)

    def batch(rows: Sequence[list[int]], most: int) -> int:
        padded = tokenizer.pad({"input_ids": list(rows)}, return_tensors="pt").to(device)
        found = model.generate(
            **padded, do_sample=True, temperature=1.0, top_k=0, num_return_sequences=options.n,
            max_new_tokens=most,
        )[:, padded["input_ids"].shape[1] :]  # fmt: skip
        return int((found != tokenizer.pad_token_id).sum())

    batch(prompts[:2], 4)
    began = time.perf_counter()
    tokens = sum(
        batch(prompts[at : at + size], options.max_tokens) for at in range(0, len(prompts), size)
    )
    rate = tokens / (time.perf_counter() - began)
    return [Figure("raw transformers", rate, "tokens/s", memory=peak_memory())]


def ours_transformers(folder: Path, options: argparse.Namespace) -> list[Figure]:
    """The sample stage, the judge and a swap with the transformers engine."""

    async def measure() -> list[Figure]:
        config = config_of(folder, options, {"type": "transformers"})
        models = Models(config)
        rate = await sampled(config, models)
        found = [Figure("sampling, transformers", rate, "tokens/s", memory=peak_memory())]
        labels = await judged(models, options.pairs)
        found.append(Figure("judge in both orders, transformers", labels, "labels/s"))
        found.append(await swapped(models, folder / "policy-1", "transformers, whole weights"))
        await models.release()
        return found

    return asyncio.run(measure())


async def swapped(models: Models, policy: Path, what: str) -> Figure:
    """Seconds until the running engine answers with the weights of ``policy``, checked."""
    models.use_policy(str(policy))
    began = time.perf_counter()
    await warm_up(models)
    return Figure(f"swap, {what}", time.perf_counter() - began, "s")


# vLLM -------------------------------------------------------------------------------------------


def raw_vllm(folder: Path, options: argparse.Namespace) -> list[Figure]:
    """Tokens a second of `LLM.generate` with the engine arguments of ours."""
    from vllm import LLM, SamplingParams, TokensPrompt

    from prefloop.pipeline.engines.settings import VllmEngine
    from prefloop.pipeline.engines.vllm_engine import _engine_args

    model = str(folder / "policy")
    llm = LLM(model=model, **_engine_args(VllmEngine(**vllm_settings()), model))
    prompts, parameters = [], []
    for at, ids in enumerate(prompt_ids(folder)):
        for index in range(options.n):
            prompts.append(TokensPrompt(prompt_token_ids=ids))
            seed = options.n * at + index
            parameters.append(SamplingParams(max_tokens=options.max_tokens, seed=seed, logprobs=0))
    llm.generate(prompts[:8], parameters[:8], use_tqdm=False)
    llm.reset_prefix_cache()
    began = time.perf_counter()
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    seconds = time.perf_counter() - began
    tokens = sum(len(one.outputs[0].token_ids) for one in outputs)
    memory = peak_memory(whole_device=True)
    return [Figure("raw vLLM", tokens / seconds, "tokens/s", memory=memory)]


def vllm_settings() -> dict[str, Any]:
    """The engine as all sides start it; a part of the GPU is left for the check of weights."""
    return {
        "type": "vllm", "max_model_len": 2048, "enable_lora": True, "max_lora_rank": 8,
        "gpu_memory_utilization": 0.7,
    }  # fmt: skip


def ours_vllm(folder: Path, options: argparse.Namespace) -> list[Figure]:
    """The sample stage, the judge, swaps, sleep and wake with one engine process."""

    async def measure() -> list[Figure]:
        config = config_of(folder, options, vllm_settings())
        models = Models(config)
        began = time.perf_counter()
        await models.engine("default", "policy")
        found = [Figure("vLLM starts", time.perf_counter() - began, "s")]
        rate = await sampled(config, models)
        memory = peak_memory(whole_device=True)
        found.append(Figure("sampling, vLLM", rate, "tokens/s", memory=memory))
        labels = await judged(models, options.pairs)
        found.append(Figure("judge in both orders, vLLM", labels, "labels/s"))
        found.append(await swapped(models, folder / "adapter", "vLLM, LoRA"))
        found.append(await swapped(models, folder / "policy-1", "vLLM, whole weights"))
        found += await asleep_and_awake(models)
        await models.release()
        return found

    return asyncio.run(measure())


async def asleep_and_awake(models: Models) -> list[Figure]:
    """Seconds to sleep and to wake, what stays of the GPU, and that the same answer comes."""
    from prefloop.data.protocol import Request, Sampling

    prompt = ({"role": "user", "content": "Say something."},)
    request = Request("same", prompt, Sampling(temperature=0.0, max_tokens=16), seeds=(0,))
    seat = await models.engine("default", "policy")
    [before] = await seat.generate(request)
    engine = models.opened("default", "policy")
    if not isinstance(engine, VllmInProcess) or not engine.can_sleep:
        return [Figure("sleep and wake, vLLM", None, "", note="vLLM cannot sleep here")]
    began = time.perf_counter()
    await engine.sleep()
    sleeping = time.perf_counter() - began
    memory = peak_memory(whole_device=True)
    began = time.perf_counter()
    await engine.wake_up()
    waking = time.perf_counter() - began
    [after] = await seat.generate(request)
    assert before.logprob is not None
    assert after.logprob is not None
    off = abs(before.logprob - after.logprob) / max(len(after.token_ids), 1)
    return [
        Figure("vLLM goes to sleep (its weights are summed up, the first time)", sleeping, "s",
               memory=memory),
        Figure("vLLM wakes (its weights are compared, the first time)", waking, "s"),
        Figure("log-probability after waking, off by", off, "nats a token"),
    ]  # fmt: skip


# DPO --------------------------------------------------------------------------------------------


def step_seconds(times: Sequence[float]) -> float:
    """The median time from one step's end to the next, without the first ones."""
    gaps = np.diff(times)
    return statistics.median(gaps[WARM_STEPS:].tolist() or gaps.tolist())


def ours_dpo(folder: Path, options: argparse.Namespace) -> list[Figure]:
    """Seconds of a step of prefloop's training, with its defaults."""
    from prefloop.training.config import TrainConfig
    from prefloop.training.methods.dpo import Dpo
    from prefloop.training.session.fit import fit
    from prefloop.training.session.job import Job

    config = TrainConfig(
        learning_rate=LEARNING_RATE, beta=BETA, batch_size=options.batch, max_length=2048
    )
    model, ends = folder / "policy", [time.perf_counter()]
    job = Job(model, model, (folder / "t.parquet",), folder / "trained", config, seed=0)
    fit(job, Dpo(), on_step=lambda _: ends.append(time.perf_counter()))
    return [Figure("a step of DPO", step_seconds(ends), "s", memory=peak_memory())]


def trl_dpo(folder: Path, options: argparse.Namespace) -> list[Figure]:
    """Seconds of a step of TRL's trainer, as tuned as ours."""
    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    data = load_dataset("parquet", data_files=str(folder / "t.parquet"), split="train",
                        cache_dir=str(folder / "cache"))  # fmt: skip
    data = data.select_columns(["prompt", "chosen", "rejected"])
    ends = [time.perf_counter()]

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    arguments = DPOConfig(
        output_dir=str(folder / "trl"), learning_rate=LEARNING_RATE, beta=BETA,
        per_device_train_batch_size=options.batch, num_train_epochs=1, logging_steps=1,
        report_to="none", save_strategy="no", bf16=on_gpu(), use_cpu=not on_gpu(), max_length=2048,
        seed=0, disable_tqdm=True, precompute_ref_log_probs=True, gradient_checkpointing=False,
        train_sampling_strategy="group_by_length", model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    trainer = DPOTrainer(
        model=str(folder / "policy"), args=arguments, train_dataset=data, callbacks=[Ends()]
    )
    rows = trainer.train_dataset  # tokenised, and with nothing in it that its sampler groups by
    lengths = [
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        for row in rows
    ]
    trainer.train_dataset = rows.add_column(arguments.length_column_name, lengths)
    trainer._set_signature_columns_if_needed()
    trainer._signature_columns.append(arguments.length_column_name)  # else it is dropped before
    trainer.train()
    return [Figure("TRL", step_seconds(ends), "s", memory=peak_memory())]


# All of it --------------------------------------------------------------------------------------

Side = Callable[[Path, argparse.Namespace], list[Figure]]
PARTS: dict[str, tuple[str, list[Side]]] = {
    "transformers": ("transformers", [raw_transformers, ours_transformers]),
    "vllm": ("vllm", [raw_vllm, ours_vllm]),
    "dpo": ("trl", [trl_dpo, ours_dpo]),
}
"""Each part by the library that it needs; the peer first."""


def paired(found: Iterable[Figure]) -> list[Figure]:
    """Those of prefloop, each first one beside its peer, whose memory is told with it."""
    peer, *own = found
    memory = "" if peer.memory is None else f" (peer: {peer.memory:.1f} GiB)"
    first = next((at for at, one in enumerate(own) if one.unit == peer.unit and one.memory), None)
    if first is None:
        return [peer, *own]
    return [
        Figure(f"{one.what} against {peer.what}{memory}", one.value, one.unit, peer.value,
               one.memory, one.note) if at == first else one
        for at, one in enumerate(own)
    ]  # fmt: skip


def run_side(side: Side, folder: Path, given: list[str], seconds: float) -> list[Figure]:
    """``side`` in a process of its own. Raises ``RuntimeError`` with its last words."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--side", side.__name__,
               "--folder", str(folder), *given]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise RuntimeError("took too long") from None
    line = next((one for one in done.stdout.splitlines() if one.startswith("FOUND ")), None)
    if done.returncode or line is None:
        words = [one.strip() for one in done.stderr.splitlines() if one.strip()]
        raise RuntimeError(words[-1] if words else f"ended with {done.returncode}")
    return [Figure(**one) for one in json.loads(line.removeprefix("FOUND "))]


def main() -> None:
    """Make the models, run the parts and print one table; ends with 1 where a part failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    for name, default in (
        ("prompts", 256), ("n", 4), ("max-tokens", 128), ("pairs", 128), ("batch", 8),
        ("width", 1024), ("layers", 28), ("minutes", 9),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sides = {side.__name__: side for _, of_part in PARTS.values() for side in of_part}
    if options.side:
        found = sides[options.side](options.folder, options)
        print("FOUND", json.dumps([vars(one) for one in found]), flush=True)
        return
    ends = time.monotonic() + 60 * options.minutes
    given = [word for word in sys.argv[1:] if word != "--parts" and word not in PARTS]
    failed = False
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base)
        policy = make_policy(folder / "policy", options)
        make_policy(folder / "policy-1", options, seed=1)
        make_adapter(folder / "adapter", policy)
        make_prompts(folder / "prompts.jsonl", options.prompts)
        make_triples(folder / "t.parquet", options.pairs)
        print("| what | prefloop | peer | ratio | peak memory |")
        print("| --- | --- | --- | --- | --- |", flush=True)
        for part in options.parts:
            library, of_part = PARTS[part]
            if find_spec(library) is None:
                print(Figure(part, None, "", note=f"{library} is not installed").row(), flush=True)
                continue
            measured: list[Figure] = []
            for side in of_part:
                try:
                    measured += run_side(side, folder, given, max(ends - time.monotonic(), 1))
                except RuntimeError as error:
                    failed = True
                    note = f"failed: {str(error)[:200]}".replace("|", "/")
                    measured.append(Figure(side.__name__, None, "", note=note))
            with suppress(ValueError):
                print("\n".join(one.row() for one in paired(measured)), flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
