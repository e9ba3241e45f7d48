"""Judges and people: how good, how far they agree, what they said read again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import prefloop
from prefloop.data.errors import NothingCameOut
from prefloop.data.utf8 import shown_block
from prefloop.pipeline.commands.options import JsonOption, RunPath, say, say_json, words

app = typer.Typer()


@app.command("judge-eval")
def judge_eval(
    file: Annotated[str, typer.Argument(help="Pairs with gold labels.")],
    judge: Annotated[
        list[Path] | None, typer.Option(help="YAML of a labeler, of several, or of a run.")
    ] = None,
    verdicts: Annotated[
        list[str] | None, typer.Option(help="File with the verdicts of a judge.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Names of columns: prompt=..,a=..,b=..,label=..")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="What labels mean: a=1,b=2,tie=0.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read only so many rows.")] = None,
    out: Annotated[
        Path, typer.Option(help="Where votes are kept, so that nothing is paid for twice.")
    ] = Path("judge-eval"),
    by: Annotated[
        list[str] | None,
        typer.Option(help="Column of the rows (or `file`) by whose groups judges are compared."),
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="Folder for a calibration file of each judge.")
    ] = None,
    method: Annotated[str, typer.Option(help="Of calibration: isotonic or platt.")] = "isotonic",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: JsonOption = False,
    as_html: Annotated[
        bool, typer.Option("--html", help="Print one self-contained HTML page.")
    ] = False,
) -> None:
    """Judge the judges: accuracy, biases and calibration on pairs with gold labels."""
    import asyncio

    from prefloop.data.preferences import named_columns
    from prefloop.pipeline.judging.calibrate import calibrate_judges
    from prefloop.pipeline.judging.calibrate_text import render_calibrated
    from prefloop.pipeline.judging.gold_eval import JudgeEvalOptions
    from prefloop.pipeline.judging.gold_eval import judge_eval as evaluate
    from prefloop.pipeline.judging.judges_page import judge_page
    from prefloop.pipeline.judging.judges_text import render_judges
    from prefloop.pipeline.remote.door import given_path
    from prefloop.pipeline.terminal import PlainConsole

    options = JudgeEvalOptions(
        judges=judge or (),
        verdicts=verdicts or (),
        columns=named_columns(columns, labels),
        limit=limit,
        out=out,
        seed=seed,
        by=by or (),
    )
    found = asyncio.run(evaluate(given_path(file), options))
    written = calibrate_judges(found, calibrate, method, seed) if calibrate else []
    if as_json:
        said = {**found.as_dict(), "calibrations": [one.as_dict() for one in written]}
        say_json(said)
    elif as_html:
        typer.echo(judge_page(found))
    else:
        PlainConsole().print(render_judges(found))
        for one in written:
            typer.echo(shown_block(render_calibrated(one)))


@app.command("win-rate")
def win_rate(
    file: Annotated[str, typer.Argument(help="Verdicts on the answers of two or more models.")],
    against: Annotated[
        str | None, typer.Option(help="The model to compare with; default: see the docs.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Names of columns: prompt=..,a=..,b=..,label=..")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="What verdicts mean: a=1,b=2,tie=0.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read only so many rows.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Win rates of models by verdicts that AlpacaEval, MT-Bench and others wrote down."""
    found = prefloop.win_rate(file, against=against, columns=columns, labels=labels, limit=limit)
    say(found, as_json)


