"""Runs: begin and resume them, say what they will cost and what they did."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

import prefloop
from prefloop.pipeline.commands.options import (
    ConfigPath,
    JsonOption,
    RunDirOption,
    RunPath,
    SetOption,
    say,
)

app = typer.Typer()


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to make; existing files are kept.")],
) -> None:
    """Write a commented config and sample prompts to start from."""
    for path in prefloop.init(folder):
        typer.echo(path)
    typer.echo(f"Edit {folder / 'prefloop.yaml'}, then: prefloop run {folder / 'prefloop.yaml'}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of configs, for editors that complete and check YAML by one."""
    from prefloop.pipeline.config import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))


@app.command()
def plan(
    config: ConfigPath,
    run_dir: RunDirOption = None,
    override: SetOption = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2", help="As for `prefloop run`: of a sweep."),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="GPU",
            help="For another machine, by its data sheet: rtx4090, l40s, a100, h100, h200, or "
            "several, as 8xh100.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate requests, tokens, time and cost of a run before anything is spent."""
    if sweep and on:
        raise typer.BadParameter("--on goes without --sweep: plan the config of one value")
    if sweep:
        found = prefloop.plan_sweep(config, sweep, run_dir=run_dir, overrides=override or ())
        say(found, as_json)
        return
    say(prefloop.plan(config, run_dir=run_dir, overrides=override or (), on=on), as_json)


@app.command()
def check(
    config: ConfigPath,
    run_dir: RunDirOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask every engine and judge of a config once, and say what would go wrong; exit code 3 where a
    run would fail."""
    found = prefloop.check(config, run_dir=run_dir, overrides=override or ())
    say(found, as_json)
    raise typer.Exit(found.facts.exit_code)


@app.command()
def run(
    config: ConfigPath,
    run_dir: RunDirOption = None,
    override: SetOption = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Do not ask every model once before the run.")
    ] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2",
            help="Try several values of a key of train or filter over the same answers and votes, "
            "e.g. train.beta=0.03,0.1,0.3; given again, all combinations.",
        ),
    ] = None,
) -> None:
    """Run the loop, or resume it: the same command on the same directory does the rest."""
    if sweep:
        say(
            prefloop.sweep(
                config, sweep, run_dir=run_dir, overrides=override or (), check=not no_check
            ),
            as_json=False,
        )
        return
    typer.echo(
        str(prefloop.run(config, run_dir=run_dir, overrides=override or (), check=not no_check))
    )


@app.command()
def status(run_dir: RunPath, as_json: JsonOption = False) -> None:
    """Say what a run has done so far, with counts that add up."""
    say(prefloop.status(run_dir), as_json)


@app.command()
def report(run_dir: RunPath) -> None:
    """Write RUN_DIR/report.html, one self-contained page, and print its path."""
    typer.echo(prefloop.report(run_dir))


@app.command()
def view(
    data: Annotated[
        Path, typer.Argument(help="A run directory, a dataset folder or a Parquet file of triples.")
    ],
    html: Annotated[
        Path | None, typer.Option(help="Write one self-contained page to this file instead.")
    ] = None,
    pairs: Annotated[
        int, typer.Option(min=1, help="Most pairs in the page: drawn ones, and the extremes.")
    ] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the server; 0 takes a free one.")
    ] = 0,
) -> None:
    """Look at pairs in a browser: side by side, with every vote, sorted, filtered and searched.

    Serves all of them to this machine until it is interrupted; with --html, writes a file.
    """
    if html is not None:
        typer.echo(prefloop.view(data, html=html, pairs=pairs, seed=seed))
        return
    with prefloop.view(data, seed=seed, port=port) as server:
        typer.echo(f"{server.url}\nOpen it in a browser of this machine; Ctrl-C ends it.")
        with suppress(KeyboardInterrupt):
            server.wait()
