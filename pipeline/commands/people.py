"""`prefloop review ...`: people in the loop, through Argilla."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefloop.pipeline.commands.options import JsonOption

if TYPE_CHECKING:
    from prefloop.pipeline.review.argilla_api import ArgillaApi
    from prefloop.pipeline.review.folder import ReviewFolder

app = typer.Typer(
    name="review", help="People in the loop: review and audit labels in Argilla.",
    no_args_is_help=True, add_completion=False,
)  # fmt: skip

ServerOption = Annotated[
    str | None,
    typer.Option("--server", help="Argilla to use, its key in ARGILLA_API_KEY; else `review up`."),
]
HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Of the embedded server ($PREFLOOP_ARGILLA_HOME).")
]
Where = Annotated[Path, typer.Argument(help="A run directory, or the folder of a review.")]
NameOption = Annotated[
    str | None, typer.Option(help="Name of the review; default: the only one there, or the mode.")
]


@app.command()
def up(
    home: HomeOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Default: 6900, or a free one.")] = None,
) -> None:
    """Start an Argilla on this machine and keep it running until Ctrl-C."""
    from prefloop.pipeline.review.server.home import find_home
    from prefloop.pipeline.review.server.up import LOOPBACK, running_server

    place = find_home(home)
    with running_server(place, host=host, port=port) as server:
        typer.echo(f"Argilla runs at {server.url}")
        typer.echo(f"user name and password: {place.credentials}")
        typer.echo("more people: prefloop review user NAME; stop it with Ctrl-C")
        if host != LOOPBACK:
            typer.echo("others on the network can reach it, without encryption", err=True)
        server.wait()


@app.command()
def user(
    name: Annotated[str, typer.Argument(help="User name of a new annotator.")],
    out: Annotated[
        Path | None, typer.Option(help="File for the password; default: NAME.json here.")
    ] = None,
    workspace: Annotated[str, typer.Option(help="Where they may answer.")] = "prefloop",
    server: ServerOption = None,
    home: HomeOption = None,
) -> None:
    """Make an account for a person who answers; the password goes to a file (mode 600)."""
    from prefloop.data.names import name_problem
    from prefloop.pipeline.review.users import add_person

    if problem := name_problem(name):
        raise typer.BadParameter(f"the user name {name!r} {problem}")

    api = _api(server, home)
    path = add_person(api, name, workspace, out or Path(f"{name}.json"))
    typer.echo(f"{name} may answer at {api.account.url}; password in {path}")


@app.command()
def push(
    run_dir: Annotated[
        str | None, typer.Argument(help="A run directory, or the address of one.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Instead: any preference dataset that `audit` reads.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Pairs to draw.")] = 200,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="uncertain, disagreement, random or mixed; default: mixed if blind, "
            "uncertain if assisted, random for a dataset."
        ),
    ] = None,
    mode: Annotated[
        str, typer.Option(help="blind (nothing suggested) or assisted (the decision is).")
    ] = "blind",
    overlap: Annotated[
        int | None,
        typer.Option(min=1, help="Responses a pair needs; default: 2 blind, 1 assisted."),
    ] = None,
    name: NameOption = None,
    workspace: Annotated[str, typer.Option(help="Workspace in Argilla.")] = "prefloop",
    everything: Annotated[
        bool, typer.Option("--all", help="Draw from all decided pairs, not only the kept ones.")
    ] = False,
    columns: Annotated[str | None, typer.Option(help="Of --dataset: as for audit.")] = None,
    labels: Annotated[str | None, typer.Option(help="Of --dataset: as for audit.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Of --dataset: folder of the review; default: review/NAME.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw and of the order of answers.")] = 0,
    server: ServerOption = None,
    home: HomeOption = None,
) -> None:
    """Put pairs into Argilla for people to compare; run it again to go on."""
    from prefloop.data.names import name_problem
    from prefloop.data.preferences import named_columns
    from prefloop.labelers.statistics.review_draw import STRATEGIES
    from prefloop.pipeline.remote.door import given_path, local_path, worked_on
    from prefloop.pipeline.review.folder import ReviewFolder
    from prefloop.pipeline.review.push import PushOptions
    from prefloop.pipeline.review.push import push as put
    from prefloop.pipeline.review.subjects import DatasetSubjects, RunSubjects, Subjects
    from prefloop.pipeline.run.run_dir import RunDir

    if (run_dir is None) == (dataset is None):
        raise typer.BadParameter("give a run directory or --dataset FILE")
    if mode not in ("blind", "assisted"):
        raise typer.BadParameter(f"--mode {mode!r} is none of blind, assisted")
    default = "random" if dataset else "mixed" if mode == "blind" else "uncertain"
    chosen = next((one for one in STRATEGIES if one == (strategy or default)), None)
    if chosen is None:
        raise typer.BadParameter(f"--strategy {strategy!r} is none of {', '.join(STRATEGIES)}")
    if dataset and chosen != "random":
        raise typer.BadParameter(
            "a dataset does not say how sure its labels are: --strategy random"
        )
    title = name or (_slug(Path(dataset).name) if dataset else mode)
    if problem := name_problem(title):
        raise typer.BadParameter(f"--name {title!r} {problem}")
    subjects: Subjects
    if run_dir is not None:
        run = RunDir(local_path(run_dir)).require()
        subjects = RunSubjects(run, everything=everything)
        folder = ReviewFolder(run.root / "review" / title)
        shown, source = f"{_slug(run.root.resolve().name)}-{title}", str(run.root)
    else:
        assert dataset is not None
        subjects = DatasetSubjects(given_path(dataset), named_columns(columns, labels))
        folder = ReviewFolder(out or Path("review") / title)
        shown, source = title, dataset
    options = PushOptions(
        name=shown, workspace=workspace, n=n, strategy=chosen, mode=mode,  # type: ignore[arg-type]
        overlap=overlap or (2 if mode == "blind" else 1), seed=seed,
    )  # fmt: skip
    api = _api(server, home)
    with worked_on(folder.root):
        review = put(api, subjects, folder, options, source=source, is_run=run_dir is not None)
    typer.echo(f"{folder.pushed.rows():,} pairs in {review.workspace}/{review.name}:")
    typer.echo(f"{api.account.url}/dataset/{review.dataset_id}/annotation-mode")
    typer.echo(f"then: prefloop review pull {run_dir or folder.root}")


@app.command()
def pull(
    where: Where,
    name: NameOption = None,
    server: ServerOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch every response as a vote, and decide and write a run's dataset again."""
    from prefloop.pipeline.remote.door import worked_on
    from prefloop.pipeline.review.pull import pull as fetch
    from prefloop.pipeline.review.review_text import render_pulled

    folder = _folder(where, name)
    with worked_on(folder.root):
        found = fetch(_api(server, home), folder)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else render_pulled(found))


