"""`prefloop review ...`: people in the loop, through Argilla or Label Studio."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefloop.pipeline.commands.options import JsonOption

if TYPE_CHECKING:
    from prefloop.data.preferences import PreferenceColumns
    from prefloop.labelers.statistics.review_draw import Strategy
    from prefloop.pipeline.review.argilla_api import ArgillaApi
    from prefloop.pipeline.review.folder import ReviewFolder, ReviewTool
    from prefloop.pipeline.review.subjects import Subjects

app = typer.Typer(
    name="review", help="People in the loop: review labels in Argilla or Label Studio.",
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

RunOption = Annotated[str | None, typer.Argument(help="A run directory, or the address of one.")]
DatasetOption = Annotated[
    str | None,
    typer.Option("--dataset", help="Instead: any preference dataset that `audit` reads."),
]
NumberOption = Annotated[int, typer.Option("--n", min=1, help="Pairs to draw.")]
AllOption = Annotated[
    bool, typer.Option("--all", help="Draw from all decided pairs, not only the kept ones.")
]
ColumnsOption = Annotated[str | None, typer.Option(help="Of --dataset: as for audit.")]
LabelsOption = Annotated[str | None, typer.Option(help="Of --dataset: as for audit.")]
OutOption = Annotated[
    Path | None, typer.Option(help="Of --dataset: folder of the review; default: review/NAME.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of the draw and of the order of answers.")]


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
    run_dir: RunOption = None,
    dataset: DatasetOption = None,
    n: NumberOption = 200,
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
    everything: AllOption = False,
    columns: ColumnsOption = None,
    labels: LabelsOption = None,
    out: OutOption = None,
    seed: SeedOption = 0,
    server: ServerOption = None,
    home: HomeOption = None,
) -> None:
    """Put pairs into Argilla for people to compare; run it again to go on."""
    from prefloop.data.preferences import named_columns
    from prefloop.pipeline.remote.door import worked_on
    from prefloop.pipeline.review.push import PushOptions
    from prefloop.pipeline.review.push import push as put

    if mode not in ("blind", "assisted"):
        raise typer.BadParameter(f"--mode {mode!r} is none of blind, assisted")
    chosen = _strategy(strategy, "mixed" if mode == "blind" else "uncertain", dataset)
    listed = named_columns(columns, labels)
    subjects, folder = _subjects(run_dir, dataset, (name, mode), out, everything, listed)
    is_run = run_dir is not None
    source = dataset or str(folder.root.parents[1])
    shown = (
        name or _slug(Path(source).name)
        if dataset
        else f"{_slug(Path(source).resolve().name)}-{name or mode}"
    )
    options = PushOptions(
        name=shown, workspace=workspace, n=n, strategy=chosen,
        mode=mode,  # type: ignore[arg-type]
        overlap=overlap or (2 if mode == "blind" else 1), seed=seed,
    )  # fmt: skip
    api = _api(server, home)
    with worked_on(folder.root):
        review = put(api, subjects, folder, options, source=source, is_run=is_run)
    typer.echo(f"{folder.pushed.rows():,} pairs in {review.workspace}/{review.name}:")
    for line in folder.asked().lines:
        typer.echo(line)
    typer.echo(f"{api.account.url}/dataset/{review.dataset_id}/annotation-mode")
    typer.echo(f"then: prefloop review pull {run_dir or folder.root}")


@app.command()
def export(
    run_dir: RunOption = None,
    dataset: DatasetOption = None,
    n: NumberOption = 200,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="uncertain, disagreement, random or mixed; default: mixed, random for a dataset."
        ),
    ] = None,
    overlap: Annotated[int, typer.Option(min=1, help="People a pair needs.")] = 2,
    name: NameOption = None,
    everything: AllOption = False,
    columns: ColumnsOption = None,
    labels: LabelsOption = None,
    out: OutOption = None,
    seed: SeedOption = 0,
) -> None:
    """Write pairs as tasks of Label Studio, blind, with its labelling interface; run it again with
    another --seed or --n for more."""
    from prefloop.data.preferences import named_columns
    from prefloop.pipeline.remote.door import worked_on
    from prefloop.pipeline.review.drawing import Drawing
    from prefloop.pipeline.review.label_studio.tasks import export_tasks
    from prefloop.pipeline.review.review_text import render_exported_tasks

    chosen = _strategy(strategy, "mixed", dataset)
    listed = named_columns(columns, labels)
    subjects, folder = _subjects(run_dir, dataset, (name, "label-studio"), out, everything, listed)
    drawing = Drawing(n=n, strategy=chosen, seed=seed)
    source = dataset or str(folder.root.parents[1])
    is_run = run_dir is not None
    with worked_on(folder.root):
        found = export_tasks(
            subjects, folder, drawing, overlap=overlap, source=source, is_run=is_run
        )
    typer.echo(render_exported_tasks(found))
    typer.echo(f"then: prefloop review import {run_dir or folder.root} EXPORT.json")


@app.command("import")
def import_(
    where: Where,
    files: Annotated[
        list[Path], typer.Argument(help="Exports of the project from Label Studio: JSON, JSON-MIN.")
    ],
    name: NameOption = None,
    rater: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHO=NAME", help="A person's name, by number or address in Label Studio."
        ),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="What is in none of the files counts no more.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Take in what people answered in Label Studio, and decide and write a run's dataset again."""
    from prefloop.pipeline.remote.door import worked_on
    from prefloop.pipeline.review.label_studio.importing import import_answers
    from prefloop.pipeline.review.review_text import render_imported_answers

    names = {}
    for one in rater or ():
        who, equals, called = one.partition("=")
        if not (who and equals and called):
            raise typer.BadParameter(f"--rater {one!r}: write WHO=NAME, such as 3=ann")
        names[who] = called
    folder = _folder(where, name, "label-studio")
    with worked_on(folder.root):
        found = import_answers(folder, files, names=names, whole=whole)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else render_imported_answers(found))


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

    folder = _folder(where, name, "argilla")
    with worked_on(folder.root):
        found = fetch(_api(server, home), folder)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else render_pulled(found))


