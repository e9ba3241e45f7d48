"""What a row of another tool's file says about the two answers that it is about.

The files are those that these tools write themselves:

* AlpacaEval's ``annotations.json``: ``preference`` is 1 where ``output_1`` is better, 2 where
  ``output_2`` is, between them a probability (of ``output_2``, plus one) where the annotator is a
  weighted one, 1.5 or (in older files) 0 a draw, and null where none could be read. Which output
  was shown first is drawn at random and not in the file, unless with the column
  ``is_switched_output_1_output_2``;
* FastChat's ``*_pair.jsonl`` (MT-Bench): ``g1_winner`` of the game in which ``model_1`` was shown
  first, ``g2_winner`` of the other: ``model_1``, ``model_2``, ``tie`` or ``error``. With
  ``m1_score`` both games are one comparison of scores;
* JudgeBench's outputs: ``judgments``, the first with A shown first, the second with B, each with a
  ``decision`` about the places in which the answers were shown, or null.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prefloop.data.errors import InputError
from prefloop.data.preferences.labels import LABELS, PairLabel, label_text, read_label
from prefloop.labelers.base import Preference

Tool = Literal["alpaca_eval", "mt_bench", "judge_bench"]

SWITCHED = "is_switched_output_1_output_2"
_ALPACA_EVAL = ("output_1", "output_2", "preference")
_DRAWS = (0.0, 1.5)
_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class NoVerdict(ValueError):
    """A row says nothing that is known: the field, and what it holds."""

    def __init__(self, field: str, value: Any, known: str) -> None:
        """``known`` is what it may hold."""
        super().__init__(f"{str(value)[:80]!r} is none of {known}")
        self.field = field


@dataclass(frozen=True)
class Game:
    """One verdict, about the row's own first answer (a) and its second (b)."""

    said: Preference
    p_first: float | None = None
    """Probability that the first is better, where the file gives one."""
    swapped: bool | None = None
    """Whether the second was shown first; null where the file does not say."""


def tool_of(fields: Iterable[str]) -> Tool | None:
    """The tool that wrote a row with these fields, if it is one of those."""
    there = set(fields)
    if "judgments" in there:
        return "judge_bench"
    if {"model_1", "model_2"} <= there and there & {"g1_winner", "g2_winner"}:
        return "mt_bench"
    return "alpaca_eval" if set(_ALPACA_EVAL) <= there else None


def read_games(
    tool: Tool, fields: Mapping[str, Any], own: Mapping[str, PairLabel], *, weighted: bool
) -> list[Game]:
    """The verdicts in a row; of a judge that saw both orders two.

    ``own``: what labels mean, where the user says so; ``weighted``: the file's preferences are
    probabilities. Raises ``NoVerdict``.
    """
    if tool == "alpaca_eval":
        return [_alpaca_eval(fields, own, weighted=weighted)]
    return _mt_bench(fields) if tool == "mt_bench" else _judge_bench(fields)


def judge_of(fields: Mapping[str, Any]) -> str | None:
    """The judge that a row names: FastChat has its model and its prompt."""
    if "judgments" in fields and isinstance(fields.get("judge_name"), str):
        model = next((one["judgment"].get("judge_model") for one in _judgments(fields)
                      if isinstance(one, Mapping) and isinstance(one.get("judgment"), Mapping)),
                     None)  # fmt: skip
        return f"{fields['judge_name']} {model}" if model else str(fields["judge_name"])
    named = next((fields[name] for name in ("judge", "annotator") if fields.get(name)), None)
    if isinstance(named, list | tuple):
        named = named[0] if named else None
    return " ".join(str(named).split()) or None if named is not None else None


def is_weighted(preferences: Iterable[Any]) -> bool:
    """Whether AlpacaEval's preferences are probabilities: some lie between 1 and 2."""
    found = (_number(one) for one in preferences)
    return any(one is not None and 1 < one < 2 and one not in _DRAWS for one in found)


