"""The base of every config model: unknown keys and numbers that are none are refused, values are
frozen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic.fields import FieldInfo

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
FreeMapping = dict[str, JsonValue]
"""What others define: it is handed on as it is."""


@dataclass(frozen=True)
class _Later:
    """Marks a key that versions before it did not know; see :func:`fingerprint`."""


LATER = _Later()


@dataclass(frozen=True)
class Was:
    """Marks a key whose default older versions wrote out as ``value``, meaning the same."""

    value: Any


class Strict(BaseModel):
    """Config model that refuses unknown keys and documents its fields by attribute docstrings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        for key, value in self:
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{key} is a number of more than 63 bits")
        return self


def fingerprint(model: BaseModel) -> dict[str, Any]:
    """``model`` as JSON, for hashes that say whether something was made with the same settings.

    Keys marked :data:`LATER` are left out at their defaults: what older versions made, without
    knowing them, keeps its hash.
    """
    return dict(_settled(model, model.model_dump(mode="json")))


def _settled(value: Any, dumped: Any) -> Any:
    if isinstance(value, BaseModel):
        return {
            (field.alias or name): _as_it_was(
                field, _settled(getattr(value, name), dumped[field.alias or name])
            )
            for name, field in type(value).model_fields.items()
            if LATER not in field.metadata
            or getattr(value, name) != field.get_default(call_default_factory=True)
        }
    if isinstance(value, Mapping):
        return {key: _settled(item, dumped[key]) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_settled(item, of_item) for item, of_item in zip(value, dumped, strict=True)]
    return dumped


def _as_it_was(field: FieldInfo, value: Any) -> Any:
    was = next((mark for mark in field.metadata if isinstance(mark, Was)), None)
    return was.value if was is not None and value == field.default else value
