"""How far annotators agree, as people read it in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from prefloop.labelers.jury.verdict_table import PositionBias
from prefloop.labelers.statistics.agreement import Agreement
from prefloop.pipeline.judging.agreement_report import AgreementReport
from prefloop.pipeline.judging.label_table import Labels
from prefloop.pipeline.report.formats import percent


def render_agreement(report: AgreementReport) -> Group:
    """For the terminal."""
    found = report.as_dict()
    lines = [
        f"{report.source}: {found['items']:,} items, {len(found['annotators']):,} annotators, "
        f"labels {', '.join(_count_of(report))}"
    ]
    lines += _about_rows(report.labels)
    parts: list[Any] = [Text("\n".join(lines)), _statistics(report)]
    if report.position:
        parts.append(_positions(report.position))
    return Group(*parts)


def _statistics(report: AgreementReport) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("", "value", "95 % interval", "items", ""):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    rows = [
        ("raw agreement (pairs of labels)", report.raw),
        ("unanimous items", report.unanimous),
        *(
            (f"Cohen's kappa, {one} and {other}", found)
            for (one, other), found in report.cohen.items()
        ),
        *(
            (f"weighted kappa, {how}, {one} and {other}", found)
            for how, kappas in report.weighted.items()
            for (one, other), found in kappas.items()
        ),
        ("Fleiss' kappa", report.fleiss),
        *((f"Krippendorff's alpha, {level}", one) for level, one in report.alphas.items()),
    ]
    for name, found in rows:
        table.add_row(
            Text(name),
            "–" if found.value is None else f"{found.value:z.3f}",
            "–" if found.low is None else f"{found.low:z.3f} to {found.high:z.3f}",
            f"{found.n:,}",
            Text(_remark(found), style="dim"),
        )
    if report.cohen_left_out:
        table.add_row(Text(f"{report.cohen_left_out:,} more pairs of annotators left out"))
    won = report.majority
    said = ", ".join(f"{label}: {count:,}" for label, count in won.counts.items())
    table.add_row(Text(f"majority {said}; none: {won.none:,}"))
    return table


def _remark(found: Agreement) -> str:
    if found.reason:
        return found.reason
    if found.undefined:
        return f"{found.undefined:,} resamples undefined"
    return ""


def _positions(position: Mapping[str, PositionBias]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("judge", "first shown preferred", "votes", "same verdict when swapped", "pairs"):
        table.add_column(name, justify="left" if name == "judge" else "right")
    for name, one in position.items():
        table.add_row(
            Text(name),
            "–" if one.first_share is None else percent(one.first_share),
            f"{one.shown:,}",
            "–" if one.consistency is None else percent(one.consistency),
            f"{one.swapped:,}",
        )
    return table


def _about_rows(labels: Labels) -> list[str]:
    lines = []
    if labels.bad:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in labels.bad.items())
        lines += [f"rows that cannot be read: {reasons}", *(f"  {one}" for one in labels.examples)]
    if labels.missing or labels.repeated:
        lines.append(
            f"missing labels: {labels.missing:,}; given twice and counted once: {labels.repeated:,}"
        )
    if labels.conflicts:
        lines.append(f"given twice and different, taken as missing: {len(labels.conflicts):,}")
        lines += [f"  {one}" for one in labels.conflict_lines]
    return lines


def _count_of(report: AgreementReport) -> list[str]:
    totals = report.ratings.counts.sum(axis=0).tolist()
    return [
        f"{label} ({total:,})" for label, total in zip(report.ratings.labels, totals, strict=True)
    ]
