"""Answers that are to be JSON, of a schema where there is one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from prefloop.labelers.scorers.shipped.outcomes import RIGHT, UNPARSED, WRONG, GoldError

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)


def score(
    text: str,
    *,
    metadata: Mapping[str, Any],
    options: Mapping[str, Any],
    **_: Any,
) -> float:
    """Whether the answer is JSON that the schema in metadata column ``options["gold"]`` allows;
    without a column: whether it is JSON.

    The answer is JSON as a whole, or its only fenced block is. Nothing is fetched for a schema.
    Raises ``GoldError`` for a schema that is none.
    """
    column = options.get("gold")
    schema = metadata.get(column) if column else {}
    if schema is None:
        raise GoldError(f"the prompt has no schema in metadata column {column!r}")
    validator = _validator(schema if isinstance(schema, str) else json.dumps(schema))
    try:
        found = json.loads(_json_of(text), parse_constant=_refuse)
    except ValueError:
        return UNPARSED
    except RecursionError:
        return WRONG
    from referencing.exceptions import Unresolvable

    try:
        return RIGHT if validator.is_valid(found) else WRONG
    except Unresolvable as error:
        raise GoldError(f"the schema refers to what it does not hold: {error}") from None


def _json_of(text: str) -> str:
    blocks = _FENCED.findall(text)
    return blocks[0] if len(blocks) == 1 else text


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    import jsonschema
    from referencing import Registry

    try:
        read = json.loads(schema)
        kind = jsonschema.validators.validator_for(read, jsonschema.Draft202012Validator)
        kind.check_schema(read)
    except (ValueError, jsonschema.SchemaError) as error:
        first = str(error).split("\n", 1)[0]
        raise GoldError(f"the schema is not one: {first}") from None
    return kind(read, registry=Registry())
