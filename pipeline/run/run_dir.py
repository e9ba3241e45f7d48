"""Where everything of a run lies on disk.

    RUN_DIR/
      config.yaml            the resolved config
      manifest.json          versions, seeds, model revisions, hashes of the inputs
      journal.jsonl          one line for each finished piece of work, with its seconds
      prompts.json           counts of the prompts read; its existence says that reading is done
      prompt/ heldout/       the prompts to sample from, and those kept for evaluation
      given/ given.json      answers that were there before the run, and their counts
      quarantine/ dropped/   prompts that could not be read, and prompts dropped with a reason
      round-000/
        prompt/ candidate/ vote/ decision/ triple/   part-NNNNN.parquet, one block of prompts each,
                             or part-NNNNN-MMMMM.parquet, the blocks from one to the other
        quarantine/          rows that failed in this round, by stage
        begins-with.json     the policies that rounds up to this one were begun with, by number
        jury.json            how reliable the labelers are, where the jury's rule needs it
        .dataset/            files of the round's part of the dataset until all of them are made
        written.json         rows added to each split; its existence says that all were
        reference/           the mean of the policies so far, where that is the reference
        reference-logps.parquet  log-probabilities of the training data under the reference
        warm-up/policy/      in round 0: the policy after supervised training, where that is asked
        policy/              the policy this round trained
        metric/              part-00000: training curves, part-00001: evaluation
      cache/                 responses of HTTP servers, a folder for each engine, and beside each
                             folder, in NAME.spent.jsonl, what the engine has spent; in hosts/
                             those of other machines of a cluster
      evaluation/            answers of each policy to the held-out prompts, votes on them, and
                             their log-probabilities (logps-001-HASH)
      final/                 held-out prompts that no round was evaluated on, answers of the policy
                             to keep and of the starting one, votes, figures: a run directory of its
                             own
      attempts/              while a cluster works on a stage: who tried which block
      dataset/               what the run is for: opens with ``datasets.load_dataset``
      tracking/              what trackers were told, so that nothing is told twice
      report.html
      undecided              there while votes were changed and not all pairs are decided again
      relabels/              the same answers labelled by others (`prefloop relabel`), each of them
                             a run directory; before-NNN holds the labels that others took the place
                             of, and adopting.json is there until these are in that place

Part k of every noun of a round belongs to the same block of prompts, so that joins never leave
a block and memory does not grow with the number of prompts. Where there are many blocks, about two
thousand prompts share a file: candidates and votes once all are there, all else from the start. A
folder of many files has an _index.json with what they add up to.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prefloop.data import schemas
from prefloop.data.errors import PrefloopError
from prefloop.data.packed_folder import PackedFolder
from prefloop.data.shards import ShardFolder, damaged, read_json_object
from prefloop.data.storage.dataset_folder import harm_to_dataset
from prefloop.data.storage.whole_files import is_of_machine, refused, remove_leftovers
from prefloop.data.yaml_files import read_yaml
from prefloop.pipeline.remote.door import worked_on

TRAINING_CURVES, EVALUATION = 0, 1
"""Parts of a round's metrics."""
FINAL_FOLDER = "final"
"""Where the look at the policy to keep lies, on prompts that no round saw."""
OPPONENT = "opponent"
"""The fixed policy that every round is compared with, in metrics and file names."""
JURY = "jury"
"""As a labeler's name in metrics: what all labelers decided together."""
CONFIG_REMEDY = (
    "put the config there that the run was begun with, then give `prefloop run` again with it"
)
PolicyKey = int | str
"""A policy in the evaluation: 0 is the starting policy, k the one round k - 1 trained, a name one
that is not of the run."""


class RunError(PrefloopError):
    """The run directory cannot be used as asked."""


class RoundDir:
    """The folders of one round; ``index`` counts from 0."""

    def __init__(self, root: Path, index: int) -> None:
        self.index = index
        self.root = root / f"round-{index:03d}"
        self.prompts = PackedFolder(self.root / "prompt", schemas.PROMPT)
        self.candidates = PackedFolder(self.root / "candidate", schemas.CANDIDATE)
        self.votes = PackedFolder(self.root / "vote", schemas.VOTE)
        self.votes_kept = ShardFolder(self.root / "vote-kept", schemas.VOTE)
        self.decisions = PackedFolder(self.root / "decision", schemas.DECISION)
        self.triples = PackedFolder(self.root / "triple", schemas.TRIPLE)
        self.metrics = ShardFolder(self.root / "metric", schemas.METRIC)
        self.jury = self.root / "jury.json"
        self.begins_with = self.root / "begins-with.json"
        self.policy = self.root / "policy"
        self.warm_up = self.root / "warm-up" / "policy"
        self.reference_logps = self.root / "reference-logps.parquet"
        self.written = self.root / "written.json"
        self.unbalanced = PackedFolder(
            self.root / "decision-unbalanced", schemas.DECISION, for_now=True
        )
        self.decisions_before = PackedFolder(self.root / "decision-before", schemas.DECISION)

    def quarantine(self, stage: str) -> ShardFolder:
        """Rows that failed in this round, in ``sample`` or ``evaluate-`` and the policy's key."""
        return ShardFolder(self.root / "quarantine" / stage, schemas.QUARANTINE)

    def index_shards(self) -> None:
        """Keep what the round's shards add up to; the caller holds the lock."""
        for shards in (self.prompts, self.candidates, self.votes, self.decisions, self.triples):
            shards.write_index()

    def trained(self) -> bool:
        """Whether weights were trained on the round's labels, to the end or for a warm-up."""
        return self.policy.exists() or self.warm_up.exists() or bool(self.metrics.indices())

    def forget_decisions(self) -> None:
        """Remove what was decided from the votes, for the filter and write stages to make anew.

        The dataset keeps its files until then.
        """
        self.written.unlink(missing_ok=True)  # first: it says that the rest is there
        self.jury.unlink(missing_ok=True)
        for shards in (self.triples, self.decisions, self.unbalanced):
            shutil.rmtree(shards.folder, ignore_errors=True)


