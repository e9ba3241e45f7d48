"""The one-token judge against distilabel's judging tasks, on one vLLM server, in one run.

    python -m benchmarks.judge --peer-python PEER/bin/python [--pairs 256] [--words 60]
                               [--width 384] [--layers 6] [--block-size 32] [--model FOLDER]

Every side labels the same pairs of answers through `vllm serve` (its OpenAI server; the CPU build
here). Ours shows every pair in both orders and reads a verdict from one token; distilabel 1.5.3
shows it once and reads ratings (UltraFeedback) or a verdict (PrometheusEval, relative) from at most
128 tokens, its default. Ours also runs in one order, and against a server without prefix caching.
A label is a pair with a vote or a try at one. Computed tokens are what the server's own counters
say: prompt tokens less those found in the prefix cache, plus generated ones.

Without --model, a Llama with random weights of the given size and a tokenizer of English are made:
it says nothing sensible, and takes the time that a model of its size takes. The prefix cache works
in whole blocks, which vLLM's CPU build makes 128 tokens long by default and its GPU build 16; all
sides run with the same. The peer needs a venv of its own: pip install
distilabel[openai]==1.5.3 requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.models import WORDS, make_model
from prefloop.data.embedded import resolve_embedded
from tests.helpers.servers import vllm_server

WARM_UP = 8
"""Pairs that are judged before anything is timed."""

PEER = """
import json, sys, tempfile, time
from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import PrometheusEval, UltraFeedback