@app.command()
def agreement(
    file: Annotated[str, typer.Argument(help="A table of labels, or a run directory.")],
    item: Annotated[str | None, typer.Option(help="Column that says what is labelled.")] = None,
    annotator: Annotated[str | None, typer.Option(help="Column that says who labels.")] = None,
    label: Annotated[str | None, typer.Option(help="Column with the label.")] = None,
    annotators: Annotated[
        str | None, typer.Option(help="Instead: the columns of a table with one an annotator.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Column that says what several items are about.")
    ] = None,
    levels: Annotated[str | None, typer.Option(help="Labels in ascending order: low,high.")] = None,
    bootstrap: Annotated[int, typer.Option(min=1, help="Resamples of the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Say how far annotators agree: kappa, alpha and the like, with intervals."""
    found = prefloop.agreement(
        file,
        item=item,
        annotator=annotator,
        label=label,
        annotators=words(annotators),
        prompt=prompt,
        levels=words(levels),
        bootstrap=bootstrap,
        seed=seed,
    )
    say(found, as_json)


@app.command()
def queue(
    run_dir: RunPath,
    out: Annotated[Path, typer.Option(help="CSV to write, for people to fill in.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Pairs to draw.")] = 100,
    strategy: Annotated[
        str, typer.Option(help="uncertain, disagreement, random or mixed.")
    ] = "mixed",
    everything: Annotated[
        bool, typer.Option("--all", help="Draw from all decided pairs, not only the kept ones.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
) -> None:
    """Write a table of the pairs that people should look at next."""
    from prefloop.labelers.statistics.review_draw import STRATEGIES

    chosen = next((one for one in STRATEGIES if one == strategy), None)
    if chosen is None:
        raise typer.BadParameter(f"{strategy!r} is none of {', '.join(STRATEGIES)}")
    rows = prefloop.queue(run_dir, out, n=n, strategy=chosen, everything=everything, seed=seed)
    typer.echo(f"{out}: {rows:,} pairs; fill in `verdict` (1, 2 or tie), then:")
    typer.echo(f"prefloop calibrate {run_dir} --people {out}")


@app.command()
def calibrate(
    run_dir: RunPath,
    people: Annotated[
        list[str], typer.Option(help="Table that `prefloop queue` wrote, filled in.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the calibrations; default: in the run.")
    ] = None,
    method: Annotated[str, typer.Option(help="isotonic or platt (few labels).")] = "isotonic",
    seed: Annotated[int, typer.Option(help="Seed of the folds.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Calibrate a run's labelers to people, and estimate how much of its dataset is right."""
    found = prefloop.calibrate(run_dir, people, out=out, method=method, seed=seed)
    say(found, as_json)


@app.command()
def reparse(
    run_dir: RunPath,
    write: Annotated[
        bool, typer.Option("--write", help="Change the votes, decide again, write the dataset.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read the judges' kept answers again, with the judges as they are now: costs no request."""
    say(prefloop.reparse(run_dir, write=write), as_json)


@app.command()
def relabel(
    run_dir: RunPath,
    judge: Annotated[
        str | None,
        typer.Option(
            help="YAML of a labeler, of several or of a run, or the name or folder of a judge; "
            "default: the run's labelers, with their judges and models as they are now."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model of a judge that is given by its name or folder.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Engine of such a judge.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Folder in RUN_DIR/relabels; default: after the judge.")
    ] = None,
    jury: Annotated[
        bool, typer.Option("--jury", help="Decide by the run's votes and the new ones together.")
    ] = False,
    adopt: Annotated[
        bool,
        typer.Option(
            "--adopt", help="Put the new labels in the place of the run's, and keep both."
        ),
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say votes, tokens, price and time, and ask nobody.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Ask each new labeler once, and say what goes wrong.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Label a run's answers again, beside its labels or in their place, and say what changed."""
    if plan and check:
        raise typer.BadParameter("--plan asks nobody, and --check does: give one or the other")
    if plan:
        say(
            prefloop.plan_relabel(run_dir, judge, model=model, engine=engine, name=name, jury=jury),
            as_json,
        )
        return
    if check:
        looked = prefloop.check_relabel(run_dir, judge, model=model, engine=engine, jury=jury)
        say(looked, as_json)
        raise typer.Exit(looked.facts.exit_code)
    found = prefloop.relabel(
        run_dir, judge, model=model, engine=engine, name=name, jury=jury, adopt=adopt
    )
    say(found, as_json)
    if not found.difference.kept["kept"]:
        raise NothingCameOut(
            f"{found.folder}: no pair is kept, so its dataset is empty: change the labelers, or "
            "`jury` and `filter` beside them in the file, and give the command again"
        )