def check_preferences(preferences: Iterable[Any], path: str) -> None:
    """Raise ``InputError`` for preferences of 0 and 1 alone, which may be no AlpacaEval's: 0 is a
    draw there, and may mean the first elsewhere."""
    found = {one for one in map(_number, preferences) if one is not None}
    if {0.0, 1.0} <= found and max(found) <= 1:
        raise InputError(
            f"{path}: field 'preference' is 0 or 1 in all rows, which may mean draw and first (as "
            "AlpacaEval has it), first and second, or second and first: say which with --labels "
            "tie=0,a=1,b=2 (or a=0,b=1, or a=1,b=0)"
        )


def swapped_flag(value: Any, name: str) -> bool | None:
    """A flag that says whether the second answer was shown first. Raises ``NoVerdict``."""
    flag = label_text(value)
    if flag is not None and flag not in _FLAGS:
        raise NoVerdict(name, value, "true, false")
    return _FLAGS[flag] if flag else None


def _alpaca_eval(
    fields: Mapping[str, Any], own: Mapping[str, PairLabel], *, weighted: bool
) -> Game:
    value = fields["preference"]
    swapped = swapped_flag(fields.get(SWITCHED), SWITCHED)
    if label_text(value) is None and not isinstance(value, list | dict):
        return Game("invalid", None, swapped)  # null, or NaN
    number = _number(value)
    if own or number is None:
        said = read_label(value, own or LABELS, "output_1", "output_2")
        if said is None:
            raise NoVerdict("preference", value, ", ".join(own) or "1, 2, a, b, tie")
        return Game(said, None, swapped)
    if not (number in _DRAWS or 1 <= number <= 2):
        raise NoVerdict("preference", value, "a number from 1 (output_1) to 2 (output_2), 0")
    if number in _DRAWS:
        return Game("tie", 0.5 if weighted else None, swapped)
    return Game("a" if number < 1.5 else "b", 2 - number if weighted else None, swapped)


_MT_BENCH: Mapping[str, Preference] = {
    "model_1": "a", "model_2": "b", "tie": "tie", "error": "invalid",
}  # fmt: skip


def _mt_bench(fields: Mapping[str, Any]) -> list[Game]:
    names = ["g1_winner", "g2_winner"]
    said = []
    for name in names:
        word = label_text(fields.get(name)) or "error"
        if word not in _MT_BENCH:
            raise NoVerdict(name, fields[name], ", ".join(_MT_BENCH))
        said.append(_MT_BENCH[word])
    scores = [_number(fields[name]) for name in ("m1_score", "m2_score") if name in fields]
    if scores:
        # Each answer had a score of its own: neither was shown first. One of -1 could not be read,
        # which FastChat takes for a lost game.
        unread = any(score is None or score < 0 for score in scores)
        return [Game("invalid" if unread else said[0])]
    return [Game(one, swapped=at == 1) for at, one in enumerate(said)]


def _judgments(fields: Mapping[str, Any]) -> list[Any]:
    value = fields["judgments"]
    return value if isinstance(value, list) else []


def _judge_bench(fields: Mapping[str, Any]) -> list[Game]:
    found = _judgments(fields)
    if not 1 <= len(found) <= 2:
        raise NoVerdict("judgments", fields["judgments"], "a list of one or two judgments")
    games = []
    for at, one in enumerate(found):
        decision = one.get("decision") if isinstance(one, Mapping) else one
        if decision is None:
            games.append(Game("invalid", swapped=at == 1))
            continue
        said = read_label(decision, LABELS, "response_A", "response_B")
        if said is None:
            raise NoVerdict("judgments", decision, "A>B, B>A, A=B")
        # The decision is about the places, and in the second the answers have changed theirs.
        about: Preference = said if at == 0 else opposite(said)
        games.append(Game(about, swapped=at == 1))
    return games


def opposite(said: Preference) -> Preference:
    """The same verdict about the two answers the other way round."""
    others: Mapping[str, Preference] = {"a": "b", "b": "a"}
    return others.get(said, said)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
