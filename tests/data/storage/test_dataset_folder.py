"""A dataset folder loads as what it holds now, whatever was loaded before: one shared cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from prefloop.data.storage.dataset_folder import configs_yaml, content_revision, harm_to_dataset

CONFIGS = {
    "default": {"train": "data/train-*.parquet", "test": "data/test-*.parquet"},
    "unpaired": {"train": "unpaired/train-*.parquet"},
}


def make(folder: Path, word: str, rows: int = 3) -> Path:
    """A folder named as every run's is."""
    dataset = folder / "dataset"
    for path, count in (("data/train-0", rows), ("data/test-0", 1), ("unpaired/train-0", rows)):
        file = dataset / f"{path}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": [f"{path} {word} {i}" for i in range(count)]}), file)
    (dataset / "README.md").write_text(f"---\n{configs_yaml(dataset, CONFIGS)}\n---\n")
    return dataset


def load(dataset: Path | str, cache: Path, name: str = "default") -> dict[str, list[str]]:
    loaded = load_dataset(str(dataset), name, cache_dir=str(cache))
    return {split: rows["text"][:] for split, rows in loaded.items()}


def held(dataset: Path, name: str = "default") -> dict[str, list[str]]:
    return {
        split: [text for file in sorted(dataset.glob(path)) for text in
                pq.read_table(file)["text"].to_pylist()]
        for split, path in CONFIGS[name].items()
    }  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_two_folders_of_one_name(name: str, tmp_path: Path) -> None:
    folders = [make(tmp_path / word, word) for word in ("fox", "owl")]
    for dataset in (*folders, *folders):
        assert load(dataset, tmp_path / "cache", name) == held(dataset, name)


def test_one_folder_before_and_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = make(tmp_path, "fox")
    assert load("dataset", tmp_path / "cache") == held(dataset)
    shutil.rmtree(dataset)
    make(tmp_path, "owl")  # as many rows, as many bytes
    for path in ("dataset", dataset):
        assert load(path, tmp_path / "cache") == held(dataset)


def test_the_revision_is_of_names_and_contents(tmp_path: Path) -> None:
    first, again = make(tmp_path / "a", "fox"), make(tmp_path / "b", "fox")
    assert content_revision(first, CONFIGS) == content_revision(again, CONFIGS)
    (again / "data" / "train-0.parquet").rename(again / "data" / "train-1.parquet")
    assert content_revision(first, CONFIGS) != content_revision(again, CONFIGS)


def test_a_folder_is_whole_when_its_card_says_what_it_holds(tmp_path: Path) -> None:
    dataset = make(tmp_path, "fox")
    card = dataset / "README.md"
    assert harm_to_dataset(dataset) is None
    make(tmp_path / "other", "owl").joinpath("data/train-0.parquet").replace(
        dataset / "data" / "train-0.parquet"
    )
    assert harm_to_dataset(dataset) == "holds other files than its README.md says"
    card.write_text(f"---\n{configs_yaml(dataset, CONFIGS)}\n---\n# A page\n\n---\n")
    assert harm_to_dataset(dataset) is None
    (dataset / "data" / "test-0.parquet").unlink()
    assert harm_to_dataset(dataset) == "holds other files than its README.md says"
    card.unlink()
    assert harm_to_dataset(dataset) == "is not finished (it has no README.md)"
    card.write_text("---\nconfigs: []\n---\n")  # of an earlier version
    assert harm_to_dataset(dataset) is None
    assert harm_to_dataset(tmp_path / "nothing") is None
