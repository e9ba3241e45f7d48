"""What the machinery costs around steps that do nothing, against distilabel 1.5.3, in one run.

    python -m benchmarks.overhead --peer-python PEER/bin/python [--rows 50 5000 20000]

Two steps each: distilabel runs two no-op steps over rows that a generator step loads; prefloop
samples with an engine that answers at once and labels the pair of each prompt with a labeler that
votes at once. Fixed cost and cost a row and step come from a straight line through the sizes.
The peer needs a venv of its own: pip install distilabel==1.5.3 requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

STEPS = 2

PEER = """
import json, logging, sys, tempfile, time
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts, Step, StepInput

class NoOp(Step):
    @property
    def inputs(self): return ["prompt"]
    @property
    def outputs(self): return ["prompt"]
    def process(self, inputs: StepInput):
        yield inputs

if __name__ == "__main__":
    rows = int(sys.argv[1])
    began = time.perf_counter()
    with Pipeline(name="noop", cache_dir=tempfile.mkdtemp()) as pipeline:
        load = LoadDataFromDicts(data=[{"prompt": f"prompt {i}"} for i in range(rows)],
                                 batch_size=50)
        load >> NoOp(name="one") >> NoOp(name="two")
    found = pipeline.run(use_cache=False)
    assert len(found["default"]["train"]) == rows
    print("SECONDS", time.perf_counter() - began)
"""


def ours(rows: int) -> float:
    """Seconds of prefloop over ``rows`` prompts, from reading them to the votes; no imports."""
    from prefloop.data.protocol import Completion, Request
    from prefloop.labelers.base import Pair, Vote
    from prefloop.pipeline.config import validate_config
    from prefloop.pipeline.run.context import RunContext
    from prefloop.pipeline.run.run_dir import RunDir
    from prefloop.pipeline.stages.label import label_round
    from prefloop.pipeline.stages.prompts import draw_prompts, read_prompts
    from prefloop.pipeline.stages.sample import sample_round

    class NoEngine:
        async def generate(self, request: Request) -> list[Completion]:
            return [Completion(str(seed), (1,), "stop", 0.0, 1, 1) for seed in request.seeds]

        async def load_policy(self, path: str) -> None:
            raise NotImplementedError

        async def aclose(self) -> None:
            return None

    class NoLabeler:
        name = "none"

        async def label(self, pairs: Sequence[Pair], *, block: str) -> list[Vote]:
            return [
                Vote(
                    pair_id=pair.pair_id, prompt_id=pair.prompt_id, round=pair.round,
                    a_id=pair.a.candidate_id, b_id=pair.b.candidate_id, labeler=self.name,
                    order="none", preference="a", p_a=1.0,
                )
                for pair in pairs
            ]  # fmt: skip

    class NoModels:
        async def engine(self, engine: str, model: str) -> NoEngine:
            return NoEngine()

        def member_revision(self, member: object) -> str:
            return "none"

    async def open_labelers() -> list[NoLabeler]:
        return [NoLabeler()]

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "prompts.jsonl"
        began = time.perf_counter()
        source.write_text(
            "".join(json.dumps({"prompt": f"prompt {i}"}) + "\n" for i in range(rows))
        )
        config = validate_config(
            {
                "block_size": 1024,
                "prompts": {
                    "train": {"path": str(source)},
                    "heldout_share": 0.0,
                    "near_duplicates": {"enabled": False},
                },
                "sample": {"n": 2},
                "label": {"labelers": [{"type": "verifier", "name": "none"}]},
            },
            "benchmark",
        )
        run = RunDir(Path(folder) / "run")
        context = RunContext.of(config, run).round(0)
        read_prompts(context, config.prompts, block_size=config.block_size)
        blocks = draw_prompts(context, per_round=None, per_leg=None, block_size=config.block_size)

        async def both() -> None:
            await sample_round(context, config.sample, NoModels(), blocks)  # type: ignore[arg-type]
            await label_round(context, config.label, open_labelers)  # type: ignore[arg-type]

        asyncio.run(both())
        assert run.round(0).votes.rows() == rows
        return time.perf_counter() - began


def _seconds(command: list[str]) -> tuple[float, float]:
    """Seconds of the pipeline alone, and of the whole command with its imports."""
    began = time.perf_counter()
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    whole = time.perf_counter() - began
    line = next(line for line in output.splitlines() if line.startswith("SECONDS"))
    return float(line.split()[1]), whole


def main() -> None:
    """Time both at each size and print fixed cost, cost a row and step, and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", required=False, help="python of a venv with distilabel")
    parser.add_argument("--rows", nargs="+", type=int, default=[50, 5_000, 20_000])
    parser.add_argument("--ours", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        print("SECONDS", ours(arguments.ours))
        return
    commands = {"prefloop": [sys.executable, "-m", "benchmarks.overhead", "--ours"]}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.peer_python:
            script = Path(folder) / "peer.py"
            script.write_text(PEER)
            commands["distilabel"] = [arguments.peer_python, str(script)]
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for rows in arguments.rows:
            for name, command in commands.items():
                found[name].append(_seconds([*command, str(rows)]))
            last = {name: f"{times[-1][0]:.2f} s" for name, times in found.items()}
            print(f"{rows:>7,} rows: {last}", flush=True)
    for title, which in (("the pipeline alone", 0), ("the whole command, with imports", 1)):
        print(title)
        lines = {
            name: np.polyfit(np.array(arguments.rows) * STEPS, [one[which] for one in times], 1)
            for name, times in found.items()
        }
        for name, (slope, fixed) in lines.items():
            print(f"{name:>11}: fixed {fixed:.2f} s, {slope * 1e3:.4f} ms per row and step")
        if "distilabel" in lines:
            slope, fixed = lines["prefloop"] / lines["distilabel"]
            print(f"      ratio: fixed {fixed:.3f}, per row and step {slope:.3f}")


if __name__ == "__main__":
    main()
