"""A judge is a folder: ``judge.yaml`` (how it is read) and ``prompt.jinja`` (what it is asked).

The template sees ``request`` (the conversation as text), ``reference`` (a known good answer, or
``None``), ``answer_a`` and ``answer_b``. All four are untrusted: whatever looks like one of the
template's own tags or labels in them is made harmless before it is filled in, so that an answer
cannot close its fence and speak for the template or for the other answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jinja2
import yaml
from jinja2 import meta
from jinja2.sandbox import SandboxedEnvironment
from pydantic import Field, PositiveInt, ValidationError, model_validator

from data.protocol import Message
from data.strict import Strict
from labelers.base import LabelerError

SHIPPED = Path(__file__).parent / "judges"
"""The folder of the judges that ship with prefloop."""

_VARIABLES = {"request", "reference", "answer_a", "answer_b"}
_TAG = re.compile(r"</?([A-Za-z][\w-]*)>")
_LABEL = re.compile(r"^([A-Za-z][\w -]*):[ \t]*\{\{", re.MULTILINE)  # such as "Answer A: {{"
# What may stand inside a tag's name without a reader (or a model) being misled less: white space,
# hyphens, underscores, and characters that print as nothing. Bounded, so that matching is linear.
_FILLER = r"[\s_\-\u00ad\u200b-\u200f\u2060\ufeff]{0,8}"


class Verdicts(Strict):
    """What the judge says for each outcome. ``a`` is the answer shown first."""

    a: str = Field(default="A", min_length=1)
    b: str = Field(default="B", min_length=1)
    tie: str | None = Field(default=None, min_length=1)
    """Null: the judge cannot call a tie."""

    @model_validator(mode="after")
    def _distinct(self) -> Verdicts:
        if len(set(self.words)) < len(self.words):
            raise ValueError("the verdicts must differ from each other")
        return self

    @property
    def words(self) -> tuple[str, ...]:
        """The verdicts there are, in the order a, b, tie."""
        return (self.a, self.b) if self.tie is None else (self.a, self.b, self.tie)


class JudgeSettings(Strict):
    """The contents of ``judge.yaml``."""

    description: str = ""
    parser: Literal["token", "json"]
    """``token`` reads the log-probabilities of the first token, ``json`` an object with
    ``rationale`` and ``verdict``."""
    verdicts: Verdicts = Field(default_factory=Verdicts)
    max_tokens: PositiveInt
    system: str | None = None
    """A system message before the rendered prompt."""
    min_mass: float = Field(default=0.5, gt=0, le=1)
    """For ``token``: probability that the verdicts together must have. With less, something other
    than a verdict was the likelier thing to say (a preamble, a chain of thought), the ratio of what
    is left for the verdicts says little, and the vote is invalid."""


@dataclass(frozen=True)
class Judge:
    """A judge's folder, read and checked. Rendering is pure: same input, same messages."""

    settings: JudgeSettings
    template: jinja2.Template
    fences: re.Pattern[str]

    def messages(
        self, conversation: Sequence[Message], reference: str | None, first: str, second: str
    ) -> tuple[Message, ...]:
        """What the judge is shown, with ``first`` as answer A and ``second`` as answer B.

        Raises ``jinja2.TemplateError`` where the template cannot be rendered.
        """
        values = {
            "request": conversation_text(conversation),
            "reference": reference,
            "answer_a": first,
            "answer_b": second,
        }
        harmless = {
            name: None if value is None else self.fences.sub(_harmless, value)
            for name, value in values.items()
        }
        prompt: Message = {"role": "user", "content": self.template.render(harmless).strip()}
        if self.settings.system is None:
            return (prompt,)
        return ({"role": "system", "content": self.settings.system.strip()}, prompt)


def load_judge(name: str) -> Judge:
    """Read the judge ``name``: a shipped folder's name, or the path of a folder.

    Raises :class:`LabelerError` where there is no such folder or it cannot be used.
    """
    folder = SHIPPED / name
    if name not in shipped_judges():
        folder = Path(name)
    if not (folder / "judge.yaml").is_file():
        raise LabelerError(
            f"judge {name!r}: no folder with a judge.yaml; give its path, or one of "
            f"{', '.join(shipped_judges())}"
        )
    try:
        raw = yaml.safe_load((folder / "judge.yaml").read_text(encoding="utf-8"))
        source = (folder / "prompt.jinja").read_text(encoding="utf-8")
        settings = JudgeSettings.model_validate(raw)
        # Plain text for a model, not HTML: nothing to escape.
        environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
        template = environment.from_string(source)
        used = meta.find_undeclared_variables(environment.parse(source))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"]))
        raise LabelerError(f"{folder / 'judge.yaml'}: {key}: {problem['msg']}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LabelerError(f"{folder}: cannot be read: {' '.join(str(error).split())}") from None
    except jinja2.TemplateSyntaxError as error:
        raise LabelerError(f"{folder / 'prompt.jinja'}:{error.lineno}: {error.message}") from None
    unknown, missing = used - _VARIABLES, {"request", "answer_a", "answer_b"} - used
    if unknown or missing:
        problem_words = f"uses unknown {sorted(unknown)}" if unknown else f"lacks {sorted(missing)}"
        raise LabelerError(
            f"{folder / 'prompt.jinja'}: {problem_words}; there are {', '.join(sorted(_VARIABLES))}"
        )
    tags, labels = _VARIABLES | set(_TAG.findall(source)), set(_LABEL.findall(source))
    return Judge(settings, template, fence_pattern(tags, labels))


def shipped_judges() -> list[str]:
    """Names of the judges that ship with prefloop."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/judge.yaml"))


def fence_pattern(tags: set[str], labels: set[str]) -> re.Pattern[str]:
    """Matches the ``<`` of what reads as a tag of one of ``tags``, and whole what reads as a label.

    Case, spaces, hyphens and invisible characters make no difference: ``< / Answer-B`` is found
    for the tag ``answer_b``, and ``answer b :`` for the label ``Answer B``.
    """
    pattern = rf"<(?={_FILLER}/?{_FILLER}(?:{_spellings(tags)})(?![^\W_]))"
    if labels:
        pattern += rf"|(?<![^\W_])(?:{_spellings(labels)}){_FILLER}:"
    return re.compile(pattern, re.IGNORECASE)


def _spellings(names: set[str]) -> str:
    letters = sorted({"".join(filter(str.isalnum, name)) for name in names})
    return "|".join(_FILLER.join(map(re.escape, word)) for word in letters)


def _harmless(fence: re.Match[str]) -> str:
    return fence[0].replace("<", "‹").replace(":", "")


def conversation_text(messages: Sequence[Message]) -> str:
    """A conversation as one text: a single user turn as it is, more turns under role labels."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in messages)
