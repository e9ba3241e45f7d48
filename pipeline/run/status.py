"""How far a run is, and its counts: read from the shards, at any moment of the run.

A shard that exists is complete, so a status taken while another process writes is a consistent
picture of the finished blocks. Everything is read shard by shard and only in the columns that
are counted. Two sums hold in every status:

* prompts read = kept + held out + dropped + quarantined, once reading is done;
* pairs = kept + dropped, always, in every round.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prefloop.data import schemas
from prefloop.data.shards import ShardFolder
from prefloop.pipeline.report.formats import count, duration, money, percent, short_count
from prefloop.pipeline.run.promotion import plateau
from prefloop.pipeline.run.run_dir import (
    EVALUATION,
    JURY,
    OPPONENT,
    TRAINING_CURVES,
    PolicyKey,
    RoundDir,
    RunDir,
)

BLOCK_STAGES = ("sample", "label", "filter", "write")
"""The stages that work block by block, in order."""
MODEL_STAGES = ("train", "evaluate")
"""The stages that work on a whole round."""
DONE = "done"
NOT_BEGUN = "not begun"

_ROUNDS_BESIDE_EACH_OTHER = 5


@dataclass(frozen=True)
class Usage:
    """Tokens and money that engines took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost + other.cost,
        )


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

    @property
    def adds_up(self) -> bool:
        """Whether every prompt read is accounted for."""
        return self.read == self.kept + self.heldout + self.dropped + self.quarantined


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval, null ends where there is none."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class WinRate(Rate):
    """Share of held-out prompts on which a policy's answer is preferred."""

    against: str
    labeler: str
    n: int | None
    length_controlled: Rate | None
    """Had both policies written equally long answers; null where that cannot be told."""


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
    """By the name of the first filter that dropped the pair."""
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
    def adds_up(self) -> bool:
        """Whether every pair is either kept or dropped for a reason."""
        return self.pairs == self.kept + sum(self.dropped.values())


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

    def as_dict(self) -> dict[str, Any]:
        """Everything, as values that ``json`` can write."""
        return asdict(self)


@dataclass(frozen=True)
class _Plan:
    """What the config asks for, read leniently: the config of a run may be of another version."""

    rounds: int
    stages: tuple[str, ...]
    patience: int | None


def collect_status(run: RunDir) -> RunStatus:
    """Count what lies in the run directory. Works on an empty or missing one too."""
    prompts = _prompt_status(run)
    plan = _read_plan(run.config, evaluates=not prompts.complete or prompts.heldout > 0)
    seconds = _seconds(run.notes())
    rounds = tuple(
        _round_status(run, folder, plan, seconds.get(folder.index, {})) for folder in run.rounds()
    )
    totals: Counter[str] = Counter()
    for by_stage in seconds.values():
        totals.update(by_stage)
    usage = sum((part for each in rounds for part in each.usage.values()), Usage())
    return RunStatus(
        run_dir=str(run.root),
        state=_run_state(run, prompts, rounds, plan),
        rounds_planned=plan.rounds,
        prompts=prompts,
        rounds=rounds,
        seconds=dict(totals),
        usage=usage,
    )


def _read_plan(config: Path, *, evaluates: bool) -> _Plan:
    try:
        raw = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        raw = None
    settings: Mapping[str, Any] = raw if isinstance(raw, dict) else {}
    trains = settings.get("train") is not None
    asked = trains and (settings.get("evaluate") or {}).get("enabled", True)
    stages = BLOCK_STAGES + ("train",) * trains + ("evaluate",) * bool(asked and evaluates)
    return _Plan(
        rounds=int(settings.get("rounds", 1)),
        stages=stages,
        patience=(settings.get("evaluate") or {}).get("patience"),
    )


