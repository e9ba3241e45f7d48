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
class CheckLine:
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
    """All that was found. A run would fail where a line is a failure."""

    lines: tuple[CheckLine, ...]

    @property
    def failures(self) -> tuple[CheckLine, ...]:
        """What a run needs and does not get."""
        return self._of("failure")

    @property
    def warnings(self) -> tuple[CheckLine, ...]:
        """What is worse than it could be."""
        return self._of("warning")

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        return CheckFailed.exit_code if self.failures else 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        counts = Counter(line.level for line in self.lines)
        return {
            "failures": counts["failure"],
            "warnings": counts["warning"],
            "lines": [asdict(line) for line in self.lines],
        }

    def _of(self, level: Level) -> tuple[CheckLine, ...]:
        return tuple(line for line in self.lines if line.level == level)


class CheckFailed(PrefloopError):
    """A run would get nothing from an engine or a judge; nothing was begun."""

    exit_code = 3

    def __init__(self, failures: Iterable[CheckLine]) -> None:
        told = "; ".join(map(str, failures))
        super().__init__(
            f"the check before the run failed: {told}. Nothing was begun: the same command then "
            "goes on (--no-check leaves the check out)"
        )
