"""The command line. Heavy libraries are imported by the command that needs them, not before."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from prefloop.data.errors import PrefloopError
from prefloop.pipeline.review.commands import app as review_app
from prefloop.training.config import Method

app = typer.Typer(
    name="prefloop",
    help="Raw prompts in, a preference dataset and a better policy out, in one resumable loop.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.add_typer(review_app)

_INTERRUPTED = 130

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


@app.command()
def run(config: ConfigPath, run_dir: RunDirOption = None, override: SetOption = None) -> None:
    """Run the loop, or resume it: the same command on the same directory does the rest."""
    import asyncio

    from prefloop.pipeline.config import load_config
    from prefloop.pipeline.headline import headline
    from prefloop.pipeline.loop import run_loop
    from prefloop.pipeline.run_dir import RunDir

    settings = load_config(config, _overrides(run_dir, override))
    directory = RunDir(Path(settings.run_dir))
    asyncio.run(run_loop(settings, directory))
    typer.echo(headline(directory))


@app.command()
def status(run_dir: RunPath, as_json: JsonOption = False) -> None:
    """Say what a run has done so far, with counts that add up."""
    from rich.console import Console

    from prefloop.pipeline.run_dir import RunDir
    from prefloop.pipeline.status import collect_status, render_status

    found = collect_status(RunDir(run_dir).require())
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        Console().print(render_status(found))


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
    from prefloop.pipeline.plan import make_plan, render_plan

    found = make_plan(load_config(config, _overrides(run_dir, override)))
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        Console().print(render_plan(found))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to make; existing files are kept.")],
) -> None:
    """Write a commented config and sample prompts to start from."""
    from prefloop.pipeline.init import write_starter

    for path in write_starter(folder):
        typer.echo(path)
    typer.echo(f"Edit {folder / 'prefloop.yaml'}, then: prefloop run {folder / 'prefloop.yaml'}")


@app.command()
def report(run_dir: RunPath) -> None:
    """Write RUN_DIR/report.html, one self-contained page, and print its path."""
    from prefloop.pipeline.report import write_report
    from prefloop.pipeline.run_dir import RunDir

    typer.echo(write_report(RunDir(run_dir).require()))


@app.command()
def make_models(
    out: Annotated[Path, typer.Argument(help="Folder for the models and prompts.")],
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps only, to try it.")] = False,
) -> None:
    """Make the embedded policy, judge and prompts from scratch, as the shipped ones were made."""
    from prefloop.training.tiny.recipe import make_models as make

    figures = make(out, seed=seed, quick=quick, progress=lambda line: typer.echo(line, err=True))
    typer.echo(json.dumps(figures, indent=2))


@app.command()
def train(
    sources: Annotated[
        list[Path], typer.Argument(help="Run directories, dataset folders, Parquet files.")
    ],
    method: Annotated[Method, typer.Option(help="What to train.")],
    base: Annotated[str, typer.Option(help="Model to start from: folder, hub name, embedded:…")],
    out: Annotated[Path, typer.Option(help="Folder for the new model.")],
    test: Annotated[
        list[Path] | None, typer.Option(help="Held-out triples; default: the sources' test split.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with the method's settings.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Setting, e.g. learning_rate=1e-4."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Reference policy (dpo, kto); default: the base.")
    ] = None,
    accelerate: Annotated[
        Path | None, typer.Option(help="File of `accelerate config`: devices, FSDP, DeepSpeed.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a reward model, or a policy, on preference triples or labelled answers."""
    from prefloop.pipeline.train import find_sources, summary, train_model

    trained = train_model(
        find_sources(sources, test or (), method=method), method=method, base=base, out=out,
        config=config, overrides=override or (), reference=reference, accelerate=accelerate,
        seed=seed,
    )  # fmt: skip
    typer.echo(json.dumps(trained.as_dict(), indent=2) if as_json else "\n".join(summary(trained)))


