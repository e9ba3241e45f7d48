"""How reliable the labelers of a round are, fitted to its votes or given in the config.

Only patterns of verdicts matter (which labeler said what). With four things that each of L labelers
can do (say a, b or tie, or nothing), a round of any size is a table of at most 4^L counts, and the
order of its pairs cannot change the fit. Which answer of a pair is called a is arbitrary: every
pattern counts as much as its mirror image, so a labeler that always says a gains nothing by it.

Of ten pairs EM makes labelers that are never or always right: whoever happens to agree with the
rest. So each labeler's figures are mixed with those of a few pairs more, on which it is somewhat
better than chance, as by a prior: the fewer its verdicts, the more the jury is a majority, and the
less sure. Of a thousand pairs that is nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from prefloop.data.arrays import Floats
from prefloop.labelers.base import LabelerError
from prefloop.labelers.config import Jury
from prefloop.labelers.jury.rules import MOST_TRUSTED, OUTCOMES, FittedJury
from prefloop.labelers.jury.verdict_table import merge_votes, read_votes_and_pairs

if TYPE_CHECKING:
    import pandas as pd

_A, _B, _TIE, MISSING = range(4)
"""What a labeler said of a pair, in a pattern."""
_MIRROR = {_A: _B, _B: _A, _TIE: _TIE, MISSING: MISSING}
_ITERATIONS = 100
_MOST_PAIRS = 10_000
"""Larger rounds are fitted on patterns thinned in proportion: at this number an accuracy is known
to half a point, and the library takes seconds."""
_FEWEST_LABELERS = 3
_FLOOR = 1e-3
"""Smallest share in a labeler's confusions: what never happened in a round is not impossible."""

_MORE_PAIRS = 20.0
"""Pairs that a labeler's figures are mixed with: without them, juries of three to five labelers on
ten pairs said 0.95 and more where they were right in 0.8."""
_MORE_RIGHT = 2 / 3
"""Share of right verdicts on them."""

Patterns = Counter[tuple[int, ...]]
"""How many pairs got which verdicts: 0 for a, 1 for b, 2 for a tie, 3 for none, by labeler."""


def count_patterns(parts: Iterable[pa.Table], labelers: Sequence[str]) -> Patterns:
    """The patterns of verdicts of ``labelers`` in votes tables, each with whole pairs in it.

    Raises ``LabelerError`` as ``prefloop.labelers.jury.verdict_table.read_votes``, or for an
    unknown labeler.
    """
    counts: Patterns = Counter()
    place = {name: index for index, name in enumerate(labelers)}
    for votes in parts:
        if not len(votes):
            continue
        read, pairs = read_votes_and_pairs(votes)
        unknown = sorted(set(read.labelers) - place.keys())
        if unknown:
            raise LabelerError(f"there are votes of {unknown[0]}, which is no labeler of the run")
        verdicts = merge_votes(read, len(pairs))
        codes = np.full((len(pairs), len(labelers)), MISSING, np.int8)
        said = np.array([_B, _TIE, _A], np.int8)[verdicts.verdict + 1]
        codes[:, [place[name] for name in read.labelers]] = np.where(verdicts.valid, said, MISSING)
        found, times = np.unique(codes, axis=0, return_counts=True)
        for pattern, count in zip(found.tolist(), times.tolist(), strict=True):
            counts[tuple(pattern)] += count
    return counts


def fit_jury(patterns: Patterns, labelers: Sequence[str], jury: Jury) -> FittedJury:
    """What ``jury`` needs to know about ``labelers`` (in the order of the patterns).

    ``reliability``: the accuracies that the config gives (people, whom it does not name, are taken
    to be as good as MOST_TRUSTED); else those of the one-coin model, in
    which a labeler is right with the same probability on every pair that it decides (Zhang et al.
    2016, JMLR 17, section 2.3), fitted by EM. ``dawid_skene``: each labeler's confusions by EM,
    starting from the majority (Dawid and Skene 1979). crowd-kit does both.

    With fewer than three labelers no votes can tell who is right where they differ; then, as
    where no pair was decided, the jury falls back on the majority and a note says so.
    """
    assert jury.rule in ("reliability", "dawid_skene")
    pairs = sum(patterns.values())
    if jury.rule == "reliability" and jury.reliability is not None:
        accuracy = {name: jury.reliability.get(name, MOST_TRUSTED) for name in labelers}
        return FittedJury(jury.rule, 0, accuracy=accuracy, notes=_doubts(accuracy))
    voters = {index for pattern in patterns for index, said in enumerate(pattern) if said <= _B}
    if len(voters) < _FEWEST_LABELERS:
        note = (
            f"{len(voters)} of {len(labelers)} labelers decided any pair: it takes three to tell "
            "from votes alone how reliable each is, so the majority decides, with the configured "
            "weights"
        )
        return FittedJury("majority", pairs, notes=(note,))
    thinned = _thinned(patterns)
    if jury.rule == "reliability":
        return _one_coin(thinned, labelers, patterns)
    return _dawid_skene(thinned, labelers, patterns)


def _thinned(patterns: Patterns) -> Patterns:
    """The patterns in canonical order, scaled to _MOST_PAIRS pairs at most.

    What is left of a pair when a count is scaled is drawn in proportion, by a fixed seed: many
    labelers make patterns that occur once each, and rounding would drop them all.
    """
    order = sorted(pattern for pattern, count in patterns.items() if count > 0)
    counts = np.array([patterns[pattern] for pattern in order], np.float64)
    if counts.sum() <= _MOST_PAIRS:
        return Counter({pattern: patterns[pattern] for pattern in order})
    exact = counts * (_MOST_PAIRS / counts.sum())
    kept = np.floor(exact)
    # Systematic sampling of the fractions, in an order that knows nothing of the patterns.
    shuffled = np.random.default_rng(0).permutation(len(order))
    upto = np.floor(np.cumsum((exact - kept)[shuffled]) + 0.5)
    kept[shuffled] += np.diff(upto, prepend=0.0)
    times = kept.astype(np.int64).tolist()
    return Counter({one: count for one, count in zip(order, times, strict=True) if count})


