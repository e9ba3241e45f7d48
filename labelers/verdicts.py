"""From what a judge said to a verdict. What cannot be read is invalid, never guessed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from labelers.judge_folder import Verdicts

_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*)\n\s*```\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict about the answers *as shown*; ``p_first`` is P(first preferred), where known.

    ``note`` is the judge's rationale, or, for ``invalid``, why there is no verdict.
    """

    preferred: Literal["first", "second", "tie", "invalid"]
    p_first: float | None = None
    note: str | None = None


def from_logprobs(
    logprobs: Mapping[str, float] | None, verdicts: Verdicts, min_mass: float
) -> Verdict:
    """The likeliest verdict by the log-probabilities (nats) of the verdict tokens.

    ``p_first`` = (p(a) + p(tie) / 2) / (p(a) + p(b) + p(tie)): a softmax over the verdicts, with
    the tie shared out evenly. Equally likely verdicts are a tie. Invalid where the verdicts
    together have less probability than ``min_mass``.
    """
    if logprobs is None:
        return Verdict("invalid", note="the engine gave no log-probabilities for the verdicts")
    found = [logprobs.get(word, -math.inf) for word in verdicts.words]
    if any(math.isnan(value) for value in found):
        return Verdict("invalid", note="a verdict's log-probability is not a number")
    shares = [math.exp(value) for value in found]
    mass = math.fsum(shares)
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


def json_schema(verdicts: Verdicts) -> dict[str, Any]:
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


def from_json(text: str, verdicts: Verdicts) -> Verdict:
    """The verdict of a JSON object with ``verdict`` and (where the judge gave one) ``rationale``.

    The text has to be that object and nothing else, but for a code fence around it. Several
    objects, or several ``verdict`` keys in one, count only if they all say the same.
    """
    fenced = _FENCED.match(text.strip())
    try:
        objects = _objects(fenced[1] if fenced else text)
    except ValueError as error:
        return Verdict("invalid", note=f"unparsable: {error}")
    except RecursionError:
        return Verdict("invalid", note="unparsable: nested too deeply")
    said = [value for pairs in objects for key, value in pairs if key == "verdict"]
    if not said:
        return Verdict("invalid", note="there is no verdict")
    if any(value != said[0] for value in said):
        return Verdict("invalid", note=f"conflicting verdicts: {said!r}")
    outcomes: dict[str, Literal["first", "second", "tie"]] = {
        verdicts.a: "first",
        verdicts.b: "second",
    }
    if verdicts.tie is not None:
        outcomes[verdicts.tie] = "tie"
    verdict = said[0]
    if not isinstance(verdict, str) or verdict not in outcomes:
        return Verdict("invalid", note=f"{verdict!r} is not one of {', '.join(verdicts.words)}")
    rationale = dict(objects[0]).get("rationale")
    return Verdict(outcomes[verdict], note=rationale if isinstance(rationale, str) else None)


def _objects(text: str) -> list[list[tuple[str, Any]]]:
    """The JSON objects that ``text`` consists of, each as its (key, value) pairs, repeats and all.

    Raises ``ValueError`` for anything but white space between and around them.
    """
    # A nested object becomes a list of pairs too, which is no string and so never a verdict.
    decoder = json.JSONDecoder(object_pairs_hook=list)
    objects: list[list[tuple[str, Any]]] = []
    rest = text.strip()
    while rest:
        if not rest.startswith("{"):
            raise ValueError("expected a JSON object and nothing else")
        found, end = decoder.raw_decode(rest)
        objects.append(found)
        rest = rest[end:].lstrip()
    return objects
