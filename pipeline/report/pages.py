"""Self-contained HTML pages: style sheet and plots inline, no script, every value escaped."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from prefloop.pipeline.report import formats


def render_page(template: str, **values: Any) -> str:
    """``template`` (of pipeline/templates) with ``values``; all text in them is escaped."""
    return _environment().get_template(template).render(**values)


@cache  # which keeps what it compiled
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("prefloop.pipeline"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (
        formats.count, formats.short_count, formats.percent, formats.duration, formats.money,
        formats.figure, formats.size,
    ):  # fmt: skip
        environment.filters[function.__name__] = function
    return environment
