"""Comparisons of LMSYS: prompt and answers are lists of texts, one for each turn, written as JSON,
and three columns say who won."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prefloop.data.preferences.labels import PairLabel
from prefloop.data.preferences.ratings import as_number
from prefloop.data.preferences.transcripts import check_answer, check_prompt
from prefloop.data.sources.turns import Turn, Unusable

_VERDICTS: tuple[PairLabel, ...] = ("a", "b", "tie")


def pair_by_turns(values: Mapping[str, Any]) -> tuple[list[Turn], str, str]:
    """The prompt and both answers out of the columns with the user's turns, the first model's and
    the second's. Raises :class:`Unusable`; also where the models said different things before, so
    that their last answers reply to different conversations."""
    (asked_in, asked), (a, first), (b, second) = (
        (name, _texts(value, name)) for name, value in values.items()
    )
    for name, said in ((a, first), (b, second)):
        if len(said) != len(asked):
            raise Unusable(
                name, "bad_messages", f"has {len(said)} turns where {asked_in!r} has {len(asked)}"
            )
    if first[:-1] != second[:-1]:
        raise Unusable(
            b,
            "prompts_differ",
            f"the turns before the answer differ from those in {a!r}: the two answers cannot be "
            "compared; delete the row",
        )
    turns: list[Turn] = []
    for question, answer in zip(asked, first, strict=True):
        turns += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    prompt = check_prompt(turns[:-1], asked_in)
    return prompt, check_answer(first[-1], a), check_answer(second[-1], b)


def verdict_of_flags(flags: Mapping[str, Any]) -> PairLabel:
    """What one 1 among three columns says. Raises :class:`Unusable` for anything else."""
    numbers = [float(one) if isinstance(one, bool) else as_number(one) for one in flags.values()]
    if numbers.count(1.0) != 1 or numbers.count(0.0) != len(numbers) - 1:
        said = ", ".join(map(str, flags))
        raise Unusable(next(iter(flags)), "bad_label", f"{said}: not one of them is 1, others 0")
    return _VERDICTS[numbers.index(1.0)]


def _texts(value: Any, field: str) -> list[str]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Unusable(
                field, "written_turns", f"is no JSON list of texts, one a turn: {error}"
            ) from None
    if not isinstance(value, list) or not value:
        raise Unusable(field, "wrong_type", "is no list of texts, one a turn: mend the row")
    if not all(isinstance(one, str) for one in value):
        raise Unusable(field, "empty_answer", "a turn holds no text: delete the row")
    return value
