"""``report.html``: one self-contained page about a run, written at any point of it.

The page loads nothing: style sheet and plots are inline, there is no script. Everything that
comes out of a model, a prompt file or a config is untrusted and goes through the template's
escaping; keys and passwords are taken out on the way.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from prefloop.pipeline.report import formats
from prefloop.pipeline.report.excerpts import read_excerpts
from prefloop.pipeline.report.pages import render_page
from prefloop.pipeline.report.plots import (
    Bars,
    Figure,
    Series,
    histogram,
    length_bins,
    lines,
    rebin,
)
from prefloop.pipeline.report.redact import hide_environment_secrets, redact
from prefloop.pipeline.report.side_by_side import read_side_by_side
from prefloop.pipeline.report.tally import AGREEMENT_EDGES, MARGIN_EDGES, RunTally, tally_run
from prefloop.pipeline.run.run_dir import JURY, OPPONENT, RunDir
from prefloop.pipeline.run.shard_counts import WinRate
from prefloop.pipeline.run.status import RoundStatus, RunStatus, collect_status
from prefloop.training.config import Guards

LONGEST_TEXT = 3_000
"""Characters of a prompt or an answer that are shown; the rest is counted."""

_CURVES = (
    ("loss", "Loss", None),
    ("rewards/margins", "Reward margin (chosen − rejected)", 0.0),
    ("rewards/chosen", "Reward of the chosen answers", 0.0),
    ("rewards/accuracies", "Share of pairs with chosen rewarded above rejected", 0.5),
    ("logps/chosen", "Log-probability of the chosen answers", None),
    ("logps/rejected", "Log-probability of the rejected answers", None),
    ("reward", "Reward of the sampled answers (a half throughout, with reward: wins)", None),
    ("completions/mean_length", "Length of the sampled answers", None),
)
_TRAIN_FACTS = (
    "method", "loss", "online", "online_steps", "beta", "learning_rate", "batch_size",
    "gradient_accumulation", "epochs", "reference", "data", "precision", "guard",
)  # fmt: skip


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


@dataclass(frozen=True)
class Dataset:
    """What the run is for, as far as it is written."""

    path: str
    rows: dict[str, int]
    """By split."""
    size: int
    """Bytes on disk."""


def write_report(run: RunDir) -> Path:
    """Write the report of ``run`` and return its path. An older report is replaced at once."""
    page = render_report(run)
    partial = run.report.with_name(f"{run.report.name}.tmp-{os.getpid()}")
    partial.write_text(page, encoding="utf-8")
    partial.replace(run.report)
    return run.report


def render_report(run: RunDir) -> str:
    """The report of ``run`` as HTML. Equal runs give equal pages."""
    status = collect_status(run)
    tally = tally_run(run)
    metrics = _read_metrics(run)
    kept, dropped = read_excerpts(run)
    notes = run.notes()
    guards = _guards(run)
    won = _won(status)
    page = render_page(
        "report.html.jinja",
        name=run.root.resolve().name,
        status=status,
        as_of=notes[-1].get("at") if notes else None,
        dataset=_dataset(run),
        won=won,
        controlled=won[-1][1].length_controlled if won else None,
        flows=[_flow(each) for each in status.rounds],
        win_figures=_win_figures(metrics),
        policy_figures=_policy_figures(metrics, guards),
        curve_figures=_curve_figures(metrics, guards),
        training=_training_facts(notes),
        length_figures=_length_figures(tally),
        length_shares=_length_shares(tally),
        decision_figures=_decision_figures(tally),
        tally=tally,
        side_by_side=read_side_by_side(run),
        kept=kept,
        dropped=dropped,
        longest=LONGEST_TEXT,
        config=_shown_config(run),
        manifest=_shown_manifest(run),
        quarantine=_quarantine_examples(run),
    )
    return hide_environment_secrets(page)


def _read_metrics(run: RunDir) -> list[Metric]:
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


def _dataset(run: RunDir) -> Dataset | None:
    rows: dict[str, int] = {"train": 0, "test": 0}
    files = sorted(run.dataset.rglob("*.parquet"))
    for path in files:
        split = path.name.partition("-")[0]
        rows[split] = rows.get(split, 0) + pq.read_metadata(path).num_rows
    if not files:
        return None
    return Dataset(str(run.dataset.resolve()), rows, sum(path.stat().st_size for path in files))


def _won(status: RunStatus) -> list[tuple[int, WinRate]]:
    """Each round's policy against the starting one, as the jury sees it."""
    return [
        (each.round, rate)
        for each in status.rounds
        for rate in each.win_rates
        if rate.labeler == JURY and rate.against == "start"
    ]


@dataclass(frozen=True)
class Flow:
    """The counts of a round as the page shows them."""

    status: RoundStatus
    segments: tuple[tuple[str, int, float], ...]
    """Kept and each reason for dropping: name, pairs, share of all pairs."""


def _flow(status: RoundStatus) -> Flow:
    fates = {"kept": status.kept, **status.dropped}
    total = max(status.pairs, 1)
    return Flow(status, tuple((name, pairs, pairs / total) for name, pairs in fates.items()))


