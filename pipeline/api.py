"""The Python API: each command is one function of the same name.

Configs are a path, a mapping or a ``RunConfig``; data are a path, a ``datasets.Dataset``, a pandas
frame, an Arrow table or a list of dicts. Errors of the user or the machine are ``PrefloopError``.
All of it works inside a running event loop, as a notebook has one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar, overload

import yaml

from prefloop.data.errors import InputError
from prefloop.data.sources.in_memory import as_files, keep_as_file
from prefloop.data.storage.objects import as_address, is_address
from prefloop.pipeline.blocking import wait_for
from prefloop.pipeline.remote.door import local_path, worked_on
from prefloop.pipeline.results import Result, Run
from prefloop.pipeline.run.run_dir import RunDir

if TYPE_CHECKING:
    from prefloop.data.sources.in_memory import Data
    from prefloop.labelers.statistics.review_draw import Strategy
    from prefloop.pipeline.audit.check import Audit
    from prefloop.pipeline.checking.check_lines import Check
    from prefloop.pipeline.config import ConfigLike, Overrides
    from prefloop.pipeline.export.exporting import Exported
    from prefloop.pipeline.judging.agreement_report import AgreementReport
    from prefloop.pipeline.judging.calibrate import RunCalibration
    from prefloop.pipeline.judging.given.win_rates import GivenWinRates
    from prefloop.pipeline.judging.gold_eval import JudgeEval
    from prefloop.pipeline.judging.reparse import Reparsed
    from prefloop.pipeline.plan.plan import Plan
    from prefloop.pipeline.policies.comparison import Evaluation
    from prefloop.pipeline.policies.train_alone import Trained
    from prefloop.pipeline.publish.publishing import Published
    from prefloop.pipeline.relabel.relabel_plan import RelabelPlan
    from prefloop.pipeline.relabel.relabelled import Relabelled
    from prefloop.pipeline.run.status import RunStatus
    from prefloop.pipeline.sweep.sweep import Sweep
    from prefloop.pipeline.sweep.sweep_plan import SweepPlan
    from prefloop.pipeline.sweep.swept import Swept
    from prefloop.pipeline.view.pair_server import PairServer
    from prefloop.training.method_names import Method

T = TypeVar("T")

RunLike = str | Path | Run
"""A run: its directory or the address of one on an object store, or what ``run`` gave."""
PolicyLike = str | Path | Run
"""A policy by its name or folder, or the one that a run keeps."""


def init(folder: str | Path) -> list[Path]:
    """Write a commented config and sample prompts into ``folder``; returns the files written.

    Files that exist are left as they are. Raises ``StorageError`` where it cannot be written.
    """
    from prefloop.pipeline.starter import write_starter

    return write_starter(Path(folder))


def plan(
    config: ConfigLike,
    *,
    run_dir: str | Path | None = None,
    prompts: Data | None = None,
    heldout: Data | None = None,
    overrides: Overrides = (),
    on: str | None = None,
) -> Result[Plan]:
    """Requests, tokens, time and cost of a run before anything is spent; arguments as for ``run``.

    ``on``: plan for another machine, such as ``h100`` or ``8xh100``, by its data sheet. Raises
    ``ConfigError`` and ``InputError`` as ``run``.
    """
    from prefloop.pipeline.config import load_config
    from prefloop.pipeline.machine.cards import machine_named
    from prefloop.pipeline.plan.plan import make_plan
    from prefloop.pipeline.plan.plan_text import render_plan

    given = _given(prompts, heldout)
    with as_files(list(given.values()), "prompts") as paths:
        keys = _overrides(overrides, run_dir, dict(zip(given, paths, strict=True)))
        settings = load_config(config, keys)
        directory = RunDir(local_path(settings.run_dir, is_new=True))
        found = make_plan(settings, directory, on=machine_named(on) if on else None)
    return Result(found, render_plan)


def check(
    config: ConfigLike,
    *,
    run_dir: str | Path | None = None,
    overrides: Overrides = (),
) -> Result[Check]:
    """Ask every engine and judge of a config once: do they answer, and as the config takes for
    granted? ``run`` does so too, before its first request.

    What it costs counts in the run's budgets, and the answers are kept in its cache. Raises
    ``ConfigError``, and ``EngineFailed`` for a policy that is nowhere to be found.
    """
    from prefloop.pipeline.checking.check_text import render_check
    from prefloop.pipeline.checking.run_check import check_config
    from prefloop.pipeline.config import load_config

    settings = load_config(config, _overrides(overrides, run_dir, {}))
    with worked_on(settings.run_dir) as root:
        found = wait_for(lambda: check_config(settings, RunDir(root)))
    return Result(found, render_check)


def run(
    config: ConfigLike,
    *,
    run_dir: str | Path | None = None,
    prompts: Data | None = None,
    heldout: Data | None = None,
    overrides: Overrides = (),
    check: bool = True,
) -> Run:
    """Run the loop, or resume it: the same call on the same directory does the rest.

    ``run_dir`` wins over the config. ``prompts`` and ``heldout`` are the rows to sample from and to
    evaluate on, in place of ``prompts.train.path`` and ``prompts.heldout.path``; tables in memory
    are kept in the run directory. ``overrides`` change keys: ``{"sample.n": 8}``. ``check``: before
    a model is asked for the first time, see that it answers as the config takes for granted.

    Raises ``ConfigError`` for a config that cannot be, ``InputError`` for data that cannot be read,
    ``RunError`` for a directory that cannot be gone on with, and others of ``PrefloopError``.
    """
    from prefloop.pipeline.config import load_config
    from prefloop.pipeline.loop import run_loop

    given = _given(prompts, heldout)
    settings = load_config(config, _overrides(overrides, run_dir, dict.fromkeys(given, "-")))
    with worked_on(settings.run_dir) as root:
        directory = RunDir(root)
        if given:
            folder = directory.root / "inputs"
            kept = {
                name: keep_as_file(data, folder, f"{name}-rows") for name, data in given.items()
            }
            settings = load_config(settings, _overrides((), None, kept))
        wait_for(lambda: run_loop(settings, directory, check=check))
    return Run(directory.root)


def sweep(
    config: ConfigLike,
    keys: Swept,
    *,
    run_dir: str | Path | None = None,
    overrides: Overrides = (),
    check: bool = True,
) -> Result[Sweep]:
    """Try several values of settings of ``train`` and ``filter``: sample and label once, then train
    and evaluate each, in ``RUN/sweep``; the same call goes on where it was interrupted.

    ``keys`` are ``{"train.beta": [0.03, 0.1]}``, or as the command takes them; several make a grid.
    Other arguments as for ``run``. Raises ``ConfigError`` before anything is done, and as ``run``.
    """
    from prefloop.pipeline.config import load_config
    from prefloop.pipeline.sweep.sweep import run_sweep
    from prefloop.pipeline.sweep.sweep_page import write_sweep_page
    from prefloop.pipeline.sweep.sweep_text import render_sweep
    from prefloop.pipeline.sweep.swept import trials

    common = _overrides(overrides, run_dir, {})
    with worked_on(load_config(config, common).run_dir) as root:
        shared, tried = trials(config, common, keys, root)
        found = wait_for(lambda: run_sweep(shared, tried, check=check))
        write_sweep_page(found)
    return Result(found, render_sweep)


def plan_sweep(
    config: ConfigLike,
    keys: Swept,
    *,
    run_dir: str | Path | None = None,
    overrides: Overrides = (),
) -> Result[SweepPlan]:
    """Requests, tokens, time and cost of ``sweep`` with the same arguments before anything is
    spent: `prefloop plan --sweep`. Raises ``ConfigError`` and ``InputError``."""
    from prefloop.pipeline.config import load_config
    from prefloop.pipeline.sweep.sweep_plan import plan_sweep as make_plan
    from prefloop.pipeline.sweep.sweep_plan_text import render_sweep_plan
    from prefloop.pipeline.sweep.swept import trials

    common = _overrides(overrides, run_dir, {})
    root = Path(load_config(config, common).run_dir)
    return Result(make_plan(*trials(config, common, keys, root)), render_sweep_plan)


def label(
    data: Data | RunLike,
    judge: ConfigLike,
    out: str | Path,
    *,
    columns: str | None = None,
    labels: str | None = None,
    overrides: Overrides = (),
) -> Run:
    """Label the answers in ``data`` by ``judge``, as a run in ``out``; the same call resumes it.

    ``data`` are pairs, ranked or rated lists or single answers, in any layout that ``audit`` reads;
    the labels that they come with are kept as votes of a labeler ``given``, which decides nothing
    and is compared with the others. ``judge`` is a labeler, several, or a run's config: a path of
    YAML, a mapping or a ``RunConfig``. ``columns`` and ``labels`` as for ``audit``. Raises as
    ``run`` does.
    """
    from prefloop.pipeline.label_data import label_config
    from prefloop.pipeline.loop import run_loop

    given = _given_path(data)
    about = {"path": "-", "columns": columns, "labels": labels}
    label_config(judge, about, out, overrides)  # a mistake in it comes before anything is written
    with worked_on(out) as root:
        directory = RunDir(root)
        path = keep_as_file(given, directory.root / "inputs", "answers")
        settings = label_config(judge, {**about, "path": path}, out, overrides)
        wait_for(lambda: run_loop(settings, directory))
    return Run(directory.root)


def status(run: RunLike) -> Result[RunStatus]:
    """What a run has done so far, with counts that add up. Raises ``RunError`` for no run."""
    from prefloop.pipeline.report.status_text import render_status
    from prefloop.pipeline.run.status import collect_status

    return Result(collect_status(_directory(run)), render_status)


def report(run: RunLike) -> Path:
    """Write the run's ``report.html``, one self-contained page; returns its path."""
    from prefloop.pipeline.report.run_page import write_report

    directory = _directory(run)
    with worked_on(directory.root):
        return write_report(directory)


