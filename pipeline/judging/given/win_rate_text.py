"""Win rates of given verdicts as people read them in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from prefloop.labelers.statistics.estimate import Estimate
from prefloop.labelers.statistics.winrate import extrapolates
from prefloop.pipeline.judging.given.win_rates import GivenWinRates, ModelWinRate


def render_win_rates(found: GivenWinRates) -> Group:
    """For the terminal."""
    parts: list[Text | Table] = [Text("\n".join(_lines(found)))]
    for judge in dict.fromkeys(one.judge for one in found.rates):
        rates = [one for one in found.rates if one.judge == judge]
        table = Table(box=None, pad_edge=False)
        columns = _columns(rates)
        for name in columns:
            words = name in ("model", "against")
            table.add_column(
                name, justify="left" if words else "right", no_wrap=not words, overflow="fold"
            )
        for cells in zip(*columns.values(), strict=True):
            table.add_row(*map(Text, cells))
        parts += [Text(f"\njudge {judge}; shares in %, with 95 % interval"), table]
    return Group(*parts)


def _columns(rates: Sequence[ModelWinRate]) -> dict[str, list[str]]:
    """What there is to show, by name."""
    shown = {
        "model": [one.model for one in rates],
        "against": [one.opponent or "all others" for one in rates],
        "matches": [f"{one.matches:,}" for one in rates],
        "win rate": [_share(one.win_rate) for one in rates],
        "win–tie–loss": [f"{one.wins:,}–{one.ties:,}–{one.losses:,}" for one in rates],
    }
    if any(one.length_controlled for one in rates):
        shown["length-contr."] = [_share(one.length_controlled) for one in rates]
    if any(one.invalid for one in rates):
        shown["invalid"] = [f"{one.invalid:,}" for one in rates]
    if any(one.first_share for one in rates):
        shown["first shown"] = [_share(one.first_share) for one in rates]
    return shown


def _share(value: Estimate | None) -> str:
    if value is None:
        return "–"
    share, low, high = (100 * one for one in (value.value, value.low, value.high))
    return f"{share:.1f} [{low:.0f}, {high:.0f}]"


def _lines(found: GivenWinRates) -> list[str]:
    lines = [f"{found.source}: {found.rows:,} rows"]
    if found.refused:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in found.refused.items())
        lines += [f"rows left out: {reasons}", *(f"  {one}" for one in found.examples)]
    one_order = sum(one.one_order for one in found.rates if one.opponent is not None)
    if one_order:
        lines.append(
            f"matches shown in one order alone: {one_order:,} (who is shown first may win by that)"
        )
    for one in found.rates:
        warning = extrapolates(one.length_gap) if one.length_gap is not None else None
        if warning and one.length_controlled:
            lines.append(f"{one.model} against {one.opponent or 'all others'}: {warning}")
    return lines
