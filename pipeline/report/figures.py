"""What the report draws of the policies: win rates, measures and training curves, by round."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prefloop.data.yaml_files import YamlError, read_yaml
from prefloop.labelers.statistics.winrate import LENGTH_GAP, extrapolates
from prefloop.pipeline.report import formats
from prefloop.pipeline.report.plots import Figure, Series, Words, lines
from prefloop.pipeline.run.run_dir import JURY, OPPONENT, RunDir


@dataclass(frozen=True)
class _Curve:
    """A number of each training step; ``name`` is TRL's."""

    name: str
    title: str
    caption: str
    reference: float | None = None


_CURVES = (
    _Curve(
        "loss", "Loss", "What training brings down, in the loss's own unit; DPO's begins at 0.693."
    ),
    _Curve(
        "rewards/margins",
        "Reward margin (chosen − rejected)",
        "Implicit reward of chosen answers minus that of rejected ones; 0 is no difference.",
        0.0,
    ),
    _Curve(
        "rewards/chosen",
        "Reward of the chosen answers",
        "Implicit reward; with a reference, below 0 says that they became less likely than "
        "under it.",
        0.0,
    ),
    _Curve(
        "rewards/accuracies",
        "Share of pairs with chosen rewarded above rejected",
        "Of the pairs of a step; a half is chance.",
        0.5,
    ),
    _Curve("logps/chosen", "Log-probability of the chosen answers", "Nats an answer."),
    _Curve("logps/rejected", "Log-probability of the rejected answers", "Nats an answer."),
    _Curve(
        "reward",
        "Reward of the sampled answers",
        "By the labelers; with reward: wins it is a half throughout.",
    ),
    _Curve("completions/mean_length", "Length of the sampled answers", "Tokens."),
)
_OPPONENTS = {
    "start": "Win rate against the starting policy",
    "previous": "Win rate against the previous policy",
    OPPONENT: "Win rate against the fixed opponent",
}
_WIN_CAPTION = (
    "Held-out prompts; bars are {confidence} intervals, the dashed line is no difference. The jury "
    "is what all labelers decided together; length-controlled is its win rate had both policies "
    "written equally long answers, in characters."
)


@dataclass(frozen=True)
class _Measure:
    """A number of each policy that is drawn round by round."""

    name: str
    title: str
    caption: str
    against: str | None = None
    start: float | None = None
    """The starting policy's value where that is known by definition; else it is what the metrics
    say about the opponent ``start``."""


_MEASURES = (
    _Measure(
        "kl",
        "KL to the starting policy",
        "Nats per answer: how far training moved the policy.",
        against="start",
        start=0.0,
    ),
    _Measure(
        "mean_tokens",
        "Mean length of held-out answers",
        "Tokens. A win rate that rises with length needs a second look.",
    ),
    _Measure(
        "mean_reasoning_tokens",
        "Mean length of the thoughts before held-out answers",
        "Tokens. The answers' lengths, and win rates, are without them.",
    ),
    _Measure("truncated_share", "Held-out answers cut at the token limit", "Share of the answers."),
    _Measure(
        "repetitive_share",
        "Repetitive held-out answers",
        "Share in which a run of four words occurs three times or more.",
    ),
    _Measure(
        "distinct_2",
        "Distinct pairs of words in held-out answers",
        "Of all pairs of neighbouring words: a policy that narrows falls.",
    ),
    _Measure(
        "self_bleu",
        "Self-BLEU of held-out answers",
        "How much an answer shares with the others: a policy that narrows rises.",
    ),
    _Measure(
        "reward_margin",
        "Reward margin on held-out pairs",
        "Implicit reward of chosen minus rejected.",
    ),
    _Measure(
        "reward_accuracy",
        "Held-out pairs whose chosen answer has the higher implicit reward",
        "A half is chance; training that tells its own pairs apart and not these has learnt them "
        "by heart.",
    ),
    _Measure(
        "mean_score", "Mean score of held-out answers", "By labelers that give absolute scores."
    ),
)


@dataclass(frozen=True)
class Metric:
    """One row of the run's metrics; ``round`` is the round that trained the policy."""

    round: int
    name: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    against: str | None
    labeler: str | None
    step: int | None


