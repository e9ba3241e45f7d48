"""What several commands ask alike, and how they read and print it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefloop.data.utf8 import shown_block

if TYPE_CHECKING:
    from prefloop.pipeline.results import Result

ConfigPath = Annotated[Path, typer.Argument(help="YAML config (`prefloop init` writes one).")]
RunPath = Annotated[str, typer.Argument(help="A run directory, or the address of one.")]
RunDirOption = Annotated[
    str | None, typer.Option("--run-dir", help="Where the run lives; wins over the config.")
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
    from rich.text import Text

    from prefloop.pipeline.terminal import PlainConsole

    if as_json:
        say_json(result.as_dict())
        return
    shown = result.renderable()
    if isinstance(shown, Text):
        typer.echo(shown_block(shown.plain))
    else:
        PlainConsole().print(shown)


def say_json(value: Any) -> None:
    """Print ``value`` for other programs."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    typer.echo(shown_block(text, as_json=True))
