"""`prefloop win-rate`: how often each model's answers were preferred, by verdicts that are there.

Ties are half a win; the prompt is what repeats. A match with an invalid verdict has no outcome and
is counted. Where a judge saw both orders of two answers, both make one outcome, a tie where they
contradict each other. The length-controlled win rate is that of ``prefloop compare``: of AlpacaEval
2's model without its difficulty of each instruction, which takes many models to fit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prefloop.data.errors import InputError
from prefloop.data.preferences.layouts import PreferenceColumns
from prefloop.data.utf8 import listed
from prefloop.labelers.statistics.estimate import Estimate
from prefloop.labelers.statistics.winrate import length_controlled_win_rate, length_gap, win_rate
from prefloop.pipeline.judging.given.model_matches import Match, read_matches


@dataclass(frozen=True)
class ModelWinRate:
    """How often one model's answers were preferred to another's."""

    judge: str
    model: str
    opponent: str | None
    """Null: all others together."""
    matches: int
    """With a verdict."""
    invalid: int
    prompts: int
    wins: int
    ties: int
    losses: int
    win_rate: Estimate | None
    """Null where no match has a verdict."""
    length_controlled: Estimate | None
    """Null where answers are not in the file, or all differ in length by the same amount."""
    length_gap: float | None
    """By how much the model's answers are longer, in standard deviations of the difference."""
    both_orders: int
    """Matches that the judge saw in both orders."""
    one_order: int
    """Matches of which the file says that they were shown in one order alone."""
    first_share: Estimate | None
    """Share of single verdicts for the answer shown first, without ties; 0.5 is unbiased."""


@dataclass(frozen=True)
class GivenWinRates:
    """The win rates in a file of verdicts."""

    source: str
    rows: int
    refused: dict[str, int]
    """Rows that are no match, by reason."""
    examples: tuple[str, ...]
    against: str | None
    """The one model that the others are compared with; null: each with each."""
    rates: tuple[ModelWinRate, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "source": self.source,
            "rows": self.rows,
            "rows_refused": self.refused,
            "examples": list(self.examples),
            "against": self.against,
            "win_rates": [asdict(one) for one in self.rates],
        }


def given_win_rates(
    path: str,
    against: str | None = None,
    columns: PreferenceColumns | None = None,
    limit: int | None = None,
) -> GivenWinRates:
    """The win rates in ``path``: of all models ``against`` one, or of each against each.

    Without ``against``, it is the model that is in every match, if there is one alone, or of two
    models the one that the first row has first. Raises ``InputError`` for a file without a verdict
    on two models' answers, one that may mean one thing or another, and a model that is not in it.
    """
    read = read_matches(path, columns, limit)
    models = sorted({model for match in read.matches for model in match.models})
    if against is not None and against not in models:
        raise InputError(f"--against {against}: {path} has no such model, only {listed(models)}")
    usual = against if against is not None else _in_all(read.matches, models, read.first)
    rates: list[ModelWinRate] = []
    by_judge: dict[str, list[Match]] = defaultdict(list)
    for match in read.matches:
        by_judge[match.judge].append(match)
    for judge, matches in by_judge.items():
        rates += _of_judge(judge, matches, usual)
    if all(one.win_rate is None for one in rates):
        who = f" on {usual}" if usual else ""
        raise InputError(f"{path}: none of its {len(read.matches):,} verdicts{who} is valid")
    return GivenWinRates(
        path, read.rows, dict(read.refused), tuple(read.examples), usual, tuple(rates)
    )


def _in_all(matches: Sequence[Match], models: Sequence[str], first: str | None) -> str | None:
    if len(models) == 2:
        return first
    everywhere = set(models).intersection(*(match.models for match in matches))
    return next(iter(everywhere)) if len(everywhere) == 1 else None


def _of_judge(judge: str, matches: Sequence[Match], against: str | None) -> list[ModelWinRate]:
    of_pairs: dict[tuple[str, str], list[Match]] = defaultdict(list)
    for match in matches:
        for one in (match, match.turned()):
            of_pairs[one.models].append(one)
    models = sorted({model for model, _ in of_pairs})
    if against is not None:
        found = [_rate(judge, model, against, of_pairs[model, against])
                 for model in models if (model, against) in of_pairs]  # fmt: skip
        return sorted(found, key=_best_first)
    pooled = [
        _rate(judge, model, None, [m for both, some in of_pairs.items() if both[0] == model
                                   for m in some])
        for model in models
    ]  # fmt: skip
    pooled.sort(key=_best_first)
    order = [one.model for one in pooled]
    each = [
        _rate(judge, model, other, of_pairs[model, other])
        for at, model in enumerate(order)
        for other in order[at + 1 :]
        if (model, other) in of_pairs
    ]
    return [*pooled, *each]


def _best_first(one: ModelWinRate) -> tuple[float, str]:
    return (-one.win_rate.value if one.win_rate else 1.0, one.model)


def _rate(judge: str, model: str, opponent: str | None, matches: Sequence[Match]) -> ModelWinRate:
    outcomes = [match.outcome for match in matches]
    valid = [(match, one) for match, one in zip(matches, outcomes, strict=True) if one is not None]
    won = np.array([one for _, one in valid])
    prompts = [match.prompt for match, _ in valid]
    controlled, gap = _controlled(valid, won, prompts)
    return ModelWinRate(
        judge=judge,
        model=model,
        opponent=opponent,
        matches=len(valid),
        invalid=len(matches) - len(valid),
        prompts=len(set(prompts)),
        wins=int((won > 0.5).sum()),
        ties=int((won == 0.5).sum()),
        losses=int((won < 0.5).sum()),
        win_rate=win_rate(won, prompts) if len(won) else None,
        length_controlled=controlled,
        length_gap=gap,
        **_of_orders(matches),
    )


def _controlled(
    valid: Sequence[tuple[Match, float]], won: Any, prompts: Sequence[str]
) -> tuple[Estimate | None, float | None]:
    lengths = [match.lengths for match, _ in valid if match.lengths is not None]
    if not valid or len(lengths) < len(valid):
        return None, None
    difference = np.array([own - other for own, other in lengths])
    try:
        controlled = length_controlled_win_rate(won, difference, prompts)
    except ValueError:  # the answers differ in length by the same amount in all matches
        return None, length_gap(difference)
    return controlled, length_gap(difference)


def _of_orders(matches: Sequence[Match]) -> Mapping[str, Any]:
    """What depends on the order in which answers were shown, where the file says it."""
    both = one = 0
    first, prompts = [], []
    for match in matches:
        shown = {game.swapped for game in match.games} - {None}
        both += len(shown) == 2
        one += len(shown) == 1
        for game in match.games:
            if game.swapped is not None and game.said in ("a", "b"):
                first.append(float((game.said == "a") != game.swapped))
                prompts.append(match.prompt)
    share = win_rate(first, prompts) if first else None
    return {"both_orders": both, "one_order": one, "first_share": share}