@app.command()
def reparse(
    run_dir: RunPath,
    write: Annotated[
        bool, typer.Option("--write", help="Change the votes, decide again, write the dataset.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read the judges' kept answers again, with the judges as they are now: costs no request."""
    from prefloop.pipeline.reparse import reparse as read_again
    from prefloop.pipeline.reparse import summary
    from prefloop.pipeline.run_dir import RunDir

    found = read_again(RunDir(run_dir).require(), write=write)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else "\n".join(summary(found)))


@app.command()
def agreement(
    file: Annotated[str, typer.Argument(help="A table of labels, or a run directory.")],
    item: Annotated[str | None, typer.Option(help="Column that says what is labelled.")] = None,
    annotator: Annotated[str | None, typer.Option(help="Column that says who labels.")] = None,
    label: Annotated[str | None, typer.Option(help="Column with the label.")] = None,
    annotators: Annotated[
        str | None, typer.Option(help="Instead: the columns of a table with one an annotator.")
    ] = None,
    levels: Annotated[str | None, typer.Option(help="Labels in ascending order: low,high.")] = None,
    bootstrap: Annotated[int, typer.Option(min=1, help="Resamples of the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Say how far annotators agree: kappa, alpha and the like, with intervals."""
    from rich.console import Console

    from prefloop.pipeline.agreement import file_agreement, render, run_agreement
    from prefloop.pipeline.run_dir import RunDir

    if (Path(file) / "config.yaml").is_file():
        found = run_agreement(RunDir(Path(file)), resamples=bootstrap, seed=seed)
    else:
        found = file_agreement(
            file, item=item, annotator=annotator, label=label, annotators=_words(annotators),
            levels=_words(levels), resamples=bootstrap, seed=seed,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        Console().print(render(found))


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
            help="Names of columns: prompt=..,chosen=..,rejected=.. or a=..,b=..,label=.."
        ),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="What labels mean: a=1,b=2,tie=0.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 where there is an error.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the language sample.")] = 0,
) -> None:
    """Say what is wrong, odd or lopsided in a preference dataset, and write it cleaned."""
    from rich.console import Console

    from prefloop.pipeline.audit import audit as look
    from prefloop.pipeline.audit_fix import write_fixed
    from prefloop.pipeline.audit_options import make_options
    from prefloop.pipeline.audit_page import audit_page, render_audit

    options = make_options(
        against=against or (), near_duplicates=near_duplicates, tokenizer=tokenizer,
        columns=columns, labels=labels, seed=seed,
    )  # fmt: skip
    found = look(file, options)
    counts = write_fixed(found, file, fix, options) if fix else None
    if as_json:
        said = {**found.as_dict(), "fix": counts}
        typer.echo(json.dumps(said, indent=2, ensure_ascii=False, allow_nan=False))
    elif as_html:
        typer.echo(audit_page(found))
    else:
        Console().print(render_audit(found))
        if counts:
            typer.echo(f"{fix}: {counts['kept']:,} rows kept, {counts['dropped']:,} dropped")
    if strict and found.has_errors:
        raise typer.Exit(1)


@app.command()
def evaluate(
    policy: Annotated[str, typer.Argument(help="Checkpoint folder, hub name, embedded:policy.")],
    against: Annotated[str, typer.Option(help="The policy to compare with.")],
    config: Annotated[Path, typer.Option(help="A run's YAML: held-out prompts and labelers.")],
    out: Annotated[
        Path, typer.Option(help="Where answers and votes are kept; nothing is done twice.")
    ] = Path("evaluate"),
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two policies on held-out prompts: win rates with intervals, lengths, KL."""
    import asyncio

    from rich.console import Console

    from prefloop.pipeline.config import load_config
    from prefloop.pipeline.evaluate import evaluate_policy, render_evaluation

    settings = load_config(config, override or [])
    found = asyncio.run(evaluate_policy(settings, policy=policy, against=against, out=out))
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        Console().print(render_evaluation(found))


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

    from rich.console import Console

    from prefloop.data.preferences import named_columns
    from prefloop.pipeline.calibrate import calibrate_judges
    from prefloop.pipeline.judge_eval import judge_eval as evaluate
    from prefloop.pipeline.judge_eval_page import judge_page, render_judges

    found = asyncio.run(
        evaluate(
            file, judges=judge or (), verdicts=verdicts or (),
            columns=named_columns(columns, labels), limit=limit, out=out, seed=seed,
        )
    )  # fmt: skip
    written = calibrate_judges(found, calibrate, method, seed) if calibrate else []
    if as_json:
        said = {**found.as_dict(), "calibrations": [one.as_dict() for one in written]}
        typer.echo(json.dumps(said, indent=2, ensure_ascii=False, allow_nan=False))
    elif as_html:
        typer.echo(judge_page(found))
    else:
        Console().print(render_judges(found))
        for one in written:
            typer.echo("\n".join(one.lines()))


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
    from prefloop.pipeline.people import write_queue
    from prefloop.pipeline.run_dir import RunDir

    chosen = next((one for one in STRATEGIES if one == strategy), None)
    if chosen is None:
        raise typer.BadParameter(f"{strategy!r} is none of {', '.join(STRATEGIES)}")
    rows = write_queue(
        RunDir(run_dir).require(), out, n=n, strategy=chosen, seed=seed, everything=everything
    )
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
    from prefloop.pipeline.calibrate import calibrate_run
    from prefloop.pipeline.run_dir import RunDir

    run = RunDir(run_dir).require()
    found = calibrate_run(
        run, people, out=out or run.root / "calibration", method=method, seed=seed
    )
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else "\n".join(found.lines()))


def _words(listed: str | None) -> list[str]:
    return [word.strip() for word in (listed or "").split(",") if word.strip()]


def _overrides(run_dir: Path | None, override: list[str] | None) -> list[str]:
    own = override or []
    return own if run_dir is None else [*own, f"run_dir={json.dumps(str(run_dir))}"]


def main() -> NoReturn:
    """Entry point: errors of the user or the machine are one line, interruptions resumable."""
    # Read when torch is imported. Threads that spin for long while they wait are a hundred times
    # slower as soon as anything else wants one of the cores (seen on two: 40 tokens/s; so, 2,000;
    # undisturbed 10,000 either way).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars would run through ours
    logging.basicConfig(level=logging.WARNING, format="prefloop: %(message)s", stream=sys.stderr)
    # Raised as KeyboardInterrupt wherever the main thread is, training included; asyncio leaves a
    # handler alone that is not Python's default.
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(standalone_mode=False) or 0  # typer returns 130 for KeyboardInterrupt
    except TyperException as error:
        print(f"prefloop: error: {error.format_message()} (see prefloop --help)", file=sys.stderr)
        sys.exit(error.exit_code)
    except PrefloopError as error:
        sys.exit(f"prefloop: error: {error}")
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}:
            raise
        sys.exit(
            f"prefloop: error: {error.filename or 'disk'}: {os.strerror(error.errno)}: make room "
            "or change the directory; the same command then goes on from here"
        )
    if code == _INTERRUPTED:
        print(
            "prefloop: interrupted; the same command on the same directory goes on from here",
            file=sys.stderr,
        )
    sys.exit(code)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
