"""What ``judge.yaml`` may say: one model for each kind of judge, told apart by ``kind``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, field_validator, model_validator

from prefloop.data.prompts.criteria import Criterion, criteria_of
from prefloop.data.strict import PositiveShare, Strict


class VerdictWords(Strict):
    """What the judge says for each outcome. ``a`` is the answer shown first."""

    a: str = Field(default="A", min_length=1)
    b: str = Field(default="B", min_length=1)
    tie: str | None = Field(default=None, min_length=1)
    """Null: the judge cannot call a tie."""

    @model_validator(mode="after")
    def _distinct(self) -> VerdictWords:
        if len(set(self.words)) < len(self.words):
            raise ValueError("the verdicts must differ from each other")
        return self

    @property
    def words(self) -> tuple[str, ...]:
        """The verdicts there are, in the order a, b, tie."""
        return (self.a, self.b) if self.tie is None else (self.a, self.b, self.tie)


class _Judge(Strict):
    description: str = ""
    max_tokens: PositiveInt
    """Tokens of one answer of the judge at most."""
    system: str | None = None
    """A system message before the rendered prompt."""
    needs_reference: bool = False
    """Only judge prompts that have a reference answer, and pairs that it is not a part of; the
    judge has no opinion on others and gives no vote."""


class PairwiseSettings(_Judge):
    """Two answers are shown, and the judge says which is better."""

    kind: Literal["pairwise"] = "pairwise"
    parser: Literal["token", "json", "text"]
    """``token`` reads the log-probabilities of the first token, ``json`` an object with
    ``rationale`` and ``verdict``, ``text`` the verdict in double brackets: ``[[A]]``."""
    verdicts: VerdictWords = Field(default_factory=VerdictWords)
    min_mass: PositiveShare = 0.5
    """For ``token``: probability that the verdicts together must have. With less, something other
    than a verdict was the likelier thing to say (a preamble, a chain of thought), the ratio of what
    is left for the verdicts says little, and the vote is invalid."""
    principles: str | None = None
    """File of the judge's folder with a YAML list of principles, of which some are drawn for each
    pair (a constitution); the template sees them as ``principles``."""
    principles_per_pair: PositiveInt = 1
    """How many are drawn, by seed and pair; both orders of a pair are shown the same ones."""


class ListwiseSettings(_Judge):
    """All candidates of a prompt are shown, and the judge ranks them."""

    kind: Literal["listwise"]
    max_candidates: Annotated[int, Field(ge=2, le=26)] = 10
    """Prompts with more candidates get invalid votes: a judge does not rank a long list well."""


class RatingSettings(_Judge):
    """Each answer is shown alone and rated on several aspects; the higher sum wins."""

    kind: Literal["rating"]
    parser: Literal["token", "json"]
    """``token`` asks for one aspect at a time and reads the log-probabilities of the ratings as
    the first token; ``json`` asks for all aspects in one object, with a rationale."""
    aspects: dict[str, str] = Field(min_length=1)
    """Name of each aspect, and what it means."""
    lowest: int = 1
    highest: int = 5
    min_mass: PositiveShare = 0.5
    """For ``token``: probability that the ratings together must have, or the vote is invalid."""

    @model_validator(mode="after")
    def _is_a_scale(self) -> RatingSettings:
        if not 0 <= self.lowest < self.highest <= 9:
            raise ValueError("a rating is one digit: 0 <= lowest < highest <= 9")
        return self

    @property
    def words(self) -> tuple[str, ...]:
        """The ratings there are, lowest first."""
        return tuple(map(str, range(self.lowest, self.highest + 1)))


class RubricSettings(_Judge):
    """Each answer is shown alone and judged by each criterion of a rubric; the higher weighted mean
    wins, unless a veto decides."""

    kind: Literal["rubric"]
    parser: Literal["token", "json"]
    """``token`` asks about one criterion at a time and reads the log-probabilities of its choices
    as the first token; ``json`` asks about all of them in one object, with a rationale."""
    criteria: tuple[Criterion, ...] = ()
    """For labelers that do not take them from elsewhere (``criteria``): a text each, or an object
    with ``text``, ``name``, ``weight``, ``choices`` (from worst to best) and ``veto``."""
    min_mass: PositiveShare = 0.5
    """For ``token``: probability that the choices together must have, or the vote is invalid."""

    @field_validator("criteria", mode="before")
    @classmethod
    def _are_criteria(cls, value: Any) -> tuple[Criterion, ...]:
        return criteria_of(value)


def words_of(choices: int) -> tuple[str, ...]:
    """What a judge says for each of so many choices, the worst first."""
    return tuple(map(str, range(1, choices + 1)))


def _kind(raw: Any) -> str:
    kind = raw.get("kind", "pairwise") if isinstance(raw, dict) else getattr(raw, "kind", "")
    return str(kind)


JudgeSettings = Annotated[
    Annotated[PairwiseSettings, Tag("pairwise")]
    | Annotated[ListwiseSettings, Tag("listwise")]
    | Annotated[RatingSettings, Tag("rating")]
    | Annotated[RubricSettings, Tag("rubric")],
    Discriminator(_kind),
]
"""The contents of ``judge.yaml``."""
