"""Log-probabilities block by block: the bits of all at once, and nothing computed twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from prefloop.data import schemas
from prefloop.data.embedded import resolve_embedded
from prefloop.data.shards import ShardFolder
from prefloop.pipeline.run.context import RoundContext, RunContext
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.likelihood import reading
from prefloop.pipeline.stages.likelihood.measured_texts import ANSWERS, TextsOfPolicy
from prefloop.pipeline.stages.likelihood.reading import (
    OpenScorer,
    Reading,
    ReadingOrder,
    log_probabilities,
)
from prefloop.training.policy.logprobs import (
    ReadShare,
    ScoredTexts,
    Scorer,
    Scores,
    answer_logprobs,
)
from tests.helpers.runs import small_config
from tests.pipeline.stages.test_measures import candidate, table, write_heldout

POLICY, START = Path(resolve_embedded("embedded:judge")), Path(resolve_embedded("embedded:policy"))
OF = TextsOfPolicy(1, untempered=True, folder=POLICY)
BLOCKS = 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "TEXTS_OF_BLOCK", 16)


@pytest.fixture
def context(tmp_path: Path) -> RoundContext:
    """Of a run with eighty answers, of many lengths, to twenty prompts."""
    run = RunDir(tmp_path)
    write_answers(run, "word ")
    return RunContext.of(small_config(), run).round(0)


def write_answers(run: RunDir, word: str) -> None:
    ids = write_heldout(run, 20)
    rows = [candidate("new", one, at, word * (1 + (7 * number + 5 * at) % 30))
            for number, one in enumerate(ids) for at in range(4)]  # fmt: skip
    run.answers(1).replace(0, table(rows, schemas.CANDIDATE))


def read(context: RoundContext, open_scorer: OpenScorer) -> list[np.ndarray]:
    texts = OF.find(ANSWERS, context)
    assert texts
    readings = [
        (Reading(ANSWERS, under, checkpoint), texts)
        for under, checkpoint in (("policy", POLICY), ("other", START))
    ]
    return asyncio.run(log_probabilities(context, OF, readings, START, open_scorer))


def folders(run: RunDir) -> list[ShardFolder]:
    return [ShardFolder(one, schemas.LOGPROB) for one in sorted(run.evaluation.glob("logps-001-*"))]


class Counting:
    """A scorer that says which shares it read, and what in; ``before`` each, something is done."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.shares: list[tuple[str, tuple[int, int]]] = []
        self.dtypes: list[str | None] = []
        self._before = before

    @asynccontextmanager
    async def opened(self, dtype: str | None) -> AsyncIterator[Scorer]:
        self.dtypes.append(dtype)
        yield Scorer(dtype or "float32", self._read)

    def _read(self, checkpoint: Path, texts: ScoredTexts) -> ReadShare:
        def share_of(share: tuple[int, int]) -> Scores:
            self._before()
            self.shares.append((checkpoint.name, share))
            rows = np.arange(len(texts))[share[0] :: share[1]]
            return rows, -float(len(checkpoint.name)) * rows

        return share_of


def test_blocks_have_the_bits_of_all_at_once(context: RoundContext) -> None:
    models = Models(small_config())
    found = read(context, models.scoring)
    texts = OF.find(ANSWERS, context)
    assert texts
    whole = texts.texts
    for checkpoint, values in zip((POLICY, START), found, strict=True):
        expected = answer_logprobs(
            checkpoint, whole.prompts, whole.answers, complete=whole.complete
        )
        assert values.tolist() == expected.tolist()
    [shards] = folders(context.run)
    assert shards.indices() == [*range(2 * BLOCKS)]
    for under, blocks in (("policy", range(BLOCKS)), ("other", range(BLOCKS, 2 * BLOCKS))):
        assert all(
            np.all(np.diff(one["row"].to_numpy()) > 0) for one in shards.iter(indices=blocks)
        )
        rows = pa.concat_tables(shards.iter(indices=blocks)).to_pylist()
        assert sorted(row["row"] for row in rows) == [*range(80)]
        assert {row["under"] for row in rows} == {under}
        assert all(row["prompt_id"] == texts.prompt_ids[row["row"]] for row in rows)


def test_what_was_read_before_the_end_is_not_read_again(context: RoundContext) -> None:
    left = iter(range(3))

    def breaks_at_the_fourth() -> None:
        if next(left, None) is None:
            raise MemoryError

    first, second, third = Counting(breaks_at_the_fourth), Counting(), Counting()
    with pytest.raises(MemoryError):
        read(context, first.opened)
    found = read(context, second.opened)
    assert (len(first.shares), len(second.shares)) == (3, 2 * BLOCKS - 3)
    assert len({*first.shares, *second.shares}) == 2 * BLOCKS
    again = read(context, third.opened)
    assert third.dtypes == [], "nothing is opened where nothing is left"
    assert [one.tolist() for one in again] == [one.tolist() for one in found]


def test_a_policy_and_the_other_are_read_in_one_type_of_numbers(context: RoundContext) -> None:
    read(context, Counting().opened)
    [shards] = folders(context.run)
    rounded = shards.read(0).to_pylist()
    shards.remove()
    shards.write(0, pa.Table.from_pylist(
        [{**row, "dtype": "bfloat16"} for row in rounded], schema=schemas.LOGPROB
    ))  # fmt: skip
    scorer = Counting()
    read(context, scorer.opened)
    assert scorer.dtypes == ["bfloat16"]
    assert len(scorer.shares) == 2 * BLOCKS - 1


def test_blocks_of_other_batches_are_not_put_together(
    context: RoundContext, caplog: pytest.LogCaptureFixture
) -> None:
    right = read(context, Counting().opened)
    [shards] = folders(context.run)
    moved = shards.read(1).set_column(2, "row", shards.read(0)["row"])
    shards.replace(1, moved)
    scorer = Counting()
    found = read(context, scorer.opened)
    assert [one.tolist() for one in found] == [one.tolist() for one in right]
    assert len(scorer.shares) == 2 * BLOCKS
    assert "all are computed again" in caplog.text


def test_other_answers_are_read_anew(context: RoundContext) -> None:
    read(context, Counting().opened)
    write_answers(context.run, "other ")
    scorer = Counting()
    read(context, scorer.opened)
    assert len(scorer.shares) == 2 * BLOCKS
    assert len(folders(context.run)) == 2


def test_another_machine_has_the_starting_policy_at_a_place_of_its_own() -> None:
    readings = (Reading(ANSWERS, "policy", Path("/run/policy")), Reading(ANSWERS, "other", START))
    order = ReadingOrder(OF, readings, (2, 3), "key", START, None)
    told = json.loads(json.dumps(order.details()))
    found = ReadingOrder.read(told, Path("/elsewhere"))
    assert [one.checkpoint for one in found.readings] == [Path("/run/policy"), Path("/elsewhere")]
    assert [found.at(index) for index in found.blocks()] == [
        (0, (0, 2)), (0, (1, 2)), (1, (0, 3)), (1, (1, 3)), (1, (2, 3)),
    ]  # fmt: skip
    assert found.details() == told
