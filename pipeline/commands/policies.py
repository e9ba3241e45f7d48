"""Policies alone, outside of a run: trained, compared, made."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

import prefloop
from prefloop.pipeline.commands.options import JsonOption, SetOption, say, say_json
from prefloop.training.method_names import Method

app = typer.Typer()


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
    template: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Variable of the chat template, e.g. enable_thinking=false; default: as the runs "
            "among the sources were sampled.",
        ),
    ] = None,
    tracking: Annotated[
        list[str] | None,
        typer.Option(help="A tracker that hears of every step: trackio, wandb, tensorboard."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a reward model, or a policy, on preference triples or labelled answers."""
    from prefloop.pipeline.config import overrides_of

    trained = prefloop.train(
        sources,
        method=method,
        base=base,
        out=out,
        test=test or (),
        config=config,
        overrides=override or (),
        reference=reference,
        accelerate=accelerate,
        chat_template_kwargs=None if template is None else overrides_of(template),
        tracking=tracking or (),
        seed=seed,
    )
    say(trained, as_json)


@app.command()
def compare(
    policies: Annotated[
        list[str],
        typer.Argument(
            help="Checkpoint folders, hub names, names at a server, embedded:policy, RUN, or RUN:2 "
            "(the policy of its round 2)."
        ),
    ],
    config: Annotated[Path, typer.Option(help="A run's YAML: held-out prompts and labelers.")],
    against: Annotated[
        str | None, typer.Option(help="The policy to compare with; default: the first.")
    ] = None,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Compare each with each, not with one alone.")
    ] = False,
    kl: Annotated[bool, typer.Option(help="Measure the KL to the one compared with.")] = True,
    out: Annotated[
        Path, typer.Option(help="Where answers and votes are kept; nothing is done twice.")
    ] = Path("evaluate"),
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare policies on held-out prompts: win rates with intervals, mean scores, lengths, KL, and
    a page with all answers side by side."""
    found = prefloop.compare(
        policies,
        against,
        config,
        out=out,
        overrides=override or (),
        all_pairs=all_pairs,
        kl=kl,
    )
    say(found, as_json)


@wraps(compare)
def _evaluate(**options: Any) -> None:
    typer.echo("prefloop evaluate is called prefloop compare now", err=True)
    compare(**options)


app.command("evaluate", hidden=True)(_evaluate)


@app.command()
def make_models(
    out: Annotated[Path, typer.Argument(help="Folder for the models and prompts.")],
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps only, to try it.")] = False,
) -> None:
    """Make the embedded policy, judge and prompts from scratch, as the shipped ones were made."""
    from prefloop.training.tiny.recipe import make_models as make

    figures = make(out, seed=seed, quick=quick, progress=lambda line: typer.echo(line, err=True))
    say_json(figures)
