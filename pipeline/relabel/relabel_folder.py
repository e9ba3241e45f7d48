"""Where a relabelling lies, and which votes there are already that it can take over.

RUN_DIR/relabels/NAME/   a run directory of its own, but for
  round-000/prompt/ candidate/   the run's files under another name
  round-000/by-labeler/LABELER/  the votes of each labeler, as they come
  round-000/vote/                all that count: those, and those of people in the run
  comparison.json                how the labels differ from the run's
"""

from __future__ import annotations

import logging
from filecmp import cmp
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.errors import PrefloopError
from prefloop.data.names import name_problem
from prefloop.data.packed_folder import PackedFolder
from prefloop.data.schemas import VOTE
from prefloop.data.shards import ShardFolder, shards_in
from prefloop.data.storage.whole_files import link_file, link_files
from prefloop.labelers.decisions.pairs import propose_pairs
from prefloop.pipeline.adoption import BEFORE
from prefloop.pipeline.config import ConfigError, RunConfig
from prefloop.pipeline.redecide import mark_undecided
from prefloop.pipeline.relabel.vote_keys import VoteKeys, keys_by_round, keys_in
from prefloop.pipeline.run.run_dir import RoundDir, RunDir, RunError

logger = logging.getLogger(__name__)

COMPARISON = "comparison.json"
_LINKED = ("prompts.json", "prompt/*.parquet", "round-*/prompt/*.parquet",
           "given.json", "given/*.parquet")  # fmt: skip


class LabelerRound(RoundDir):
    """A round whose votes are those of one labeler."""

    def __init__(self, root: Path, index: int, labeler: str) -> None:
        super().__init__(root, index)
        self.votes = PackedFolder(self.root / "by-labeler" / labeler, VOTE)
        self.votes_kept = ShardFolder(self.root / "by-labeler-kept" / labeler, VOTE)


def find_folder(run: RunDir, name: str, keys: VoteKeys, *, is_given: bool) -> RunDir:
    """Where the labels of labelers with these ``keys`` lie or will lie: ``name``, or where other
    labels lie there, ``name-2`` and so on.

    Raises ``RunError`` where other labels lie under a name that ``is_given`` by the user.
    """
    problem = name_problem(name)
    if problem or name.startswith(BEFORE):
        reason = problem or f"begins with {BEFORE}: that is how labels of before are called"
        raise ConfigError(f"--name {name!r} {reason}")
    for number in count(1):
        found = RunDir(run.relabels / (name if number == 1 else f"{name}-{number}"))
        if not found.config.exists() or keys_in(found) == keys:
            return found
        if is_given:
            raise RunError(
                f"{found.root} holds the votes of other labelers, or of other settings, files or "
                "models: give another --name"
            )
    raise AssertionError


def link_answers(run: RunDir, directory: RunDir) -> None:
    """Let the run's prompts and candidates be those of ``directory`` too.

    Where a block of the run was lost and sampled again since, votes on the answers of before are
    forgotten. Raises ``RunError`` where the run has no answers.
    """
    if not any(folder.candidates.indices() for folder in run.rounds()):
        raise RunError(f"{run.root} has no answers yet: `prefloop run` samples them first")
    for pattern in _LINKED:
        for path in run.root.glob(pattern):
            ours = directory.root / path.relative_to(run.root)
            if ours.exists() and not _same_file(ours, path):
                ours.unlink()
        link_files(run.root, directory.root, pattern)
    for folder in run.rounds():
        _link_candidates(folder, directory.round(folder.index), directory)


def _link_candidates(folder: RoundDir, ours: RoundDir, directory: RunDir) -> None:
    theirs = set(folder.candidates.indices())
    there = theirs.intersection(ours.candidates.indices())
    others = [index for index in sorted(there) if not has_answers(directory, folder, index)]
    if others:
        mark_undecided(directory)
        for votes in (ours.votes, *_by_labeler(ours)):
            votes.remove(others)
        ours.candidates.remove(others)
    files = folder.candidates.paths()
    for path in files:
        link_file(path, ours.candidates.folder / path.name)
    # A run puts blocks together: the same answers may lie in other files since.
    names = {path.name for path in files}
    for path in ours.candidates.folder.glob("part-*.parquet"):
        if path.name not in names and theirs.issuperset(shards_in(path.name)):
            path.unlink()


def _by_labeler(folder: RoundDir) -> list[PackedFolder]:
    """The votes of each labeler that were given on a round's answers."""
    parent = folder.root / "by-labeler"
    return [PackedFolder(path, VOTE) for path in sorted(parent.glob("[!.]*")) if path.is_dir()]


def has_answers(directory: RunDir, folder: RoundDir, index: int) -> bool:
    """Whether ``directory`` has the answers in block ``index`` of ``folder``, a round of its run:
    then votes that lie there are about these."""
    ours, theirs = directory.round(folder.index).candidates, folder.candidates
    if not (ours.exists(index) and theirs.exists(index)):
        return False
    one, other = ours.holding(index), theirs.holding(index)
    return _same_file(one, other) or ours.read(index).equals(theirs.read(index))


def _same_file(one: Path, other: Path) -> bool:
    return one.samefile(other) or cmp(one, other, shallow=False)


def known_sources(run: RunDir, directory: RunDir) -> list[tuple[RunDir, dict[int, VoteKeys]]]:
    """The run and its other relabellings, with the keys of the votes that lie there, by round."""
    found = []
    for source in (run, *(RunDir(path) for path in sorted(run.relabels.glob("[!.]*")))):
        if source.root == directory.root or not source.config.is_file():
            continue
        try:
            found.append((source, keys_by_round(source)))
        except PrefloopError as error:
            logger.warning("%s: its votes are not used again: %s", source.root, error)
    return found


def take_over(source: RunDir, folder: LabelerRound, labeler: str, config: RunConfig) -> None:
    """Take the votes of ``labeler`` that lie in ``source`` into the blocks of ``folder`` that have
    none; ``config`` says which pairs there are."""
    for index in folder.candidates.indices():
        if not folder.votes.exists(index):
            found = votes_in(source, folder, index, labeler, config)
            if found is not None:
                folder.votes.write(index, found)


def votes_in(
    source: RunDir, folder: RoundDir, index: int, labeler: str, config: RunConfig
) -> pa.Table | None:
    """The votes of ``labeler`` that lie in ``source`` on the answers in block ``index`` of
    ``folder``; null where it was not asked, or about other answers or pairs."""
    theirs = LabelerRound(source.root, folder.index, labeler)
    found = _votes(source.round(folder.index), theirs, index, labeler)
    if found is None:
        return None
    candidates = folder.candidates.read(index, ["candidate_id", "prompt_id", "policy"])
    proposed = propose_pairs(
        candidates,
        per_prompt=config.label.pairs_per_prompt,
        seed=config.seed,
        across_policies=config.label.pairs == "across_policies",
    )
    known = proposed["pair_id"].combine_chunks()
    # Of other answers, where these were lost and sampled again since.
    is_about = pc.all(pc.is_in(found["pair_id"], value_set=known), min_count=0).as_py()
    return found if is_about else None


def _votes(whole: RoundDir, apart: LabelerRound, index: int, labeler: str) -> pa.Table | None:
    """The votes of one labeler on a block, wherever they lie; null where it was not asked."""
    if apart.votes.exists(index):
        return apart.votes.read(index)
    if not whole.votes.exists(index):
        return None
    votes = whole.votes.read(index)
    return votes.filter(pc.equal(votes["labeler"], labeler))
