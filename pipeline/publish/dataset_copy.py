"""The folder of a run's dataset as it is published: four configs, card and report."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefloop.data.checks.language import languages_of
from prefloop.data.storage.whole_files import link_file
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.report.card import Publication, card_text
from prefloop.pipeline.report.run_page import render_report
from prefloop.pipeline.run.run_dir import RunDir, RunError
from prefloop.pipeline.stages.dataset.every_answer import (
    EveryAnswerFiles,
    pseudonyms,
    renamed,
)
from prefloop.pipeline.stages.dataset.layout import (
    CANDIDATES_FOLDER,
    SPLITS,
    TRIPLES_FOLDER,
    UNPAIRED_FOLDER,
    VOTES_FOLDER,
    DatasetPart,
    files_in,
)
from prefloop.pipeline.stages.dataset.span_tables import span_tables
from prefloop.pipeline.stages.write import has_every_answer, rows_written, split_files

CONFIG_FOLDERS = {
    "default": TRIPLES_FOLDER,
    "unpaired": UNPAIRED_FOLDER,
    "candidates": CANDIDATES_FOLDER,
    "votes": VOTES_FOLDER,
}
_PROMPTS_LOOKED_AT = 500
_RARE = 0.05
"""A smaller share of the prompts than this does not make a language one of the dataset's."""


def copy_dataset(
    config: RunConfig,
    run: RunDir,
    out: Path,
    *,
    repo: str,
    licence: str,
    languages: tuple[str, ...],
) -> None:
    """Make the folder ``out`` from what the run's finished rounds wrote.

    Without ``languages`` those of the prompts are found. Raises ``RunError`` for a run without
    triples.
    """
    rounds = [folder for folder in run.rounds() if rows_written(folder)]
    if not any(split_files(run, split) for split in SPLITS):
        raise RunError(f"{run.root} has no dataset yet: `prefloop run` writes it, round by round")
    people = pseudonyms(rounds)
    for name in (TRIPLES_FOLDER, UNPAIRED_FOLDER):
        _copy_tables(run, name, None, out, people)
    system_prompt = config.sample.system_prompt
    for folder in rounds:
        if has_every_answer(folder):
            for name in (CANDIDATES_FOLDER, VOTES_FOLDER):
                _copy_tables(run, name, folder.index, out, people)
            continue
        part = DatasetPart(out, folder.index, config.seed, config.write.test_share)
        files = EveryAnswerFiles(part, people)
        for tables in span_tables(folder, folder.candidates.indices(), system_prompt):
            files.add(tables)
        files.close()
    configs = {
        name: {
            split: f"{folder}/{split}-*.parquet"
            for split in SPLITS
            if any((out / folder).glob(f"{split}-*.parquet"))
        }
        for name, folder in CONFIG_FOLDERS.items()
    }
    configs = {name: splits for name, splits in configs.items() if splits}
    spoken = languages or _languages(run)
    card = card_text(config, run, Publication(repo, out, configs, licence, spoken))
    (out / "README.md").write_text(card, encoding="utf-8")
    (out / "report.html").write_text(shown_report(run, people), encoding="utf-8")


def shown_report(run: RunDir, people: Mapping[str, str]) -> str:
    """The run's report without the names of people who voted and of this machine's folders."""
    text = render_report(run)
    for name in sorted(people, key=len, reverse=True):
        text = text.replace(name, people[name])
    text = text.replace(str(run.root.resolve()), run.root.name)
    return text.replace(str(Path.home()) + "/", "~/")


def _copy_tables(
    run: RunDir, name: str, round_index: int | None, out: Path, people: Mapping[str, str]
) -> None:
    for split in SPLITS:
        for file in files_in(run.dataset, name, split, round_index):
            _copy_table(file, out / file.relative_to(run.dataset), people)


def _copy_table(file: Path, target: Path, people: Mapping[str, str]) -> None:
    """The file itself, or one in which ``people`` have other names."""
    schema = pq.read_schema(file)
    if not people or not {"labelers", "labeler"} & set(schema.names):
        link_file(file, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(file)
    if "labeler" in schema.names:
        at = table.column_names.index("labeler")
        names: pa.Array | pa.ChunkedArray = renamed(table["labeler"], people)
    else:
        at = table.column_names.index("labelers")
        names = _renamed_lists(table["labelers"].combine_chunks(), people)
    changed = table.set_column(at, schema.field(at), names)
    pq.write_table(changed.cast(schema), target, compression="zstd", row_group_size=1_000)


def _renamed_lists(lists: pa.ListArray, people: Mapping[str, str]) -> pa.ListArray:
    values = renamed(pa.chunked_array([lists.flatten()]), people).combine_chunks()
    offsets = pc.cumulative_sum(
        pa.concat_arrays([pa.array([0], pa.int32()), lists.value_lengths()])
    )
    return pa.ListArray.from_arrays(offsets, values)


def _languages(run: RunDir) -> tuple[str, ...]:
    """The languages of the run's prompts, the commonest first."""
    rows = (row for shard in run.prompts.iter(["messages"]) for row in shard.to_pylist())
    texts = [row["messages"][-1]["content"] for row in islice(rows, _PROMPTS_LOOKED_AT)]
    found = languages_of(texts)
    return tuple(one for one, count in found.most_common() if count >= _RARE * found.total())
