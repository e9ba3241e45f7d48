"""Filtering and writing against one pass of polars over the same candidates and votes, in one run.

    python -m benchmarks.vectorised [ROWS] [--repeats 3]

The peer reads all candidates and votes into memory and does what prefloop's two stages do with the
config of ``benchmarks.scale``: verdicts, mean win probabilities, four filters, best against worst,
the length balance of the round, decisions, triples in two splits, and the tables of every answer
and every vote. It keeps nothing that would let it go on after a kill, checks no ids, and does not
know jurors that abstain, several orders or tokenizers. Each run is a process of its own; processor
seconds are those of all its threads. Both must keep the same pairs, or the benchmark fails.

Needs polars.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.memory import peak_mib
from benchmarks.scale import BLOCK, LARGE, MAX_RATIO, MAX_SHARE_LONGER, MIN_MARGIN, make_up, measure
from prefloop.data.shards import ShardFolder
from prefloop.pipeline.run.run_dir import RunDir

DECIMALS = 12
ROW_GROUP_ROWS = 10_000
"""About what prefloop compresses together of rows of this size."""
TEST_SHARE = 0.02


def kept_by(decisions: ShardFolder) -> set[str]:
    """The pairs that prefloop keeps."""
    found: set[str] = set()
    for table in decisions.iter(["pair_id", "kept"]):
        found.update(table.filter(table["kept"])["pair_id"].to_pylist())
    return found


def pass_of_polars(run: Path, out: Path) -> set[str]:
    """Do it all in polars, and say which pairs are kept."""
    import polars as pl

    folder = RunDir(run).round(0)

    def read(shards: ShardFolder) -> pl.DataFrame:
        return pl.read_parquet(shards.folder / "part-*.parquet")

    prompts, candidates, votes = map(read, (folder.prompts, folder.candidates, folder.votes))
    pairs = votes.group_by("pair_id", "prompt_id", "a_id", "b_id").agg(pl.col("p_a").mean())
    sides = [
        pairs.select(pl.col("a_id").alias("candidate_id"), "p_a"),
        pairs.select(pl.col("b_id").alias("candidate_id"), p_a=1 - pl.col("p_a")),
    ]
    scores = pl.concat(sides).group_by("candidate_id").agg(
        pl.col("p_a").mean().round(DECIMALS).alias("score"), pl.len().alias("pairs")
    )  # fmt: skip
    plain = pl.col("text").str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()
    answers = candidates.select("candidate_id", "tokens", "finish_reason", plain=plain).join(
        scores, on="candidate_id", how="left"
    )
    a_wins = pl.col("p_a") >= 0.5
    decided = pairs.with_columns(
        chosen_id=pl.when(a_wins).then("a_id").otherwise("b_id"),
        rejected_id=pl.when(a_wins).then("b_id").otherwise("a_id"),
        p_chosen=pl.when(a_wins).then("p_a").otherwise(1 - pl.col("p_a")),
    )
    for side in ("chosen", "rejected"):
        of_side = answers.rename(
            {name: f"{side}_{name}" for name in ("tokens", "finish_reason", "plain", "score")}
        ).drop("pairs")
        decided = decided.join(of_side, left_on=f"{side}_id", right_on="candidate_id")
    lengths = [pl.col("chosen_tokens").cast(pl.Float64), pl.col("rejected_tokens")]
    longest, shortest = pl.max_horizontal(lengths), pl.max_horizontal(pl.min_horizontal(lengths), 1)
    cut = (pl.col("chosen_finish_reason") == "length") | (
        pl.col("rejected_finish_reason") == "length"
    )
    decided = decided.with_columns(
        margin=(pl.col("chosen_score") - pl.col("rejected_score")).round(DECIMALS)
    ).with_columns(
        reason=pl.when(pl.col("p_a") == 0.5).then(pl.lit("tie"))
        .when(pl.col("chosen_plain") == pl.col("rejected_plain")).then(pl.lit("identical"))
        .when(cut).then(pl.lit("truncated"))
        .when(longest / shortest > MAX_RATIO).then(pl.lit("length_ratio"))
        .when(pl.col("margin") < MIN_MARGIN - 1e-9).then(pl.lit("margin"))
    )  # fmt: skip
    best = (
        decided.filter(pl.col("reason").is_null())
        .sort("prompt_id", "margin", "pair_id", descending=[False, True, False])
        .unique("prompt_id", keep="first", maintain_order=True)
    )
    unequal = best.filter(pl.col("chosen_tokens") != pl.col("rejected_tokens"))
    longer = unequal.filter(pl.col("chosen_tokens") > pl.col("rejected_tokens"))
    excess = len(longer) - MAX_SHARE_LONGER * len(unequal)
    weak = longer.sort("margin", "pair_id").head(math.ceil(max(excess, 0) / (1 - MAX_SHARE_LONGER)))
    kept = best.join(weak.select("pair_id"), on="pair_id", how="anti").sort("prompt_id")
    decided = decided.with_columns(
        reason=pl.when(pl.col("reason").is_not_null()).then("reason")
        .when(pl.col("pair_id").is_in(weak["pair_id"].implode())).then(pl.lit("length_balance"))
        .when(~pl.col("pair_id").is_in(kept["pair_id"].implode())).then(pl.lit("pair_strategy"))
    ).drop("chosen_plain", "rejected_plain")  # fmt: skip

    def write(table: pl.DataFrame, *name: str) -> None:
        path = out.joinpath(*name).with_suffix(".parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        table.write_parquet(
            path, compression="zstd", compression_level=1, row_group_size=ROW_GROUP_ROWS
        )

    write(decided, "decisions")
    shown = prompts.select("prompt_id", prompt="messages")
    texts = candidates.select("candidate_id", "text")

    def answer(side: str) -> pl.Expr:
        turn = pl.struct(role=pl.lit("assistant"), content=pl.col(side))
        return pl.concat_list(turn).alias(side)

    triples = kept.drop("chosen_plain", "rejected_plain").join(shown, on="prompt_id")
    for side in ("chosen", "rejected"):
        of_side = texts.rename({"text": side})
        triples = triples.join(of_side, left_on=f"{side}_id", right_on="candidate_id")
    triples = triples.with_columns(answer("chosen"), answer("rejected"))
    every = candidates.join(scores, on="candidate_id", how="left").join(shown, on="prompt_id")
    voted = votes.join(shown, on="prompt_id")
    for side in ("a", "b"):
        of_side = texts.rename({"text": f"answer_{side}"})
        voted = voted.join(of_side, left_on=f"{side}_id", right_on="candidate_id")
    test = prompts.filter(pl.col("prompt_id").hash(0) % 1_000 < TEST_SHARE * 1_000)["prompt_id"]
    is_test = pl.col("prompt_id").is_in(test.implode())
    for name, table in (("data", triples), ("candidates", every), ("votes", voted)):
        write(table.filter(~is_test), name, "train")
        write(table.filter(is_test), name, "test")
    return set(kept["pair_id"].to_list())


def measure_polars(run: Path) -> dict[str, float]:
    """Processor seconds and peak MiB of this process, and how many pairs are kept."""
    import polars as pl

    pl.DataFrame({"a": [1]}).select("a")  # its threads start
    out = run.parent / "by-polars"
    shutil.rmtree(out, ignore_errors=True)
    began = time.process_time()
    kept = pass_of_polars(run, out)
    seconds = time.process_time() - began
    (run.parent / "kept.json").write_text(json.dumps(sorted(kept)))
    return {"seconds": seconds, "together": 0.0, "peak_mib": peak_mib()}


def main() -> None:
    """Measure both in turn, in fresh processes, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="?", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("WHO", "RUN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        who, run = arguments.measure
        print(json.dumps((measure_polars if who == "polars" else measure)(Path(run))))
        return
    names = {
        "polars, one pass in memory": ("polars", LARGE),
        f"prefloop, `block_size` {BLOCK}": ("prefloop", BLOCK),
        f"prefloop, `block_size` {LARGE:,}": ("prefloop", LARGE),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(arguments.repeats):
        for name, (who, block) in names.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(measured(Path(folder), who, arguments.rows, block))
    peer = statistics.median(one["seconds"] for one in next(iter(found.values())))
    print(f"{arguments.rows:,} candidates, {arguments.repeats} times in turn\n")
    print("| | CPU s, median | least to most | to polars | put together, CPU s | peak memory |")
    print("| --- " * 6 + "|")
    for name, runs in found.items():
        seconds = [one["seconds"] for one in runs]
        middle = statistics.median(seconds)
        print(
            f"| {name} | {middle:.2f} | {min(seconds):.2f} to {max(seconds):.2f} | "
            f"{middle / peer:.2f} | {statistics.median(one['together'] for one in runs):.2f} | "
            f"{max(one['peak_mib'] for one in runs):,.0f} MiB |"
        )


def measured(folder: Path, who: str, rows: int, block: int) -> dict[str, float]:
    """What one side takes, in a process of its own. Raises where the two keep other pairs."""
    run = RunDir(folder / "run")
    make_up(run, rows, block)
    command = [sys.executable, "-m", "benchmarks.vectorised", "--measure", who, str(run.root)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    if who == "polars":
        subprocess.run([*command[:-2], "prefloop", str(run.root)], capture_output=True, check=True)
        by_polars = set(json.loads((folder / "kept.json").read_text()))
        by_prefloop = kept_by(run.round(0).decisions)
        if by_polars != by_prefloop:
            apart = len(by_polars ^ by_prefloop)
            raise SystemExit(f"of {len(by_prefloop):,} pairs that are kept, {apart:,} differ")
    return found


if __name__ == "__main__":
    main()
