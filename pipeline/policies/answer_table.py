"""The answers of compared policies prompt by prompt: scores, outcomes, texts."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefloop.data.hashing import content_id
from prefloop.data.shards import write_shard
from prefloop.labelers.decisions.decide import decide
from prefloop.labelers.decisions.reasons import TIE
from prefloop.labelers.statistics.estimate import mean_estimate
from prefloop.pipeline.run.metrics import metrics_table
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.matches import MatchJury, match_pairs

ANSWERS = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),  # the conversation as JSON
        pa.field("sample_index", pa.int32(), nullable=False),
        pa.field("policy", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("reasoning", pa.string()),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("characters", pa.int32(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        # of labelers that score single answers, by name
        pa.field("scores", pa.map_(pa.string(), pa.float64()), nullable=False),
        # against the other policies, by name: 1 won, 0.5 tie, 0 lost, by the jury
        pa.field("outcomes", pa.map_(pa.string(), pa.float64()), nullable=False),
    ]
)
"""A row an answer, in the order of prompts, samples and policies."""


def answer_table(
    run: RunDir, juries: Mapping[tuple[int, int], MatchJury], policies: Mapping[str, int]
) -> pa.Table:
    """The answers of ``policies`` (number by name), schema ``ANSWERS``, with the votes of the
    matches that have a jury in ``juries``."""
    scores: dict[tuple[int, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    outcomes: dict[tuple[int, str], dict[int, float]] = defaultdict(dict)
    for (policy, opponent), jury in juries.items():
        _read_match(run, jury, (policy, opponent), scores, outcomes)
    prompts = {
        row["prompt_id"]: json.dumps(row["messages"], ensure_ascii=False)
        for row in run.heldout.table(["prompt_id", "messages"]).to_pylist()
    }
    order = {prompt: at for at, prompt in enumerate(prompts)}
    columns = [
        "prompt_id", "sample_index", "candidate_id", "text", "reasoning", "tokens", "finish_reason",
    ]  # fmt: skip
    rows = []
    for place, (name, number) in enumerate(policies.items()):
        others = [other for other in policies if other != name]
        for row in run.answers(number).table(columns).to_pylist():
            key = (number, row.pop("candidate_id"))
            met = outcomes[key]
            rows.append(
                row
                | {
                    "prompt": prompts[row["prompt_id"]],
                    "policy": name,
                    "characters": len(row["text"]),
                    "scores": [(who, float(np.mean(all_))) for who, all_ in scores[key].items()],
                    "outcomes": [
                        (other, met[policies[other]]) for other in others if policies[other] in met
                    ],
                    "place": (order[row["prompt_id"]], row["sample_index"], place),
                }
            )
    rows.sort(key=lambda row: row["place"])
    return pa.Table.from_pylist(rows, schema=ANSWERS)


def _read_match(
    run: RunDir,
    jury: MatchJury,
    match: tuple[int, int],
    scores: dict[tuple[int, str], dict[str, list[float]]],
    outcomes: dict[tuple[int, str], dict[int, float]],
) -> None:
    """Add what a match says about the answers of its two policies."""
    policy, opponent = match
    blocks = [match_pairs(run, policy, opponent, index) for index in run.heldout.indices()]
    pairs = pa.concat_tables([pairs for pairs, _ in blocks])
    answers = pa.concat_tables([answers for _, answers in blocks])
    votes = run.match_votes(policy, opponent).table()
    # Where both policies are one, its answers have other ids on one side.
    ids = run.answers(policy).table(["candidate_id"])["candidate_id"].to_pylist()
    own = {content_id(one, "new"): one for one in ids}
    sides: dict[str, tuple[tuple[int, str], tuple[int, str]]] = {}
    for pair in pairs.to_pylist():
        old = pair["b_id"] if pair["a_id"] == pair["new_id"] else pair["a_id"]
        new = (policy, own.get(pair["new_id"], pair["new_id"]))
        both = (new, (opponent, old))
        sides[pair["pair_id"]] = both if pair["a_id"] == pair["new_id"] else (both[1], both[0])
    for vote in votes.select(["pair_id", "labeler", "score_a", "score_b"]).to_pylist():
        for side, score in zip(
            sides[vote["pair_id"]], (vote["score_a"], vote["score_b"]), strict=True
        ):
            if score is not None:
                scores[side][vote["labeler"]].append(score)
    proposed = pairs.select(["pair_id", "prompt_id", "a_id", "b_id"])
    decisions = decide(votes, proposed, answers, jury.together).to_pylist()
    for pair, decision in zip(pairs.to_pylist(), decisions, strict=True):
        a, b = sides[pair["pair_id"]]
        if pair["same_text"] or decision["reason"] == TIE:
            won = 0.5
        elif decision["reason"] is not None:
            continue
        else:
            won = float(decision["chosen_id"] == pair["a_id"])
        outcomes[a][b[0]] = won
        outcomes[b][a[0]] = 1 - won


def mean_rewards(answers: pa.Table, confidence: float) -> list[dict[str, Any]]:
    """Mean score of each policy by each labeler that gives scores, with an interval by prompt:
    several answers to one prompt are not as many observations."""
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    prompts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in answers.select(["policy", "prompt_id", "scores"]).to_pylist():
        for labeler, score in row["scores"]:
            scores[row["policy"], labeler].append(score)
            prompts[row["policy"], labeler].append(row["prompt_id"])
    found = []
    for (policy, labeler), values in scores.items():
        row = {
            "name": "mean_score",
            "labeler": labeler,
            "round": 0,
            "estimate": mean_estimate(values, prompts[policy, labeler], confidence),
        }
        found += [{**one, "policy": policy} for one in metrics_table([row]).to_pylist()]
    return found


def write_answers(answers: pa.Table, path: Path) -> None:
    """Write ``answers`` as one Parquet file."""
    write_shard(answers, path, ANSWERS)
