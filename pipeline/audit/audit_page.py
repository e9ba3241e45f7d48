"""An audit as one HTML page."""

from __future__ import annotations

import numpy as np

from prefloop.pipeline.audit.check import Audit
from prefloop.pipeline.report.pages import render_page
from prefloop.pipeline.report.plots import Bars, Figure, Words, histogram


def audit_page(found: Audit) -> str:
    """One self-contained HTML page; everything out of the dataset is escaped."""
    return render_page(
        "audit.html.jinja",
        found=found,
        figures=[_histogram(unit, *each) for unit, each in found.histograms.items()],
        kept=int((found.drops == 0).sum()),
    )


def _histogram(unit: str, edges: list[int], chosen: list[int], rejected: list[int]) -> Figure:
    return histogram(
        Words(
            f"length-{unit}",
            f"Length of the answers in {unit}",
            "The longest hundredth of the answers stands in the last bin.",
            x=unit,
        ),
        np.array(edges, dtype=np.float64),
        [Bars("chosen", np.array(chosen)), Bars("rejected", np.array(rejected))],
    )
