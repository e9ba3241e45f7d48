"""How far a run is, and its counts: read from the shards, at any moment of the run.

A shard that exists is complete, so a status taken while another process writes is a consistent
picture of the finished blocks. What is counted stands in the shards' footers, and of a finished
stage in the folder's index, so that no row is read. Two sums hold in every status:

* prompts read = kept + held out + dropped + quarantined, once reading is done;
* pairs = kept + dropped, always, in every round.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from prefloop.data.shards import damaged
from prefloop.data.storage.counts import of_values
from prefloop.labelers.decisions.reasons import PAIR_STRATEGY
from prefloop.pipeline.engines.openai.batch.job_folder import OpenJobs, open_jobs
from prefloop.pipeline.remote.door import shown_path
from prefloop.pipeline.run.run_dir import (
    CONFIG_REMEDY,
    EVALUATION,
    TRAINING_CURVES,
    RoundDir,
    RunDir,
)
from prefloop.pipeline.run.shard_counts import (
    Decided,
    Sampled,
    Usage,
    Voted,
    WinRate,
    evaluation_usage,
    final_usage,
    read_win_rates,
)

if TYPE_CHECKING:
    from prefloop.pipeline.run.final_split import FinalFigures
    from prefloop.pipeline.run.promotion import Keeping

BLOCK_STAGES = ("sample", "label", "filter", "write")
"""The stages that work block by block, in order."""
MODEL_STAGES = ("train", "evaluate")
"""The stages that work on a whole round."""
DONE = "done"
NOT_BEGUN = "not begun"


@dataclass(frozen=True)
class Progress:
    """Finished pieces of a stage: blocks of prompts, or the whole round as one piece."""

    done: int
    total: int

    @property
    def complete(self) -> bool:
        """Whether nothing is left (a stage with nothing to do has not begun)."""
        return self.total > 0 and self.done >= self.total


@dataclass(frozen=True)
class PromptStatus:
    """What became of the prompts that were read."""

    complete: bool
    """Whether reading is done; the counts of shards written so far stand below otherwise."""
    read: int
    kept: int
    heldout: int
    dropped: int
    quarantined: int
    dropped_by_reason: dict[str, int]
    quarantined_by_reason: dict[str, int]
    kept_by_source: dict[str, int] = field(default_factory=dict)
    """Where they come from; empty where all are of one source."""

    @property
    def adds_up(self) -> bool:
        """Whether every prompt read is accounted for."""
        return self.read == self.kept + self.heldout + self.dropped + self.quarantined


@dataclass(frozen=True)
class RoundStatus:
    """The counts of one round."""

    round: int
    state: str
    """The stage the round is in, or ``done``, or ``not begun``."""
    progress: dict[str, Progress]
    """By stage; only the stages that the config asks for."""
    prompts: int
    samples: int
    """Sampled answers, identical ones counted each."""
    candidates: int
    """Distinct answers, reference answers included."""
    votes: dict[str, int]
    """By labeler, invalid ones included."""
    invalid_votes: dict[str, int]
    pairs: int
    kept: int
    dropped: dict[str, int]
    """By the name of the first filter that dropped the pair, or of the pair strategy."""
    triples: int
    """Rows written for the dataset."""
    quarantined: dict[str, dict[str, int]]
    """By stage and reason."""
    usage: dict[str, Usage]
    """By stage: sample, label, evaluate."""
    seconds: dict[str, float]
    """By stage, summed over all processes that worked on the run."""
    win_rates: tuple[WinRate, ...]

    @property
    def not_chosen(self) -> int:
        """Pairs that no filter dropped, and that the pair strategy did not choose."""
        return self.dropped.get(PAIR_STRATEGY, 0)

    @property
    def filtered_out(self) -> dict[str, int]:
        """``dropped`` without those: by filters, and the pairs that nobody could decide."""
        return {reason: pairs for reason, pairs in self.dropped.items() if reason != PAIR_STRATEGY}

    @property
    def adds_up(self) -> bool:
        """Whether every pair is either kept or dropped for a reason."""
        return self.pairs == self.kept + sum(self.dropped.values())


@dataclass(frozen=True)
class KeptPolicy:
    """The policy to keep, as far as the rounds are evaluated."""

    policy: str | None
    """Null: none is better than the starting policy."""
    round: int | None
    """The round that trained it."""
    because: str
    """Why no later one is; empty where there is none."""


@dataclass(frozen=True)
class RunStatus:
    """A run as it stands on disk."""

    run_dir: str
    state: str
    rounds_planned: int
    prompts: PromptStatus
    rounds: tuple[RoundStatus, ...]
    seconds: dict[str, float]
    """By stage, over all rounds; reading the prompts included."""
    usage: Usage
    keep: KeptPolicy | None = None
    """Null before a policy was evaluated."""
    final: FinalFigures | None = None
    """What the prompts that no round saw say about it; null without them, or before."""
    jobs: tuple[OpenJobs, ...] = ()
    """Batch jobs that are at work at servers, or whose answers were not taken, by engine."""

    def as_dict(self) -> dict[str, Any]:
        """Everything, as values that ``json`` can write."""
        return asdict(self)


@dataclass(frozen=True)
class _Wanted:
    """What the config asks for, read leniently: the config of a run may be of another version."""

    rounds: int
    stages: tuple[str, ...]
    patience: int | None
    samples_in_training: bool
    final: bool


def collect_status(run: RunDir) -> RunStatus:
    """Count what lies in the run directory. Works on an empty or missing one too."""
    prompts = _prompt_status(run)
    wanted = _read_config(run, evaluates=not prompts.complete or prompts.heldout > 0)
    seconds = _seconds(run.notes())
    rounds = tuple(
        _round_status(run, folder, wanted, seconds.get(folder.index, {})) for folder in run.rounds()
    )
    totals: Counter[str] = Counter()
    for by_stage in seconds.values():
        totals.update(by_stage)
    usage = sum((part for each in rounds for part in each.usage.values()), Usage())
    usage += final_usage(run)
    kept = _kept(run)
    return RunStatus(
        run_dir=shown_path(run.root),
        state=_run_state(run, prompts, rounds, wanted, kept),
        rounds_planned=wanted.rounds,
        prompts=prompts,
        rounds=rounds,
        seconds=dict(totals),
        usage=usage,
        keep=_kept_policy(kept) if kept and kept.evaluated else None,
        final=_final(run, kept),
        jobs=open_jobs(run.cache),
    )


# What is imported below knows all of the config, which takes as long as all the rest of a status.


def _kept(run: RunDir) -> Keeping | None:
    """Null where no policy was evaluated."""
    if not any(folder.metrics.exists(EVALUATION) for folder in run.rounds()):
        return None
    from prefloop.pipeline.run.promotion import keeping

    return keeping(run)


def _final(run: RunDir, kept: Keeping | None) -> FinalFigures | None:
    if kept is None:
        return None
    from prefloop.pipeline.run.final_split import final_figures

    return final_figures(run, kept.folder)


def _unjudged(run: RunDir, kept: Keeping | None) -> bool:
    """Whether there is a policy to keep that was not judged on the final prompts."""
    if kept is None or kept.folder is None:
        return False
    from prefloop.pipeline.run.final_split import is_judged

    return not is_judged(run, kept.folder)


def _kept_policy(kept: Keeping) -> KeptPolicy:
    folder = kept.folder
    policy, index = (str(folder.policy), folder.index) if folder else (None, None)
    return KeptPolicy(policy, index, kept.because)


def _read_config(run: RunDir, *, evaluates: bool) -> _Wanted:
    try:
        settings = run.read_config()
    except FileNotFoundError:
        settings = {}
    try:
        return _wanted(settings, evaluates=evaluates)
    except (TypeError, ValueError, AttributeError) as error:
        raise damaged(run.config, str(error), CONFIG_REMEDY) from None


def samples_in_training(train: Mapping[str, Any]) -> bool:
    """Whether a training with these settings samples its answers itself."""
    return bool(train.get("online")) or train.get("method") in ("grpo", "rloo")


def _wanted(settings: Mapping[str, Any], *, evaluates: bool) -> _Wanted:
    trains = settings.get("train") is not None
    asked = trains and (settings.get("evaluate") or {}).get("enabled", True)
    stages = BLOCK_STAGES + ("train",) * trains + ("evaluate",) * bool(asked and evaluates)
    return _Wanted(
        rounds=int(settings.get("rounds", 1)),
        stages=stages,
        patience=(settings.get("evaluate") or {}).get("patience"),
        samples_in_training=samples_in_training(settings.get("train") or {}),
        final=bool(asked and evaluates and (settings.get("evaluate") or {}).get("final")),
    )


def _seconds(notes: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for note in notes:
        found[int(note.get("round", 0))][str(note.get("stage"))] += float(note.get("seconds", 0))
    return {index: dict(by_stage) for index, by_stage in found.items()}


def _run_state(
    run: RunDir,
    prompts: PromptStatus,
    rounds: tuple[RoundStatus, ...],
    wanted: _Wanted,
    kept: Keeping | None,
) -> str:
    if not run.config.exists():
        return NOT_BEGUN
    if not prompts.complete:
        return "reading prompts"
    if not rounds:
        return "prompts read, no round begun"
    if run.decides_again():
        return "votes changed, pairs not decided by them yet: prefloop run does it"
    last = rounds[-1]
    if last.state != DONE:
        return f"round {last.round}: {last.state}"
    ended = _ended_early(wanted, run)
    if len(rounds) < wanted.rounds and not ended:
        return f"round {last.round} done, next not begun"
    # A single held-out prompt is none that could be spared.
    if wanted.final and prompts.heldout > 1 and _unjudged(run, kept):
        return "rounds done, the policy to keep not judged on the final prompts"
    if len(rounds) >= wanted.rounds:
        return DONE
    return f"{DONE}: ended after round {last.round}, which did not win"


def _ended_early(wanted: _Wanted, run: RunDir) -> bool:
    if wanted.patience is None:
        return False
    from prefloop.pipeline.run.promotion import plateau

    return plateau(wanted.patience, run) is not None


def _prompt_status(run: RunDir) -> PromptStatus:
    dropped = of_values(run.dropped.counts(), "reason")
    quarantined = of_values(run.quarantine.counts(), "reason")
    sources = of_values(run.prompts.counts(), "source")
    complete = run.prompt_counts.exists()
    if complete:
        counts = run.read_prompt_counts()
    else:
        counts = {
            "kept": run.prompts.rows(),
            "heldout": run.heldout.rows(),
            "dropped": sum(dropped.values()),
            "quarantined": sum(quarantined.values()),
        }
        counts["read"] = sum(counts.values())
    return PromptStatus(
        complete=complete,
        **counts,
        dropped_by_reason=dropped,
        quarantined_by_reason=quarantined,
        kept_by_source=sources if len(sources) > 1 else {},
    )


def _round_status(
    run: RunDir, folder: RoundDir, wanted: _Wanted, seconds: dict[str, float]
) -> RoundStatus:
    progress = _progress(folder, wanted)
    sampled = Sampled.of(folder.candidates)
    voted = Voted.of(folder.votes)
    decided = Decided.of(folder.decisions)
    usage = {"sample": sampled.usage, "label": voted.usage}
    evaluation = evaluation_usage(run, folder.index)
    if evaluation != Usage():
        usage["evaluate"] = evaluation
    return RoundStatus(
        round=folder.index,
        state=_round_state(progress, written=folder.written.exists()),
        progress=progress,
        prompts=folder.prompts.rows(),
        samples=sampled.samples,
        candidates=sampled.candidates,
        votes=voted.votes,
        invalid_votes=voted.invalid,
        pairs=decided.pairs,
        kept=decided.kept,
        dropped=decided.dropped,
        triples=folder.triples.rows(),
        quarantined={
            path.name: of_values(folder.quarantine(path.name).counts(), "reason")
            for path in sorted((folder.root / "quarantine").glob("*"))
        },
        usage=usage,
        seconds=seconds,
        win_rates=read_win_rates(folder.metrics),
    )


def _progress(folder: RoundDir, wanted: _Wanted) -> dict[str, Progress]:
    blocks = set(folder.prompts.indices())
    if wanted.samples_in_training and folder.metrics.exists(TRAINING_CURVES):
        blocks.intersection_update(folder.candidates.indices())  # a guard may have ended it early
    outputs = {
        "sample": folder.candidates,
        "label": folder.votes,
        "filter": folder.decisions,
        "write": folder.triples,
    }
    progress = {
        stage: Progress(len(blocks.intersection(shards.indices())), len(blocks))
        for stage, shards in outputs.items()
    }
    parts = {"train": TRAINING_CURVES, "evaluate": EVALUATION}
    for stage in wanted.stages:
        if stage in parts:
            progress[stage] = Progress(int(folder.metrics.exists(parts[stage])), 1)
    return progress


def _round_state(progress: Mapping[str, Progress], *, written: bool) -> str:
    if not progress["sample"].total:
        return NOT_BEGUN
    for stage, part in progress.items():
        # Triples of every block are not yet files of the dataset.
        if not part.complete or (stage == "write" and not written):
            return stage
    return DONE
