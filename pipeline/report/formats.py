"""Numbers as people read them, the same in the terminal and in the report.

A number and its unit are joined by a no-break space.
"""

from __future__ import annotations


def count(value: float) -> str:
    """``12345`` as ``12,345``."""
    return f"{value:,.0f}"


def short_count(value: float) -> str:
    """``12345678`` as ``12.3 M``; below 10,000 every digit."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.1f}\u00a0{unit}"
    return count(value)


def percent(share: float) -> str:
    """``0.6321`` as ``63.2 %``."""
    return f"{100 * share:.1f}\u00a0%"


def duration(seconds: float) -> str:
    """``3725`` as ``1 h 02 min``: the two largest units that matter."""
    if seconds < 10:
        return f"{seconds:.1f}\u00a0s"
    if seconds < 60:
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
    """A price in the currency of the config: more digits the less it is."""
    if amount == 0:
        return "0"
    return f"{amount:,.2f}" if abs(amount) >= 1 else f"{amount:.4f}"


def figure(value: float) -> str:
    """A measured value with three significant digits, without an exponent where possible."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return count(value)
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def size(count_of_bytes: float) -> str:
    """``1500000`` as ``1.5 MB``."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count_of_bytes >= limit:
            return f"{count_of_bytes / limit:.1f}\u00a0{unit}"
    return f"{count_of_bytes:.0f}\u00a0B"