@overload
def view(data: RunLike, *, html: str | Path, pairs: int = 500, seed: int = 0) -> Path: ...


@overload
def view(data: RunLike, *, seed: int = 0, port: int = 0) -> PairServer: ...


def view(
    data: RunLike,
    *,
    html: str | Path | None = None,
    pairs: int = 500,
    seed: int = 0,
    port: int = 0,
) -> Path | PairServer:
    """Look at the pairs of a run, a dataset folder or a Parquet file of triples in a browser.

    With ``html``, write that page with at most ``pairs`` of them: drawn by ``seed``, and the
    extremes. Without, serve all of them to this machine, at the ``url`` of what is returned, until
    it is closed; ``port`` 0 is a free one. Raises ``InputError`` where there is no pair.
    """
    from prefloop.pipeline.view.pair_server import PairServer
    from prefloop.pipeline.view.view_page import open_pairs, write_view

    path = local_path(data.path if isinstance(data, Run) else data)
    if html is not None:
        return write_view(path, Path(html), most=pairs, seed=seed)
    return PairServer(open_pairs(path), seed=seed, port=port)


def audit(
    data: Data | RunLike,
    *,
    fix: str | Path | None = None,
    near_duplicates: bool = False,
    against: Mapping[str, str | Path] | None = None,
    tokenizer: str | None = None,
    columns: str | None = None,
    labels: str | None = None,
    seed: int = 0,
) -> Result[Audit]:
    """What is wrong, odd or lopsided in a preference dataset, or in a run's.

    ``fix`` is a folder for the cleaned dataset and the dropped rows. ``against`` names evaluation
    sets that prompts may not be in. ``columns`` is ``"prompt=..,chosen=..,rejected=.."`` or
    ``"a=..,b=..,label=.."``, ``labels`` is ``"a=1,b=2,tie=0"``. Raises ``InputError`` for what
    cannot be read.
    """
    from prefloop.pipeline.audit.audit_options import make_options
    from prefloop.pipeline.audit.audit_text import render_audit
    from prefloop.pipeline.audit.check import audit as look
    from prefloop.pipeline.audit.fix import write_fixed

    options = make_options(
        against=[f"{name}={path}" for name, path in (against or {}).items()],
        near_duplicates=near_duplicates,
        tokenizer=tokenizer,
        columns=columns,
        labels=labels,
        seed=seed,
    )
    with as_files([_given_path(data)], "table") as (path,):
        found = look(path, options)
        if fix is not None:
            write_fixed(found, path, Path(fix), options)
    return Result(found, render_audit)


