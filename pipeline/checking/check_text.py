"""A check as people read it in a terminal."""

from __future__ import annotations

from rich.text import Text

from prefloop.pipeline.checking.check_lines import Check

_STYLES = {"ok": "green", "warning": "bold yellow", "failure": "bold red"}


def render_check(check: Check) -> Text:
    """A line a finding, and how many are amiss."""
    text = Text()
    for finding in check.lines:
        text.append(f"{finding.level:<9}", _STYLES[finding.level])
        text.append(f"{finding}\n")
    failures, warnings = len(check.failures), len(check.warnings)
    text.append(
        f"{failures} failure{'' if failures == 1 else 's'}, "
        f"{warnings} warning{'' if warnings == 1 else 's'}"
    )
    return text
