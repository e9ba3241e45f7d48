"""A small run directory written through the declared schemas, with numbers that are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from prefloop.data import schemas
from prefloop.data.hashing import content_id, pair_id
from prefloop.pipeline.run.run_dir import RoundDir, RunDir

BLOCK = 8
HOSTILE = (
    "<script>alert(1)</script></div></figure><svg onload=alert(2)><img src=http://evil.example/x>"
    "{{ 7 * 7 }} ${'$'}\\frac{}{ & \"quoted\""
)
JUDGE = "<i>judge</i>$\\sum_$"  # a name that breaks careless HTML and mathtext
ANSWERS = (
    "The fox carried a lantern through the snow!",
    "A lantern swung beside the fox, and the night kept its distance.\nIt walked on.",
    "Foxes are nice.",
    "Under the old bridge, a fox waited with a lantern until the rain had passed, and then it "
    "went home, slowly, by the long way, counting the lights in the windows as it went!",
)


def write_run(root: Path, *, rounds: int = 2, blocks: int = 3, trained: bool = True) -> RunDir:
    """A finished run (without training where ``trained`` is false)."""
    run = RunDir(root)
    write_start(run, rounds=rounds, blocks=blocks, trained=trained)
    for index in range(rounds):
        folder = run.round(index)
        for block in range(blocks):
            write_block(run, folder, block)
        write_dataset(run, folder)
        if trained:
            write_metrics(run, folder)
    return run


def write_start(run: RunDir, *, rounds: int = 2, blocks: int = 3, trained: bool = True) -> None:
    """The config, the manifest and the prompts."""
    run.root.mkdir(parents=True)
    config = {
        "rounds": rounds,
        "train": {"beta": 0.1} if trained else None,
        "evaluate": {"enabled": True},
        "engines": {"judge": {"type": "openai", "base_url": "https://me:hunter2@judge.example/v1"}},
        "argilla": {"api_key": "very-secret-api-key"},
        "sample": {"system_prompt": HOSTILE, "max_tokens": 64},
    }
    run.config.write_text(yaml.safe_dump(config), encoding="utf-8")
    run.manifest.write_text(json.dumps({"seed": 0, "packages": {"torch": "2.13.0"}}))
    for block in range(blocks):
        run.prompts.write(block, _table(_prompts(block), schemas.PROMPT))
    run.heldout.write(0, _table(_prompts(99)[:4], schemas.PROMPT))
    bad = {
        "stage": "prompts", "round": 0, "source": "prompts.jsonl", "row": 7, "field": None,
        "reason": "invalid_json", "detail": HOSTILE, "content": "{",
    }  # fmt: skip
    run.quarantine.write(0, _table([bad], schemas.QUARANTINE))
    duplicate = {
        "prompt_id": "0" * 32, "source": "prompts.jsonl", "row": 3, "reason": "exact_duplicate",
        "detail": "", "messages": [],
    }  # fmt: skip
    run.dropped.write(0, _table([duplicate, duplicate], schemas.DROPPED))
    counts = {"kept": blocks * BLOCK, "heldout": 4, "dropped": 2, "quarantined": 1}
    run.prompt_counts.write_text(json.dumps({"read": sum(counts.values()), **counts}))
    run.note("prompts", 0, 0.5)


def write_block(run: RunDir, folder: RoundDir, block: int) -> None:
    """Every noun of one block, from the prompts to the triples."""
    prompts = _prompts(block)
    folder.prompts.write(block, _table(prompts, schemas.PROMPT))
    candidates = [row for prompt in prompts for row in candidates_of(prompt, folder.index)]
    folder.candidates.write(block, _table(candidates, schemas.CANDIDATE))
    run.note("sample", folder.index, 2.0, block=block)
    votes, decisions, triples = _labels(prompts, candidates, folder.index)
    folder.votes.write(block, _table(votes, schemas.VOTE))
    run.note("label", folder.index, 3.0, block=block)
    folder.decisions.write(block, _table(decisions, schemas.DECISION))
    folder.triples.write(block, _table(triples, schemas.TRIPLE))


def write_dataset(run: RunDir, folder: RoundDir) -> None:
    """The round's triples as files of the dataset."""
    data = run.dataset / "data"
    data.mkdir(parents=True, exist_ok=True)
    table = folder.triples.table()
    cut = len(table) * 9 // 10
    for split, part in (("train", table.slice(0, cut)), ("test", table.slice(cut))):
        pq.write_table(part, data / f"{split}-round-{folder.index:03d}-00000.parquet")
    folder.written.write_text(json.dumps({"train": cut, "test": len(table) - cut}))
    run.note("write", folder.index, 0.2)


