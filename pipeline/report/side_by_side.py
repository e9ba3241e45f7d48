"""Held-out answers of the starting policy and the last one next to each other, for the report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefloop.pipeline.report.excerpts import ShownThought
from prefloop.pipeline.run.run_dir import OPPONENT, PolicyKey, RunDir

SHOWN = 6
"""Prompts; those with the lowest ids, which are hashes, so they favour none."""


@dataclass(frozen=True)
class PolicyAnswer:
    """What a policy said to a held-out prompt."""

    title: str
    policy: str
    text: str
    tokens: int
    finish_reason: str
    thought: ShownThought | None


@dataclass(frozen=True)
class SideBySide:
    """One held-out prompt."""

    prompt_id: str
    messages: tuple[Mapping[str, str], ...]
    answers: tuple[PolicyAnswer, ...]
    """The starting policy's first, the last policy's second, then the fixed opponent's."""
    votes: tuple[tuple[str, str], ...]
    """Labeler, and what it prefers of the first two: ``start``, ``new``, ``tie`` or ``invalid``."""


def read_side_by_side(run: RunDir) -> list[SideBySide]:
    """The first held-out prompts that both policies answered; empty before an evaluation."""
    trained = [folder.index + 1 for folder in run.rounds() if run.answers(folder.index + 1).rows()]
    if not trained or not run.answers(0).rows():
        return []
    new = max(trained)
    titles: dict[PolicyKey, str] = {0: "The starting policy", new: f"The policy of round {new - 1}"}
    if run.answers(OPPONENT).indices():
        titles[OPPONENT] = "The fixed opponent"
    answers = {key: _first_answers(run, key) for key in titles}
    both = sorted(set(answers[0]) & set(answers[new]))[:SHOWN]
    messages = {
        row["prompt_id"]: tuple(row["messages"])
        for row in run.heldout.table(["prompt_id", "messages"]).to_pylist()
    }
    votes = _votes(run, new)
    found = []
    for prompt_id in both:
        rows = {key: answers[key][prompt_id] for key in titles if prompt_id in answers[key]}
        ids = {rows[0]["candidate_id"]: "start", rows[new]["candidate_id"]: "new"}
        said = [
            (row["labeler"], _preferred(row, ids))
            for row in votes[prompt_id]
            if {row["a_id"], row["b_id"]} == set(ids)
        ]
        shown = tuple(_shown(titles[key], row) for key, row in rows.items())
        found.append(SideBySide(prompt_id, messages[prompt_id], shown, tuple(said)))
    return found


def _first_answers(run: RunDir, policy: PolicyKey) -> dict[str, dict[str, Any]]:
    """The answer of sample 0 to each prompt."""
    columns = [
        "prompt_id", "sample_index", "candidate_id", "text", "tokens", "finish_reason", "policy",
        "policy_revision", "reasoning", "reasoning_tokens",
    ]  # fmt: skip
    rows = run.answers(policy).table(columns).to_pylist()
    return {row["prompt_id"]: row for row in rows if row["sample_index"] == 0}


def _votes(run: RunDir, new: int) -> Mapping[str, list[dict[str, Any]]]:
    by_prompt: dict[str, list[dict[str, Any]]] = defaultdict(list)
    columns = ["prompt_id", "a_id", "b_id", "labeler", "preference"]
    for row in run.match_votes(new, 0).table(columns).to_pylist():
        by_prompt[row["prompt_id"]].append(row)
    return by_prompt


def _preferred(vote: Mapping[str, Any], ids: Mapping[str, str]) -> str:
    winner = {"a": vote["a_id"], "b": vote["b_id"]}.get(vote["preference"])
    return ids[winner] if winner else str(vote["preference"])


def _shown(title: str, row: Mapping[str, Any]) -> PolicyAnswer:
    policy = f"{row['policy']}@{row['policy_revision']}"
    return PolicyAnswer(
        title=title,
        policy=policy,
        text=row["text"],
        tokens=row["tokens"],
        finish_reason=row["finish_reason"],
        thought=ShownThought.of(row),
    )
