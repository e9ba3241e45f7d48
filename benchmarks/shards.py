"""A finished run of many small shards: CPU seconds and peak memory of `run`, which has nothing to
do, and of `status`.

    python -m benchmarks.shards [BLOCKS]        # default: 20000, or 100,000 shards of a round

One block of four prompts is labelled by a verifier. All others are that block's files under other
names, with counts, indexes, journal and dataset to match, so they cost no room, and are listed,
opened and counted as any others; the pages are those of the one block, but count as fresh. Each
command is timed in a process of its own, its start included; `index` is what is done once, when a
stage is over: all footers are read.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.reading import report, write_prompts

PER_BLOCK = 4


def make_block(folder: Path) -> Path:
    """A finished run of one block."""
    import prefloop

    write_prompts(folder / "answers.jsonl", PER_BLOCK, answers=4)
    judge = {"type": "verifier", "name": "length", "function": "tests.helpers.scores:length"}
    small = {"block_size": PER_BLOCK, "prompts.heldout_share": 0}
    prefloop.label(folder / "answers.jsonl", judge, folder / "run", overrides=small)
    return folder / "run"


def multiply(root: Path, blocks: int) -> None:
    """Let the run in ``root`` have so many blocks."""
    for first in [*root.glob("*/part-00000.parquet"), *root.glob("round-000/*/part-00000.parquet")]:
        for index in range(1, blocks):
            os.link(first, first.with_name(f"part-{index:05d}.parquet"))
    for name in ("prompts.json", "given.json", "round-000/written.json"):
        counts = json.loads((root / name).read_text())
        more = {key: n * blocks if isinstance(n, int) else n for key, n in counts.items()}
        (root / name).write_text(json.dumps(more))
    for path in root.glob("dataset/*/*.parquet"):
        pq.write_table(pa.concat_tables([pq.read_table(path)] * blocks), path)
    notes = [json.loads(line) for line in (root / "journal.jsonl").read_text().splitlines()]
    with (root / "journal.jsonl").open("a") as journal:
        for note in notes:
            if "block" in note:
                journal.writelines(
                    json.dumps(note | {"block": index}) + "\n" for index in range(1, blocks)
                )


def finish(root: Path) -> None:
    """Let indexes and pages be there, as a run leaves them."""
    from prefloop.pipeline.run.run_dir import RunDir

    run = RunDir(root)
    run.index_shards()
    run.round(0).index_shards()
    run.card.touch()
    after = run.card.stat().st_mtime + 1  # the report tells of the card too
    os.utime(run.report, (after, after))


def main() -> None:
    """Make the run, measure it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("blocks", nargs="?", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = make_block(Path(name))
        multiply(root, options.blocks)
        began = time.process_time()
        finish(root)
        took = time.process_time() - began
        shards = sum(1 for _ in root.glob("round-000/*/part-*.parquet"))
        print(f"{shards:,} shards, load {os.getloadavg()[0]:.2f}")
        print(f"{'':<12} {'CPU s':>8} {'peak MiB':>9}")
        print(f"{'index':<12} {took:>8.2f}")
        for what in ("run", "status"):
            report(what, what, root)


if __name__ == "__main__":
    main()
