"""What a user can set about the prompts that go in."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from prefloop.data.strict import LATER, Strict, Was

FileFormat = Literal["jsonl", "json", "csv", "parquet", "text"]
Format = Literal["auto", "jsonl", "json", "csv", "parquet", "text", "datasets"]


class Columns(Strict):
    """Which column of the source holds what. A column named here must exist in the source."""

    prompt: Annotated[str | None, Was("prompt")] = None
    """A prompt as one string, or a conversation as in ``messages``; null: the column ``prompt``.
    Or a template over the row's columns, ``"{{ instruction }}\\n\\n{{ input }}"``: Jinja without
    assignments and macros, ``row["a name"]`` for names that are no words. Null is empty in it, and
    empty lines around the prompt are taken off; a row none of whose named columns holds anything
    is a bad row. A line of a text file is its column ``prompt``."""
    messages: Annotated[str | None, Was("messages")] = None
    """A conversation; null: the column ``messages``. Where a row has one, it wins over the prompt
    column, unless ``prompt`` is set."""
    prefer: Annotated[Literal["prompt", "messages"] | None, LATER] = None
    """Which is taken where ``prompt`` is set and a row has a conversation too, with another prompt
    in it. Null: such a row stops the reading with an error."""
    system: Annotated[str | None, LATER] = None
    """A system prompt, put before a conversation that has no system turn of its own."""
    tools: Annotated[str | None, LATER] = None
    """The tools that the policy may call: a list of JSON schemas as chat templates take them, or
    such a list written as JSON."""
    id: str | None = None
    """Ids of the source (strings or whole numbers), carried along as ``id`` in the metadata. Two
    different prompts with one id: the second is a bad row."""
    reference: str | None = None
    """A human's answer to the prompt, which judges are shown as known to be good."""
    last_turn: Annotated[Literal["drop", "reference"], LATER] = "drop"
    """What becomes of the assistant's turn that ends a conversation: ``drop`` leaves it out;
    ``reference`` makes it the reference answer where the reference column gives none."""
    rubric: Annotated[str | None, LATER] = None
    """What a good answer to this prompt is judged by: a list of criteria, each a text or an object
    (``text``, ``name``, ``weight``, ``choices``, ``veto``), or such a list written as JSON; for
    judges with ``criteria: prompt``. Carried along as ``rubric`` in the metadata."""
    metadata: tuple[str, ...] | None = None
    """Columns carried along in the metadata; null: all that are not used otherwise. A column named
    here is meant not to be in the prompt: there is no warning about it."""

    @property
    def prompt_column(self) -> str:
        """The column (or the template) of prompts."""
        return "prompt" if self.prompt is None else self.prompt

    @property
    def text_column(self) -> str:
        """The column that a line of a text file is."""
        return "prompt" if "{" in self.prompt_column else self.prompt_column

    @property
    def messages_column(self) -> str:
        """The column of conversations."""
        return "messages" if self.messages is None else self.messages


class PromptSource(Strict):
    """Where prompts are read from."""

    path: str
    """A file (also .gz), a glob of files, a ``datasets`` directory or hub name,
    ``embedded:prompts`` or ``embedded:heldout``."""
    format: Format = "auto"
    """``auto`` goes by the file's ending; a directory or what is no file is read by ``datasets``.
    With a file format given, a directory stands for its files of that format."""
    split: str = "train"
    """Split of a ``datasets`` directory or hub name."""
    config_name: str | None = None
    """Configuration of a hub dataset."""
    columns: Columns = Field(default_factory=Columns)
    """Which column holds what."""
    limit: PositiveInt | None = None
    """Read only so many rows; null: all."""
    size: Annotated[PositiveInt | None, LATER] = None
    """Of ``prompts.train``: so many prompts are drawn by seed out of those that are neither
    duplicates nor held out; null: all of them."""
    weight: Annotated[PositiveFloat | None, LATER] = None
    """Of several sources in ``prompts.train``: its share of the prompts. Of each source that has a
    weight, prompts are drawn by seed, as many as make the shares right without using one twice;
    null: all its prompts."""

    @model_validator(mode="after")
    def _one_measure(self) -> PromptSource:
        if self.size is not None and self.weight is not None:
            raise ValueError("has a size and a weight: give one or the other")
        return self