def _win_figures(metrics: Sequence[Metric]) -> list[Figure]:
    titles = {"start": "Win rate against the starting policy",
              "previous": "Win rate against the previous policy",
              OPPONENT: "Win rate against the fixed opponent"}  # fmt: skip
    figures = []
    for against, title in titles.items():
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
                    f"win-{against}",
                    title,
                    [_by_round(rows, name or JURY, places, labeler=name) for name in names]
                    + [_by_round(controlled, f"{JURY}, length-controlled", places, labeler=JURY)],
                    caption="Held-out prompts; bars are 95 % intervals, the dashed line is no "
                    "difference. The jury is what all labelers decided together; length-controlled "
                    "is its win rate had both policies written equally long answers.",
                    x_names=[f"round {place}" for place in places],
                    reference=0.5,
                    as_percent=True,
                )
            )
    return figures


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


def _policy_figures(metrics: Sequence[Metric], guards: Mapping[str, str]) -> list[Figure]:
    figures = [
        _policy_figure(metrics, "kl", "KL to the starting policy", "start",
                       "Nats per answer: how far training moved the policy."
                       + guards.get("kl", ""), start=0.0),
        _policy_figure(metrics, "mean_tokens", "Mean length of held-out answers", None,
                       "Tokens. A win rate that rises with length needs a second look."
                       + guards.get("mean_tokens", "")),
        _policy_figure(metrics, "truncated_share", "Held-out answers cut at the token limit", None,
                       "Share of the answers." + guards.get("truncated_share", "")),
        _policy_figure(metrics, "repetitive_share", "Repetitive held-out answers", None,
                       "Share in which a run of four words occurs three times or more."
                       + guards.get("repetitive_share", "")),
        _policy_figure(metrics, "distinct_2", "Distinct pairs of words in held-out answers", None,
                       "Of all pairs of neighbouring words: a policy that narrows falls."),
        _policy_figure(metrics, "self_bleu", "Self-BLEU of held-out answers", None,
                       "How much an answer shares with the others: a policy that narrows rises."),
        _policy_figure(metrics, "reward_margin", "Reward margin on held-out pairs", None,
                       "Implicit reward of chosen minus rejected."),
        _policy_figure(metrics, "reward_accuracy", "Held-out pairs whose chosen answer has the "
                       "higher implicit reward", None,
                       "A half is chance; training that tells its own pairs apart and not these "
                       "has learnt them by heart."),
        _policy_figure(metrics, "mean_score", "Mean score of held-out answers", None,
                       "By labelers that give absolute scores."),
    ]  # fmt: skip
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
        f"frontier-{name}",
        title,
        series,
        caption="One point for each round's policy, joined in their order. Higher at the same KL "
        "is better; a line that turns down went too far.",
        x_label="KL to the starting policy, nats an answer",
        reference=0.5 if name == "win_rate" else None,
        as_percent=name == "win_rate",
        markers=True,
    )


def _policy_figure(
    metrics: Sequence[Metric],
    name: str,
    title: str,
    against: str | None,
    caption: str,
    start: float | None = None,
) -> Figure | None:
    """A number of each policy, the starting policy leading where it is known.

    ``start`` is its value where that is known by definition; else it is what the metrics say
    about the opponent ``start``.
    """
    rows = [row for row in metrics if row.name == name and row.against == against]
    if not rows:
        return None
    first = min(row.round for row in metrics if row.name == name)
    opening = [
        Metric(-1, name, row.value, row.low, row.high, row.n, None, row.labeler, None)
        for row in metrics
        if against is None and row.name == name and row.against == "start" and row.round == first
    ]
    if start is not None:
        opening = [
            Metric(-1, name, start, None, None, None, None, labeler, None)
            for labeler in _labelers(rows)
        ]
    rows = opening + rows
    places = sorted({row.round for row in rows})
    return lines(
        name,
        title,
        [_by_round(rows, each or title, places, labeler=each) for each in _labelers(rows)],
        caption=caption,
        x_names=["start" if place < 0 else f"round {place}" for place in places],
    )


