"""A comparison of policies as one HTML page: figures, and answers side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from prefloop.data.shards import atomic_write_text
from prefloop.pipeline.policies.comparison import Evaluation
from prefloop.pipeline.policies.comparison_text import policy_cells, win_rate_cells
from prefloop.pipeline.report.formats import count, figure
from prefloop.pipeline.report.pages import render_page

SHOWN = 300
"""Prompts on the page; all are in the table beside it."""
_WORDS = {1.0: "won", 0.5: "tie", 0.0: "lost"}


@dataclass(frozen=True)
class ShownPrompt:
    """One prompt, and the answers of each policy."""

    messages: list[dict[str, Any]]
    answers: list[dict[str, Any]]


def comparison_page(found: Evaluation, answers: pa.Table) -> None:
    """Write one self-contained page; everything out of data and models is escaped."""
    prompts: dict[str, ShownPrompt] = {}
    for row in answers.to_pylist():
        shown = prompts.setdefault(row["prompt_id"], ShownPrompt(json.loads(row["prompt"]), []))
        shown.answers.append(row | {"facts": _facts(row)})
    page = render_page(
        "comparison.html.jinja",
        found=found,
        tables=[win_rate_cells(found), policy_cells(found)],
        prompts=list(prompts.values())[:SHOWN],
        more=max(len(prompts) - SHOWN, 0),
    )
    atomic_write_text(found.page, page)


def _facts(row: dict[str, Any]) -> str:
    facts = [f"{count(row['tokens'])} tokens, {count(row['characters'])} characters"]
    facts += ["cut at the token limit"] * (row["finish_reason"] == "length")
    facts += [f"{labeler} {figure(score)}" for labeler, score in row["scores"]]
    facts += [f"{_WORDS[won]} against {other}" for other, won in row["outcomes"]]
    return " · ".join(facts)
