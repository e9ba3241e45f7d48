"""A judge is a folder: ``judge.yaml`` (how it is read) and ``prompt.jinja`` (what it is asked).

The template sees ``request`` (the conversation as text), ``reference`` (a known good answer, or
``None``), and what its kind of judge compares: ``answer_a`` and ``answer_b`` (pairwise, with
``principles`` where there are any), ``answers`` with ``label`` and ``text`` (listwise), ``answer``
with ``aspects`` and ``aspect`` (rating), ``answer`` with ``criteria`` or ``criterion`` (rubric), of
which each has a ``key``, a ``text`` and ``choices`` with ``word`` and ``text``. Conversation,
reference, answers and criteria are untrusted and fenced (``prefloop.labelers.judges.fences``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.sandbox import SandboxedEnvironment
from pydantic import TypeAdapter, ValidationError

from prefloop.data.conversations.conversation import conversation_text
from prefloop.data.hashing import derive_seed, json_hash
from prefloop.data.prompts.criteria import Criterion
from prefloop.data.protocol import Message
from prefloop.data.yaml_files import YamlError, read_yaml
from prefloop.labelers.base import LabelerError
from prefloop.labelers.judges.fences import Fences
from prefloop.labelers.judges.settings import (
    JudgeSettings,
    ListwiseSettings,
    PairwiseSettings,
    RatingSettings,
    RubricSettings,
    words_of,
)
from prefloop.labelers.refused_settings import refused_settings

_WRITING = "criteria.jinja"
SHIPPED = Path(__file__).parent / "shipped"
"""The folder of the judges that ship with prefloop."""

_UNKNOWN = (Criterion(text="Meets what was asked in this respect."),)
"""In an estimate, where the criteria are not known yet."""

_SETTINGS: TypeAdapter[JudgeSettings] = TypeAdapter(JudgeSettings)


@dataclass(frozen=True)
class Judge:
    """A judge's folder, read and checked. Rendering is pure: same input, same messages.

    Rendering raises ``jinja2.TemplateError`` where the template cannot be rendered.
    """

    settings: JudgeSettings
    template: jinja2.Template
    fences: Fences
    principles: tuple[str, ...] = ()
    """The constitution; empty if the judge has none."""
    writing: jinja2.Template | None = None
    """How criteria are asked for, of a judge with a rubric (``criteria.jinja``); null where the
    folder does not say."""

    def pairwise(
        self,
        conversation: Sequence[Message],
        reference: str | None,
        first: str,
        second: str,
        principles: Sequence[str] = (),
    ) -> tuple[Message, ...]:
        """What a pairwise judge is shown, with ``first`` as answer A and ``second`` as answer B."""
        shown = {"answer_a": first, "answer_b": second}
        return self._messages(conversation, reference, shown, {"principles": list(principles)})

    def listing(
        self, conversation: Sequence[Message], reference: str | None, answers: Sequence[str]
    ) -> tuple[Message, ...]:
        """What a listwise judge is shown: ``answers`` in this order, under the labels A, B, ..."""
        labelled = [
            {"label": label, "text": self.fences.harmless(text)}
            for label, text in zip(ascii_uppercase, answers, strict=False)
        ]
        return self._messages(conversation, reference, {}, {"answers": labelled})

    def rating(
        self,
        conversation: Sequence[Message],
        reference: str | None,
        answer: str,
        aspect: str | None,
    ) -> tuple[Message, ...]:
        """What a rating judge is shown for ``answer``; null asks for all aspects at once."""
        assert isinstance(self.settings, RatingSettings)
        aspects = [
            {"name": name, "description": text} for name, text in self.settings.aspects.items()
        ]
        one = next((each for each in aspects if each["name"] == aspect), None)
        trusted = {"aspects": aspects, "aspect": one}
        return self._messages(conversation, reference, {"answer": answer}, trusted)

    def criteria(
        self,
        conversation: Sequence[Message],
        reference: str | None,
        answer: str,
        criteria: Sequence[Criterion],
    ) -> tuple[Message, ...]:
        """What a judge with a rubric is shown for ``answer``: of ``criteria``, one where it is
        asked about one at a time."""
        told = [
            {
                "key": criterion_key(number),
                "text": self.fences.harmless(one.text),
                "choices": [
                    {"word": word, "text": self.fences.harmless(text)}
                    for word, text in zip(words_of(len(one.choices)), one.choices, strict=True)
                ],
            }
            for number, one in enumerate(criteria, start=1)
        ]
        trusted = {"criteria": told, "criterion": told[0]}
        return self._messages(conversation, reference, {"answer": answer}, trusted)

    def ask_for_criteria(
        self, conversation: Sequence[Message], reference: str | None, most: int
    ) -> tuple[Message, ...]:
        """What a model is shown that writes the criteria of a prompt, ``most`` at most."""
        assert self.writing is not None
        shown = {"request": conversation_text(conversation), "reference": reference}
        harmless = {
            name: None if value is None else self.fences.harmless(value)
            for name, value in shown.items()
        }
        text = self.writing.render({**harmless, "most": most}).strip()
        return ({"role": "user", "content": text},)

    def blank(
        self,
        conversation: Sequence[Message],
        reference: str | None,
        criteria: Sequence[Criterion] | None = None,
    ) -> tuple[Message, ...]:
        """A question without the answers, for estimates of what the judge will cost.

        ``criteria``: those of the prompt; null takes the judge's own.
        """
        if isinstance(self.settings, RubricSettings):
            asked = criteria or self.settings.criteria or _UNKNOWN
            if self.settings.parser == "token":
                asked = sorted(asked, key=lambda one: len(one.text))[len(asked) // 2 :][:1]
            return self.criteria(conversation, reference, "", asked)
        if isinstance(self.settings, ListwiseSettings):
            return self.listing(conversation, reference, [])
        if isinstance(self.settings, RatingSettings):
            by_token = self.settings.parser == "token"
            aspect = next(iter(self.settings.aspects)) if by_token else None
            return self.rating(conversation, reference, "", aspect)
        return self.pairwise(conversation, reference, "", "", self.drawn_principles("blank"))

    def drawn_principles(self, *seed: str | int) -> tuple[str, ...]:
        """The principles drawn by ``seed``, without repeats, in the constitution's order."""
        import random

        if not self.principles:
            return ()
        assert isinstance(self.settings, PairwiseSettings)
        count = min(self.settings.principles_per_pair, len(self.principles))
        drawn = random.Random(derive_seed(*seed)).sample(range(len(self.principles)), count)
        return tuple(self.principles[index] for index in sorted(drawn))

    def _messages(
        self,
        conversation: Sequence[Message],
        reference: str | None,
        untrusted: Mapping[str, str],
        trusted: Mapping[str, Any],
    ) -> tuple[Message, ...]:
        values = {"request": conversation_text(conversation), "reference": reference, **untrusted}
        harmless = {
            name: None if value is None else self.fences.harmless(value)
            for name, value in values.items()
        }
        text = self.template.render({**harmless, **trusted}).strip()
        prompt: Message = {"role": "user", "content": text}
        if self.settings.system is None:
            return (prompt,)
        return ({"role": "system", "content": self.settings.system.strip()}, prompt)