def _guards(run: RunDir) -> dict[str, str]:
    """What the guards ask of a figure, by its name, as the end of its caption."""
    try:
        raw = yaml.safe_load(run.config.read_text(encoding="utf-8"))
        guards = Guards.model_validate(((raw or {}).get("train") or {}).get("guards") or {})
        beta = float(((raw or {}).get("train") or {}).get("beta") or 0.1)
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return {}
    if not guards.enabled:
        return {}
    drop = guards.max_chosen_drop
    ratio = guards.max_length_ratio
    limits = {
        "rewards/margins": guards.max_margin,
        "rewards/chosen": None if drop is None else -beta * drop,
        "kl": guards.max_kl,
        "truncated_share": guards.max_truncated,
        "repetitive_share": guards.max_repetitive,
    }
    captions = {
        name: f" Its guard warns at {formats.figure(guards.warn_share * limit)} and stops at "
        f"{formats.figure(limit)}."
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


def _curve_figures(metrics: Sequence[Metric], guards: Mapping[str, str]) -> list[Figure]:
    figures = []
    for name, title, reference in _CURVES:
        by_round: dict[int, list[Metric]] = defaultdict(list)
        for row in metrics:
            if row.name == name and row.step is not None:
                by_round[row.round].append(row)
        series = []
        for index, rows in sorted(by_round.items()):
            rows.sort(key=lambda row: row.step or 0)
            steps = [float(row.step or 0) for row in rows]
            series.append(Series(f"round {index}", steps, [row.value for row in rows]))
        if series:
            figures.append(
                lines(
                    "curve-" + name.replace("/", "-"),
                    title,
                    series,
                    caption=f"{name}.{guards[name]}" if name in guards else name,
                    x_label="optimiser step",
                    reference=reference,
                    as_percent=name == "rewards/accuracies",
                )
            )
    return figures


def _training_facts(notes: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """What each round was trained with: the settings without which it cannot be repeated."""
    rounds = {int(note["round"]): note for note in notes if note.get("stage") == "train"}
    facts = []
    for name in _TRAIN_FACTS:
        values = [_fact(rounds[index], name) for index in sorted(rounds)]
        if any(value is not None for value in values):
            facts.append((name, [_plain(value) for value in values]))
    if facts:
        facts.insert(0, ("round", [str(index) for index in sorted(rounds)]))
    return facts


def _fact(note: Mapping[str, Any], name: str) -> Any:
    """A setting that the round's method has; null for others."""
    if name in ("loss", "online", "online_steps") and note.get("method", "dpo") != "dpo":
        return None
    if name == "online_steps" and not note.get("online"):
        return None
    return note.get(name)


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict) and "guard" in value:
        return f"{value['guard']} at step {value['step']}, kept step {value['restored_step']}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _length_figures(tally: RunTally) -> list[Figure]:
    before, after = tally.decisions.before, tally.decisions.after
    edges = length_bins([before.chosen, before.rejected])
    figures = []
    for name, title, lengths in (
        ("lengths-before", "Length of all decided pairs", before),
        ("lengths-after", "Length of the kept pairs", after),
    ):
        if lengths.pairs:
            figures.append(
                histogram(
                    name,
                    title,
                    edges,
                    [
                        Bars("chosen", rebin(lengths.chosen, edges)),
                        Bars("rejected", rebin(lengths.rejected, edges)),
                    ],
                    caption=f"{formats.count(lengths.pairs)} pairs",
                    x_label="tokens",
                )
            )
    return figures


def _length_shares(tally: RunTally) -> list[tuple[str, int, float | None, int, float | None]]:
    """For each round and for all: pairs and share of chosen-is-longer, before and after filters."""
    rows = {f"round {index}": part for index, part in tally.rounds.items()}
    if len(rows) != 1:
        rows["all rounds"] = tally.decisions
    return [
        (
            name,
            part.before.pairs,
            part.before.share_chosen_longer,
            part.after.pairs,
            part.after.share_chosen_longer,
        )
        for name, part in rows.items()
        if part.before.pairs
    ]


def _decision_figures(tally: RunTally) -> list[Figure]:
    decisions = tally.decisions
    figures = []
    if decisions.before.pairs:
        figures.append(
            histogram(
                "margins",
                "Margin of chosen over rejected",
                MARGIN_EDGES,
                [
                    Bars("all decided pairs", decisions.margins_before),
                    Bars("kept", decisions.margins_after),
                ],
                caption="Difference of the mean win probabilities of the two answers.",
                x_label="margin",
            )
        )
    if decisions.agreement_before.sum():
        figures.append(
            histogram(
                "agreement",
                "Agreement among labelers",
                AGREEMENT_EDGES,
                [
                    Bars("all pairs", decisions.agreement_before),
                    Bars("kept", decisions.agreement_after),
                ],
                caption="Share of the labelers that share the decision on a pair.",
                x_label="agreement",
            )
        )
    return figures


def _shown_config(run: RunDir) -> str | None:
    try:
        raw = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None
    return yaml.safe_dump(redact(raw), sort_keys=False, allow_unicode=True)


def _shown_manifest(run: RunDir) -> str | None:
    try:
        raw = json.loads(run.manifest.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return json.dumps(redact(raw), indent=2, ensure_ascii=False)


def _quarantine_examples(run: RunDir, most: int = 12) -> list[dict[str, Any]]:
    """The first quarantined row of each reason: enough to see what is wrong with the input."""
    folders = [run.quarantine]
    for each in run.rounds():
        stages = sorted((each.root / "quarantine").glob("*"))
        folders += [each.quarantine(path.name) for path in stages]
    columns = ["stage", "round", "source", "row", "reason", "detail"]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for folder in folders:
        for table in folder.iter(columns=columns):
            for row in table.to_pylist():
                found.setdefault((row["stage"], row["reason"]), redact(row))
            if len(found) >= most:
                return list(found.values())[:most]
    return list(found.values())
