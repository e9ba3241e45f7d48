"""What a user can set about the prompts that go in."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from data.strict import Strict

Format = Literal["auto", "jsonl", "json", "csv", "parquet", "text", "datasets"]


class Columns(Strict):
    """Which column of the source holds what."""

    prompt: str = "prompt"
    """A prompt as one string."""
    messages: str = "messages"
    """A conversation; where a row has one, it wins over the prompt string."""
    id: str | None = None
    """Ids of the source. They must be unique, and are carried along in the metadata."""
    reference: str | None = None
    """A human's answer to the prompt."""
    metadata: tuple[str, ...] | None = None
    """Columns carried along in the metadata; null: all that are not used otherwise."""


class PromptSource(Strict):
    """Where prompts are read from."""

    path: str
    """A file, a directory, a hub name, ``embedded:prompts`` or ``embedded:heldout``."""
    format: Format = "auto"
    """``auto`` goes by the file's ending; what is no file is a ``datasets`` directory or name."""
    split: str = "train"
    """Split of a ``datasets`` directory or hub name."""
    config_name: str | None = None
    """Configuration of a hub dataset."""
    columns: Columns = Field(default_factory=Columns)
    limit: PositiveInt | None = None
    """Read only so many rows; null: all."""


class NearDuplicates(Strict):
    """When two texts count as nearly the same: the Jaccard similarity of their shingles."""

    enabled: bool = True
    threshold: float = Field(default=0.8, gt=0, le=1)
    ngram: PositiveInt = 3
    """Words in a shingle; texts with fewer words are compared by characters."""
    num_perm: int = Field(default=128, ge=16)
    """MinHash permutations: more find candidates more surely, and cost more."""


class OverlapSet(Strict):
    """An evaluation set that the prompts must not overlap with."""

    name: str
    """Named in the reason of a dropped prompt: ``overlap:NAME``."""
    source: PromptSource


class PromptsConfig(Strict):
    """Prompts in: reading, bad rows, duplicates, evaluation sets."""

    train: PromptSource
    """The prompts to sample from."""
    heldout: PromptSource | None = None
    """Prompts for evaluation only; null: ``heldout_share`` of the train prompts."""
    heldout_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the prompts held out (drawn by hash) where ``heldout`` names no source."""
    on_bad_row: Literal["quarantine", "fail"] = "quarantine"
    deduplicate: bool = True
    """Drop prompts that repeat an earlier one exactly."""
    near_duplicates: NearDuplicates = Field(default_factory=NearDuplicates)
    exclude_overlap: tuple[OverlapSet, ...] = ()
    """Evaluation sets; the held-out prompts always are one."""
