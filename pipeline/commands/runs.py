"""Runs: begin and resume them, say what they will cost and what they did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from prefloop.pipeline.commands.options import (
    ConfigPath,
    JsonOption,
    RunDirOption,
    RunPath,
    SetOption,
    overrides,
)

app = typer.Typer()


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to make; existing files are kept.")],
) -> None:
    """Write a commented config and sample prompts to start from."""
    from prefloop.pipeline.starter import write_starter

    for path in write_starter(folder):
        typer.echo(path)
    typer.echo(f"Edit {folder / 'prefloop.yaml'}, then: prefloop run {folder / 'prefloop.yaml'}")


@app.command()
def plan(
    config: ConfigPath,
    run_dir: RunDirOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate requests, tokens, time and cost of a run before anything is spent."""
    from rich.console import Console

    from prefloop.pipeline.config import load_config
    from prefloop.pipeline.plan.plan import make_plan
    from prefloop.pipeline.plan.plan_text import render_plan

    found = make_plan(load_config(config, overrides(run_dir, override)))
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        Console().print(render_plan(found))


@app.command()
def run(config: ConfigPath, run_dir: RunDirOption = None, override: SetOption = None) -> None:
    """Run the loop, or resume it: the same command on the same directory does the rest."""
    import asyncio

    from prefloop.pipeline.config import load_config
    from prefloop.pipeline.loop import run_loop
    from prefloop.pipeline.report.headline import headline
    from prefloop.pipeline.run.run_dir import RunDir

    settings = load_config(config, overrides(run_dir, override))
    directory = RunDir(Path(settings.run_dir))
    asyncio.run(run_loop(settings, directory))
    typer.echo(headline(directory))


@app.command()
def status(run_dir: RunPath, as_json: JsonOption = False) -> None:
    """Say what a run has done so far, with counts that add up."""
    from rich.console import Console

    from prefloop.pipeline.report.status_text import render_status
    from prefloop.pipeline.run.run_dir import RunDir
    from prefloop.pipeline.run.status import collect_status

    found = collect_status(RunDir(run_dir).require())
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        Console().print(render_status(found))


@app.command()
def report(run_dir: RunPath) -> None:
    """Write RUN_DIR/report.html, one self-contained page, and print its path."""
    from prefloop.pipeline.report.run_page import write_report
    from prefloop.pipeline.run.run_dir import RunDir

    typer.echo(write_report(RunDir(run_dir).require()))