def judge_eval(
    data: Data,
    *,
    judges: Sequence[ConfigLike] = (),
    verdicts: Sequence[str | Path] = (),
    columns: str | None = None,
    labels: str | None = None,
    limit: int | None = None,
    out: str | Path = "judge-eval",
    seed: int = 0,
    by: str | Sequence[str] = (),
) -> Result[JudgeEval]:
    """Judge the judges: accuracy, biases and calibration on pairs with gold labels.

    ``judges`` are configs of a labeler, of several, or of a run: paths of YAML, mappings or config
    objects. ``verdicts`` are files with the verdicts of judges. Votes are kept in ``out``: nothing
    is paid for twice. ``columns`` and ``labels`` as for ``audit``. ``by`` names columns of the rows
    (``file``: where a pair is from) by whose groups the judges are compared. Raises ``InputError``
    for what cannot be read, ``LabelerError`` and ``EngineFailed`` for judges that cannot work.
    """
    from prefloop.data.preferences import named_columns
    from prefloop.pipeline.judging.gold_eval import JudgeEvalOptions
    from prefloop.pipeline.judging.gold_eval import judge_eval as evaluate
    from prefloop.pipeline.judging.judges_text import render_judges

    with as_files([_given_path(data)], "table") as (path,), _as_yaml(judges, "judge") as configs:
        options = JudgeEvalOptions(
            judges=configs,
            verdicts=[str(one) for one in verdicts],
            columns=named_columns(columns, labels),
            limit=limit,
            out=Path(out),
            seed=seed,
            by=[by] if isinstance(by, str) else by,
        )
        found = wait_for(lambda: evaluate(path, options))
    return Result(found, render_judges)


