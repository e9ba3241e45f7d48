"""`prefloop audit` on a million pairs: rows per second and peak memory.

    python -m benchmarks.audit [--rows 1000000] [--folder DIR]

Makes three Parquet files (seeded): prompt, chosen and rejected as text; chosen and rejected as
conversations that share their prompt; and the first again as gzipped JSON lines. Answers have 300
to 1,500 characters, one in five has letters beyond ASCII; one prompt in ten has a second pair, one
pair in a thousand contradicts another. The command runs in a process of its own for each file.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CHUNK = 20_000
WORDS = [
    "the", "of", "and", "to", "in", "is", "that", "for", "it", "with", "was", "on", "are", "this",
    "by", "from", "have", "not", "you", "which", "answer", "question", "because", "however",
    "result", "number", "example", "people", "water", "energy", "simple", "reason", "system",
    "history", "language", "between",
]  # fmt: skip
ACCENTED = ["café", "naïve", "Zürich", "“quoted”", "mañana", "–"]


def texts(generator: np.random.Generator, count: int, low: int, high: int) -> list[str]:
    """Prose of ``low`` to ``high`` characters, cut out of one long made-up text."""
    words = generator.choice(WORDS, 200_000)
    plain = " ".join(words.tolist())
    places = generator.random(len(words)) < 0.02
    words = words.astype(object)
    words[places] = generator.choice(ACCENTED, int(places.sum()))
    accented = " ".join(words.tolist())
    starts = generator.integers(0, len(plain) - high - 1, count)
    lengths = generator.integers(low, high, count)
    beyond = generator.random(count) < 0.2
    return [
        (accented if other else plain)[start : start + length].strip()
        for start, length, other in zip(
            starts.tolist(), lengths.tolist(), beyond.tolist(), strict=True
        )
    ]


def blocks(rows: int) -> Iterator[tuple[list[str], list[str], list[str]]]:
    """Prompts, chosen and rejected answers, some thousand at a time."""
    generator = np.random.default_rng(0)
    for start in range(0, rows, CHUNK):
        count = min(CHUNK, rows - start)
        prompts = [f"{start + i}: {text}" for i, text in
                   enumerate(texts(generator, count, 100, 400))]  # fmt: skip
        chosen = texts(generator, count, 300, 1500)
        rejected = texts(generator, count, 300, 1400)
        for i in np.flatnonzero(generator.random(count) < 0.1).tolist():
            if i:
                prompts[i] = prompts[i - 1]
        for i in np.flatnonzero(generator.random(count) < 0.001).tolist():
            if i:
                prompts[i], chosen[i], rejected[i] = prompts[i - 1], rejected[i - 1], chosen[i - 1]
        yield prompts, chosen, rejected


def make_files(folder: Path, rows: int) -> list[Path]:
    """The three files."""
    paths = [
        folder / name for name in ("strings.parquet", "conversations.parquet", "rows.jsonl.gz")
    ]
    turn = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
    flat = pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected")])
    nested = pa.schema([("chosen", turn), ("rejected", turn), ("score", pa.float64())])
    with (
        pq.ParquetWriter(paths[0], flat, compression="snappy") as strings,
        pq.ParquetWriter(paths[1], nested, compression="snappy") as conversations,
        gzip.open(paths[2], "wt", compresslevel=1) as lines,
    ):
        for prompts, chosen, rejected in blocks(rows):
            strings.write_table(pa.table([prompts, chosen, rejected], schema=flat))
            both = [
                [
                    [{"role": "user", "content": p}, {"role": "assistant", "content": answer}]
                    for p, answer in zip(prompts, answers, strict=True)
                ]
                for answers in (chosen, rejected)
            ]
            scores = [1.0] * len(prompts)
            conversations.write_table(pa.table([*both, scores], schema=nested))
            for row in zip(prompts, chosen, rejected, strict=True):
                lines.write(json.dumps(dict(zip(flat.names, row, strict=True))) + "\n")
    return paths


def main() -> None:
    """Make the files, audit each, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="Keep the files here, and use them again.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / name for name in ("strings.parquet", "conversations.parquet",
                                            "rows.jsonl.gz")]  # fmt: skip
        if not all(path.exists() for path in paths):
            make_files(folder, options.rows)
        print("| file | seconds | pairs/s | peak memory |\n| --- | --- | --- | --- |")
        for path in paths:
            script = (
                "import json, resource, subprocess, sys; "
                "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
                "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
            )
            start = "from prefloop.pipeline.commands.app import main; main()"
            command = [sys.executable, "-c", start, "audit", str(path), "--json"]
            began = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-c", script, *command], check=True, capture_output=True, text=True
            )
            seconds = time.monotonic() - began
            memory = int(done.stdout) / 1024
            print(f"| {path.name} | {seconds:.1f} | {options.rows / seconds:,.0f} | "
                  f"{memory:,.0f} MiB |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
