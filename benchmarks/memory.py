"""The memory that a benchmark took."""

from __future__ import annotations

from pathlib import Path


def peak_mib() -> float:
    """The most memory that this process has had at once, in MiB. Not ``ru_maxrss``: that of a new
    process begins at what the process that started it had."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak) / 1024