def win_rate(
    data: Data,
    *,
    against: str | None = None,
    columns: str | None = None,
    labels: str | None = None,
    limit: int | None = None,
) -> Result[GivenWinRates]:
    """Win rates of the models in a file of verdicts (AlpacaEval, MT-Bench, arena style, PandaLM),
    with intervals, and length-controlled where the answers are in it.

    Models are compared with ``against``, by default the one that is in every match, or of two the
    one that stands first; else each with each. ``columns`` and ``labels`` as for ``audit``. Raises
    ``InputError`` where no verdict on two models' answers is found.
    """
    from prefloop.data.preferences import named_columns
    from prefloop.pipeline.judging.given.win_rate_text import render_win_rates
    from prefloop.pipeline.judging.given.win_rates import given_win_rates

    with as_files([data], "table") as (path,):
        found = given_win_rates(path, against, named_columns(columns, labels), limit)
    return Result(found, render_win_rates)


def agreement(
    data: Data | RunLike,
    *,
    item: str | None = None,
    annotator: str | None = None,
    label: str | None = None,
    annotators: Sequence[str] = (),
    prompt: str | None = None,
    levels: Sequence[str] = (),
    bootstrap: int = 1000,
    seed: int = 0,
) -> Result[AgreementReport]:
    """How far annotators agree, in a table of labels or among a run's labelers: kappa, alpha and
    the like, with intervals of ``bootstrap`` resamples.

    ``item``, ``annotator`` and ``label`` name the columns of a table with a row a label,
    ``annotators`` the columns of one with a column each, ``prompt`` that of what items are about,
    where several may be about the same; ``levels`` are labels in ascending order.
    Raises ``InputError`` for a table that cannot be read so.
    """
    from prefloop.pipeline.judging.agreement_report import file_agreement, run_agreement
    from prefloop.pipeline.judging.agreement_text import render_agreement
    from prefloop.pipeline.judging.label_table import LabelColumns

    data = _given_path(data)
    if isinstance(data, str | Path) and RunDir(Path(data)).config.is_file():
        of_run = run_agreement(_directory(data), resamples=bootstrap, seed=seed)
        return Result(of_run, render_agreement)
    columns = LabelColumns(item, annotator, label, annotators, prompt)
    with as_files([data], "table") as (path,):
        found = file_agreement(path, columns, levels=levels, resamples=bootstrap, seed=seed)
    return Result(found, render_agreement)


def queue(
    run: RunLike,
    out: str | Path,
    *,
    n: int = 100,
    strategy: Strategy = "mixed",
    everything: bool = False,
    seed: int = 0,
) -> int:
    """Write a table of the ``n`` pairs that people should look at next; returns its rows.

    ``everything`` draws from all decided pairs, not only the kept ones. Raises ``InputError`` for
    an unknown strategy, where there is no pair, or where ``out`` exists.
    """
    from prefloop.labelers.statistics.review_draw import STRATEGIES
    from prefloop.pipeline.judging.queue import write_queue

    if strategy not in STRATEGIES:
        raise InputError(f"strategy {strategy!r} is none of {', '.join(STRATEGIES)}")
    return write_queue(
        _directory(run), Path(out), n=n, strategy=strategy, seed=seed, everything=everything
    )


