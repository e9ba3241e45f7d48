"""What a check finds: one line each, with what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prefloop.data.errors import PrefloopError
from prefloop.data.utf8 import one_line

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """One line. ``subject`` is the section of the config that it is about; ``remedy`` is the key to
    set, where something is amiss."""

    level: Level
    subject: str
    says: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.subject}: {self.says}" + (f": {self.remedy}" if self.remedy else "")
        return one_line(line)


@dataclass(frozen=True)
class Check:
    """All that was found. A run would fail where a finding is a failure."""

    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[Finding, ...]:
        """What a run needs and does not get."""
        return self._of("failure")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What is worse than it could be."""
        return self._of("warning")

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        return CheckFailed.exit_code if self.failures else 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        counts = Counter(finding.level for finding in self.findings)
        return {
            "failures": counts["failure"],
            "warnings": counts["warning"],
            "findings": [asdict(finding) for finding in self.findings],
        }

    def _of(self, level: Level) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level == level)


class CheckFailed(PrefloopError):
    """A run would get nothing from an engine or a judge; nothing was begun."""

    exit_code = 3

    def __init__(self, failures: Iterable[Finding]) -> None:
        lines = "; ".join(map(str, failures))
        super().__init__(
            f"the check before the run failed: {lines}. Nothing was begun: the same command then "
            "goes on (--no-check leaves the check out)"
        )