if __name__ == "__main__":
    url, task, rows = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
    llm = OpenAILLM(model="policy", base_url=url, api_key="none")
    with Pipeline(name=task, cache_dir=tempfile.mkdtemp()) as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=50)
        if task == "UltraFeedback":
            judge = UltraFeedback(llm=llm, input_batch_size=50)
        else:
            judge = PrometheusEval(llm=llm, mode="relative", rubric="helpfulness",
                                   input_batch_size=50)
        load >> judge
    began = time.perf_counter()
    found = pipeline.run(use_cache=False)
    assert len(found["default"]["train"]) == len(rows)
    print("SECONDS", time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Measured:
    """What labelling the pairs took."""

    labels: int
    seconds: float
    computed: float
    """Tokens that went through the model."""

    def __str__(self) -> str:
        return (
            f"{self.labels / self.seconds:8.2f} labels/s, {self.computed / self.labels:8.1f} "
            "computed tokens a label"
        )


def english_tokenizer() -> Any:
    """A byte-level BPE of Python's reference manual: like those of real models, and
    unlike the embedded policy's, it has a token for most words.
    """
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    embedded = AutoTokenizer.from_pretrained(resolve_embedded("embedded:policy"))
    special = embedded.all_special_tokens
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    text = [*topics.values(), " ".join(WORDS)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        text,
        trainers.BpeTrainer(vocab_size=16_000, special_tokens=special, initial_alphabet=alphabet),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **embedded.special_tokens_map)
    tokenizer.chat_template = embedded.chat_template
    return tokenizer


def make_rows(pairs: int, words: int) -> list[dict[str, object]]:
    """A prompt of ``words`` words and two answers of half to one and a half times as many."""
    draw = np.random.default_rng(0)

    def text(length: int) -> str:
        return " ".join(draw.choice(WORDS, length))

    return [
        {
            "instruction": f"Write about item {index}: {text(words)}",
            "generations": [text(int(words * draw.uniform(0.5, 1.5))) for _ in range(2)],
        }
        for index in range(pairs)
    ]


def ours(url: str, rows: list[dict[str, object]], orders: str) -> Measured:
    """Our judge through its HTTP engine."""
    from prefloop.data.hashing import content_id, pair_id
    from prefloop.labelers.base import Answer, Pair
    from prefloop.labelers.config import JudgeLabeler
    from prefloop.labelers.factory import build_labeler
    from prefloop.pipeline.engines.factory import build_engine
    from prefloop.pipeline.engines.settings import OpenAIEngine

    pairs = []
    for row in rows:
        prompt = content_id("prompt", str(row["instruction"]))
        texts = row["generations"]
        assert isinstance(texts, list)
        a, b = (Answer(content_id(prompt, str(text)), str(text), 1, "sampled") for text in texts)
        pairs.append(
            Pair(
                pair_id=pair_id(prompt, a.candidate_id, b.candidate_id), prompt_id=prompt, round=0,
                messages=({"role": "user", "content": str(row["instruction"])},),
                reference=None, metadata={}, a=a, b=b,
            )
        )  # fmt: skip

    async def go() -> float:
        engine = await build_engine(
            OpenAIEngine(base_url=url, max_concurrency=64, cache=False), "policy"
        )
        config = JudgeLabeler(model="policy", judge="pairwise", orders=orders)
        judge = build_labeler(config, engine=engine, seed=0)
        try:
            await judge.label(pairs[:WARM_UP], block="warm")
            _forget(url)
            began = time.perf_counter()
            votes = await judge.label(pairs, block="timed")
            seconds = time.perf_counter() - began
        finally:
            await engine.aclose()
        assert len(votes) == len(pairs) * (2 if orders == "both" else 1)
        assert all(vote.completion_tokens == 1 for vote in votes)
        return seconds

    before = _computed(url)
    seconds = asyncio.run(go())
    warm = WARM_UP / (len(pairs) + WARM_UP)  # the share of the tokens that warmed up
    return Measured(len(pairs), seconds, (_computed(url) - before) * (1 - warm))


def peer(python: str, url: str, rows: Path, task: str) -> Measured:
    """One of distilabel's tasks; its pipeline's start is timed, its imports are not."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "peer.py"
        script.write_text(PEER)
        _forget(url)
        before = _computed(url)
        command = [python, str(script), url, task, str(rows)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{task}: {done.stderr[-2000:]}")
    line = next(line for line in done.stdout.splitlines() if line.startswith("SECONDS"))
    labels = len(json.loads(rows.read_text()))
    return Measured(labels, float(line.split()[1]), _computed(url) - before)


def _computed(url: str) -> float:
    counters = {"prompt_tokens": 0.0, "generation_tokens": 0.0, "prefix_cache_hits": 0.0}
    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics") as answer:
        for line in answer.read().decode().splitlines():
            for name in counters:
                if line.startswith(f"vllm:{name}_total"):
                    counters[name] += float(line.rsplit(" ", 1)[1])
    return counters["prompt_tokens"] + counters["generation_tokens"] - counters["prefix_cache_hits"]


def _forget(url: str) -> None:
    """Empty the server's prefix cache, so that no side finds what another left there."""
    address = url.removesuffix("/v1") + "/reset_prefix_cache"
    urllib.request.urlopen(urllib.request.Request(address, method="POST")).close()


def main() -> None:
    """Measure every side in turn and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", help="python of a venv with distilabel")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--block-size", default="32", help="KV cache block (vLLM on GPUs: 16)")
    parser.add_argument("--model", help="checkpoint folder with a chat template")
    options = parser.parse_args()
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # the server's way to empty its prefix cache
    found: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or str(folder / "model")
        if not options.model:
            make_model(
                folder / "model", options.width, options.layers,
                tokenizer=english_tokenizer(), positions=4096,
            )  # fmt: skip
        rows = make_rows(options.pairs, options.words)
        (folder / "rows.json").write_text(json.dumps(rows))

        def note(what: str, measured: Measured) -> None:
            found[what] = measured
            print(f"{what:<44} {measured}", flush=True)

        common = ("--max-model-len", "4096", "--block-size", options.block_size)
        cached = ("--enable-prefix-caching", *common)
        with vllm_server(model, folder / "log", *cached) as url:
            note("prefloop, both orders", ours(url, rows, "both"))
            note("prefloop, one order", ours(url, rows, "one"))
            for task in ("UltraFeedback", "PrometheusEval") if options.peer_python else ():
                note(
                    f"distilabel {task}",
                    peer(options.peer_python, url, folder / "rows.json", task),
                )
            note("prefloop, both orders, again", ours(url, rows, "both"))
        uncached = ("--no-enable-prefix-caching", *common)
        with vllm_server(model, folder / "log", *uncached) as url:
            note("prefloop, both orders, no prefix caching", ours(url, rows, "both"))
            note("prefloop, one order, no prefix caching", ours(url, rows, "one"))
    both = found["prefloop, both orders"]
    for what, other in found.items():
        speed = other.seconds / both.seconds
        print(
            f"both orders against {what:<44} {speed:6.2f}x labels/s, "
            f"{both.computed / other.computed:5.2f}x computed tokens"
        )


if __name__ == "__main__":
    main()