def _one_coin(thinned: Patterns, labelers: Sequence[str], patterns: Patterns) -> FittedJury:
    from crowdkit.aggregation import OneCoinDawidSkene

    skills = OneCoinDawidSkene(n_iter=_ITERATIONS).fit(_long(thinned, (_A, _B))).skills_
    accuracy = {}
    for index, name in enumerate(labelers):
        decided = sum(_times_said(patterns, index)[: _B + 1])
        skill = float(np.clip(skills.get(index, 0.5), 1 - MOST_TRUSTED, MOST_TRUSTED))
        mixed = (decided * skill + _MORE_PAIRS * _MORE_RIGHT) / (decided + _MORE_PAIRS)
        accuracy[name] = round(mixed if decided else 0.5, 6)  # nobody knows who decides nothing
    pairs = sum(patterns.values())
    return FittedJury("reliability", pairs, accuracy=accuracy, notes=_doubts(accuracy))


def _times_said(patterns: Patterns, labeler: int) -> list[int]:
    """On how many pairs the labeler in this place said a, b and tie."""
    found = [0] * len(OUTCOMES)
    for pattern, times in patterns.items():
        if pattern[labeler] != MISSING:
            found[pattern[labeler]] += times
    return found


def _with_more_pairs(raw: Floats, prior: Floats, said: Sequence[int]) -> Floats:
    """The confusions ``raw`` [truth, verdict] of a labeler that said so often a, b and tie, as if
    it had been asked about ``_MORE_PAIRS`` more of each truth, of which ``prior`` [truth] is the
    share. Its ties there are as frequent as elsewhere and say nothing."""
    pairs = sum(said)
    if not pairs:
        return raw
    tie = said[_TIE] / pairs
    right, wrong, chance = (share * (1 - tie) for share in (_MORE_RIGHT, 1 - _MORE_RIGHT, 0.5))
    more = np.array([[right, wrong, tie], [wrong, right, tie], [chance, chance, tie]])
    seen = pairs * prior[:, None]
    found: Floats = (seen * raw + _MORE_PAIRS * more) / (seen + _MORE_PAIRS)
    return found


def _dawid_skene(thinned: Patterns, labelers: Sequence[str], patterns: Patterns) -> FittedJury:
    from crowdkit.aggregation import DawidSkene

    votes = _long(thinned, (_A, _B, _TIE))
    fit = DawidSkene(n_iter=_ITERATIONS).fit(votes)
    known = sorted(set(votes["label"]))

    def share(labeler: int, truth: int, said: int) -> float:
        if truth not in known:
            return 1 / len(OUTCOMES)  # never the truth, its prior being 0
        try:
            return float(fit.errors_.loc[(labeler, said), truth])
        except KeyError:  # the labeler never said so
            return 0.0

    of_tie = round(float(fit.priors_.get(_TIE, 0.0)), 6)
    prior = {"a": (1 - of_tie) / 2, "b": (1 - of_tie) / 2, "tie": of_tie}
    confusions = {}
    for index, name in enumerate(labelers):
        raw = np.array(
            [[share(index, truth, said) for said in (_A, _B, _TIE)] for truth in (_A, _B, _TIE)]
        )
        if not raw[:2].any():  # a labeler without a vote
            raw[:] = 1 / len(OUTCOMES)
        # Equal already, but for what the mirrored pairs lose in rounding.
        raw = (raw + raw[[_B, _A, _TIE]][:, [_B, _A, _TIE]]) / 2
        raw = _with_more_pairs(raw, np.array([*prior.values()]), _times_said(patterns, index))
        raw = np.maximum(raw, _FLOOR)
        raw /= raw.sum(axis=1, keepdims=True)
        confusions[name] = {
            truth: {said: round(float(p), 6) for said, p in zip(OUTCOMES, row, strict=True)}
            for truth, row in zip(OUTCOMES, raw, strict=True)
        }
    notes = tuple(
        f"{name} contradicts the others more often than not: its verdicts count the other way round"
        for name, row in confusions.items()
        if row["a"]["a"] < row["a"]["b"]
    )
    pairs = sum(patterns.values())
    return FittedJury("dawid_skene", pairs, prior=prior, confusions=confusions, notes=notes)


def _long(patterns: Patterns, counted: tuple[int, ...]) -> pd.DataFrame:
    """crowd-kit's table (task, worker, label) of every pair and its mirror image."""
    import pandas as pd

    tasks, workers, labels = [], [], []
    task = 0
    for pattern, times in patterns.items():
        said = [(index, code) for index, code in enumerate(pattern) if code in counted]
        for _ in range(times if said else 0):
            for mirrored in (False, True):
                tasks += [task] * len(said)
                workers += [index for index, _ in said]
                labels += [_MIRROR[code] if mirrored else code for _, code in said]
                task += 1
    return pd.DataFrame({"task": tasks, "worker": workers, "label": labels})


def _doubts(accuracy: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(
        f"{name} is no better than chance (accuracy {value:.3f}): its verdicts have no weight"
        for name, value in accuracy.items()
        if value <= 0.5
    )
