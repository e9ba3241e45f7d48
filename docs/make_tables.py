"""Writes the tables of docs/choosing.md between their marks, by the arithmetic of `prefloop plan`.

python docs/make_tables.py
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from prefloop.pipeline.config import validate_config  # noqa: E402
from prefloop.pipeline.machine.cards import Machine, machine_named  # noqa: E402
from prefloop.pipeline.plan.plan import Plan, make_plan, plan_with  # noqa: E402
from prefloop.pipeline.plan.speeds import Measured  # noqa: E402
from prefloop.pipeline.stages.given_rows import load_with_answers  # noqa: E402

PAGE = Path(__file__).parent / "choosing.md"
PROMPTS, HELDOUT = 500, 500
TIMES = 20
"""The tables are of so many times the prompts that are planned, 10,000. (Held out are no more.)"""
PROMPT_CHARACTERS = 800
"""Of a prompt, the chat template aside: 200 tokens, as a plan counts without a tokenizer."""
MAX_TOKENS = 800
"""Of an answer; a plan expects half of them."""
N = 4
GIB = 2**30

SIZES: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "0.6B, all weights; 4B": ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B", {}),
    "1.7B, adapter; 8B": ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B", {"lora": {}}),
    "8B, adapter; 32B": ("Qwen/Qwen3-8B", "Qwen/Qwen3-32B", {"lora": {}}),
}
"""Policy and judge, and what of it is trained."""
MACHINES = ("rtx4090", "l40s", "h100", "8xh100")
METHODS: Mapping[str, dict[str, Any]] = {
    "`dpo`": {},
    "`loss: simpo`": {"loss": "simpo"},
    "`loss: orpo`": {"loss": "orpo"},
    "`kto`": {"method": "kto"},
    "`sft`": {"method": "sft"},
    "`online: true`": {"online": True, "batch_size": 32},
    "`grpo`, `rloo`": {"method": "grpo", "batch_size": 32},
}
JUDGES: Mapping[str, dict[str, Any]] = {
    "`pairwise`": {"judge": "pairwise"},
    "`pairwise`, `orders: one`": {"judge": "pairwise", "orders": "one"},
    "`pairwise`, `thought_tokens: 2048`": {"judge": "pairwise", "thought_tokens": 2048},
    "`pairwise_rationale`": {"judge": "pairwise_rationale"},
    "`pairwise_rationale`, `votes: 5`": {
        "judge": "pairwise_rationale", "votes": 5, "temperature": 0.7,
    },
    "`listwise`": {"judge": "listwise"},
    "`rating`": {"judge": "rating"},
    "`rating_rationale`": {"judge": "rating_rationale"},
    "`rubric`": {"judge": "rubric"},
    "`rubric_rationale`": {"judge": "rubric_rationale"},
    "`rubric_rationale`, `criteria:` written": {
        "judge": "rubric_rationale", "criteria": {"engine": "judge", "model": "judge"},
    },
}  # fmt: skip
PRICES = ((0.10, 0.40), (0.40, 1.60), (2.00, 8.00))
"""Per million tokens read and written, in the currency of your choice."""


def main() -> None:
    """Put the tables of today's code into the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """``text`` with each table between its marks made anew."""
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in tables(Path(folder)):
            begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
            assert text.count(begin) == text.count(end) == 1, name
            block = "\n".join([begin, *lines, end])
            text = re.sub(f"{begin}.*?{end}", lambda _, block=block: block, text, flags=re.S)
    return text


