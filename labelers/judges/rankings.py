"""From what a listwise judge said to a ranking. What cannot be read is invalid, never guessed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from prefloop.data.hashing import derive_seed
from prefloop.labelers.judges.json_answers import json_objects, single_values


def listings(ids: Sequence[str], *seed: str | int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Two orders in which to list candidates: one drawn by ``seed``, and its reverse.

    Every pair is so shown in both orders. The order of ``ids`` makes no difference.
    """
    drawn = sorted(ids)
    random.Random(derive_seed(*seed)).shuffle(drawn)
    return tuple(drawn), tuple(reversed(drawn))


def ranking_schema(size: int) -> dict[str, Any]:
    """The JSON schema of a ranking of ``size`` answers, the rationale first."""
    label = {"type": "string", "enum": list(ascii_uppercase[:size])}
    group = {"type": "array", "items": label, "minItems": 1}
    return {
        "type": "object",
        "properties": {
            "rationale": {"type": "string"},
            "ranking": {"type": "array", "items": group, "minItems": 1},
        },
        "required": ["rationale", "ranking"],
        "additionalProperties": False,
    }


def read_ranking(
    text: str, size: int, finish_reason: str | None = None
) -> tuple[list[int], str | None]:
    """The place of each of ``size`` listed answers (0 is the best; equal places are a tie), and
    the judge's rationale.

    ``ranking`` is a list of groups of labels, the best first: ``[["B"], ["A", "C"]]``; a label by
    itself is a group of one. Each label has to occur exactly once. Raises ``ValueError``, saying
    why, for anything else.
    """
    said = single_values(json_objects(text, cut=finish_reason == "length"))
    ranking = said.get("ranking")
    if not isinstance(ranking, list):
        raise ValueError("there is no ranking")
    labels = list(ascii_uppercase[:size])
    places: dict[str, int] = {}
    for place, group in enumerate(ranking):
        for label in group if isinstance(group, list) else [group]:
            if not isinstance(label, str) or label not in labels:
                raise ValueError(f"{label!r} is not one of the answers {', '.join(labels)}")
            if label in places:
                raise ValueError(f"answer {label} is ranked twice")
            places[label] = place
    missing = [label for label in labels if label not in places]
    if missing:
        raise ValueError(f"the ranking leaves out {', '.join(missing)}")
    rationale = said.get("rationale")
    return [places[label] for label in labels], rationale if isinstance(rationale, str) else None
