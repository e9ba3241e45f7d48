"""What the shards of a run add up to: votes, decisions, tokens, win rates."""

from __future__ import annotations

from dataclasses import dataclass

from prefloop.data import schemas
from prefloop.data.shards import ShardFolder
from prefloop.data.storage.counts import USAGE_COLUMNS, Sums, of_values
from prefloop.pipeline.run.run_dir import (
    EVALUATION,
    FINAL_FOLDER,
    JURY,
    OPPONENT,
    PolicyKey,
    RunDir,
)


@dataclass(frozen=True)
class Usage:
    """Tokens and money that engines took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    reasoning_tokens: int = 0
    """Those of ``completion_tokens`` that were thoughts."""

    @classmethod
    def of(cls, counts: Sums) -> Usage:
        """Of counted candidates or votes."""
        prompt, completion, cost, thoughts = (counts.get(name, 0) for name in USAGE_COLUMNS)
        return cls(int(prompt), int(completion), float(cost), int(thoughts))

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost + other.cost,
            self.reasoning_tokens + other.reasoning_tokens,
        )


@dataclass(frozen=True)
class Rate:
    """A share with its interval, of the coverage that was configured; null ends where there is
    none."""

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
class Sampled:
    """What sampling gave."""

    samples: int
    """Sampled answers, identical ones counted each."""
    candidates: int
    """Distinct answers, reference answers included."""
    usage: Usage

    @classmethod
    def of(cls, candidates: ShardFolder) -> Sampled:
        """Of shards of candidates."""
        counts = candidates.counts()
        return cls(int(counts.get("samples", 0)), int(counts["rows"]), Usage.of(counts))


@dataclass(frozen=True)
class Voted:
    """What labelling gave."""

    votes: dict[str, int]
    """By labeler, invalid ones included."""
    invalid: dict[str, int]
    usage: Usage

    @classmethod
    def of(cls, votes: ShardFolder) -> Voted:
        """Of shards of votes."""
        counts = votes.counts()
        return cls(of_values(counts, "votes"), of_values(counts, "invalid"), Usage.of(counts))


@dataclass(frozen=True)
class Decided:
    """What became of the pairs: each is kept, or dropped for one reason."""

    pairs: int
    kept: int
    dropped: dict[str, int]
    """By reason."""

    @classmethod
    def of(cls, decisions: ShardFolder) -> Decided:
        """Of shards of decisions."""
        counts = decisions.counts()
        return cls(int(counts["rows"]), int(counts.get("kept", 0)), of_values(counts, "dropped"))


def evaluation_usage(run: RunDir, round_index: int) -> Usage:
    """Of the answers and votes by which the policy of this round was judged.

    The answers of the starting policy (number 0) and the fixed opponent are counted in the first
    round.
    """
    usage = Usage()
    policies: list[PolicyKey] = [round_index + 1]
    if round_index == 0:
        policies += [0, OPPONENT]
    for policy in policies:
        usage += Sampled.of(run.answers(policy)).usage
        usage += Sampled.of(run.untempered(policy)).usage
    for path in sorted(run.evaluation.glob(f"votes-{round_index + 1:03d}-against-*")):
        opponent = path.name.rpartition("-")[2]
        if path.is_dir():
            votes = run.match_votes(
                round_index + 1, int(opponent) if opponent.isdigit() else opponent
            )
            usage += Voted.of(votes).usage
    return usage


def final_usage(run: RunDir) -> Usage:
    """Of the answers to the final prompts, which no round saw, and the votes on them."""
    final = RunDir(run.root / FINAL_FOLDER)
    usage = Usage()
    answers = [*final.evaluation.glob("answers-*"), *final.evaluation.glob("untempered-*")]
    for path in sorted(answers):
        usage += Sampled.of(ShardFolder(path, schemas.CANDIDATE)).usage
    for policy, opponent in final.matches():
        usage += Voted.of(final.match_votes(policy, opponent)).usage
    return usage


def read_win_rates(metrics: ShardFolder) -> tuple[WinRate, ...]:
    """Those of a round's evaluation; none before it."""
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
