"""Other labels of a run's answers, as people read them in a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from prefloop.labelers.statistics.agreement import Agreement
from prefloop.pipeline.relabel.difference import ChangedPair, LabelDifference, Sameness, Spent
from prefloop.pipeline.relabel.relabelled import Relabelled, VotesFrom
from prefloop.pipeline.report.formats import money, percent

_SHOWN = 160
"""Characters of a text."""


def render_relabelled(found: Relabelled) -> str:
    """Who voted, how far that is what was decided before, what it cost, and where it lies."""
    difference = found.difference
    lines = [f"{found.folder}: labelled by {', '.join(found.labelers)}"]
    lines += [_from(name, votes) for name, votes in found.votes.items()]
    lines += ["", *_decided(difference)]
    if difference.labelers:
        lines += ["", "labelers, before and now"]
        lines += [
            f"  {before} and {now}: {_same(one)}"
            for (before, now), one in difference.labelers.items()
        ]
    lines += ["", *_price(difference)]
    if difference.examples:
        lines += ["", "some of the pairs that changed"]
        lines += [line for one in difference.examples for line in _example(one)]
    rows = found.rows
    lines += [
        "",
        f"dataset   {found.dataset}  ({rows['train']:,} train and {rows['test']:,} test triples)",
    ]
    return "\n".join([*lines, *_adopted(found)])


def _from(name: str, votes: VotesFrom) -> str:
    parts = [f"{votes.asked:,} votes asked for"]
    if votes.taken:
        parts.append(f"{votes.taken:,} that the run or another relabelling had")
    if votes.there:
        parts.append(f"{votes.there:,} from before")
    return f"  {name}: {', '.join(parts)}"


def _decided(found: LabelDifference) -> list[str]:
    kept = found.kept
    lines = [f"decisions on {found.pairs:,} pairs, before and now: {_same(found.decisions)}"]
    changed = {
        "turned round": found.turned,
        "a tie now": found.now_tie,
        "a tie before": found.was_tie,
    }
    if any(changed.values()):
        lines.append(f"  changed: {_listed(changed)}")
    if found.only_before or found.only_now:
        lines.append(
            f"  decided before only: {found.only_before:,}; decided now only: {found.only_now:,}"
        )
    lines.append(
        f"  kept {kept['kept']:,} pairs, {kept['kept_before']:,} before: {kept['added']:,} added, "
        f"{kept['removed']:,} removed, {kept['turned']:,} turned round"
    )
    return lines


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in counts.items() if number)


def _same(found: Sameness) -> str:
    if found.raw.value is None:
        return str(found.raw.reason)
    raw = f"the same {percent(found.raw.value)}{_interval(found.raw, percent)} of {found.raw.n:,}"
    if found.kappa.value is None:
        return f"{raw}; no kappa ({found.kappa.reason})"
    return f"{raw}; kappa {found.kappa.value:z.3f}{_interval(found.kappa, '{:z.3f}'.format)}"


def _interval(found: Agreement, show: object) -> str:
    assert callable(show)
    if found.low is None or found.high is None:
        return ""
    return f" [{show(found.low)}, {show(found.high)}]"


def _price(found: LabelDifference) -> list[str]:
    sides = (("before", found.spent_before), ("now", found.spent))
    return [
        f"{side:<6}  {name}: {_spent(one)}"
        for side, labelers in sides
        for name, one in labelers.items()
    ]


def _spent(one: Spent) -> str:
    said = [f"{one.votes:,} votes ({one.invalid:,} invalid, {one.ties:,} ties)"]
    if one.prompt_tokens or one.completion_tokens:
        said.append(f"{one.prompt_tokens:,} + {one.completion_tokens:,} tokens")
        said.append(f"price {money(one.cost)}")
    return ", ".join(said)


def _example(one: ChangedPair) -> Iterable[str]:
    yield f"  {one.pair_id[:8]}  {_cut(one.prompt)}"
    yield f"    first   {_cut(one.first)}"
    yield f"    second  {_cut(one.second)}"
    yield f"    before: {one.before} ({one.p_before:.2f}), now: {one.now} ({one.p_now:.2f})"


def _cut(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _SHOWN else words[:_SHOWN] + "…"


def _adopted(found: Relabelled) -> list[str]:
    if not found.adopted:
        return []
    lines = [line for each in found.rounds for line in each.lines()]
    if found.kept is not None:
        lines.append(f"before    {found.kept}")
    lines.append(
        f"adopted   these are the labels of {found.run} now; prefloop run goes on with "
        f"{found.run / 'config.yaml'}, or with a config that says the same"
    )
    return lines