def write_metrics(run: RunDir, folder: RoundDir, steps: int = 40) -> None:
    """Training curves and the evaluation of a round."""
    k, noise = folder.index, np.random.default_rng(folder.index)
    curves = []
    for step in range(1, steps + 1):
        gain = 1 - np.exp(-step / 12)
        for name, value in {
            "loss": 0.69 - 0.25 * gain + 0.03 * noise.normal(),
            "rewards/margins": 0.8 * gain + 0.05 * noise.normal(),
            "rewards/accuracies": 0.5 + 0.3 * gain + 0.03 * noise.normal(),
            "logps/chosen": -40 + 2 * gain + 0.4 * noise.normal(),
            "logps/rejected": -42 - 4 * gain + 0.4 * noise.normal(),
        }.items():
            curves.append(_metric(k, name, value, step=step))
    folder.metrics.write(0, _table(curves, schemas.METRIC))
    run.note("train", k, 9.0, loss="sigmoid", beta=0.1, learning_rate=5e-5, batch_size=8,
             reference="start", data="fresh")  # fmt: skip
    rows = [
        _metric(k, "kl", 1.8 + 2.1 * k, 0.3, against="start"),
        _metric(k, "mean_tokens", 21.0 + k),
        _metric(k, "mean_tokens", 20.0, against="start"),
        _metric(k, "reward_margin", 0.5 + 0.2 * k, 0.1),
        _metric(k, "mean_score", 0.62 + 0.1 * k, 0.04, labeler="verifier"),
        _metric(k, "mean_score", 0.51, 0.04, labeler="verifier", against="start"),
        _metric(k, "length_controlled_win_rate", 0.57 + 0.08 * k, 0.06, "start", "jury"),
    ]
    for labeler, offset in (("jury", 0.0), (JUDGE, -0.02), ("verifier", 0.03)):
        rows.append(_metric(k, "win_rate", 0.58 + 0.1 * k + offset, 0.06, "start", labeler))
        rows.append(_metric(k, "win_rate", 0.58 - 0.02 * k + offset, 0.06, "previous", labeler))
    rows.append(_metric(k, "win_rate", 1.0, None, "start", "verifier-of-one"))
    folder.metrics.write(1, _table(rows, schemas.METRIC))
    run.note("evaluate", k, 4.0)


def _prompts(block: int) -> list[dict[str, Any]]:
    rows = []
    for index in range(BLOCK):
        number = block * BLOCK + index
        content = f"Write one sentence about fox {number}. Use the word lantern."
        if number % BLOCK == 0:
            content += HOSTILE
        rows.append(
            {
                "prompt_id": content_id("prompt", number),
                "messages": [{"role": "user", "content": content}],
                "reference": None,
                "metadata": "{}",
                "source": "prompts.jsonl",
                "row": number + 1,
            }
        )
    return rows


def candidates_of(prompt: dict[str, Any], round_index: int) -> list[dict[str, Any]]:
    rows = []
    for index, text in enumerate(ANSWERS):
        text = text + (HOSTILE if index == 0 else "")
        rows.append(
            {
                "candidate_id": content_id(prompt["prompt_id"], round_index, text),
                "prompt_id": prompt["prompt_id"],
                "round": round_index,
                "sample_index": index,
                "text": text,
                "tokens": 10 + len(text.split()) + int(prompt["row"]) % 5,
                "finish_reason": "length" if index == 3 else "stop",
                "logprob": -12.5,
                "origin": "sampled",
                "policy": "policy",
                "policy_revision": f"abc{round_index}",
                "seed": index,
                "copies": 2 if index == 2 else 1,
                "prompt_tokens": 15,
                "cost": 0.0,
            }
        )
    return rows