class RunDir:
    """A run directory. Making the object touches nothing on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.manifest = root / "manifest.json"
        self.journal = root / "journal.jsonl"
        self.prompt_counts = root / "prompts.json"
        self.prompts = PackedFolder(root / "prompt", schemas.PROMPT)
        self.heldout = PackedFolder(root / "heldout", schemas.PROMPT)
        self.given = ShardFolder(root / "given", schemas.GIVEN)
        self.given_counts = root / "given.json"
        self.quarantine = PackedFolder(root / "quarantine", schemas.QUARANTINE)
        self.dropped = PackedFolder(root / "dropped", schemas.DROPPED)
        self.cache = root / "cache"
        self.rubrics = root / "rubrics"
        self.tracking = root / "tracking"
        self.evaluation = root / "evaluation"
        self.dataset = root / "dataset"
        self.card = self.dataset / "README.md"
        self.report = root / "report.html"
        self.undecided = root / "undecided"
        self.relabels = root / "relabels"
        self.adopting = self.relabels / "adopting.json"
        self._inode: int | None = None

    def index_shards(self) -> None:
        """Keep what the prompts add up to, and what else was read; the caller holds the lock."""
        for shards in (self.prompts, self.heldout, self.given, self.quarantine, self.dropped):
            shards.write_index()

    def round(self, index: int) -> RoundDir:
        """The folders of round ``index`` (they may not exist yet)."""
        return RoundDir(self.root, index)

    def rounds(self) -> list[RoundDir]:
        """The rounds begun so far, in order."""
        found = sorted(self.root.glob("round-[0-9][0-9][0-9]"))
        return [self.round(int(path.name.removeprefix("round-"))) for path in found]

    def begun(self) -> bool:
        """Whether anything was made from the prompts, or they were read to the end."""
        return self.prompt_counts.exists() or bool(self.rounds()) or self.evaluation.exists()

    def read_prompt_counts(self) -> dict[str, int]:
        """What was read, kept and so on, in ``prompts.json``. Raises ``StorageError``."""
        remedy = "delete it and give `prefloop run` again, which reads the prompts again"
        counts = read_json_object(self.prompt_counts, remedy)
        wanted = ("read", "kept", "heldout", "dropped", "quarantined")
        if not all(type(counts.get(name)) is int for name in wanted):
            raise damaged(self.prompt_counts, "no counts of prompts", remedy)
        return {name: counts[name] for name in wanted}

    def read_config(self) -> dict[str, Any]:
        """The settings in ``config.yaml``, unchecked. Raises ``StorageError`` where it is damaged,
        ``FileNotFoundError`` where it is missing."""
        try:
            found = read_yaml(self.config)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and is_of_machine(error):
                raise refused(self.config, "read", error) from None
            fault = " ".join(str(error).split())[:200]
            raise damaged(self.config, fault, CONFIG_REMEDY) from None
        if not isinstance(found, dict) or not found:
            raise damaged(self.config, "no settings", CONFIG_REMEDY)
        return found

    def require_whole_dataset(self) -> None:
        """Raise :class:`RunError` where the dataset's files are not those that were written
        together: it is being written, a kill came in between, or some were lost or put in. In
        between, old files stand beside new ones, and a prompt may be in both splits."""
        if harm := harm_to_dataset(self.dataset):
            raise RunError(
                f"{self.dataset} {harm}: the command that made it (`prefloop run`, `label` or "
                "`relabel`), given again, writes it again"
            )

    def decides_again(self) -> bool:
        """Whether votes were changed, by people, by other labelers or by reading answers again, and
        a kill came before all pairs were decided by them."""
        return (
            self.undecided.exists()
            or self.adopting.exists()
            or any(folder.decisions_before.folder.exists() for folder in self.rounds())
        )

    def answers(self, policy: PolicyKey) -> ShardFolder:
        """Held-out answers of a policy."""
        return ShardFolder(self.evaluation / f"answers-{_key(policy)}", schemas.CANDIDATE)

    def untempered(self, policy: PolicyKey) -> ShardFolder:
        """Answers of a policy that KL is measured on, where its held-out answers were drawn from
        another distribution than its own."""
        return ShardFolder(self.evaluation / f"untempered-{_key(policy)}", schemas.CANDIDATE)

    def log_probabilities(self, policy: int, key: str) -> ShardFolder:
        """What KL of a policy and its rewards on held-out triples are made of; ``key`` is a hash of
        the texts and the checkpoints."""
        return ShardFolder(self.evaluation / f"logps-{_key(policy)}-{key}", schemas.LOGPROB)

    def match_votes(self, policy: PolicyKey, opponent: PolicyKey) -> ShardFolder:
        """Votes on the held-out answers of one policy against those of another."""
        name = f"votes-{_key(policy)}-against-{_key(opponent)}"
        return ShardFolder(self.evaluation / name, schemas.VOTE)

    def match_votes_kept(self, policy: PolicyKey, opponent: PolicyKey) -> ShardFolder:
        """Valid votes of a match that ended for its invalid ones, until it is over."""
        name = f"kept-votes-{_key(policy)}-against-{_key(opponent)}"
        return ShardFolder(self.evaluation / name, schemas.VOTE)

    def keeps_match_votes(self) -> bool:
        """Whether a match ended for its invalid votes, and is not over."""
        return any(self.evaluation.glob("kept-votes-*"))

    def matches(self) -> list[tuple[PolicyKey, PolicyKey]]:
        """Policy and opponent of every match that has votes."""
        names = [path.name for path in self.evaluation.glob("votes-*-against-*") if path.is_dir()]
        found = [name.removeprefix("votes-").split("-against-") for name in sorted(names)]
        return [(_policy(policy), _policy(opponent)) for policy, opponent in found]

    def require(self) -> RunDir:
        """Return self, or raise :class:`RunError` where this is no run directory."""
        if not self.config.is_file():
            fault = "it has no config.yaml" if self.root.is_dir() else "there is no such folder"
            raise RunError(f"{self.root} is not a run directory: {fault} ({self._nearby()})")
        return self

    def _nearby(self) -> str:
        """What to give in place of a folder that is no run directory."""
        above = [folder for folder in list(self.root.parents)[:2] if _is_begun(folder)]
        if above:
            return f"it is in the run directory {above[0]}: give that one"
        inside = [path for path in sorted(self.root.glob("*")) if _is_begun(path)]
        if inside:
            shown = ", ".join(map(str, inside[:3])) + (", ..." if len(inside) > 3 else "")
            return f"did you mean {shown}?"
        return "give the directory that `prefloop run` printed"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for writing; a second writer gets :class:`RunError`.

        The operating system frees the lock with its process, also after ``kill -9``. The working
        copy of a directory on an object store is held on all machines, and carried over.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        owner = self.root / ".lock-owner"
        lock = FileLock(self.root / ".lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
            raise RunError(
                f"{self.root} is in use by {who}: wait for it to end, or use another --run-dir"
            ) from None
        try:
            owner.write_text(f"process {os.getpid()}", encoding="utf-8")
            remove_leftovers(self.root)
            self._inode = self.root.stat().st_ino
            with worked_on(self.root):
                yield
        finally:
            self._inode = None
            lock.release()

    def note(self, stage: str, round_index: int, seconds: float, **facts: Any) -> None:
        """Append a finished piece of work to the journal; safe against a kill in the middle.

        Raises :class:`RunError` where the directory was deleted or moved under the run.
        """
        self._refuse_deleted()
        line = json.dumps(
            {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "round": round_index,
                "stage": stage,
                "seconds": round(seconds, 3),
                **facts,
            }
        )
        # A torn last line of a killed process must not swallow this one: start on a fresh line.
        with self.journal.open("a+b") as handle:
            if handle.tell() and _last_byte(handle) != b"\n":
                handle.write(b"\n")
            handle.write(line.encode() + b"\n")

    def notes(self) -> list[dict[str, Any]]:
        """The journal's readable lines, oldest first."""
        if not self.journal.exists():
            return []
        found = []
        for line in self.journal.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                note = json.loads(line)
            except (ValueError, RecursionError):
                continue  # torn by a kill
            if _is_note(note):
                found.append(note)
        return found

    def _refuse_deleted(self) -> None:
        if self._inode is None:  # not held for writing
            return
        try:
            same = self.root.stat().st_ino == self._inode
        except FileNotFoundError:
            same = False
        if not same:
            raise RunError(
                f"{self.root} was deleted or moved while the run worked in it: put it back and run "
                "the same command again, or delete what is left of it to begin anew"
            )


def _is_begun(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "manifest.json").is_file()


def _is_note(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("round"), int)
        and isinstance(value.get("stage"), str)
        and isinstance(value.get("seconds"), int | float)
    )


def _policy(key: str) -> PolicyKey:
    return int(key) if key.isdigit() else key


def _key(policy: PolicyKey) -> str:
    return policy if isinstance(policy, str) else f"{policy:03d}"


def _last_byte(handle: Any) -> bytes:
    handle.seek(-1, os.SEEK_END)
    return bytes(handle.read(1))


class Stopwatch:
    """Seconds since the last reading, for the journal."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        """Seconds since the previous lap (or the start)."""
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        return elapsed