def read_metrics(run: RunDir) -> list[Metric]:
    """All finite ones of the run's rounds."""
    found = []
    for folder in run.rounds():
        for table in folder.metrics.iter():
            for row in table.to_pylist():
                if math.isfinite(row["value"]):
                    bounds = {end: _finite(row[end]) for end in ("low", "high")}
                    found.append(Metric(**(row | bounds)))
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def win_figures(metrics: Sequence[Metric], confidence: float) -> list[Figure]:
    """The win rates of each round's policy, a figure for each opponent; their intervals are of
    coverage ``confidence``."""
    figures = []
    caption = _WIN_CAPTION.format(confidence=f"{100 * confidence:g} %")
    for against, title in _OPPONENTS.items():
        rows = [row for row in metrics if row.name == "win_rate" and row.against == against]
        controlled = [
            row
            for row in metrics
            if row.name == "length_controlled_win_rate" and row.against == against
        ]
        if against == "previous" and not any(row.round > 0 for row in rows):
            continue  # in the first round the previous policy is the starting one
        names = _labelers(rows)
        if rows:
            places = sorted({row.round for row in rows})
            figures.append(
                lines(
                    Words(f"win-{against}", title, caption + _remarks(metrics, against)),
                    [_by_round(rows, name or JURY, places, labeler=name) for name in names]
                    + [_by_round(controlled, f"{JURY}, length-controlled", places, labeler=JURY)],
                    x_names=[f"round {place}" for place in places],
                    reference=0.5,
                    as_percent=True,
                )
            )
    return figures


def _remarks(metrics: Iterable[Metric], against: str) -> str:
    """Of the rounds whose length-controlled win rate is an extrapolation."""
    return "".join(
        f" Round {row.round}: {remark}."
        for row in metrics
        if row.name == LENGTH_GAP and row.against == against and (remark := extrapolates(row.value))
    )


def _labelers(rows: Iterable[Metric]) -> list[str | None]:
    """The jury first, then the labelers by name."""
    names = {row.labeler for row in rows}
    return sorted(names, key=lambda name: (name != JURY, name or ""))


def _by_round(
    rows: Iterable[Metric], label: str, places: Sequence[int], *, labeler: str | None
) -> Series:
    mine = sorted(
        (row for row in rows if row.labeler == labeler), key=lambda row: places.index(row.round)
    )
    return Series(
        label=label,
        x=[places.index(row.round) for row in mine],
        y=[row.value for row in mine],
        low=[row.low for row in mine],
        high=[row.high for row in mine],
    )


def policy_figures(metrics: Sequence[Metric], guards: Mapping[str, str]) -> list[Figure]:
    """How far each round's policy moved, and what became of its answers."""
    figures = [_policy_figure(metrics, each, guards.get(each.name, "")) for each in _MEASURES]
    figures += [
        _frontier(metrics, "win_rate", "start", "Win rate against the starting policy, by KL"),
        _frontier(metrics, "mean_score", None, "Mean score, by KL"),
    ]
    return [figure for figure in figures if figure]


def _frontier(
    metrics: Sequence[Metric], name: str, against: str | None, title: str
) -> Figure | None:
    """What each round's policy gained (``name``) over how far it went from the starting policy."""
    moved = {row.round: row.value for row in metrics if (row.name, row.against) == ("kl", "start")}
    rows = [
        row for row in metrics if (row.name, row.against) == (name, against) and row.round in moved
    ]
    if len({row.round for row in rows}) < 2:
        return None  # a single policy is no frontier
    series = []
    for labeler in _labelers(rows):
        mine = sorted((row for row in rows if row.labeler == labeler), key=lambda row: row.round)
        series.append(
            Series(
                labeler or title,
                [moved[row.round] for row in mine],
                [row.value for row in mine],
                [row.low for row in mine],
                [row.high for row in mine],
            )
        )
    return lines(
        Words(
            f"frontier-{name}",
            title,
            "One point for each round's policy, joined in their order. Higher at the same KL is "
            "better; a line that turns down went too far.",
            x="KL to the starting policy, nats an answer",
        ),
        series,
        reference=0.5 if name == "win_rate" else None,
        as_percent=name == "win_rate",
        markers=True,
    )


