"""The reference policy's log-probabilities of the training data: computed once, kept as columns.

They depend on the data and the reference alone, so that a training that was killed, another loss
or another learning rate on the same data finds them in the file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.shards import write_shard

logger = logging.getLogger(__name__)

_KEY = b"made_from"


def kept_columns(file: Path | None, key: str, compute: Callable[[], pa.Table]) -> pa.Table:
    """The table in ``file`` if it was made from what ``key`` is the hash of, else ``compute``'s,
    which is put there. Columns are float64, in nats, one row for each row of the training data.

    Without ``file`` nothing is kept."""
    if file is None:
        return compute()
    if file.is_file():
        try:
            schema = pq.read_schema(file)
            if (schema.metadata or {}).get(_KEY) == key.encode():
                return pq.read_table(file).replace_schema_metadata()
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s cannot be read (%s) and is made again", file, error)
    table = compute()
    marked = table.replace_schema_metadata({_KEY: key.encode()})
    write_shard(marked, file, marked.schema)
    return table