def tables(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The tables by name."""
    prompts = write_prompts(folder / "prompts.jsonl", PROMPTS)
    heldout = write_prompts(folder / "heldout.jsonl", HELDOUT, first=PROMPTS)
    yield "hours", list(hours(prompts, heldout))
    yield "methods", list(methods(prompts, heldout))
    yield "prices", list(prices(write_prompts(folder / "priced.jsonl", 500)))


def write_prompts(path: Path, number: int, first: int = 0) -> str:
    """A file of so many prompts of the same length."""
    rows = (
        json.dumps({"prompt": f"{index:07d} ".ljust(PROMPT_CHARACTERS, "x")})
        for index in range(first, first + number)
    )
    path.write_text("\n".join(rows), encoding="utf-8")
    return str(path)


def raw_config(prompts: str, heldout: str, size: str, machine: Machine) -> dict[str, Any]:
    """One round of DPO on pairs that a judge in the same machine labels."""
    policy, judge, train = SIZES[size]
    engine = {"type": "vllm", "max_model_len": 4096, "replicas": machine.count}
    return {
        "run_dir": str(Path(prompts).parent / "run"),
        "policy": policy,
        "engines": {"default": engine, "judge": dict(engine)},
        "prompts": {
            "train": {"path": prompts},
            "heldout": {"path": heldout},
            "near_duplicates": {"enabled": False},
        },
        "sample": {"n": N, "max_tokens": MAX_TOKENS},
        "label": {"labelers": [{"type": "judge", "engine": "judge", "model": judge}]},
        "train": {"batch_size": 4, "gradient_checkpointing": True, **train},
    }


def plans(machine: Machine, configs: Iterable[dict[str, Any]]) -> Iterator[Plan]:
    """The plans of configs with the same prompts, which are read once."""
    read = None
    for raw in configs:
        config = validate_config(raw, "table")
        read = read or load_with_answers(config.prompts, None, seed=config.seed)
        with machine.pretended():
            yield plan_with(config, read, Measured(), machine.speed_of)


def hours(prompts: str, heldout: str) -> Iterator[str]:
    """A round by the sizes of models, on several machines."""
    yield (
        "| policy; judge | machine | sample | label | train | evaluate | in all | "
        "memory of training |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for size in SIZES:
        for name in MACHINES:
            machine = machine_named(name)
            [plan] = plans(machine, [raw_config(prompts, heldout, size, machine)])
            too_large = [one.stage for one in plan.memory if not one.fits]
            if too_large:
                stages = " and ".join(f"`{stage}`" for stage in dict.fromkeys(too_large))
                yield f"| {size} | {name} | does not fit: {stages} | | | | | |"
                continue
            cells = [*times(plan, "sample", "label", "train", "evaluate"), memory_of_training(plan)]
            yield f"| {size} | {name} | {' | '.join(cells)} |"


def methods(prompts: str, heldout: str) -> Iterator[str]:
    """A round of each method, of the middle size on one H100."""
    yield "| `train` | sample | label | train | in all | memory of training |"
    yield "| --- | --- | --- | --- | --- | --- |"
    machine = machine_named("h100")
    base = raw_config(prompts, heldout, list(SIZES)[1], machine)
    configs = [base | {"train": base["train"] | changed} for changed in METHODS.values()]
    for name, plan in zip(METHODS, plans(machine, configs), strict=True):
        cells = [*times(plan, "sample", "label", "train"), memory_of_training(plan)]
        yield f"| {name} | {' | '.join(cells)} |"


def times(plan: Plan, *stages: str) -> list[str]:
    """Of these stages, and of the whole run."""
    seconds = {"train": TIMES * sum(one.seconds for one in plan.training)}
    for step in plan.steps:
        factor = 1 if step.stage == "evaluate" else TIMES
        seconds[step.stage] = seconds.get(step.stage, 0.0) + factor * step.seconds
    whole = sum(seconds.values()) + plan.opening_seconds
    return [*(duration(seconds[stage]) for stage in stages), duration(whole)]


def duration(seconds: float) -> str:
    """For a cell: hours with a tenth, or minutes."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else "< 1 min"


def memory_of_training(plan: Plan) -> str:
    """What the training takes of a card."""
    [needed] = [one.needed for one in plan.memory if one.stage == "train"]
    return f"{needed / GIB:.0f} GiB"


def prices(prompts: str) -> Iterator[str]:
    """What judges ask for a thousand pairs, and what that costs."""
    at = " | ".join(f"at {read:.2f} and {written:.2f}" for read, written in PRICES)
    yield f"| judge | requests | tokens read | tokens written | {at} |"
    yield "| --- | --- | --- | --- " + "| --- " * len(PRICES) + "|"
    for name, settings in JUDGES.items():
        raw = {
            "run_dir": str(Path(prompts).parent / "run"),
            "engines": {"default": {"type": "vllm"}, "judge": {"type": "openai"}},
            "prompts": {
                "train": {"path": prompts},
                "heldout_share": 0.0,
                "near_duplicates": {"enabled": False},
            },
            "sample": {"n": N, "max_tokens": MAX_TOKENS},
            "label": {
                "labelers": [{"type": "judge", "engine": "judge", "model": "judge", **settings}]
            },
        }
        plan = make_plan(validate_config(raw, "table"), on=machine_named("h100"))
        steps = [one for one in plan.steps if one.stage == "label"]
        share = 1000 / (plan.prompts.kept * N * (N - 1) / 2)
        requests = share * sum(one.requests for one in steps)
        read = share * sum(one.prompt_tokens for one in steps)
        written = share * sum(one.completion_tokens for one in steps)
        costs = " | ".join(f"{(read * one + written * other) / 1e6:.2f}" for one, other in PRICES)
        yield (
            f"| {name} | {requests:,.0f} | {read / 1e6:.2f} M | {written / 1e3:,.0f} k | {costs} |"
        )


if __name__ == "__main__":
    main()