def criterion_key(number: int) -> str:
    """What the criterion of this number, from 1, is called in a question and its answer."""
    return f"criterion_{number}"


def load_judge(name: str) -> Judge:
    """Read the judge ``name``: a shipped folder's name, or the path of a folder.

    Raises :class:`LabelerError` where there is no such folder or it cannot be used.
    """
    folder = judge_path(name)
    try:
        raw = read_yaml(folder / "judge.yaml")
        source = (folder / "prompt.jinja").read_text(encoding="utf-8")
        settings = _SETTINGS.validate_python(raw)
        # Plain text for a model, not HTML: nothing to escape.
        environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
        template = environment.from_string(source)
        used = meta.find_undeclared_variables(environment.parse(source))
    except ValidationError as error:
        problems = "; ".join(refused_settings(error, JudgeSettings))
        raise LabelerError(f"{folder / 'judge.yaml'}: {problems}") from None
    except (OSError, UnicodeDecodeError, YamlError) as error:
        raise LabelerError(f"{folder}: cannot be read: {' '.join(str(error).split())}") from None
    except jinja2.TemplateSyntaxError as error:
        raise LabelerError(f"{folder / 'prompt.jinja'}:{error.lineno}: {error.message}") from None
    needed, known = _variables(settings)
    unknown, missing = used - known, needed - used
    if unknown or missing:
        problem_words = f"uses unknown {sorted(unknown)}" if unknown else f"lacks {sorted(missing)}"
        raise LabelerError(
            f"{folder / 'prompt.jinja'}: {problem_words}; there are {', '.join(sorted(known))}"
        )
    principles = _principles(folder, settings)
    writing_source, writing = _writing(folder, settings, environment)
    fences = Fences(source + writing_source, _fenced(settings), _verdicts(settings))
    return Judge(settings, template, fences, principles, writing)


