"""Preference datasets of any origin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import prefloop
from prefloop.data.errors import InputError
from prefloop.pipeline.commands.options import JsonOption, RunPath, SetOption, say, say_json

app = typer.Typer()


@app.command()
def audit(
    file: Annotated[str, typer.Argument(help="A preference dataset, or a run directory.")],
    as_json: JsonOption = False,
    as_html: Annotated[
        bool, typer.Option("--html", help="Print one self-contained HTML page.")
    ] = False,
    fix: Annotated[
        Path | None, typer.Option(help="Folder for the cleaned dataset and the dropped rows.")
    ] = None,
    near_duplicates: Annotated[
        bool, typer.Option("--near-duplicates", help="Look for near-duplicate prompts (slower).")
    ] = False,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Evaluation set that prompts may not be in."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Count tokens too: folder, hub name, embedded:policy.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Names of columns: prompt=..,chosen=..,rejected=.. or a=..,b=..,label=.. or "
            "answers=..,ratings=.."
        ),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="What labels mean: a=1,b=2,tie=0.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 where there is an error.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the language sample.")] = 0,
) -> None:
    """Say what is wrong, odd or lopsided in a preference dataset, and write it cleaned."""
    from prefloop.pipeline.audit.audit_options import make_options
    from prefloop.pipeline.audit.audit_page import audit_page
    from prefloop.pipeline.audit.audit_text import render_audit
    from prefloop.pipeline.audit.check import audit as look
    from prefloop.pipeline.audit.fix import write_fixed
    from prefloop.pipeline.remote.door import given_path
    from prefloop.pipeline.terminal import PlainConsole

    options = make_options(
        against=against or (), near_duplicates=near_duplicates, tokenizer=tokenizer,
        columns=columns, labels=labels, seed=seed,
    )  # fmt: skip
    file = given_path(file)
    found = look(file, options)
    counts = write_fixed(found, file, fix, options) if fix else None
    if as_json:
        said = {**found.as_dict(), "fix": counts}
        say_json(said)
    elif as_html:
        typer.echo(audit_page(found))
    else:
        PlainConsole().print(render_audit(found))
        if counts:
            typer.echo(f"{fix}: {counts['kept']:,} rows kept, {counts['dropped']:,} dropped")
    if found.why_no_pair:
        raise InputError(found.why_no_pair)
    if strict and found.has_errors:
        raise typer.Exit(1)


@app.command()
def label(
    data: Annotated[
        str, typer.Argument(help="Pairs, ranked or rated lists of answers, or a run directory.")
    ],
    judge: Annotated[Path, typer.Option(help="YAML of a labeler, of several, or of a run.")],
    out: Annotated[str, typer.Option(help="Run directory; the same command goes on there.")],
    columns: Annotated[
        str | None,
        typer.Option(
            help="Names of columns: prompt=..,chosen=..,rejected=.. or a=..,b=..,label=.. or "
            "answers=..,ratings=.."
        ),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="What labels mean: a=1,b=2,tie=0.")] = None,
    override: SetOption = None,
) -> None:
    """Label answers that are there already: a run without sampling, its labels beside the old."""
    found = prefloop.label(
        data, judge, out, columns=columns, labels=labels, overrides=override or ()
    )
    typer.echo(str(found))


@app.command()
def export(
    data: Annotated[
        list[Path], typer.Argument(help="Run directories, dataset folders, Parquet files.")
    ],
    to: Annotated[
        str,
        typer.Option(
            help="llamafactory, alpaca, axolotl, openrlhf, nemo-rl, openai or label-studio."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    seed: Annotated[int, typer.Option(help="Of which answer stands left, in label-studio.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write triples as another project reads them."""
    found = prefloop.export(list(data), to=to, out=out, seed=seed)
    if as_json:
        say_json(found.as_dict())
    else:
        typer.echo(str(found))


@app.command()
def publish(
    run: RunPath,
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Its name on the hub.")],
    licence: Annotated[
        str, typer.Option("--license", help="Of the card: apache-2.0, cc-by-4.0, other, ...")
    ],
    language: Annotated[
        list[str] | None,
        typer.Option(help="Of the card, such as en; otherwise those found in the prompts."),
    ] = None,
    policy: Annotated[
        bool, typer.Option("--policy", help="The policy that the run keeps, not its dataset.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public/--private", help="Who may see a new repository.")
    ] = False,
    allow_findings: Annotated[
        bool, typer.Option("--allow-findings", help="Send it whatever was found in it.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look through the files and send nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Send a run's dataset or policy to the hub, looked through for secrets and personal data; exit
    code 1 where these stop it."""
    found = prefloop.publish(
        run, repo, license=licence, languages=language or (), policy=policy, public=public,
        allow_findings=allow_findings, dry_run=dry_run,
    )  # fmt: skip
    say(found, as_json)
    if found.facts.stopped:
        raise typer.Exit(1)
