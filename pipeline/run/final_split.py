"""Held-out prompts that no round's evaluation sees, for one look at the policy that is kept.

The same held-out prompts decide every round. The policy that is kept was chosen by them, so its
figures on them are better than it is: of several policies, chance favours one. On prompts that no
decision has seen there is nothing to be favoured by.

What comes of them lies in ``final/``, a small run directory of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.data.hashing import derive_seed
from prefloop.data.shards import ShardFolder
from prefloop.pipeline.run.round_jury import labels_of
from prefloop.pipeline.run.run_dir import (
    EVALUATION,
    FINAL_FOLDER,
    JURY,
    RoundDir,
    RunDir,
    RunError,
)
from prefloop.pipeline.run.shard_counts import WinRate, read_win_rates
from prefloop.training.config import EvaluateConfig, FinalConfig


def final_ids(ids: Sequence[str], settings: FinalConfig | None, seed: int) -> frozenset[str]:
    """Which of the held-out prompts ``ids`` are kept for the end.

    With a share, a prompt's lot hangs on nothing but itself and the seed, except that of two or
    more prompts at least one is kept and one is not. Raises ``RunError`` where a size leaves none
    for the rounds.
    """
    if settings is None or len(ids) < 2:
        return frozenset()
    lots = {one: derive_seed(seed, "final", one) for one in ids}
    order = sorted(ids, key=lambda one: (lots[one], one))
    if settings.size is None:
        below = sum(lot < settings.share * 2**31 for lot in lots.values())
        return frozenset(order[: min(max(below, 1), len(ids) - 1)])
    if settings.size >= len(ids):
        raise RunError(
            f"evaluate.final.size is {settings.size}, and only {len(ids)} prompts are held out: "
            "lower it, or hold out more (prompts.heldout, prompts.heldout_share), so that some are "
            "left for the rounds"
        )
    return frozenset(order[: settings.size])


def ids_of_rounds(
    heldout: ShardFolder, settings: EvaluateConfig, seed: int
) -> frozenset[str] | None:
    """The held-out prompts that the rounds are evaluated on; null: all of them."""
    if settings.limit is None and settings.final is None:
        return None
    ids = heldout.table(["prompt_id"])["prompt_id"].to_pylist()
    apart = final_ids(ids, settings.final, seed)
    return frozenset([one for one in ids if one not in apart][: settings.limit])


def final_dir(run: RunDir) -> RunDir:
    """Where the answers to the final prompts, the votes on them and the figures lie."""
    return RunDir(run.root / FINAL_FOLDER)


@dataclass(frozen=True)
class FinalFigures:
    """What the final prompts say about the policy that is kept, against the starting policy."""

    round: int
    """The round that trained it."""
    win_rate: WinRate
    """By all who judged together."""
    judges: tuple[str, ...]
    labelled_too: tuple[str, ...]
    """Those of them that labelled the training data, or ask the model that did."""
    looks: int
    """Policies that were judged on these prompts so far: one, unless more rounds were added."""

    @property
    def judged_by(self) -> str:
        """Who judged, in words, and what that means."""
        who = ", ".join(self.judges)
        if not self.labelled_too:
            return f"judged by {who}, which labelled no training data"
        return (
            f"judged by {who}; {', '.join(self.labelled_too)} labelled the training data too (or "
            "asks the model that did), and by what trained it a policy looks better than it is"
        )


def is_judged(run: RunDir, kept: RoundDir) -> bool:
    """Whether the policy of a round was judged on the final prompts."""
    return final_dir(run).round(kept.index).metrics.exists(EVALUATION)


def final_figures(run: RunDir, kept: RoundDir | None) -> FinalFigures | None:
    """Those of the policy that is kept; null before they are there."""
    if kept is None or not is_judged(run, kept):
        return None
    final = final_dir(run)
    found = read_win_rates(final.round(kept.index).metrics)
    together = next((rate for rate in found if rate.labeler == JURY), None)
    if together is None:
        return None
    judges = tuple(rate.labeler for rate in found if rate.labeler != JURY)
    labelled = _labelled(run)
    looks = sum(folder.metrics.exists(EVALUATION) for folder in final.rounds())
    return FinalFigures(
        kept.index, together, judges, tuple(one for one in judges if one in labelled), looks
    )


def _labelled(run: RunDir) -> set[str]:
    """The labelers of the run's config that label the training data, or ask a model that does."""
    try:
        raw = run.read_config()
    except FileNotFoundError:
        return set()
    evaluate = raw.get("evaluate") or {}
    labelers = list((raw.get("label") or {}).get("labelers") or ())
    for folder in run.rounds():  # rounds before may have been labelled by others
        labelers += labels_of(folder).get("labelers") or ()
    known = {_who(one) for one in labelers}
    judges = [*(evaluate.get("judges") or ()), *((evaluate.get("final") or {}).get("judges") or ())]
    return {str(one.get("name")) for one in (*labelers, *judges) if _who(one) in known}


def _who(labeler: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(labeler.get(key) for key in ("type", "model", "function"))