def judge_path(name: str) -> Path:
    """The folder of the judge ``name``. Raises :class:`LabelerError` where there is none."""
    shipped = shipped_judges()
    folder = SHIPPED / name if name in shipped else Path(name)
    if not (folder / "judge.yaml").is_file():
        raise LabelerError(
            f"judge {name!r}: no folder with a judge.yaml; give its path, or one of "
            f"{', '.join(shipped)}"
        )
    return folder


def judge_revision(name: str) -> str:
    """SHA-256 of the files of the judge ``name``. Raises :class:`LabelerError`."""
    digest = hashlib.sha256()
    for file in sorted(path for path in judge_path(name).iterdir() if path.is_file()):
        digest.update(file.name.encode() + b"\x1f" + file.read_bytes() + b"\x1f")
    return digest.hexdigest()


def question_revision(name: str) -> str:
    """Hash of what the judge ``name`` asks, however the answers are read.

    Raises :class:`LabelerError`.
    """
    judge, folder = load_judge(name), judge_path(name)
    reading = {"description", "min_mass"}
    settings = judge.settings.model_dump(mode="json", exclude=reading)
    for criterion in settings.get("criteria", ()):
        del criterion["name"], criterion["weight"], criterion["veto"]
    asked = [
        (folder / "prompt.jinja").read_text(encoding="utf-8"),
        settings,
        judge.principles,
    ]
    if judge.writing is not None:
        asked.append((folder / _WRITING).read_text(encoding="utf-8"))
    return json_hash(asked)


def shipped_judges() -> list[str]:
    """Names of the judges that ship with prefloop."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/judge.yaml"))


def _variables(settings: JudgeSettings) -> tuple[set[str], set[str]]:
    """The variables that a template must use, and those that it may use."""
    needed, optional = {"request"}, {"reference"}
    if isinstance(settings, ListwiseSettings):
        needed |= {"answers"}
    elif isinstance(settings, RatingSettings):
        needed |= {"answer"} | ({"aspect"} if settings.parser == "token" else set())
        optional |= {"aspect", "aspects"}
    elif isinstance(settings, RubricSettings):
        needed |= {"answer", "criterion" if settings.parser == "token" else "criteria"}
    else:
        needed |= {"answer_a", "answer_b"}
        needed |= set() if settings.principles is None else {"principles"}
    if settings.needs_reference:
        needed |= {"reference"}
    return needed, needed | optional


def _fenced(settings: JudgeSettings) -> set[str]:
    """Tags that answers may not close, whether or not the template has them."""
    pairwise = isinstance(settings, PairwiseSettings)
    tags = {"request", "reference"} | ({"answer_a", "answer_b"} if pairwise else {"answer"})
    return tags | ({"criterion", "criteria"} if isinstance(settings, RubricSettings) else set())


def _verdicts(settings: JudgeSettings) -> tuple[str, ...] | None:
    """The verdicts that answers may not spell out in double brackets; null where whatever stands in
    them is read as one."""
    if isinstance(settings, ListwiseSettings):
        return tuple(ascii_uppercase)
    if isinstance(settings, RatingSettings | RubricSettings):
        return ()
    return None if settings.parser == "text" else settings.verdicts.words


def _writing(
    folder: Path, settings: JudgeSettings, environment: SandboxedEnvironment
) -> tuple[str, jinja2.Template | None]:
    """The source of ``criteria.jinja`` and the template; none where there is no such file."""
    file = folder / _WRITING
    if not isinstance(settings, RubricSettings) or not file.is_file():
        return "", None
    try:
        source = file.read_text(encoding="utf-8")
        used = meta.find_undeclared_variables(environment.parse(source))
        template = environment.from_string(source)
    except (OSError, UnicodeDecodeError) as error:
        raise LabelerError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    except jinja2.TemplateSyntaxError as error:
        raise LabelerError(f"{file}:{error.lineno}: {error.message}") from None
    known = {"request", "reference", "most"}
    if "request" not in used or used - known:
        raise LabelerError(f"{file}: must use request, and may use reference and most, no others")
    return source, template


def _principles(folder: Path, settings: JudgeSettings) -> tuple[str, ...]:
    if not isinstance(settings, PairwiseSettings) or settings.principles is None:
        return ()
    file = folder / settings.principles
    if not file.resolve().is_relative_to(folder.resolve()):
        raise LabelerError(
            f"{folder / 'judge.yaml'}: principles: {settings.principles!r} leads out of the "
            "judge's folder: put the file into it"
        )
    try:
        found = read_yaml(file)
    except (OSError, UnicodeDecodeError, YamlError) as error:
        raise LabelerError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    if not (isinstance(found, list) and found and all(isinstance(p, str) and p for p in found)):
        raise LabelerError(f"{file}: must be a YAML list of principles, one text each")
    return tuple(text.strip() for text in found)
