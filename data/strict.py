"""The base of every config model: unknown keys and numbers that are none are refused, values are
frozen."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]


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