def calibrate(
    run: RunLike,
    people: Data | Sequence[Data],
    *,
    out: str | Path | None = None,
    method: str = "isotonic",
    seed: int = 0,
) -> Result[RunCalibration]:
    """Calibrate a run's labelers to the tables of ``people`` that ``queue`` wrote, filled in, and
    estimate how much of its dataset is right.

    Calibrations go to ``out``, by default in the run. Raises ``InputError`` for tables that hold no
    label on the run's pairs.
    """
    from prefloop.pipeline.judging.calibrate import calibrate_run
    from prefloop.pipeline.judging.calibrate_text import render_run_calibration

    directory = _directory(run)
    tables = people if isinstance(people, list | tuple) else [people]
    with as_files(tables, "people") as paths, worked_on(directory.root):
        found = calibrate_run(
            directory, paths, out=Path(out or directory.root / "calibration"), method=method,
            seed=seed,
        )  # fmt: skip
    return Result(found, render_run_calibration)


def reparse(run: RunLike, *, write: bool = False) -> Result[Reparsed]:
    """Read the judges' kept answers again, with the judges as they are now: costs no request.

    ``write`` changes the votes, decides again and writes the dataset. Raises ``RunError`` where
    there is nothing to read, or the question of a judge changed.
    """
    from prefloop.pipeline.judging.reparse import reparse as read_again
    from prefloop.pipeline.judging.reparse_text import render_reparsed

    return Result(read_again(_directory(run), write=write), render_reparsed)


def relabel(
    run: RunLike,
    judge: ConfigLike | None = None,
    *,
    model: str | None = None,
    engine: str | None = None,
    name: str | None = None,
    jury: bool = False,
    adopt: bool = False,
) -> Result[Relabelled]:
    """Label the answers of a run again, beside its labels in ``RUN/relabels/NAME``, and compare.

    ``judge`` is a labeler, several, or a run's config: the path of YAML, a mapping or a config; or
    the name or folder of a judge, with ``model`` and ``engine``; null is the run's labelers, with
    judges and models as they are now. ``jury`` decides by the old votes and the new together,
    ``adopt`` puts the new labels in the place of the run's, which are kept. Nobody is asked for
    votes that are there. Raises ``RunError``, ``ConfigError``, ``LabelerError`` or
    ``EngineFailed``.
    """
    from prefloop.pipeline.relabel.relabel import relabel as label_again
    from prefloop.pipeline.relabel.relabel_text import render_relabelled
    from prefloop.pipeline.relabel.wanted import Asked

    directory = _directory(run)
    asked = Asked(judge, model, engine, jury)
    found = wait_for(lambda: label_again(directory, asked, name=name, adopts=adopt))
    return Result(found, render_relabelled)


def plan_relabel(
    run: RunLike,
    judge: ConfigLike | None = None,
    *,
    model: str | None = None,
    engine: str | None = None,
    name: str | None = None,
    jury: bool = False,
) -> Result[RelabelPlan]:
    """Votes, tokens, time and cost of ``relabel`` with the same arguments, before any is spent:
    `prefloop relabel ... --plan`. Raises as ``relabel`` does."""
    from prefloop.pipeline.relabel.relabel_plan import plan_relabel as make_plan
    from prefloop.pipeline.relabel.relabel_plan_text import render_relabel_plan
    from prefloop.pipeline.relabel.wanted import Asked

    found = make_plan(_directory(run), Asked(judge, model, engine, jury), name=name)
    return Result(found, render_relabel_plan)


def check_relabel(
    run: RunLike,
    judge: ConfigLike | None = None,
    *,
    model: str | None = None,
    engine: str | None = None,
    jury: bool = False,
) -> Result[Check]:
    """Ask the labelers that ``relabel`` with the same arguments would ask once, as ``check`` does:
    `prefloop relabel ... --check`. Raises as ``relabel`` does."""
    from prefloop.pipeline.checking.check_text import render_check
    from prefloop.pipeline.relabel.relabel_plan import check_relabel as ask_once
    from prefloop.pipeline.relabel.wanted import Asked

    directory, asked = _directory(run), Asked(judge, model, engine, jury)
    return Result(wait_for(lambda: ask_once(directory, asked)), render_check)