@app.command()
def status(
    where: Where,
    name: NameOption = None,
    server: ServerOption = None,
    home: HomeOption = None,
    fetch: Annotated[bool, typer.Option(help="Pull first (the default).")] = True,
    as_json: JsonOption = False,
) -> None:
    """Progress, agreement of people, and how far the labelers agree with them."""
    from prefloop.pipeline.remote.door import worked_on
    from prefloop.pipeline.review.pull import pull as get
    from prefloop.pipeline.review.review_status import review_status
    from prefloop.pipeline.review.review_text import render_review_status

    folder = _folder(where, name)
    if fetch:
        with worked_on(folder.root):
            get(_api(server, home), folder)
    found = review_status(folder)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else render_review_status(found))


def _api(server: str | None, home: Path | None) -> ArgillaApi:
    from prefloop.pipeline.review.account import find_account
    from prefloop.pipeline.review.argilla_api import ArgillaApi

    return ArgillaApi(find_account(server, home))


def _folder(where: Path, name: str | None) -> ReviewFolder:
    from prefloop.pipeline.remote.door import local_path
    from prefloop.pipeline.review.errors import ReviewError
    from prefloop.pipeline.review.folder import ReviewFolder

    where = local_path(where)
    if (where / "review.json").is_file():
        return ReviewFolder(where)
    found = sorted(path.parent for path in (where / "review").glob("*/review.json"))
    if name:
        found = [path for path in found if path.name == name]
    if len(found) != 1:
        there = ", ".join(path.name for path in found) or "none"
        raise ReviewError(
            f"{where}: which review? There is {there}: "
            + ("give --name" if found else "push one first (`prefloop review push`)")
        )
    return ReviewFolder(found[0])


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:40].replace("..", "-") or "review"
