"""Pairs to Argilla and back: `prefloop review` against the client's own `records.log`.

    python -m benchmarks.review [--pairs 10000] [--responses 1000] [--venv .venv-argilla]

One embedded server; both sides add the same pairs (answers of 300 to 1,500 characters) to a dataset
of the same settings, and read all of them with their responses. Each side runs in a process of its
own, whose peak memory is measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.audit import texts
from benchmarks.memory import peak_mib
from prefloop.pipeline.review.account import Account
from prefloop.pipeline.review.argilla_api import ArgillaApi
from prefloop.pipeline.review.folder import ReviewFolder
from prefloop.pipeline.review.server.home import Home
from prefloop.pipeline.review.server.up import running_server


def make_pairs(path: Path, pairs: int) -> None:
    """A preference dataset of made-up prose."""
    generator = np.random.default_rng(0)
    prompts, chosen, rejected = (
        texts(generator, pairs, low, high) for low, high in ((100, 400), (300, 1500), (300, 1400))
    )
    with path.open("w", encoding="utf-8") as handle:
        for number, row in enumerate(zip(prompts, chosen, rejected, strict=True)):
            pair = dict(zip(("prompt", "chosen", "rejected"), row, strict=True))
            handle.write(json.dumps({**pair, "prompt": f"{number}: {pair['prompt']}"}) + "\n")


def ours(url: str, key: str, folder: Path, pairs: int, what: str) -> None:
    """Push or pull with prefloop."""
    from prefloop.pipeline.review.pull import pull
    from prefloop.pipeline.review.push import PushOptions, push
    from prefloop.pipeline.review.subjects import DatasetSubjects

    api = ArgillaApi(Account(url, key))
    review = ReviewFolder(folder / "review")
    if what == "push":
        source = str(folder / "pairs.jsonl")
        options = PushOptions(name="ours", n=pairs, strategy="random", overlap=1)
        push(api, DatasetSubjects(source), review, options, source=source, is_run=False)
    else:
        pull(api, review)


def theirs(url: str, key: str, folder: Path, what: str) -> None:
    """Add or read the same records with Argilla's client."""
    import argilla as rg

    from prefloop.pipeline.review.definition import settings

    client = rg.Argilla(api_url=url, api_key=key, timeout=120)
    if what == "push":
        dataset = rg.Dataset(
            name="theirs", workspace="prefloop", client=client,
            settings=settings(guidelines="-", mode="blind", overlap=1, labelers=(), decided=False),
        ).create()  # fmt: skip
        rows = map(json.loads, (folder / "pairs.jsonl").read_text().splitlines())
        dataset.records.log(
            [
                rg.Record(
                    id=str(number),
                    fields={"prompt": [{"role": "user", "content": row["prompt"]}],
                            "answer_a": row["chosen"], "answer_b": row["rejected"]},
                    metadata={"round": 0, "length_a": len(row["chosen"]),
                              "length_b": len(row["rejected"]), "decision": "a"},
                )
                for number, row in enumerate(rows)
            ]
        )  # fmt: skip
    else:
        dataset = client.datasets("theirs", workspace="prefloop")
        assert sum(1 for _ in dataset.records(with_responses=True))


def respond(url: str, key: str, dataset: str, responses: int) -> None:
    """Submit the owner's responses to the first records of a dataset."""
    api = ArgillaApi(Account(url, key))
    values = {"verdict": {"value": "a"}, "reason": {"value": "because"}}
    for number, record in enumerate(api.records(dataset)):
        if number == responses:
            return
        api.request(
            "POST", f"records/{record['id']}/responses",
            json={"status": "submitted", "values": values},
        )  # fmt: skip


def side(arguments: list[str]) -> None:
    """One measurement: what this process does, its seconds and peak memory on stdout."""
    who, what, url, folder, pairs = arguments
    key = sys.stdin.readline().strip()
    began = time.perf_counter()
    if who == "ours":
        ours(url, key, Path(folder), int(pairs), what)
    else:
        theirs(url, key, Path(folder), what)
    seconds = time.perf_counter() - began
    memory = peak_mib()
    print(json.dumps({"seconds": seconds, "memory": memory}))


def measure(who: str, what: str, url: str, key: str, folder: Path, pairs: int) -> dict[str, float]:
    """``side`` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.review", "--side", who, what, url, str(folder),
               str(pairs)]  # fmt: skip
    done = subprocess.run(command, input=f"{key}\n", capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure both sides in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--responses", type=int, default=1_000)
    parser.add_argument("--venv", type=Path, default=Path(".venv-argilla"))
    parser.add_argument("--side", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side(options.side)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pairs(folder / "pairs.jsonl", options.pairs)
        home = Home(folder / "home", venv=options.venv.resolve())
        with running_server(home) as server:
            key = home.owner().api_key
            print("| | records/s | peak memory |\n| --- | --- | --- |")
            rates = {}
            for what in ("push", "pull"):
                for who in ("ours", "theirs"):
                    found = measure(who, what, server.url, key, folder, options.pairs)
                    rates[who] = options.pairs / found["seconds"]
                    print(f"| {what}, {who} | {rates[who]:,.0f} | {found['memory']:,.0f} MiB |",
                          flush=True)  # fmt: skip
                print(f"| **{what}, ratio** | **{rates['ours'] / rates['theirs']:.2f}** | |")
                if what == "push":
                    api = ArgillaApi(Account(server.url, key))
                    ours_id = ReviewFolder(folder / "review").read().dataset_id
                    theirs_id = str(api.client.datasets("theirs", workspace="prefloop").id)
                    for dataset in (ours_id, theirs_id):
                        respond(server.url, key, dataset, options.responses)


if __name__ == "__main__":
    main()
