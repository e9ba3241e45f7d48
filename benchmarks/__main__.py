"""Run benchmarks, and put what they say into RESULTS.md.

    python -m benchmarks                 # all that take minutes, one after the other
    python -m benchmarks prefixes audit  # these
    python -m benchmarks --list

What a benchmark prints replaces its block in RESULTS.md, under a line with date, commit, hardware,
load and time; a benchmark that has none yet gets a section at the end. What people wrote around the
blocks stays: a figure that is made anew is to be read together with it. Those that take hours are
run where they are named only. A benchmark that ends with an error leaves its block as it was.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "RESULTS.md"
_BLOCK = "<!-- {key} -->\n{body}\n<!-- end of {key} -->"


@dataclass(frozen=True)
class Entry:
    """A benchmark with its arguments; ``title`` heads a section that is not there yet."""

    title: str
    arguments: tuple[str, ...] = ()
    module: str = ""
    """Empty: the entry's key."""
    hours: bool = False


ENTRIES = {
    "sampling": Entry(
        "Sampling through the pipeline against raw vLLM",
        ("--width", "384", "--layers", "6", "--max-tokens", "64"),
    ),
    "overhead": Entry("Overhead around steps that do nothing, against distilabel"),
    "scale": Entry("Candidates through pairing, filtering and writing"),
    "vectorised": Entry("Filtering and writing against one pass of polars"),
    "judge": Entry("The one-token judge against distilabel's judging tasks", ("--pairs", "256")),
    "reward": Entry("A reward model over candidates, against one answer at a time"),
    "audit": Entry("`prefloop audit` on a million pairs"),
    "review": Entry("Pairs to Argilla and back, against its client"),
    "training": Entry(
        "A round of DPO against TRL as an expert sets it",
        ("--pairs", "128", "--epochs", "1", "--batch", "8", "--width", "256", "--layers", "4"),
    ),
    "vocabulary": Entry(
        "Logits of a large vocabulary",
        ("--vocabulary", "150000", "--batch", "1", "--width", "64", "--layers", "2"),
        module="training",
    ),
    "turnover": Entry("From the end of a training to the first new sample"),
    "judge_client": Entry(
        "The label stage over HTTP",
        ("--prompts", "400", "--connections", "64", "256", "1000", "--api", "chat"),
    ),
    "kept_full": Entry("An engine kept full where a few answers take ten times as long"),
    "kept_full-vllm": Entry(
        "An engine kept full: vLLM itself",
        ("--vllm", "--slots", "256", "--prompts", "1024"),
        module="kept_full",
    ),
    "reading": Entry("Prompts read, and a finished run"),
    "prefixes": Entry("The embedded judge, with what its requests share computed once"),
    "prefixes-pairwise": Entry(
        "The embedded judge with a longer rubric",
        ("--prompts", "40", "--judge", "pairwise", "--repeats", "3"),
        module="prefixes",
    ),
    "shared_heads": Entry(
        "Sampling from a model whose heads share keys and values",
        ("--rows", "32", "--tokens", "256", "--repeats", "1"),
    ),
    "refill": Entry("Sampling answers of very different lengths"),
    "shards": Entry("Runs of many shards"),
    "endpoints": Entry("A pool of servers against one"),
    "replicas": Entry("Several processes of one engine"),
    "executors": Entry("Votes through Ray workers"),
    "costs": Entry("What large runs cost"),
    "failures": Entry("What failures cost a large run"),
    "gpu": Entry("A GPU's acceptance", hours=True),
    "controlled": Entry("The controlled experiment of the DPO paper", hours=True),
    "real": Entry("A real model: IFEval before and after rounds of DPO", hours=True),
    "real-vllm": Entry(
        "A real model by vLLM",
        (
            "--engine",
            "vllm",
            "--max-tokens",
            "1280",
            "--set",
            "engines.default.dtype=bfloat16",
            "--set",
            "blocks_in_flight=2",
            "--out",
            "runs/real-vllm",
        ),
        module="real",
        hours=True,
    ),
    "quantisation": Entry("What the 4 bits of the real model's file cost on IFEval", hours=True),
    "sixteen": Entry("Eleven methods on sixteen prompts", hours=True),
    "self_instruct": Entry("Margins on people's answers", hours=True),
}


