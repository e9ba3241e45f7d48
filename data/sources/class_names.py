"""Columns of classes, as ``datasets`` writes them: numbers, whose names stand in the schema.

Which number a class has is an accident of the order in which its names were listed. A label says
what its name says.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa

ClassNames = Mapping[str, list[str]]
"""By column: the names of its classes, the first that of 0."""


def names_in_schema(schema: pa.Schema, wanted: Collection[str]) -> ClassNames:
    """The names of the classes in those of the columns ``wanted`` that are classes."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {name: features.get(name) for name in wanted}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {
        name: feature["names"]
        for name, feature in found.items()
        if isinstance(feature, dict)
        and feature.get("_type") == "ClassLabel"
        and _are_names(feature.get("names"))
    }


def names_in_features(features: Any, wanted: Collection[str]) -> ClassNames:
    """The same for the features of a ``datasets.Dataset``; null where it does not tell them."""
    found: dict[str, list[str]] = {}
    for name in wanted:
        feature: Any = (features or {}).get(name)
        if type(feature).__name__ == "ClassLabel" and _are_names(feature.names):
            found[name] = list(feature.names)
    return found


def by_name(value: Any, names: list[str]) -> Any:
    """The name of a class; None for a number that no class has (-1: there is no label)."""
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def row_by_names(fields: Mapping[str, Any], names: ClassNames) -> dict[str, Any]:
    """``fields`` with the names of the classes in them."""
    return {
        name: by_name(value, names[name]) if name in names else value
        for name, value in fields.items()
    }


def batch_by_names(batch: pa.RecordBatch, names: ClassNames) -> pa.RecordBatch:
    """``batch`` with the names of the classes in those of its columns that are numbers."""
    for name in [one for one in batch.schema.names if one in names]:
        column = batch.column(name)
        if pa.types.is_integer(column.type):
            said = [by_name(value, names[name]) for value in column.to_pylist()]
            place = batch.schema.get_field_index(name)
            batch = batch.set_column(place, name, pa.array(said, pa.string()))
    return batch


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
