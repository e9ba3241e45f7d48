"""A comparison of policies as Markdown: its figures, and a table prompt by prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import pyarrow as pa

from prefloop.data.shards import atomic_write_text
from prefloop.data.utf8 import one_line
from prefloop.pipeline.policies.comparison import Evaluation
from prefloop.pipeline.policies.comparison_text import policy_cells, win_rate_cells
from prefloop.pipeline.report.formats import figure

_LONGEST = 160
"""Characters of a prompt; all are in the table of answers."""
_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]<>|~$&"})
_COLUMNS = ["prompt_id", "prompt", "policy", "tokens", "scores", "outcomes"]


@dataclass
class _Answers:
    """What there is of a policy's answers to one prompt, one of each sample."""

    tokens: list[int] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    won: list[float] = field(default_factory=list)
    """Against the policy that is compared with."""

    def add(self, row: Mapping[str, Any], against: str) -> None:
        self.tokens.append(row["tokens"])
        for labeler, score in row["scores"]:
            self.scores.setdefault(labeler, []).append(score)
        self.won += [won for other, won in row["outcomes"] if other == against]


def write_sheet(found: Evaluation, answers: pa.Table) -> None:
    """Write the figures and the table; what comes out of data and models is text in it, no markup.

    ``answers`` is as ``answer_table`` gives it.
    """
    tables = [cells for cells in (win_rate_cells(found), policy_cells(found)) if cells.rows]
    parts = [
        f"# {_text(', '.join(found.policies))}",
        *(_table(cells.columns, cells.rows) for cells in tables),
        "\n".join(f"- {_text(note)}" for note in found.notes),
        "## Prompt by prompt",
        "Means over the samples of a prompt. `won` is against "
        f"{_text(found.against)}, by the jury: 1 won, 0.5 tie, 0 lost.",
        _prompts(found, answers),
    ]
    atomic_write_text(found.sheet, "\n\n".join(part for part in parts if part) + "\n")


def _prompts(found: Evaluation, answers: pa.Table) -> str:
    prompts: dict[str, str] = {}
    said: dict[tuple[str, str], _Answers] = {}
    for row in answers.select(_COLUMNS).to_pylist():
        prompts.setdefault(row["prompt_id"], row["prompt"])
        of_policy = said.setdefault((row["prompt_id"], row["policy"]), _Answers())
        of_policy.add(row, found.against)
    labelers = list(dict.fromkeys(name for one in said.values() for name in one.scores))
    columns = ["prompt"]
    for policy in found.policies:
        columns += [f"{policy}: {name}" for name in labelers]
        columns += [f"{policy}: won"] * (policy != found.against) + [f"{policy}: tokens"]
    rows = []
    for prompt_id, prompt in prompts.items():
        cells = [_last_turn(prompt)]
        for policy in found.policies:
            one = said.get((prompt_id, policy), _Answers())
            cells += [_mean(one.scores.get(name, ())) for name in labelers]
            cells += [_mean(one.won)] * (policy != found.against) + [_mean(one.tokens)]
        rows.append(cells)
    return _table(columns, rows)


def _last_turn(prompt: str) -> str:
    content = one_line(json.loads(prompt)[-1]["content"])
    return content if len(content) <= _LONGEST else f"{content[:_LONGEST]} …"


def _mean(values: Sequence[float]) -> str:
    return figure(fmean(values)) if values else "–"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [[_text(cell) for cell in row] for row in (columns, *rows)]
    cells.insert(1, ["---"] * len(columns))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _text(value: str) -> str:
    return one_line(value).translate(_MARKS)
