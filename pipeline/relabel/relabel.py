"""`prefloop relabel`: the answers of a run, labelled again by others or by the same ones mended.

The run's own votes stay as they are. The new ones lie beside them, decided apart or together with
the old, in a directory of their own; they are compared, and may take the place of the old ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.schemas import VOTE
from prefloop.data.shards import atomic_write_json, atomic_write_text
from prefloop.labelers.config import JudgeLabeler, LabelerConfig, VerifierLabeler
from prefloop.labelers.judges.folder import question_revision
from prefloop.labelers.people import HUMAN
from prefloop.pipeline.adoption import adopt, finish_adoption
from prefloop.pipeline.config import RunConfig, dump_config, load_config
from prefloop.pipeline.redecide import Redecided, mark_undecided
from prefloop.pipeline.relabel.asking_again import LabelersOnCall, models_for
from prefloop.pipeline.relabel.difference import compare_labels
from prefloop.pipeline.relabel.relabel_folder import (
    COMPARISON,
    LabelerRound,
    find_folder,
    known_sources,
    link_answers,
    take_over,
)
from prefloop.pipeline.relabel.relabelled import Relabelled, VotesFrom
from prefloop.pipeline.relabel.vote_keys import VoteKeys, files_of, recorded, vote_keys
from prefloop.pipeline.relabel.wanted import Asked, Wanted, wanted_labels
from prefloop.pipeline.report.card import write_card
from prefloop.pipeline.report.run_page import write_report
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.manifest import (
    CALIBRATION,
    CODE,
    JUDGE_QUESTION,
    function_code,
    labeler_hashes,
    new_manifest,
    require_adoptable,
)
from prefloop.pipeline.run.round_jury import has_own_labels
from prefloop.pipeline.run.run_dir import RoundDir, RunDir, RunError
from prefloop.pipeline.stages.filter import filter_round
from prefloop.pipeline.stages.write import rows_written, write_round


async def relabel(
    run: RunDir, asked: Asked, *, name: str | None = None, adopts: bool = False
) -> Relabelled:
    """Label the answers of ``run`` as ``asked``, beside its own labels or, with ``adopts``, in
    their place; ``name`` is that of the folder in ``RUN_DIR/relabels``.

    The same call goes on where it was interrupted. Nobody is asked for votes that are there: in the
    run, or in another relabelling of it. Raises subclasses of ``PrefloopError``.
    """
    if adopts or run.adopting.exists():
        with run.lock():
            finish_adoption(run)
            if adopts:
                return await _relabel(run, asked, name, adopts=True)
    return await _relabel(run, asked, name, adopts=False)


async def _relabel(run: RunDir, asked: Asked, name: str | None, *, adopts: bool) -> Relabelled:
    before = load_config(run.config)
    wanted = wanted_labels(before, asked)
    if adopts:
        require_adoptable(wanted.config, run)
    manifest, keys = made_with(run, wanted)
    directory = find_folder(run, name or wanted.name, keys, is_given=name is not None)
    config = wanted.alone.model_copy(update={"run_dir": str(directory.root)})
    with directory.lock():
        link_answers(run, directory)
        _keep_settings(directory, config, manifest)
        on_call = LabelersOnCall(run, directory, before, config)
        try:
            votes = await _gather(on_call, wanted, keys)
        finally:
            await on_call.close()
        _put_together(run, directory, config)
        rows = await _decide(directory, config)
        difference = compare_labels(run, before, directory, wanted.new)
        kept, rounds = (
            adopt(run, directory, wanted.config, manifest) if adopts else (None, list[Redecided]())
        )
        found = Relabelled(
            run=run.root,
            folder=directory.root,
            labelers=tuple(one.name for one in config.label.labelers),
            votes=votes,
            rows=rows,
            difference=difference,
            adopted=adopts,
            kept=None if kept is None else kept.root,
            rounds=tuple(rounds),
        )
        atomic_write_json(directory.root / COMPARISON, found.as_dict())
        write_report(directory)
    return found


def made_with(run: RunDir, wanted: Wanted) -> tuple[dict[str, Any], VoteKeys]:
    """The manifest of the relabelling, and the keys of its labelers.

    The old labelers of a jury were made with what the run's manifest says; the others, with what
    there is now.
    """
    config = wanted.config
    new = tuple(one for one in config.label.labelers if one.name in wanted.new)
    old = tuple(one for one in config.label.labelers if one.name not in wanted.new)
    inputs, models = files_of(new), models_for(config, new).revisions()
    if old:
        if any(has_own_labels(folder) for folder in run.rounds()):
            raise RunError(
                f"the rounds of {run.root} were labelled by different labelers, and --jury adds "
                "new ones to the same in all: leave out --jury"
            )
        of_old, models_of_old = recorded(run)
        _refuse_changed(run, old, of_old)
        inputs |= of_old
        models |= models_of_old
    of_calibrations = {CALIBRATION.format(name) for name in config.label.calibrations}
    hashes = labeler_hashes(config)
    inputs |= {key: value for key, value in hashes.items() if key in of_calibrations}
    keys = vote_keys(config, inputs, models)
    return new_manifest(config.seed, inputs, models), keys


def _refuse_changed(
    run: RunDir, labelers: tuple[LabelerConfig, ...], inputs: Mapping[str, str]
) -> None:
    """Raise ``RunError`` where a judge of the run asks otherwise now than it did, or a verifier's
    function is another."""
    for labeler in labelers:
        if isinstance(labeler, VerifierLabeler) and labeler.function:
            of_votes = inputs.get(CODE.format(labeler.name))
            if of_votes is not None and of_votes != function_code(labeler.function):
                raise RunError(
                    f"the file of {labeler.function} is not as it was when {labeler.name} voted in "
                    f"{run.root}, whose votes --jury counts: put it back, and the mended function "
                    "into a module of its own"
                )
        if isinstance(labeler, JudgeLabeler):
            before = inputs.get(JUDGE_QUESTION.format(labeler.judge))
            if before is not None and before != question_revision(labeler.judge):
                raise RunError(
                    f"the judge {labeler.judge} asks otherwise than it did in {run.root}, whose "
                    "votes --jury counts: put it back, and the mended one into a folder of its own"
                )


def _keep_settings(directory: RunDir, config: RunConfig, manifest: Mapping[str, Any]) -> None:
    """Write down what the labels are made with; where that was otherwise, pairs are decided
    again."""
    settings = dump_config(config)
    if not directory.config.exists() or directory.config.read_text(encoding="utf-8") != settings:
        mark_undecided(directory)
    atomic_write_json(directory.manifest, manifest)
    atomic_write_text(directory.config, settings)


async def _gather(on_call: LabelersOnCall, wanted: Wanted, keys: VoteKeys) -> dict[str, VotesFrom]:
    """Have the votes of every labeler on every block: those that are there, and the rest asked
    for, one labeler after the other."""
    config, directory = on_call.config, on_call.directory
    sources = sources_of(on_call.run, directory, wanted, keys)
    found = {}
    for labeler in config.label.labelers:
        name = labeler.name
        found[name] = VotesFrom()
        for each in directory.rounds():
            folder = LabelerRound(directory.root, each.index, name)
            there = folder.votes.rows()
            for source in sources[name].get(each.index, ()):
                take_over(source, folder, name, config)
            taken = folder.votes.rows() - there
            await on_call.ask(folder, labeler)
            new = folder.votes.rows() - there - taken
            found[name] += VotesFrom(there=there, taken=taken, asked=new)
    return found


def sources_of(
    run: RunDir, directory: RunDir, wanted: Wanted, keys: VoteKeys
) -> dict[str, dict[int, list[RunDir]]]:
    """Where votes lie, beside those in ``directory``, that count as those of each labeler, by round
    (those that are nobody's are left out)."""
    found: dict[str, dict[int, list[RunDir]]] = {name: {} for name in keys}
    for source, by_round in known_sources(run, directory):
        for index, theirs in by_round.items():
            for name, key in keys.items():
                # What an old labeler of a jury was asked is what the run has of it.
                is_old = source.root == run.root and name not in wanted.new
                if is_old or (key is not None and theirs.get(name) == key):
                    found[name].setdefault(index, []).append(source)
    return found


def _put_together(run: RunDir, directory: RunDir, config: RunConfig) -> None:
    """Write what counts on each block: the votes of the labelers, and of people in the run."""
    names = [labeler.name for labeler in config.label.labelers]
    for folder in directory.rounds():
        parts = [LabelerRound(directory.root, folder.index, name).votes for name in names]
        for index in folder.candidates.indices():
            tables = [part.read(index) for part in parts]
            people = _people(run.round(folder.index), index)
            if (directory.root / "review").is_dir():  # people looked at these labels too
                people += _people(folder, index)
            table = pa.concat_tables([VOTE.empty_table(), *tables, _latest(people)])
            if not folder.votes.exists(index) or not folder.votes.read(index).equals(table):
                mark_undecided(directory)
                folder.votes.replace(index, table)


def _people(folder: RoundDir, index: int) -> list[dict[str, Any]]:
    if not folder.votes.exists(index):
        return []
    votes = folder.votes.read(index)
    found: list[dict[str, Any]] = votes.filter(pc.starts_with(votes["labeler"], HUMAN)).to_pylist()
    return found


def _latest(votes: list[dict[str, Any]]) -> pa.Table:
    """``votes`` without those that the same person gave on the same pair before."""
    by_pair = {(row["pair_id"], row["labeler"]): row for row in votes}
    return pa.Table.from_pylist(list(by_pair.values()), VOTE)


async def _decide(directory: RunDir, config: RunConfig) -> dict[str, int]:
    """Decide, filter and write what is not decided by the votes and settings of now; returns the
    rows of the dataset by split."""
    context = RunContext.of(config, directory)
    rounds = [folder for folder in directory.rounds() if folder.votes.indices()]
    if directory.undecided.exists():
        directory.card.unlink(missing_ok=True)
        for folder in rounds:
            folder.forget_decisions()
    for folder in rounds:
        await filter_round(context.round(folder.index), config.label, config.filter)
        await write_round(
            context.round(folder.index),
            test_share=config.write.test_share,
            unpaired=config.write.unpaired,
            every_answer=config.write.every_answer,
        )
    write_card(config, directory)
    directory.undecided.unlink(missing_ok=True)
    rows = [rows_written(folder) for folder in rounds]
    return {split: sum(one[split] for one in rows) for split in ("train", "test")}
