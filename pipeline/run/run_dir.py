"""Where everything of a run lies on disk.

    RUN_DIR/
      config.yaml            the resolved config
      manifest.json          versions, seeds, model revisions, hashes of the inputs
      journal.jsonl          one line for each finished piece of work, with its seconds
      prompts.json           counts of the prompts read; its existence says that reading is done
      prompt/ heldout/       the prompts to sample from, and those kept for evaluation
      quarantine/ dropped/   prompts that could not be read, and prompts dropped with a reason
      round-000/
        prompt/ candidate/ vote/ decision/ triple/   part-NNNNN.parquet, one block of prompts each
        quarantine/          rows that failed in this round, by stage
        jury.json            how reliable the labelers are, where the jury's rule needs it
        written.json         triples added to each split; its existence says that all were
        reference/           the mean of the policies so far, where that is the reference
        reference-logps.parquet  log-probabilities of the training data under the reference
        warm-up/policy/      in round 0: the policy after supervised training, where that is asked
        policy/              the policy this round trained
        metric/              part-00000: training curves, part-00001: evaluation
      cache/                 responses of HTTP servers, a folder for each engine, and beside each
                             folder, in NAME.spent.jsonl, what the engine has spent
      evaluation/            answers of each policy to the held-out prompts, and votes on them
      dataset/               what the run is for: opens with ``datasets.load_dataset``
      report.html

Part k of every noun of a round belongs to the same block of prompts, so that joins never leave
a block and memory does not grow with the number of prompts.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prefloop.data import schemas
from prefloop.data.errors import PrefloopError
from prefloop.data.shards import ShardFolder, remove_leftovers

TRAINING_CURVES, EVALUATION = 0, 1
"""Parts of a round's metrics."""
OPPONENT = "opponent"
"""The fixed policy that every round is compared with, in metrics and file names."""
JURY = "jury"
"""As a labeler's name in metrics: what all labelers decided together."""
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
        self.prompts = ShardFolder(self.root / "prompt", schemas.PROMPT)
        self.candidates = ShardFolder(self.root / "candidate", schemas.CANDIDATE)
        self.votes = ShardFolder(self.root / "vote", schemas.VOTE)
        self.decisions = ShardFolder(self.root / "decision", schemas.DECISION)
        self.triples = ShardFolder(self.root / "triple", schemas.TRIPLE)
        self.metrics = ShardFolder(self.root / "metric", schemas.METRIC)
        self.jury = self.root / "jury.json"
        self.policy = self.root / "policy"
        self.warm_up = self.root / "warm-up" / "policy"
        self.reference_logps = self.root / "reference-logps.parquet"
        self.written = self.root / "written.json"

    def quarantine(self, stage: str) -> ShardFolder:
        """Rows that failed in this round, in ``sample`` or ``evaluate-`` and the policy's key."""
        return ShardFolder(self.root / "quarantine" / stage, schemas.QUARANTINE)


class RunDir:
    """A run directory. Making the object touches nothing on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.manifest = root / "manifest.json"
        self.journal = root / "journal.jsonl"
        self.prompt_counts = root / "prompts.json"
        self.prompts = ShardFolder(root / "prompt", schemas.PROMPT)
        self.heldout = ShardFolder(root / "heldout", schemas.PROMPT)
        self.quarantine = ShardFolder(root / "quarantine", schemas.QUARANTINE)
        self.dropped = ShardFolder(root / "dropped", schemas.DROPPED)
        self.cache = root / "cache"
        self.evaluation = root / "evaluation"
        self.dataset = root / "dataset"
        self.report = root / "report.html"

    def round(self, index: int) -> RoundDir:
        """The folders of round ``index`` (they may not exist yet)."""
        return RoundDir(self.root, index)

    def rounds(self) -> list[RoundDir]:
        """The rounds begun so far, in order."""
        found = sorted(self.root.glob("round-[0-9][0-9][0-9]"))
        return [self.round(int(path.name.removeprefix("round-"))) for path in found]

    def answers(self, policy: PolicyKey) -> ShardFolder:
        """Held-out answers of a policy."""
        return ShardFolder(self.evaluation / f"answers-{_key(policy)}", schemas.CANDIDATE)

    def match_votes(self, policy: PolicyKey, opponent: PolicyKey) -> ShardFolder:
        """Votes on the held-out answers of one policy against those of another."""
        name = f"votes-{_key(policy)}-against-{_key(opponent)}"
        return ShardFolder(self.evaluation / name, schemas.VOTE)

    def require(self) -> RunDir:
        """Return self, or raise :class:`RunError` where this is no run directory."""
        if not self.config.is_file():
            raise RunError(
                f"{self.root} is not a run directory: it has no config.yaml "
                "(give the directory that `prefloop run` printed)"
            )
        return self

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for writing; a second writer gets :class:`RunError`.

        The operating system frees the lock with its process, also after ``kill -9``.
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
            yield
        finally:
            lock.release()

    def note(self, stage: str, round_index: int, seconds: float, **facts: Any) -> None:
        """Append a finished piece of work to the journal; safe against a kill in the middle."""
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
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # torn by a kill
        return found


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
