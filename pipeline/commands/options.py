"""What several commands ask alike, and how they read and print it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from prefloop.pipeline.results import Result

ConfigPath = Annotated[Path, typer.Argument(help="YAML config (`prefloop init` writes one).")]
RunPath = Annotated[Path, typer.Argument(help="A run directory.")]
RunDirOption = Annotated[
    Path | None, typer.Option("--run-dir", help="Where the run lives; wins over the config.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a config key, e.g. sample.n=8."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]


def words(listed: str | None) -> list[str]:
    """``"a, b"`` as its words."""
    return [word.strip() for word in (listed or "").split(",") if word.strip()]


def say(result: Result[Any], as_json: bool) -> None:
    """Print what a command found. Plain text is never wrapped: its lines are there to be copied."""
    from rich.console import Console
    from rich.text import Text

    if as_json:
        say_json(result.as_dict())
        return
    shown = result.renderable()
    if isinstance(shown, Text):
        typer.echo(shown.plain)
    else:
        Console().print(shown)


def say_json(value: Any) -> None:
    """Print ``value`` for other programs."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
