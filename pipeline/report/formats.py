"""Numbers as people read them, the same in the terminal and in the report.

A number and its unit are joined by a no-break space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_NOISE = 1e-12
"""What sums of floating-point numbers may be off."""


def count(value: float) -> str:
    """``12345`` as ``12,345``."""
    return f"{value:,.0f}"


def short_count(value: float) -> str:
    """``12345678`` as ``12.3 M``; below 10,000 every digit."""
    if abs(value) < 9_999.5:
        return count(value)
    return _in_units(value, ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")))


def _in_units(value: float, units: Sequence[tuple[float, str]]) -> str:
    """With one digit behind the point, in the first unit in which that is less than a thousand."""
    size, unit = next((one for one in units if abs(value) < 999.95 * one[0]), units[-1])
    return f"{value / size:,.1f}\u00a0{unit}"


def percent(share: float) -> str:
    """``0.6321`` as ``63.2 %``. What is neither none nor all has as many digits as say so, up to
    four: ``0.9998`` is ``99.98 %``."""
    if min(abs(share), abs(1 - share)) < _NOISE:
        return f"{100 * share:.1f}\u00a0%"
    for digits in range(1, 5):
        text = f"{100 * share:.{digits}f}"
        if float(text) not in (0, 100):
            return f"{text}\u00a0%"
    return "<\u00a00.0001\u00a0%" if share < 0.5 else ">\u00a099.9999\u00a0%"


def duration(seconds: float) -> str:
    """``3725`` as ``1 h 02 min``: the two largest units that matter."""
    if seconds < 9.95:
        return f"{seconds:.1f}\u00a0s"
    if seconds < 59.5:
        return f"{seconds:.0f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\u00a0min {rest:02d}\u00a0s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}\u00a0h {minutes:02d}\u00a0min"
    days, hours = divmod(hours, 24)
    return f"{days}\u00a0d {hours}\u00a0h"


def money(amount: float) -> str:
    """A price in the currency of the config: more digits the less it is, at least two that are
    not 0."""
    if amount == 0:
        return "0"
    if abs(amount) >= 0.99995:
        return f"{amount:,.2f}"
    return f"{amount:.{max(4, 1 - math.floor(math.log10(abs(amount))))}f}"


def figure(value: float) -> str:
    """A measured value with three significant digits, without an exponent where possible."""
    if value == 0:
        return "0"
    if abs(value) >= 999.5:  # with three digits that is 1e+03
        return count(value)
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def size(count_of_bytes: float) -> str:
    """``1500000`` as ``1.5 MB``."""
    if count_of_bytes < 999.5:
        return f"{count_of_bytes:.0f}\u00a0B"
    return _in_units(count_of_bytes, ((1e3, "kB"), (1e6, "MB"), (1e9, "GB")))