class NearDuplicates(Strict):
    """When two texts count as nearly the same: the Jaccard similarity of their shingles."""

    enabled: bool = True
    """False: only exact duplicates are dropped."""
    threshold: float = Field(default=0.8, gt=0, le=1)
    """Least share of common shingles among all shingles of the two texts."""
    ngram: PositiveInt = 3
    """Words in a shingle; texts with fewer words are compared by characters."""
    num_perm: int = Field(default=128, ge=16)
    """MinHash permutations: more find near-duplicates more surely, and cost more."""


class OverlapSet(Strict):
    """An evaluation set that the prompts must not overlap with."""

    name: str
    """Named in the reason of a dropped prompt: ``overlap:NAME``."""
    source: PromptSource
    """Its prompts. A prompt may also be a list of strings, the turns of a user. Where ``columns``
    names no other column than the usual ones, well-known ones (``turns``, ``instruction``,
    ``question``, ``text`` and the like) are looked for as well."""


ONE_SOURCE, SEVERAL_SOURCES = "one source", "several sources"
"""Which of the two a value of ``prompts.train`` is: no keys, and never shown."""


def _how_many(value: Any) -> str:
    return SEVERAL_SOURCES if isinstance(value, list | tuple) else ONE_SOURCE


TrainSources = Annotated[
    Annotated[PromptSource, Tag(ONE_SOURCE)]
    | Annotated[tuple[PromptSource, ...], Tag(SEVERAL_SOURCES), Field(min_length=1)],
    Discriminator(_how_many),
]
"""One source of prompts, or several."""


class PromptsConfig(Strict):
    """Prompts in: reading, bad rows, duplicates, evaluation sets."""

    train: TrainSources
    """The prompts to sample from: one source, or a list of them, each with its ``limit``, ``size``
    or ``weight``. A prompt that stands in several is taken from the first."""
    heldout: PromptSource | None = None
    """Prompts for evaluation only; null: ``heldout_share`` of the train prompts."""
    heldout_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the prompts held out (drawn by hash) where ``heldout`` names no source."""
    on_bad_row: Literal["quarantine", "fail"] = "quarantine"
    """What to do with a row that is no prompt: keep it apart with its reason, or stop."""
    max_chars: PositiveInt | None = None
    """Longest conversation in characters, longer ones are bad rows; null: no limit."""
    near_duplicates: NearDuplicates = Field(default_factory=NearDuplicates)
    """Which prompts are dropped as near-duplicates of an earlier one."""
    exclude_overlap: tuple[OverlapSet, ...] = ()
    """Evaluation sets; the held-out prompts always are one."""
    overlap_threshold: float = Field(default=0.8, gt=0, le=1)
    """A prompt overlaps with an evaluation prompt where they have at least this Jaccard
    similarity, or where it contains this share of the evaluation prompt. The same words from a
    user in all turns are an overlap whatever is set here."""

    @model_validator(mode="after")
    def _drawn_for_training_only(self) -> PromptsConfig:
        others = [("heldout", self.heldout)]
        others += [(f"exclude_overlap.{each.name}", each.source) for each in self.exclude_overlap]
        for key, source in others:
            for name in ("size", "weight"):
                if source is not None and getattr(source, name) is not None:
                    raise ValueError(f"{key} has a {name}, which is for `train`: set its limit")
        return self

    @property
    def train_sources(self) -> dict[str, PromptSource]:
        """The sources of ``train`` by their place in the config."""
        if isinstance(self.train, PromptSource):
            return {"prompts.train": self.train}
        return {f"prompts.train.{n}": source for n, source in enumerate(self.train)}