def _seconds(notes: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for note in notes:
        found[int(note.get("round", 0))][str(note.get("stage"))] += float(note.get("seconds", 0))
    return {index: dict(by_stage) for index, by_stage in found.items()}


def _run_state(
    run: RunDir, prompts: PromptStatus, rounds: tuple[RoundStatus, ...], plan: _Plan
) -> str:
    if not run.config.exists():
        return NOT_BEGUN
    if not prompts.complete:
        return "reading prompts"
    if not rounds:
        return "prompts read, no round begun"
    last = rounds[-1]
    if last.state != DONE:
        return f"round {last.round}: {last.state}"
    if len(rounds) >= plan.rounds:
        return DONE
    if plateau(plan.patience, run):
        return f"{DONE}: ended after round {last.round}, which did not win"
    return f"round {last.round} done, next not begun"


def _prompt_status(run: RunDir) -> PromptStatus:
    dropped = _count_values(run.dropped, "reason")
    quarantined = _count_values(run.quarantine, "reason")
    try:
        counts = json.loads(run.prompt_counts.read_text(encoding="utf-8"))
        complete = True
    except (OSError, json.JSONDecodeError):
        complete = False
        counts = {
            "kept": run.prompts.rows(),
            "heldout": run.heldout.rows(),
            "dropped": sum(dropped.values()),
            "quarantined": sum(quarantined.values()),
        }
        counts["read"] = sum(counts.values())
    return PromptStatus(
        complete=complete,
        **{key: int(counts[key]) for key in ("read", "kept", "heldout", "dropped", "quarantined")},
        dropped_by_reason=dropped,
        quarantined_by_reason=quarantined,
    )


def _round_status(
    run: RunDir, folder: RoundDir, plan: _Plan, seconds: dict[str, float]
) -> RoundStatus:
    progress = _progress(folder, plan)
    sampled = _Sampled.of(folder.candidates)
    votes, invalid, label_usage = _votes(folder.votes)
    pairs, kept, dropped = _decisions(folder.decisions)
    usage = {"sample": sampled.usage, "label": label_usage}
    evaluation = _evaluation_usage(run, folder.index)
    if evaluation != Usage():
        usage["evaluate"] = evaluation
    return RoundStatus(
        round=folder.index,
        state=_round_state(progress, written=folder.written.exists()),
        progress=progress,
        prompts=folder.prompts.rows(),
        samples=sampled.samples,
        candidates=sampled.candidates,
        votes=votes,
        invalid_votes=invalid,
        pairs=pairs,
        kept=kept,
        dropped=dropped,
        triples=folder.triples.rows(),
        quarantined={
            path.name: _count_values(folder.quarantine(path.name), "reason")
            for path in sorted((folder.root / "quarantine").glob("*"))
        },
        usage=usage,
        seconds=seconds,
        win_rates=_win_rates(folder.metrics),
    )


def _progress(folder: RoundDir, plan: _Plan) -> dict[str, Progress]:
    blocks = set(folder.prompts.indices())
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
    for stage in plan.stages:
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


@dataclass(frozen=True)
class _Sampled:
    samples: int
    candidates: int
    usage: Usage

    @classmethod
    def of(cls, candidates: ShardFolder) -> _Sampled:
        samples = distinct = tokens = prompt_tokens = 0
        cost = 0.0
        columns = ["origin", "tokens", "copies", "prompt_tokens", "cost"]
        for table in candidates.iter(columns=columns):
            distinct += table.num_rows
            drawn = table.filter(pc.equal(table["origin"], "sampled"))
            samples += _sum(drawn["copies"])
            tokens += _sum(pc.multiply(drawn["tokens"], drawn["copies"]))
            prompt_tokens += _sum(pc.multiply(drawn["prompt_tokens"], drawn["copies"]))
            cost += _sum(drawn["cost"])
        return cls(samples, distinct, Usage(prompt_tokens, tokens, cost))


def _votes(votes: ShardFolder) -> tuple[dict[str, int], dict[str, int], Usage]:
    given: Counter[str] = Counter()
    invalid: Counter[str] = Counter()
    usage = Usage()
    columns = ["labeler", "preference", "prompt_tokens", "completion_tokens", "cost"]
    for table in votes.iter(columns=columns):
        given.update(value_counts(table["labeler"]))
        wrong = table.filter(pc.equal(table["preference"], "invalid"))
        invalid.update(value_counts(wrong["labeler"]))
        usage += _usage_of_votes(table)
    return _ordered(given), _ordered(invalid), usage


def _usage_of_votes(table: pa.Table) -> Usage:
    return Usage(
        _sum(table["prompt_tokens"]), _sum(table["completion_tokens"]), _sum(table["cost"])
    )


def _decisions(decisions: ShardFolder) -> tuple[int, int, dict[str, int]]:
    pairs = kept = 0
    dropped: Counter[str] = Counter()
    for table in decisions.iter(columns=["kept", "reason"]):
        pairs += table.num_rows
        kept += _sum(table["kept"])
        lost = table.filter(pc.invert(table["kept"]))
        # A dropped pair without a reason would be a bug; it is shown, never lost from the sum.
        dropped.update(value_counts(pc.fill_null(lost["reason"], "unnamed")))
    return pairs, kept, _ordered(dropped)


def _evaluation_usage(run: RunDir, round_index: int) -> Usage:
    """Of the answers and votes by which the policy of this round was judged.

    The answers of the starting policy (number 0) and the fixed opponent are counted in the first
    round.
    """
    usage = Usage()
    policies: list[PolicyKey] = [round_index + 1]
    if round_index == 0:
        policies += [0, OPPONENT]
    for policy in policies:
        usage += _Sampled.of(run.answers(policy)).usage
    for path in sorted(run.evaluation.glob(f"votes-{round_index + 1:03d}-against-*")):
        opponent = path.name.rpartition("-")[2]
        if path.is_dir():
            votes = run.match_votes(
                round_index + 1, int(opponent) if opponent.isdigit() else opponent
            )
            for table in votes.iter(columns=["prompt_tokens", "completion_tokens", "cost"]):
                usage += _usage_of_votes(table)
    return usage


def _win_rates(metrics: ShardFolder) -> tuple[WinRate, ...]:
    if not metrics.exists(EVALUATION):
        return ()
    columns = [field.name for field in schemas.METRIC]
    rows = metrics.read(EVALUATION, columns=columns).to_pylist()
    controlled = {
        (row["against"], row["labeler"]): Rate(row["value"], row["low"], row["high"])
        for row in rows
        if row["name"] == "length_controlled_win_rate"
    }
    found = [
        WinRate(
            row["value"],
            row["low"],
            row["high"],
            against=row["against"],
            labeler=row["labeler"],
            n=row["n"],
            length_controlled=controlled.get((row["against"], row["labeler"])),
        )
        for row in rows
        if row["name"] == "win_rate" and row["against"] and row["labeler"]
    ]
    # The jury first, and the starting policy before the previous one: the headline leads.
    return tuple(
        sorted(
            found, key=lambda rate: (rate.labeler != JURY, rate.labeler, rate.against != "start")
        )
    )


def value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs."""
    pairs = pc.value_counts(column).to_pylist()
    return {str(pair["values"]): int(pair["counts"]) for pair in pairs}


def _count_values(shards: ShardFolder, column: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for table in shards.iter(columns=[column]):
        counts.update(value_counts(table[column]))
    return _ordered(counts)


def _ordered(counts: Counter[str]) -> dict[str, int]:
    """Most frequent first, then by name, so that equal runs print equally."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _sum(column: pa.ChunkedArray) -> Any:
    return pc.sum(column).as_py() or 0


def render_status(status: RunStatus) -> RenderableType:
    """The status as text and tables for a terminal."""
    head = Text.assemble(
        ("run      ", "dim"), status.run_dir, "\n",
        ("state    ", "dim"), (status.state, "bold"), "\n",
        ("rounds   ", "dim"), f"{len(status.rounds)} begun of {status.rounds_planned}", "\n",
        ("spent    ", "dim"), _spent(status),
    )  # fmt: skip
    parts: list[RenderableType] = [head, _prompt_table(status.prompts)]
    for first in range(0, len(status.rounds), _ROUNDS_BESIDE_EACH_OTHER):
        parts.append(_round_table(status.rounds[first : first + _ROUNDS_BESIDE_EACH_OTHER]))
    return Group(*parts)


def _spent(status: RunStatus) -> str:
    usage = status.usage
    total = duration(sum(status.seconds.values()))
    tokens = f"{short_count(usage.completion_tokens)} tokens generated"
    return f"{total}, {tokens}, {short_count(usage.prompt_tokens)} prompt tokens" + (
        f", cost {money(usage.cost)}" if usage.cost else ""
    )


def _prompt_table(prompts: PromptStatus) -> Table:
    table = Table(title="Prompts", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("read" if prompts.complete else "read so far", count(prompts.read))
    table.add_row("  kept", count(prompts.kept))
    table.add_row("  held out for evaluation", count(prompts.heldout))
    for title, total, reasons in (
        ("dropped", prompts.dropped, prompts.dropped_by_reason),
        ("quarantined", prompts.quarantined, prompts.quarantined_by_reason),
    ):
        table.add_row(f"  {title}", count(total))
        for reason, number in reasons.items():
            table.add_row(Text(f"    {reason}", style="dim"), Text(count(number), style="dim"))
    table.show_header = False
    return table


def _round_table(rounds: tuple[RoundStatus, ...]) -> Table:
    table = Table(title="Rounds", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for each in rounds:
        table.add_column(f"round {each.round}", justify="right")

    def row(title: str, cells: Iterable[str], style: str = "") -> None:
        table.add_row(Text(title, style=style), *(Text(cell, style=style) for cell in cells))

    row("state", (each.state for each in rounds), "bold")
    for stage in BLOCK_STAGES:
        row(f"  {stage} blocks", (_fraction(each.progress[stage]) for each in rounds), "dim")
    row("prompts", (count(each.prompts) for each in rounds))
    row("samples", (count(each.samples) for each in rounds))
    row("candidates (distinct)", (count(each.candidates) for each in rounds))
    row("votes", (count(sum(each.votes.values())) for each in rounds))
    for labeler in _keys(each.votes for each in rounds):
        row(f"  {labeler}", (_votes_cell(each, labeler) for each in rounds), "dim")
    row("pairs", (count(each.pairs) for each in rounds))
    row("= kept", (count(each.kept) for each in rounds))
    row("+ dropped", (count(sum(each.dropped.values())) for each in rounds))
    for reason in _keys(each.dropped for each in rounds):
        row(f"    {reason}", (count(each.dropped.get(reason, 0)) for each in rounds), "dim")
    flat = [_flat_quarantine(each) for each in rounds]
    row("quarantined", (count(sum(reasons.values())) for reasons in flat))
    for reason in _keys(flat):
        row(f"    {reason}", (count(reasons.get(reason, 0)) for reasons in flat), "dim")
    for stage in _keys(each.usage for each in rounds):
        parts = [each.usage.get(stage, Usage()) for each in rounds]
        row(f"tokens, {stage}", (short_count(part.completion_tokens) for part in parts))
        row("  of prompts", (short_count(part.prompt_tokens) for part in parts), "dim")
    costs = [sum(part.cost for part in each.usage.values()) for each in rounds]
    if any(costs):
        row("cost", map(money, costs))
    for stage in (*BLOCK_STAGES, *MODEL_STAGES):
        if any(stage in each.seconds for each in rounds):
            row(f"time, {stage}", (duration(each.seconds.get(stage, 0)) for each in rounds))
    for against in ("start", "previous", OPPONENT):
        rates = [_jury_rate(each, against) for each in rounds]
        if any(rates):
            row(f"win rate against {against}", map(_rate_cell, rates), "bold")
            row("  length-controlled", (
                _rate_cell(rate and rate.length_controlled) for rate in rates
            ))  # fmt: skip
    return table


def _fraction(progress: Progress) -> str:
    return f"{progress.done}/{progress.total}"


def _keys(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _votes_cell(status: RoundStatus, labeler: str) -> str:
    invalid = status.invalid_votes.get(labeler, 0)
    votes = count(status.votes.get(labeler, 0))
    return f"{votes} ({count(invalid)} invalid)" if invalid else votes


def _flat_quarantine(status: RoundStatus) -> dict[str, int]:
    return {
        f"{stage}: {reason}": number
        for stage, reasons in status.quarantined.items()
        for reason, number in reasons.items()
    }


def _jury_rate(status: RoundStatus, against: str) -> WinRate | None:
    return next(
        (rate for rate in status.win_rates if (rate.against, rate.labeler) == (against, JURY)), None
    )


def _rate_cell(rate: Rate | None) -> str:
    if rate is None:
        return ""
    if rate.low is None or rate.high is None:
        return percent(rate.value)
    return f"{percent(rate.value)} [{percent(rate.low)}, {percent(rate.high)}]"