def train(
    data: Data | RunLike | Sequence[Data | RunLike],
    *,
    method: Method | str,
    base: str | Path,
    out: str | Path,
    test: Sequence[Data] = (),
    config: str | Path | Mapping[str, Any] | None = None,
    overrides: Overrides = (),
    reference: str | Path | None = None,
    accelerate: str | Path | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    tracking: Sequence[str] = (),
    seed: int = 0,
) -> Result[Trained]:
    """Train a reward model, or a policy (``dpo``, ``kto``, ``sft``), on preference triples or
    labelled answers.

    ``data`` are run directories, dataset folders, files or tables in memory; ``test`` the held-out
    ones (default: the test split of runs and folders). ``config`` has the method's settings, as the
    path of a YAML file or a mapping, which ``overrides`` change. ``chat_template_kwargs`` are
    variables of the chat template, by default those that the runs among ``data`` sampled with.
    ``tracking`` are trackers that hear of every step: ``trackio``, ``wandb``, ``tensorboard``.
    Raises ``InputError``, ``ConfigError``, ``EngineFailed`` or ``TrainingError``.
    """
    from prefloop.pipeline.config import overrides_of
    from prefloop.pipeline.policies.train_alone import TrainOptions, find_sources, train_model
    from prefloop.pipeline.policies.train_text import render_training
    from prefloop.training.method_names import Method

    if method not in set(Method):
        raise InputError(f"method {method!r} is none of {', '.join(Method)}")
    chosen = Method(method)
    given = data if isinstance(data, list | tuple) else [data]
    sources = [_given_path(one) for one in given]
    own = [] if config is None else [config]
    held_out = [_given_path(one) for one in test]
    with as_files([*sources, *held_out], "rows") as paths, _as_yaml(own, "settings") as settings:
        options = TrainOptions(
            method=chosen,
            base=str(base),
            out=Path(out),
            config=next(iter(settings), None),
            overrides=[
                f"{key}={json.dumps(value)}" for key, value in overrides_of(overrides).items()
            ],
            reference=None if reference is None else str(reference),
            accelerate=None if accelerate is None else Path(accelerate),
            seed=seed,
            chat_template_kwargs=chat_template_kwargs,
            tracking=tuple(tracking),
        )
        files = [Path(path) for path in paths]
        found = train_model(
            find_sources(files[: len(sources)], files[len(sources) :], method=chosen), options
        )
    return Result(found, render_training)


def compare(
    policy: PolicyLike | Sequence[PolicyLike],
    against: PolicyLike | None = None,
    config: ConfigLike | None = None,
    *,
    out: str | Path = "evaluate",
    overrides: Overrides = (),
    all_pairs: bool = False,
    kl: bool = True,
) -> Result[Evaluation]:
    """Compare policies on the held-out prompts and by the labelers of a run's ``config``: win rates
    with intervals, mean scores, lengths, KL, and a page and a table of all answers side by side.

    ``policy`` is one or several: a folder, a hub name, what a server calls it, a run (the policy
    that it keeps), or ``"RUN:2"``, that of its round 2. Each is compared with ``against``, by
    default the first of several; with ``all_pairs``, with each other too. ``kl``: measure the KL to
    that one.

    Answers and votes are kept in ``out``; nothing is done twice. Raises ``ConfigError``,
    ``InputError``, ``LabelerError``, ``RunError`` or ``EngineFailed``.
    """
    from prefloop.pipeline.config import load_config
    from prefloop.pipeline.policies.compare import CompareOptions, compare_policies
    from prefloop.pipeline.policies.comparison_text import render_evaluation

    if config is None:
        raise InputError("config is missing: give a run's, with prompts.heldout and labelers")
    given = [policy] if isinstance(policy, str | Path | Run) else list(policy)
    names = [_policy_name(one) for one in given]
    if against is not None:
        first = _policy_name(against)
        names = [first, *([one for one in names if one != first] or names)]
    settings = load_config(config, overrides)
    options = CompareOptions(Path(out), all_pairs=all_pairs, kl=kl)
    found = wait_for(lambda: compare_policies(settings, names, options))
    return Result(found, render_evaluation)