def main() -> None:
    """Run what is named, and write RESULTS.md after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="say which there are")
    parser.add_argument("--results", type=Path, default=RESULTS, help="another file to write")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in ENTRIES]
    if unknown:
        parser.error(f"{unknown[0]!r} is none of {', '.join(ENTRIES)}")
    if given.list:
        for key, entry in ENTRIES.items():
            print(f"{key:<18} {entry.title}{' (hours)' if entry.hours else ''}")
        return
    failed = []
    for key in given.names or [key for key, entry in ENTRIES.items() if not entry.hours]:
        print(f"{key}: {' '.join(command(key))}", flush=True)
        body = measured(key)
        if body is None:
            failed.append(key)
            continue
        print(body, flush=True)
        text = given.results.read_text(encoding="utf-8") if given.results.exists() else ""
        given.results.write_text(put(text, key, body), encoding="utf-8")
    if failed:
        sys.exit(f"ended with an error, so nothing was written of: {', '.join(failed)}")


def command(key: str) -> list[str]:
    """How the benchmark is run by itself."""
    entry = ENTRIES[key]
    return ["python", "-m", f"benchmarks.{entry.module or key}", *entry.arguments]


def measured(key: str) -> str | None:
    """What the benchmark says, under what is to be known of the run; null where it failed."""
    before, began = os.getloadavg()[0], time.monotonic()
    done = subprocess.run(
        [sys.executable, *command(key)[1:]],
        stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    if done.returncode:
        return None
    facts = [
        datetime.now(UTC).date().isoformat(),
        commit(),
        hardware(),
        f"load {before:.1f} before and {os.getloadavg()[0]:.1f} after",
        f"{time.monotonic() - began:,.0f} s",
    ]
    output = done.stdout.strip()
    if "| --- |" not in output:
        output = f"```text\n{output}\n```"
    return f"`{' '.join(command(key))}`; {'; '.join(facts)}.\n\n{output}"


def commit() -> str:
    """The commit that is measured, and whether files differ from it."""
    asked = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*asked, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*asked, "status", "--porcelain", "--untracked-files=no", "--", ".",
             ":(exclude)benchmarks/RESULTS.md"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "no commit"
    return f"commit {head}" + (" with changes" if changed else "")


def hardware() -> str:
    """Processor, memory and accelerator, as far as the machine tells."""
    return ", ".join([f"{os.cpu_count()} cores of {processor()}", f"{_gib()} GiB", _gpu()])


def processor() -> str:
    """The processor's name, with the widest vectors that it computes on."""
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"model name\s*:\s*(.+)", about)
    wide = next((flag for flag in ("amx_tile", "avx512f", "avx2") if f" {flag}" in about), None)
    return (name[1] if name else platform.machine()) + (f" ({wide})" if wide else "")


def _gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _gpu() -> str:
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, check=True,
        ).stdout.split("\n")  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "no GPU"
    return ", ".join(name for name in found if name) or "no GPU"


def put(text: str, key: str, body: str) -> str:
    """``text`` with ``body`` as the block of ``key``, in a section of its own where there was
    none."""
    block = _BLOCK.format(key=key, body=body)
    begin, end = (re.escape(mark) for mark in _BLOCK.format(key=key, body="\0").split("\n\0\n"))
    found = re.search(f"{begin}\n.*?\n{end}", text, re.S)
    if found:
        return text[: found.start()] + block + text[found.end() :]
    return f"{text.rstrip()}\n\n## {ENTRIES[key].title}\n\n{block}\n"


if __name__ == "__main__":
    main()