@app.command()
def status(
    where: Where,
    name: NameOption = None,
    server: ServerOption = None,
    home: HomeOption = None,
    fetch: Annotated[bool, typer.Option(help="Pull first from Argilla (the default).")] = True,
    as_json: JsonOption = False,
) -> None:
    """Progress, agreement of people, and how far the labelers agree with them."""
    from prefloop.pipeline.remote.door import worked_on
    from prefloop.pipeline.review.pull import pull as get
    from prefloop.pipeline.review.review_status import review_status
    from prefloop.pipeline.review.review_text import render_review_status

    folder = _folder(where, name)
    if fetch and folder.read().tool == "argilla":
        with worked_on(folder.root):
            get(_api(server, home), folder)
    found = review_status(folder)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else render_review_status(found))


def _api(server: str | None, home: Path | None) -> ArgillaApi:
    from prefloop.pipeline.review.account import find_account
    from prefloop.pipeline.review.argilla_api import ArgillaApi

    return ArgillaApi(find_account(server, home))


def _strategy(given: str | None, default: str, dataset: str | None) -> Strategy:
    from prefloop.labelers.statistics.review_draw import STRATEGIES

    wanted = given or ("random" if dataset else default)
    chosen = next((one for one in STRATEGIES if one == wanted), None)
    if chosen is None:
        raise typer.BadParameter(f"--strategy {given!r} is none of {', '.join(STRATEGIES)}")
    if dataset and chosen != "random":
        raise typer.BadParameter(
            "a dataset does not say how sure its labels are: --strategy random"
        )
    return chosen


def _subjects(
    run_dir: str | None,
    dataset: str | None,
    titles: tuple[str | None, str],
    out: Path | None,
    everything: bool,
    columns: PreferenceColumns | None,
) -> tuple[Subjects, ReviewFolder]:
    """The pairs that a command names, and the folder of their review; ``titles``: the name that was
    given, and that of a run's review without one."""
    from prefloop.data.names import name_problem
    from prefloop.pipeline.remote.door import given_path, local_path
    from prefloop.pipeline.review.folder import ReviewFolder
    from prefloop.pipeline.review.subjects import DatasetSubjects, RunSubjects
    from prefloop.pipeline.run.run_dir import RunDir

    name, default = titles
    title = name or (_slug(Path(dataset).name) if dataset else default)
    if problem := name_problem(title):
        raise typer.BadParameter(f"--name {title!r} {problem}")
    if run_dir is not None and dataset is None:
        run = RunDir(local_path(run_dir)).require()
        return RunSubjects(run, everything=everything), ReviewFolder(run.root / "review" / title)
    if dataset is None or run_dir is not None:
        raise typer.BadParameter("give a run directory or --dataset FILE")
    return DatasetSubjects(given_path(dataset), columns), ReviewFolder(
        out or Path("review") / title
    )


def _folder(where: Path, name: str | None, tool: ReviewTool | None = None) -> ReviewFolder:
    """The review that a command names; ``tool``: where its people answer."""
    from prefloop.pipeline.remote.door import local_path
    from prefloop.pipeline.review.errors import ReviewError
    from prefloop.pipeline.review.folder import ReviewFolder

    where = local_path(where)
    if (where / "review.json").is_file():
        return ReviewFolder(where)
    there = [ReviewFolder(path.parent) for path in sorted((where / "review").glob("*/review.json"))]
    found = [
        one for one in there if (one.root.name == name if name else tool in (None, one.read().tool))
    ]
    if len(found) != 1:
        begin = "export" if tool == "label-studio" else "push"
        raise ReviewError(
            f"{where}: which review? There is {', '.join(one.root.name for one in there) or 'none'}"
            + (": give --name" if found else f": begin one (`prefloop review {begin}`)")
        )
    return found[0]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:40].replace("..", "-") or "review"
