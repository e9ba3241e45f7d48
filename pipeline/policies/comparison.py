"""What a comparison of policies found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefloop.pipeline.run.run_dir import JURY

AGAINST = "other"
"""The second of two policies, in their figures."""
_COLUMNS = ("name", "value", "low", "high", "n", "against", "labeler")


@dataclass(frozen=True)
class Evaluation:
    """Several policies on the same prompts."""

    policies: tuple[str, ...]
    """The first is the one that the others are compared with."""
    folder: Path
    """Where answers and votes lie."""
    figures: list[dict[str, Any]]
    """Columns of schema METRIC and ``policy``; ``against`` is another of the policies, or null for
    what concerns one alone. Win rates of the jury have ``low_all`` and ``high_all`` too: the
    interval that holds for all comparisons together (Bonferroni)."""
    page: Path
    """Figures and answers side by side, as HTML."""
    table: Path
    """Every answer with its scores and outcomes, as Parquet."""
    sheet: Path
    """The figures and a table prompt by prompt, as Markdown."""
    notes: tuple[str, ...] = field(default=())
    """What to know about the figures."""

    @property
    def policy(self) -> str:
        """The one that is compared with the first; of several, the first of these."""
        return self.policies[1]

    @property
    def against(self) -> str:
        """The one that the others are compared with."""
        return self.policies[0]

    @property
    def matches(self) -> list[tuple[str, str]]:
        """Policy and opponent of every comparison."""
        return [
            (row["policy"], row["against"])
            for row in self.figures
            if row["name"] == "win_rate" and row["labeler"] == JURY
        ]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """``figures``; where there are two policies, ``against`` is "other" for what concerns the
        other one or both."""
        if len(self.policies) > 2:
            return self.figures
        return [row | {"against": self._side(row)} for row in self.figures]

    def _side(self, row: dict[str, Any]) -> str | None:
        return AGAINST if row["policy"] == self.against or row["against"] is not None else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        two = {"policy": self.policy, "against": self.against} if len(self.policies) == 2 else {}
        several = () if two else ("low_all", "high_all")
        return {
            "policies": list(self.policies),
            **two,
            "folder": str(self.folder),
            "page": str(self.page),
            "table": str(self.table),
            "sheet": str(self.sheet),
            "notes": list(self.notes),
            "figures": [
                {"policy": row["policy"]}
                | {name: row[name] for name in _COLUMNS}
                | {name: row[name] for name in several if name in row}
                for row in self.rows
            ],
        }