def _policy_figure(metrics: Sequence[Metric], measure: _Measure, guard: str) -> Figure | None:
    """A number of each policy, the starting policy leading where it is known."""
    name, against = measure.name, measure.against
    rows = [row for row in metrics if row.name == name and row.against == against]
    if not rows:
        return None
    first = min(row.round for row in metrics if row.name == name)
    opening = [
        Metric(-1, name, row.value, row.low, row.high, row.n, None, row.labeler, None)
        for row in metrics
        if against is None and row.name == name and row.against == "start" and row.round == first
    ]
    if measure.start is not None:
        opening = [
            Metric(-1, name, measure.start, None, None, None, None, labeler, None)
            for labeler in _labelers(rows)
        ]
    rows = opening + rows
    places = sorted({row.round for row in rows})
    labelers = _labelers(rows)
    return lines(
        Words(name, measure.title, measure.caption + guard),
        [_by_round(rows, each or measure.title, places, labeler=each) for each in labelers],
        x_names=["start" if place < 0 else f"round {place}" for place in places],
    )


def coverage(run: RunDir) -> float:
    """Of the intervals of the run's evaluations: ``evaluate.confidence``."""
    try:
        evaluate = (read_yaml(run.config) or {}).get("evaluate") or {}
        return float(evaluate.get("confidence") or 0.95)
    except (OSError, ValueError, TypeError, AttributeError, YamlError):
        return 0.95


def guard_captions(run: RunDir) -> dict[str, str]:
    """What the guards ask of a figure, by its name, as the end of its caption."""
    # Its settings take as long to load as a small report to write.
    from prefloop.training.config import WITHOUT_REFERENCE, Guards

    try:
        train = (read_yaml(run.config) or {}).get("train") or {}
        guards = Guards.model_validate(train.get("guards") or {})
        beta = float(train.get("beta") or 0.1)
        losses = train.get("loss") or ()
        losses = {losses} if isinstance(losses, str) else set(losses)
    except (OSError, ValueError, TypeError, AttributeError, YamlError):
        return {}
    if not guards.enabled:
        return {}
    nats, drop = guards.max_margin_nats, guards.max_chosen_drop
    ratio = guards.max_length_ratio
    # Without a reference the guards look at log-probabilities, and not at these rewards.
    rewards = not losses or not losses <= set(WITHOUT_REFERENCE)
    margins = [one for one in (nats and beta * nats, guards.max_margin) if one]
    limits = {
        "rewards/margins": min(margins) if rewards and margins else None,
        "rewards/chosen": -beta * drop if rewards and drop is not None else None,
        "kl": guards.max_kl,
        "truncated_share": guards.max_truncated,
        "repetitive_share": guards.max_repetitive,
    }
    captions = {
        name: f" Its guard warns at {formats.figure(guards.warn_share * limit)} and stops at "
        f"{formats.figure(limit)}"
        + (" of what the starting policy does not do." if name.endswith("_share") else ".")
        for name, limit in limits.items()
        if limit is not None
    }
    if ratio is not None:
        warns = 1 + guards.warn_share * (ratio - 1)
        captions["mean_tokens"] = (
            f" Its guard warns at {formats.figure(warns)} times the starting policy's, or one part "
            f"in so many, and stops at {formats.figure(ratio)} times."
        )
    return captions


def curve_figures(metrics: Sequence[Metric], guards: Mapping[str, str]) -> list[Figure]:
    """The training of each round, step by step."""
    figures = []
    for curve in _CURVES:
        by_round: dict[int, list[Metric]] = defaultdict(list)
        for row in metrics:
            if row.name == curve.name and row.step is not None:
                by_round[row.round].append(row)
        series = []
        for index, rows in sorted(by_round.items()):
            rows.sort(key=lambda row: row.step or 0)
            steps = [float(row.step or 0) for row in rows]
            series.append(Series(f"round {index}", steps, [row.value for row in rows]))
        if series:
            figures.append(
                lines(
                    Words(
                        "curve-" + curve.name.replace("/", "-"),
                        curve.title,
                        f"{curve.caption}{guards.get(curve.name, '')} ({curve.name})",
                        x="optimiser step",
                    ),
                    series,
                    reference=curve.reference,
                    as_percent=curve.name == "rewards/accuracies",
                )
            )
    return figures
