"""The configs ``candidates`` and ``votes`` of a run's own dataset folder."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset

from prefloop.data.errors import StorageError
from prefloop.data.storage.dataset_folder import harm_to_dataset
from prefloop.pipeline.publish.dataset_copy import copy_dataset
from prefloop.pipeline.report.card import write_card
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.dataset.layout import VOTES_FOLDER, PartFiles
from prefloop.pipeline.stages.write import write_round
from tests.pipeline.review import decided_run as decided
from tests.pipeline.review.decided_run import decided_run

CONFIG = decided.CONFIG.model_copy(
    update={"write": decided.CONFIG.write.model_copy(update={"test_share": 0.4})}
)

EVERY = ("candidates", "votes")
SHARE = CONFIG.write.test_share


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = decided_run(tmp_path / "run", test_share=SHARE)
    write_card(CONFIG, found)
    return found


def write(run: RunDir, *, every_answer: bool = True) -> None:
    context = RunContext.of(CONFIG, run).round(0)
    asyncio.run(write_round(context, test_share=SHARE, unpaired=False, every_answer=every_answer))
    write_card(CONFIG, run)


def configs(run: RunDir) -> list[str]:
    front = yaml.safe_load(run.card.read_text(encoding="utf-8").split("---\n")[1])
    return [one["config_name"] for one in front["configs"]]


def files(run: RunDir) -> dict[str, int]:
    """Each data file of the dataset, and which one it is."""
    found = sorted(run.dataset.rglob("*.parquet"))
    return {str(path.relative_to(run.dataset)): path.stat().st_ino for path in found}


def opened(run: RunDir, name: str, cache: Path) -> dict[str, list[dict[str, Any]]]:
    found = load_dataset(str(run.dataset), name, cache_dir=str(cache))
    return {split: rows.to_list() for split, rows in found.items()}


def test_they_open_with_their_texts_and_scores(run: RunDir, tmp_path: Path) -> None:
    candidates, votes = (opened(run, name, tmp_path / "cache") for name in EVERY)
    folder = run.round(0)
    texts = {row["candidate_id"]: row for row in folder.candidates.table().to_pylist()}
    found = [row for rows in candidates.values() for row in rows]
    assert len(found) == folder.candidates.rows()
    for row in found:
        assert row["text"] == texts[row["candidate_id"]]["text"]
        assert row["prompt"][-1]["content"].startswith("Write one sentence about fox")
        assert (row["score"] is None) == (row["pairs"] is None)
    assert any(row["score"] not in (None, 0.5) for row in found)
    said = [row for rows in votes.values() for row in rows]
    assert len(said) == folder.votes.rows()
    for row in said:
        sides = tuple(texts[row[f"{side}_id"]]["text"] for side in "ab")
        assert sides == (row["answer_a"], row["answer_b"])
    triples = opened(run, "default", tmp_path / "cache")
    for split, other in (("train", "test"), ("test", "train")):
        prompts = {row["prompt_id"] for row in candidates[split]}
        assert prompts == {row["prompt_id"] for row in votes[split]}
        assert {row["prompt_id"] for row in triples[split]} <= prompts
        assert not prompts & {row["prompt_id"] for row in triples[other]}
    assert harm_to_dataset(run.dataset) is None
    assert 'load_dataset("PATH_OF_THIS_FOLDER", "votes")' in run.card.read_text(encoding="utf-8")


def as_older_versions_wrote_it(run: RunDir) -> None:
    for name in EVERY:
        for path in (run.dataset / name).iterdir():
            path.unlink()
        (run.dataset / name).rmdir()
    written = json.loads(run.round(0).written.read_text())
    run.round(0).written.write_text(json.dumps({one: written[one] for one in ("train", "test")}))
    write_card(CONFIG, run)


def test_a_run_of_an_older_version_opens_and_gets_them(run: RunDir, tmp_path: Path) -> None:
    as_older_versions_wrote_it(run)
    before = files(run)
    assert configs(run) == ["default"]
    assert opened(run, "default", tmp_path / "cache")["train"]
    assert harm_to_dataset(run.dataset) is None
    write(run)
    assert configs(run) == ["default", *EVERY]
    after = files(run)
    assert {name: after[name] for name in before} == before  # the triples are not written again
    write(run)
    assert files(run) == after


def test_a_kill_while_they_are_added_is_made_up_for(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {name: pq.read_table(run.dataset / name) for name in files(run)}
    as_older_versions_wrote_it(run)

    close = PartFiles.close

    def killed(files: PartFiles) -> dict[Path, int]:
        if files.folder == VOTES_FOLDER:  # the answers are there by then
            raise KeyboardInterrupt
        return close(files)

    with monkeypatch.context() as patched:
        patched.setattr(PartFiles, "close", killed)
        with pytest.raises(KeyboardInterrupt):
            write(run)
    assert [*run.round(0).root.glob(".dataset/*/*/candidates/*.parquet")]
    assert not (run.dataset / "candidates").exists()  # what is there stands until all are made
    write(run)
    assert not (run.round(0).root / ".dataset").exists()
    assert {name: pq.read_table(run.dataset / name) for name in files(run)} == whole
    assert configs(run) == ["default", *EVERY]


def test_what_is_lost_of_them_is_written_again(run: RunDir) -> None:
    before = files(run)
    tables = {name: pq.read_table(run.dataset / name) for name in before}
    [lost] = [name for name in before if name.startswith("votes/train")]
    (run.dataset / lost).unlink()
    write(run)
    now = files(run)
    assert {name: now[name] for name in now if name.startswith("data")} == {
        name: before[name] for name in before if name.startswith("data")
    }
    assert pq.read_table(run.dataset / lost).equals(tables[lost])
    write(run, every_answer=False)
    assert configs(run) == ["default"]
    assert {name.split("/")[0] for name in files(run)} == {"data"}
    write(run)
    assert {name: pq.read_table(run.dataset / name) for name in files(run)} == tables


def test_they_are_those_that_are_published(run: RunDir, tmp_path: Path) -> None:
    def published(name: str) -> dict[str, tuple[int, Any]]:
        out = tmp_path / name
        out.mkdir()
        copy_dataset(CONFIG, run, out, repo="a/b", licence="mit", languages=("en",))
        return {
            str(path.relative_to(out)): (path.stat().st_ino, pq.read_table(path))
            for path in sorted(out.rglob("*.parquet"))
        }

    linked = published("linked")
    assert {name: inode for name, (inode, _) in linked.items()} == files(run)
    as_older_versions_wrote_it(run)
    made = published("made")
    assert {name: table for name, (_, table) in made.items()} == {
        name: table for name, (_, table) in linked.items()
    }


def test_votes_on_answers_that_are_gone_end_in_one_line(run: RunDir) -> None:
    as_older_versions_wrote_it(run)
    folder = run.round(0)
    block = folder.votes.indices()[0]
    lost = folder.votes.read(block)["a_id"][0].as_py()
    rows = folder.candidates.read(block)
    folder.candidates.replace(block, rows.filter(pc.not_equal(rows["candidate_id"], lost)))
    with pytest.raises(StorageError, match=f"the answer {lost} is named in blocks") as caught:
        write(run)
    assert "\n" not in str(caught.value)
    assert str(folder.root) in str(caught.value)
