"""Files of one table that count themselves in their names: ``train-00000-of-00002.parquet``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from prefloop.data.errors import InputError
from prefloop.data.utf8 import shown

_SHARD = re.compile(r"(.*-)(\d{5,})(-of-(\d{5,})\..*)")


def require_all_shards(files: Iterable[Path], folder: Path) -> None:
    """Raise ``InputError`` where the names of ``files`` in ``folder`` count more files than there
    are, as a download leaves them that broke off: the rest of the rows would not be missed."""
    there: dict[tuple[str, str], set[int]] = {}
    for file in files:
        found = _SHARD.fullmatch(file.name)
        if found is not None:
            there.setdefault((found[1], found[3]), set()).add(int(found[2]))
    for (begin, end), numbers in there.items():
        count = int(end.split("-of-")[1].partition(".")[0])
        if len(numbers) < count:
            missing = next(number for number in range(count) if number not in numbers)
            raise InputError(
                f"{shown(str(folder))}: {len(numbers):,} of the {count:,} files "
                f"{shown(begin)}*{shown(end)} are there, and {missing:05d} is not: fetch it, or "
                "name the files that are meant, by a pattern where that is taken"
            )
