"""Metrics as rows of a table: training curves and evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from prefloop.data import schemas

_REQUIRED = {"round", "name", "value"}


def metrics_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """``rows`` as a table of ``schemas.METRIC``.

    A row has the schema's columns, of which ``round``, ``name`` and ``value`` must be there; an
    ``estimate`` stands for value, low, high and n. Unbounded interval ends become null. Raises
    ``ValueError`` for an unknown or missing column or a value that is not finite.
    """
    table = []
    for given in rows:
        row = dict(given)
        estimate = row.pop("estimate", None)
        if estimate is not None:
            row |= asdict(estimate)
        if not _REQUIRED <= set(row) <= set(schemas.METRIC.names):
            raise ValueError(f"a metric has {schemas.METRIC.names}, not {sorted(row)}")
        if not np.isfinite(row["value"]):
            raise ValueError(f"metric {row['name']} is {row['value']}")
        for end in ("low", "high"):
            if row.get(end) is not None and not np.isfinite(row[end]):
                row[end] = None
        table.append({name: row.get(name) for name in schemas.METRIC.names})
    return pa.Table.from_pylist(table, schema=schemas.METRIC)
