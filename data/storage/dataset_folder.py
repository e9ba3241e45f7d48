"""Folders that ``datasets.load_dataset`` opens, and opens anew when what they hold has changed.

``datasets`` keeps what it loaded, by the folder's name and, where a card names the data files, by
what the card says: neither by the folder's path nor by the files. Two runs' folders of one name, or
one folder before and after a change, would be one and the same to it. So the card says what the
files hold. It is written last, and gone while they change: by it a folder is known to be whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

_CARD = "README.md"
_REVISION = re.compile(r"description: revision ([0-9a-f]{32})")


def configs_yaml(folder: Path, configs: Mapping[str, Mapping[str, str]]) -> str:
    """The key ``configs`` of a dataset card's YAML.

    ``configs`` maps the name of each config to its splits and the glob of their files in
    ``folder``. Call it when the files are written, and write the card last.
    """
    revision = content_revision(folder, configs)
    entries = [
        {
            "config_name": name,
            "description": f"revision {revision}",
            "data_files": [{"split": split, "path": path} for split, path in splits.items()],
        }
        for name, splits in configs.items()
        if splits
    ]
    return yaml.safe_dump({"configs": entries}, sort_keys=False).strip()


def harm_to_dataset(folder: Path) -> str | None:
    """Why ``folder`` is not to be opened: it is not finished, or holds other files than its card
    says, of which ``datasets`` may have kept others. Null where all is well, or nothing is known
    of it, as of cards of versions that did not say."""
    try:
        card = (folder / _CARD).read_text(encoding="utf-8")
    except FileNotFoundError:
        unfinished = any(folder.rglob("*.parquet"))
        return f"is not finished (it has no {_CARD})" if unfinished else None
    said = _REVISION.search(card)
    if said is None:
        return None
    configs: dict[str, dict[str, str]] = {}
    for config in yaml.safe_load(card.split("---")[1])["configs"]:
        files = config["data_files"]
        configs[config["config_name"]] = {one["split"]: one["path"] for one in files}
    if content_revision(folder, configs) == said[1]:
        return None
    return f"holds other files than its {_CARD} says"


def content_revision(folder: Path, configs: Mapping[str, Mapping[str, str]]) -> str:
    """Hash (32 hexadecimal characters) of the names and contents of the configs' files."""
    digest = hashlib.blake2b(digest_size=16)
    paths = {path for splits in configs.values() for path in splits.values()}
    for file in sorted(file for path in paths for file in folder.glob(path)):
        digest.update(str(file.relative_to(folder)).encode())
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "blake2b").digest())
    return digest.hexdigest()
