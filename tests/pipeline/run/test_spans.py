"""Blocks that are decided and written together give what each gives alone."""

import asyncio
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.scale import make_up, settings
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.run import spans
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.run.spans import spans_of
from prefloop.pipeline.stages.filter import filter_round
from prefloop.pipeline.stages.write import write_round

BLOCK, BLOCKS = 4, 9


def config() -> RunConfig:
    found = settings()
    sample = found.sample.model_copy(update={"system_prompt": "Be brief."})
    return found.model_copy(update={"sample": sample})


def made(root: Path) -> RunDir:
    run = RunDir(root)
    make_up(run, (BLOCK * BLOCKS - 1) * 4, block=BLOCK)  # the last block has a prompt less
    return run


def written(run: RunDir) -> dict[str, pa.Table]:
    context = RunContext.of(config(), run).round(0)
    asyncio.run(filter_round(context, config().label, config().filter))
    asyncio.run(write_round(context, test_share=0.2, unpaired=True))
    shards = {
        "decisions": context.folder.decisions.table(), "triples": context.folder.triples.table(),
    }  # fmt: skip
    files = {str(path.relative_to(run.dataset)): path for path in run.dataset.rglob("*.parquet")}
    return shards | {name: pq.read_table(path) for name, path in files.items()}


def test_how_many_blocks_go_together_changes_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = made(tmp_path / "together")
    whole = written(together)
    assert {name.partition("/")[0] for name in whole} == {
        "decisions", "triples", "data", "unpaired", "candidates", "votes",
    }  # fmt: skip
    folder = together.round(0)
    assert [path.name for path in folder.decisions.paths()] == ["part-00000-00008.parquet"]
    assert [path.name for path in folder.triples.paths()] == ["part-00000-00008.parquet"]
    assert folder.decisions.indices() == list(range(BLOCKS))
    monkeypatch.setattr(spans, "_PROMPTS", 2 * BLOCK)
    some = made(tmp_path / "some")
    assert written(some) == whole
    assert len(some.round(0).decisions.paths()) == 5
    monkeypatch.setattr(spans, "_PROMPTS", 1)
    alone = made(tmp_path / "alone")
    assert written(alone) == whole
    assert len(alone.round(0).triples.paths()) == BLOCKS


def test_what_an_earlier_version_wrote_block_by_block_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = written(made(tmp_path / "whole"))
    run = made(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(spans, "_PROMPTS", 1)
        written(run)
    folder = run.round(0)
    folder.written.unlink()
    for index in (2, 3, 7):
        folder.decisions.remove([index])
    folder.triples.remove([0, 3])
    assert written(run) == whole
    assert len(folder.decisions.paths()) == BLOCKS - 1  # the two that stood together share one


def test_long_answers_make_short_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path / "run").round(0)
    blocks = folder.candidates.indices()
    assert spans_of(folder, blocks) == [blocks]
    assert spans_of(folder, []) == []
    monkeypatch.setattr(spans, "_BYTES", 2 * max(folder.candidates.sizes().values()))
    by_candidates = spans_of(folder, blocks, folder.candidates)
    assert [len(span) for span in by_candidates] == [2, 2, 2, 2, 1]
    assert len(spans_of(folder, blocks)) > len(by_candidates)  # votes take room too
    monkeypatch.setattr(spans, "_BYTES", 1)
    assert spans_of(folder, blocks) == [[index] for index in blocks]
