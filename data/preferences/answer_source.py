"""What a user can set about answers that are there already."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt, field_validator, model_validator

from prefloop.data.config import Format, PromptSource
from prefloop.data.errors import InputError
from prefloop.data.preferences.labels import parse_labels
from prefloop.data.preferences.layouts import PreferenceColumns, named_columns, parse_columns
from prefloop.data.strict import Strict


class AnswerSource(Strict):
    """Answers that someone already has, in any layout that `prefloop audit` reads: pairs, ranked or
    rated lists, single answers. A path alone may stand in its place."""

    path: str
    """A file (also .gz), a glob of files, a ``datasets`` directory or hub name, or a run
    directory."""
    format: Format = "auto"
    """As for prompts: ``auto`` goes by the file's ending."""
    split: str = "train"
    """Split of a ``datasets`` directory or hub name."""
    config_name: str | None = None
    """Configuration of a hub dataset."""
    columns: str | None = None
    """Names of columns, as `prefloop audit --columns` takes them:
    ``prompt=..,chosen=..,rejected=..``, ``prompt=..,a=..,b=..,label=..`` or
    ``prompt=..,answers=..,ratings=..`` (or ``ranks=..``). Null: told by the usual names."""
    labels: str | None = None
    """What labels mean: ``a=1,b=2,tie=0``."""
    limit: PositiveInt | None = None
    """Read only so many rows; null: all."""
    pairs: Literal["rows", "all"] = "rows"
    """``rows`` compares answers that stand in one row (or one tree), and fresh samples with all of
    their prompt; ``all`` also answers of different rows to one prompt."""
    own_prompts: bool = False
    """The prompts are those of the answers, and ``prompts.train`` only says where they come from:
    set where ``prompts.train`` is left out."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("columns")
    @classmethod
    def _columns_can_be_read(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                parse_columns(value)
        except InputError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("labels")
    @classmethod
    def _labels_can_be_read(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                parse_labels(value)
        except InputError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def source(self) -> PromptSource:
        """Where the rows are read from."""
        return PromptSource(
            path=self.path,
            format=self.format,
            split=self.split,
            config_name=self.config_name,
            limit=self.limit,
        )

    @property
    def named(self) -> PreferenceColumns | None:
        """The columns and labels that were named."""
        return named_columns(self.columns, self.labels)
