"""Columns of others' files that look like a part of the prompt, and that training does not read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prefloop.data.preferences.layouts import Layout
from prefloop.data.preferences.unread_columns import UnreadColumns
from prefloop.data.sources.rows import RawRow
from prefloop.data.utf8 import shown

logger = logging.getLogger(__name__)

_READ = {"system", "system_prompt", "history", "tools"}
"""What is read beside prompt and answers."""
_LAYOUT = Layout("direct", ("prompt",), "chosen", "rejected")


def warn_of_unread(files: Sequence[Path]) -> None:
    """One warning for each column of each of ``files`` that holds something which no prompt has.

    Files that cannot be read are passed over: whoever reads their rows says what is wrong.
    """
    for file in files:
        found = UnreadColumns()
        try:
            with pq.ParquetFile(file) as parquet:
                names = parquet.schema_arrow.names
                watched = [one for one in found.watched(names, _LAYOUT) if one not in _READ]
                if not watched or "prompt" not in names:
                    continue
                number = 0
                for batch in parquet.iter_batches(columns=["prompt", *watched]):
                    for fields in batch.to_pylist():
                        number += 1
                        found.look(RawRow(str(file), number, fields), _LAYOUT)
        except (OSError, pa.ArrowException, UnicodeDecodeError):
            continue
        for name, rows in found.rows.items():
            logger.warning(
                "%s: the column %r holds something in %s rows (first %s), and no prompt that is "
                "trained on has it: %s (prefloop audit --fix makes such a dataset)",
                shown(str(file)),
                shown(name),
                f"{rows:,}",
                shown(found.first[name]),
                shown(found.remedy(name)),
            )