def export(
    data: RunLike | Sequence[RunLike], *, to: str, out: str | Path, seed: int = 0
) -> Result[Exported]:
    """Write the triples of runs, dataset folders or Parquet files to the folder ``out`` as the
    project ``to`` reads them: llamafactory, alpaca, axolotl, openrlhf, nemo-rl, openai or
    label-studio.

    Raises ``InputError`` for an unknown project, a folder that exists, or where nothing can be
    written.
    """
    from prefloop.pipeline.export.export_text import render_export
    from prefloop.pipeline.export.exporting import export_triples

    given = [data] if isinstance(data, str | Path | Run) else data
    paths = [Path(_given_path(one)) for one in given]
    return Result(export_triples(paths, to, Path(out), seed=seed), render_export)


def publish(
    run: RunLike,
    repo: str,
    *,
    license: str,  # as on the hub's cards
    languages: Sequence[str] = (),
    policy: bool = False,
    public: bool = False,
    allow_findings: bool = False,
    dry_run: bool = False,
) -> Result[Published]:
    """Send the run's dataset, or with ``policy`` the policy that it keeps, to the hub as
    ``repo`` (ORG/NAME), private unless ``public``.

    The files are looked through for secrets and personal data first; what is found stops the upload
    unless ``allow_findings``: then ``stopped`` is true and ``finds`` says where. ``dry_run`` sends
    nothing. The same content makes no new commit. ``languages`` are those of the card; by default
    those found in the prompts. The token is that of ``HF_TOKEN`` or of ``hf auth login``. Raises
    ``InputError``, ``RunError``, and ``UploadFailed`` where the hub refuses.
    """
    from prefloop.pipeline.publish.publish_text import render_publish
    from prefloop.pipeline.publish.publishing import PublishOptions, publish_run

    options = PublishOptions(license, tuple(languages), policy, public, allow_findings, dry_run)
    return Result(publish_run(_directory(run, weights=policy), repo, options), render_publish)


def make_models(out: str | Path, *, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """Make the embedded policy, judge and prompts from nothing, as the shipped ones were made;
    returns their figures. ``quick`` takes a few steps only."""
    from prefloop.training.tiny.recipe import make_models as make

    return make(Path(out), seed=seed, quick=quick)


def _policy_name(policy: PolicyLike) -> str:
    name = str(policy.path if isinstance(policy, Run) else policy)
    return as_address(name) if is_address(name) else name


def _given_path(data: T | Run) -> T | Path:
    """``data``; where it is a run or an address, the folder that it lies in."""
    if isinstance(data, Run):
        return local_path(data.path)
    return local_path(data) if isinstance(data, str | Path) and is_address(data) else data


def _directory(run: RunLike, *, weights: bool = False) -> RunDir:
    path = run.path if isinstance(run, Run) else run
    return RunDir(local_path(path, weights=weights)).require()


@contextmanager
def _as_yaml(configs: Sequence[ConfigLike], name: str) -> Iterator[list[Path]]:
    """Paths of all ``configs``; those of mappings and objects exist until the context ends."""
    with TemporaryDirectory(prefix="prefloop-") as folder:
        paths = []
        for number, config in enumerate(configs):
            if isinstance(config, str | Path):
                paths.append(Path(config))
                continue
            raw = dict(config) if isinstance(config, Mapping) else config.model_dump(mode="json")
            paths.append(Path(folder) / f"{name}-{number}.yaml")
            paths[-1].write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
        yield paths


def _given(prompts: Data | None, heldout: Data | None) -> dict[str, Data]:
    both = {"train": prompts, "heldout": heldout}
    return {name: data for name, data in both.items() if data is not None}


def _overrides(
    overrides: Overrides, run_dir: str | Path | None, paths: Mapping[str, str]
) -> dict[str, Any]:
    """All keys to set; what is an argument of its own wins."""
    from prefloop.pipeline.config import overrides_of

    keys = overrides_of(overrides) | {f"prompts.{name}.path": path for name, path in paths.items()}
    return keys if run_dir is None else keys | {"run_dir": str(run_dir)}
