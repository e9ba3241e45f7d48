"""What reaches the terminal: tables and messages, in which data are text and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from prefloop.data.errors import as_called
from prefloop.data.utf8 import one_line, shown_block


class PlainConsole(Console):
    """A console for tables that hold names and texts of others: these are never markup, and what
    would steer the terminal is escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As its base does, with every text made harmless."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(shown_block(segment.text), segment.style)


class OneLine(logging.Formatter):
    """Messages as one harmless line each; tracebacks of bugs stay as they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line without its traceback."""
        return one_line(as_called(super().formatMessage(record)))