def _labels(
    prompts: list[dict[str, Any]], candidates: list[dict[str, Any]], round_index: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Three pairs a prompt: one kept, one tie, one dropped for its length."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in candidates:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    votes, decisions, triples = [], [], []
    for place, prompt in enumerate(prompts):
        answers = by_prompt[prompt["prompt_id"]]
        for (one, other), fate in zip(
            ((0, 1), (1, 2), (3, 2)), (None, "tie", "length_ratio"), strict=True
        ):
            a, b = answers[one], answers[other]
            of_pair = _votes(a, b, round_index, tie=fate == "tie", invalid=place == 0)
            votes += of_pair
            margin = 0.0 if fate == "tie" else (0.25, 0.5, 0.75, 1.0)[place % 4]
            common = {
                "prompt_id": prompt["prompt_id"],
                "chosen_id": a["candidate_id"],
                "rejected_id": b["candidate_id"],
                "p_chosen": 0.5 + margin / 2,
                "score_chosen": 0.5 + margin / 2,
                "score_rejected": 0.5 - margin / 2,
                "margin": margin,
                "agreement": 1.0 if place % 2 else 0.5,
                "chosen_tokens": a["tokens"],
                "rejected_tokens": b["tokens"],
                "round": round_index,
                "labelers": ["verifier", JUDGE],
            }
            decisions.append(
                common
                | {
                    "pair_id": of_pair[0]["pair_id"],
                    "quality_chosen": None,
                    "position_consistent": fate != "tie",
                    "kept": fate is None,
                    "reason": fate,
                }
            )
            if fate is None:
                triples.append(
                    common
                    | {
                        "prompt": prompt["messages"],
                        "chosen": [{"role": "assistant", "content": a["text"]}],
                        "rejected": [{"role": "assistant", "content": b["text"]}],
                        "policy": "policy@abc",
                        "rejected_policy": "policy@abc",
                    }
                )
    return votes, decisions, triples


def _votes(
    a: dict[str, Any], b: dict[str, Any], round_index: int, *, tie: bool, invalid: bool
) -> list[dict[str, Any]]:
    """The judge in both orders (for a tie it prefers what it saw first) and the verifier."""
    common = {
        "pair_id": pair_id(a["prompt_id"], a["candidate_id"], b["candidate_id"]),
        "prompt_id": a["prompt_id"],
        "round": round_index,
        "a_id": a["candidate_id"],
        "b_id": b["candidate_id"],
        "score_a": None,
        "score_b": None,
        "completion": "A",
        "prompt_hash": None,
        "cost": 0.001,
    }
    judge = {"labeler": JUDGE, "prompt_tokens": 80, "completion_tokens": 1}
    rationale = f"The first one is better. {HOSTILE}"
    shown_ab = {"order": "ab", "preference": "a", "p_a": 0.9, "rationale": rationale}
    shown_ba = {"order": "ba", "preference": "b" if tie else "a", "p_a": 0.1 if tie else 0.8}
    if invalid:
        shown_ba |= {"preference": "invalid", "p_a": None}
    hard = {"order": "none", "preference": "tie" if tie else "a", "p_a": None, "rationale": None}
    free = {"labeler": "verifier", "prompt_tokens": 0, "completion_tokens": 0}
    return [
        common | judge | shown_ab,
        common | judge | shown_ba | {"rationale": None},
        common | free | hard | {"cost": 0.0},
    ]


def _metric(
    round_index: int,
    name: str,
    value: float,
    half: float | None = None,
    against: str | None = None,
    labeler: str | None = None,
    step: int | None = None,
) -> dict[str, Any]:
    return {
        "round": round_index,
        "name": name,
        "value": float(value),
        "low": None if half is None else value - half,
        "high": None if half is None else value + half,
        "n": None if half is None else 120,
        "against": against,
        "labeler": labeler,
        "step": step,
    }


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema)
