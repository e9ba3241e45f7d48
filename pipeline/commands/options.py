"""What several commands ask alike, and how they read and print it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

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


def overrides(run_dir: Path | None, override: list[str] | None) -> list[str]:
    """All that the command line sets in the config, ``--run-dir`` last."""
    own = override or []
    return own if run_dir is None else [*own, f"run_dir={json.dumps(str(run_dir))}"]


def words(listed: str | None) -> list[str]:
    """``"a, b"`` as its words."""
    return [word.strip() for word in (listed or "").split(",") if word.strip()]
