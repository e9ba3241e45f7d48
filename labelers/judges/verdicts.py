"""From what a pairwise judge said to a verdict. What cannot be read is invalid, never guessed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prefloop.labelers.judges.json_answers import CUT_OFF, json_objects
from prefloop.labelers.judges.settings import PairwiseSettings, VerdictWords
from prefloop.labelers.judges.stored_logprobs import (
    HIGHEST_LOGPROB,
    MOST_MASS,
    UNTOLD,
    too_much,
    unknown_logprobs,
)
from prefloop.labelers.judges.thoughts import NO_ANSWER, UnfinishedThought, without_thought

_BRACKETED = re.compile(r"\[\[([^\[\]]{1,40})\]\]")

Outcome = Literal["first", "second", "tie"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict about the answers *as shown*; ``p_first`` is P(first preferred), where known.

    ``note`` is the judge's rationale, or, for ``invalid``, why there is no verdict.
    """

    preferred: Outcome | Literal["invalid"]
    p_first: float | None = None
    note: str | None = None


def from_logprobs(
    logprobs: Mapping[str, float] | None,
    verdicts: VerdictWords,
    min_mass: float,
    text: str = "",
) -> Verdict:
    """The likeliest verdict by the log-probabilities (nats) of the verdict tokens.

    ``p_first`` = (p(a) + p(tie) / 2) / (p(a) + p(b) + p(tie)): a softmax over the verdicts, with
    the tie shared out evenly. Equally likely verdicts are a tie. Invalid where the verdicts
    together have less probability than ``min_mass``, and where the engine saw none of them although
    ``text``, the answer, begins with one.
    """
    if logprobs is None or unknown_logprobs(logprobs, text, verdicts.words):
        return Verdict("invalid", note="the engine gave no log-probabilities for the verdicts")
    found = [logprobs.get(word, -math.inf) for word in verdicts.words]
    if any(math.isnan(value) for value in found):
        return Verdict("invalid", note=f"{UNTOLD}: the verdict may have been another")
    if any(value > HIGHEST_LOGPROB for value in found):
        return Verdict("invalid", note=f"a verdict's log-probability is {max(found):.3g}, above 0")
    shares = [math.exp(value) for value in found]
    mass = math.fsum(shares)
    if mass > MOST_MASS:
        return Verdict("invalid", note=f"the verdicts {too_much(mass)}")
    if mass < min_mass:
        return Verdict(
            "invalid",
            note=f"the verdicts have probability {mass:.3g} in all, less than {min_mass}: "
            "the judge was about to say something else",
        )
    a, b = shares[0] / mass, shares[1] / mass
    tie = shares[2] / mass if len(shares) > 2 else 0.0
    p_first = a + tie / 2
    if a > max(b, tie):
        return Verdict("first", p_first)
    if b > max(a, tie):
        return Verdict("second", p_first)
    return Verdict("tie", p_first)


def json_schema(verdicts: VerdictWords) -> dict[str, Any]:
    """The JSON schema of a reasoned verdict; the rationale comes first, so that it is thought
    before the verdict is given."""
    return {
        "type": "object",
        "properties": {
            "rationale": {"type": "string"},
            "verdict": {"type": "string", "enum": list(verdicts.words)},
        },
        "required": ["rationale", "verdict"],
        "additionalProperties": False,
    }


def from_json(text: str, verdicts: VerdictWords, *, cut: bool = False) -> Verdict:
    """The verdict of a JSON object with ``verdict`` and (where the judge gave one) ``rationale``.

    The text has to be that object and nothing else, but for a code fence around it. Several
    objects, or several ``verdict`` keys in one, count only if they all say the same. Of an answer
    that was ``cut`` off, they count if all are whole.
    """
    try:
        objects = json_objects(text, cut=cut)
    except ValueError as error:
        return Verdict("invalid", note=f"unparsable: {error}")
    said = [
        value.strip() if isinstance(value, str) else value
        for pairs in objects
        for key, value in pairs
        if key == "verdict"
    ]
    if not said:
        return Verdict("invalid", note="there is no verdict")
    if any(value != said[0] for value in said):
        return Verdict("invalid", note=f"conflicting verdicts: {said!r}")
    outcome = _outcome(said[0], verdicts)
    if outcome is None:
        return Verdict("invalid", note=f"{said[0]!r} is not one of {', '.join(verdicts.words)}")
    rationale = dict(objects[0]).get("rationale")
    return Verdict(outcome, note=rationale if isinstance(rationale, str) else None)


def from_text(text: str, verdicts: VerdictWords, *, cut: bool = False) -> Verdict:
    """The verdict in double brackets (``[[A]]``) of a free text, which is also the rationale.

    A chain of thought is not looked at. Several verdicts count only if they all say the same: which
    of two a judge meant is not for us to guess, and the other may be an answer's, quoted. An answer
    that was ``cut`` off has no verdict, unless the verdict is all that it says: what the judge was
    going to say is not known.
    """
    try:
        spoken = without_thought(text)
    except UnfinishedThought as error:
        return Verdict("invalid", note=f"{error}; {CUT_OFF}" if cut else str(error))
    if cut and not _BRACKETED.fullmatch(spoken):
        return Verdict("invalid", note=f"there is no certain verdict: {CUT_OFF}")
    said = [word.strip() for word in _BRACKETED.findall(spoken)]
    # A list in a list, as of numbers in what the answers are about, is no try at a verdict.
    said = [word for word in said if word in verdicts.words or any(map(str.isalpha, word))]
    if not said:
        return Verdict("invalid", note="there is no verdict in double brackets")
    if any(word != said[0] for word in said):
        return Verdict("invalid", note=f"conflicting verdicts: {said!r}")
    outcome = _outcome(said[0], verdicts)
    if outcome is None:
        return Verdict("invalid", note=f"{said[0]!r} is not one of {', '.join(verdicts.words)}")
    return Verdict(outcome, note=text.strip())


def from_word(text: str, verdicts: VerdictWords) -> Verdict:
    """The verdict of an answer that is one of the verdict words and nothing else; it has no
    probability."""
    said = text.strip().rstrip(".")
    outcome = _outcome(said, verdicts)
    if outcome is None:
        return Verdict(
            "invalid",
            note="the engine gave no log-probabilities for the verdicts behind the thought, and "
            f"{said[:40]!r} is not one of {', '.join(verdicts.words)}",
        )
    return Verdict(outcome)


def read_verdict(
    text: str,
    logprobs: Mapping[str, float] | None,
    settings: PairwiseSettings,
    finish_reason: str | None,
    *,
    has_thought: bool = False,
) -> Verdict:
    """The verdict of an answer of the judge with these settings; ``logprobs`` (nats) are those of
    the verdict words as the first token, where the engine gave them. An answer whose finish reason
    is not known counts as whole. ``has_thought``: the judge thought before it answered; where the
    engine could not read the log-probabilities behind the thought, its words are read."""
    cut = finish_reason == "length"
    if has_thought and not text.strip():
        return Verdict("invalid", note=NO_ANSWER)
    if has_thought and settings.parser == "token" and logprobs is None:
        return from_word(text, settings.verdicts)
    if settings.parser == "json":
        return from_json(text, settings.verdicts, cut=cut)
    if settings.parser == "text":
        return from_text(text, settings.verdicts, cut=cut)
    return from_logprobs(logprobs, settings.verdicts, settings.min_mass, text)


def _outcome(word: Any, verdicts: VerdictWords) -> Outcome | None:
    words: tuple[Outcome, ...] = ("first", "second", "tie")
    return next(
        (out for out, said in zip(words, verdicts.words, strict=False) if word == said), None
    )
