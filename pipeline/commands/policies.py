"""Policies alone, outside of a run: trained, compared, made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from prefloop.pipeline.commands.options import JsonOption, SetOption
from prefloop.training.config import Method

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
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a reward model, or a policy, on preference triples or labelled answers."""
    from prefloop.pipeline.policies.train_alone import TrainOptions, find_sources, train_model
    from prefloop.pipeline.policies.train_text import render_training

    options = TrainOptions(
        method=method,
        base=base,
        out=out,
        config=config,
        overrides=override or (),
        reference=reference,
        accelerate=accelerate,
        seed=seed,
    )
    trained = train_model(find_sources(sources, test or (), method=method), options)
    typer.echo(json.dumps(trained.as_dict(), indent=2) if as_json else render_training(trained))


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
    from prefloop.pipeline.policies.compare import evaluate_policy
    from prefloop.pipeline.policies.comparison_text import render_evaluation

    settings = load_config(config, override or [])
    found = asyncio.run(evaluate_policy(settings, policy=policy, against=against, out=out))
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        Console().print(render_evaluation(found))


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
