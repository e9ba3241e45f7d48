"""What the shards of a run add up to: votes, decisions, tokens, win rates.

Everything is read shard by shard and only in the columns that are counted. Nothing here makes an
Arrow scalar or array out of a Python value, or numpy arrays by Arrow: the first one imports pandas,
which takes longer than all the rest of a status.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data import schemas
from prefloop.data.arrays import Bools, Floats
from prefloop.data.shards import ShardFolder
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

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost + other.cost,
            self.reasoning_tokens + other.reasoning_tokens,
        )


_USAGE_COLUMNS = ["prompt_tokens", "completion_tokens", "cost", "reasoning_tokens"]
"""Of votes, in the order of :class:`Usage`."""


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
class Sampled:
    """What sampling gave."""

    samples: int
    """Sampled answers, identical ones counted each."""
    candidates: int
    """Distinct answers, reference answers included."""
    usage: Usage

    @classmethod
    def of(cls, candidates: ShardFolder) -> Sampled:
        """Count shards of candidates."""
        samples = distinct = tokens = prompt_tokens = thoughts = 0
        cost = 0.0
        columns = ["origin", "tokens", "copies", "prompt_tokens", "cost", "reasoning_tokens"]
        for table in candidates.batches(columns):
            distinct += table.num_rows
            drawn = _is(table["origin"], "sampled")
            copies = _numbers(table["copies"])[drawn]
            samples += int(copies.sum())
            thought = int((_numbers(table["reasoning_tokens"])[drawn] * copies).sum())
            thoughts += thought
            tokens += thought + int((_numbers(table["tokens"])[drawn] * copies).sum())
            prompt_tokens += int((_numbers(table["prompt_tokens"])[drawn] * copies).sum())
            cost += float(_numbers(table["cost"])[drawn].sum())
        return cls(samples, distinct, Usage(prompt_tokens, tokens, cost, thoughts))


@dataclass(frozen=True)
class Voted:
    """What labelling gave."""

    votes: dict[str, int]
    """By labeler, invalid ones included."""
    invalid: dict[str, int]
    usage: Usage

    @classmethod
    def of(cls, votes: ShardFolder) -> Voted:
        """Count shards of votes."""
        given: Counter[str] = Counter()
        invalid: Counter[str] = Counter()
        usage = Usage()
        columns = ["labeler", "preference", *_USAGE_COLUMNS]
        for table in votes.batches(columns):
            given.update(_value_counts(table["labeler"]))
            wrong = _is(table["preference"], "invalid")
            for labeler in given:
                if count := int((wrong & _is(table["labeler"], labeler)).sum()):
                    invalid[labeler] += count
            usage += _usage_of_votes(table)
        return cls(_ordered(given), _ordered(invalid), usage)


def _usage_of_votes(table: pa.Table) -> Usage:
    return Usage(*(_sum(table[name]) for name in _USAGE_COLUMNS))


@dataclass(frozen=True)
class Decided:
    """What became of the pairs: each is kept, or dropped for one reason."""

    pairs: int
    kept: int
    dropped: dict[str, int]
    """By reason."""

    @classmethod
    def of(cls, decisions: ShardFolder) -> Decided:
        """Count shards of decisions."""
        pairs = kept = 0
        dropped: Counter[str] = Counter()
        for table in decisions.batches(["kept", "reason"]):
            pairs += table.num_rows
            kept += _sum(table["kept"])
            lost = table.filter(pc.invert(table["kept"]))
            dropped.update(_value_counts(lost["reason"]))
        return cls(pairs, kept, _ordered(dropped))


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
            for table in votes.batches(_USAGE_COLUMNS):
                usage += _usage_of_votes(table)
    return usage


def final_usage(run: RunDir) -> Usage:
    """Of the answers to the final prompts, which no round saw, and the votes on them."""
    final = RunDir(run.root / FINAL_FOLDER)
    usage = Usage()
    answers = [*final.evaluation.glob("answers-*"), *final.evaluation.glob("untempered-*")]
    for path in sorted(answers):
        usage += Sampled.of(ShardFolder(path, schemas.CANDIDATE)).usage
    for policy, opponent in final.matches():
        for table in final.match_votes(policy, opponent).iter(columns=_USAGE_COLUMNS):
            usage += _usage_of_votes(table)
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


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    pairs = pc.value_counts(column).to_pylist()
    # A dropped pair without a reason would be a bug; it is shown, never lost from the sum.
    return {
        "unnamed" if pair["values"] is None else str(pair["values"]): int(pair["counts"])
        for pair in pairs
    }


def _is(column: pa.ChunkedArray, value: str) -> Bools:
    """Which of the texts in ``column`` are ``value``."""
    coded = column.combine_chunks().dictionary_encode()
    known = coded.dictionary.to_pylist()
    code = known.index(value) if value in known else -1
    found: Bools = _numbers(coded.indices, missing=-2) == code
    return found


def _numbers(column: pa.ChunkedArray | pa.Array, *, missing: int = 0) -> Floats:
    """The numbers in ``column``, ``missing`` where there is none; up to 2**53 they are exact."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(array):
        return np.zeros(0)
    known, values = array.buffers()
    start, end = array.offset, array.offset + len(array)
    numbers = np.frombuffer(values, array.type.to_pandas_dtype())[start:end].astype(np.float64)
    if array.null_count:
        bits = np.unpackbits(np.frombuffer(known, np.uint8), bitorder="little")[start:end]
        numbers[bits == 0] = missing
    return numbers


def count_values(shards: ShardFolder, column: str) -> dict[str, int]:
    """How often each value of ``column`` occurs."""
    counts: Counter[str] = Counter()
    for table in shards.batches([column]):
        counts.update(_value_counts(table[column]))
    return _ordered(counts)


def _ordered(counts: Counter[str]) -> dict[str, int]:
    """Most frequent first, then by name, so that equal runs print equally."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _sum(column: pa.ChunkedArray) -> Any:
    return pc.sum(column).as_py() or 0
