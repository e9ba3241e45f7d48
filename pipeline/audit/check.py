"""`prefloop audit`: what is wrong, odd or lopsided in a preference dataset.

One pass over the file keeps some 70 bytes a pair and no text; what pairs say about each other
(repeats, contradictions, cycles) is found in those. Every row is a pair, part of one or unreadable,
and every finding says how many rows it has, which, how bad that is and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from prefloop.data.checks.facts import Facts
from prefloop.data.checks.language import Languages, Sample, find_languages
from prefloop.data.checks.repeats import Repeats, find_repeats
from prefloop.data.config import PromptSource
from prefloop.data.preferences import PreferenceBatch, read_preferences
from prefloop.data.preferences.unread_columns import UnreadColumns
from prefloop.data.prompts.dedup import near_duplicates
from prefloop.data.utf8 import listed, shown
from prefloop.labelers.statistics.length_bias import QUANTILES, LengthBias, length_bias
from prefloop.pipeline.audit.audit_options import AuditOptions
from prefloop.pipeline.audit.findings import (
    BadRows,
    Finding,
    LeftOut,
    Places,
    findings_of,
    language_findings,
    odd_suspects,
    pair_suspects,
    unclosed,
    unread_findings,
)
from prefloop.pipeline.run.progress import StepProgress


@dataclass(frozen=True)
class Audit:
    """What an audit found. ``drops`` [pairs] is 0 for pairs that ``--fix`` keeps, else a place
    in ``reasons``."""

    source: str
    rows: int
    pairs: int
    bad: Mapping[str, int]
    """Rows without a pair, by reason."""
    findings: tuple[Finding, ...]
    prompts: int
    """Distinct prompts."""
    prompts_with_several: int
    """Of these, the ones with several pairs: normal in preference data."""
    lengths: tuple[LengthBias, ...]
    """In characters, words and, with a tokenizer, tokens."""
    histograms: Mapping[str, tuple[list[int], list[int], list[int]]]
    """By unit: edges of the bins, and chosen and rejected answers in each."""
    languages: Languages | None
    drops: npt.NDArray[np.int8] = field(repr=False)
    partners: npt.NDArray[np.int64] = field(repr=False)
    """Number of the pair that one repeats or contradicts, or -1."""
    chosen_hashes: npt.NDArray[np.uint64] = field(repr=False)
    reasons: tuple[str, ...] = ()
    where: Sequence[str] = field(default=(), repr=False)
    columns: tuple[str, ...] = field(default=(), repr=False)
    """Of the first row without a pair."""

    @property
    def has_errors(self) -> bool:
        """Whether any finding is an error."""
        return any(finding.severity == "error" for finding in self.findings)

    @property
    def why_no_pair(self) -> str | None:
        """One line that says why no row holds a pair; None where one does."""
        if self.pairs:
            return None
        said = f"{self.source}: 0 of {self.rows:,} rows hold a pair"
        if not self.bad:
            return f"{said}: the file is empty"
        reason, count = max(self.bad.items(), key=lambda one: one[1])
        example = next(
            (
                one.examples[0]
                for one in self.findings
                if one.name.endswith(reason) and one.examples
            ),
            "",
        )
        columns = f"; columns found: {listed(self.columns)}" if self.columns else ""
        return f"{said}: {count:,} are {reason}, the first {example}{columns}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "source": self.source,
            "rows": self.rows,
            "pairs": self.pairs,
            "rows_without_a_pair": dict(self.bad),
            "prompts": self.prompts,
            "prompts_with_several_pairs": self.prompts_with_several,
            "findings": [asdict(finding) for finding in self.findings],
            "lengths": {
                one.unit: {
                    **{k: v for k, v in asdict(one).items() if k != "unit"},
                    "quantiles_at": list(QUANTILES),
                    "verdict": one.words,
                }
                for one in self.lengths
            },
            # asdict would make a Counter of pairs out of the Counter.
            "languages": {**vars(self.languages), "prompts": dict(self.languages.prompts)}
            if self.languages
            else None,
            "kept_by_fix": int((self.drops == 0).sum()),
        }


def audit(path: str, options: AuditOptions | None = None) -> Audit:
    """Audit the preference dataset at ``path`` (what ``prefloop.data.preferences.read_preferences``
    reads).

    Raises ``InputError`` where the whole of it cannot be read.
    """
    options = options or AuditOptions()
    facts = Facts(options.against, options.tokens)
    bad, left_out, unread = BadRows(), LeftOut(), UnreadColumns()
    sample = Sample(options.languages, options.seed) if options.languages else None
    texts: list[str] = []
    read = 0
    with StepProgress("audit", None, unit="rows") as progress:
        for batch in batches(path, options, unread):
            read += batch.rows
            bad.add(batch)
            left_out.add(batch)
            facts.add(batch.pairs, batch.disputed)
            if sample and len(batch.pairs):
                sample.offer(batch.pairs)
            if options.near_duplicates:
                texts += prompt_texts(batch)
            progress.advance(batch.rows)
    found = facts.gather()
    repeats = find_repeats(found["prompt"], found["chosen"], found["rejected"])
    near = _near(texts, found["prompt"], options)
    drops, reasons = _drops(found, repeats, near, options)
    picked = sample.rows() if sample else None
    languages = find_languages(picked) if picked is not None else None
    where = Places(facts.sources, found["source"], found["row"])
    suspects = pair_suspects(found, repeats, near, options.against)
    findings = [
        *bad.findings(read),
        *left_out.findings(read),
        *unread_findings(unread, read),
        *findings_of(suspects, where, repeats.partner, rows=read),
        *findings_of(odd_suspects(found["oddities"]), where, repeats.partner, rows=read),
        *language_findings(languages, read),
    ]
    order = {"error": 0, "warning": 1, "info": 2}
    units = ["chars", "words", *(["tokens"] if options.tokens else [])]
    lengths = [
        length_bias(
            _UNITS[unit], found[f"chosen_{unit}"], found[f"rejected_{unit}"], found["prompt"]
        )
        for unit in units
    ]
    return Audit(
        source=shown(path),
        rows=read,
        pairs=len(drops),
        bad=bad.reasons,
        findings=tuple(sorted(findings, key=lambda one: order[one.severity])),
        prompts=repeats.prompts,
        prompts_with_several=repeats.prompts_with_several,
        lengths=tuple(one for one in lengths if one),
        histograms={
            _UNITS[unit]: _histogram(found[f"chosen_{unit}"], found[f"rejected_{unit}"])
            for unit in units
            if len(drops)
        },
        languages=languages,
        drops=drops,
        partners=repeats.partner,
        chosen_hashes=found["chosen"],
        reasons=reasons,
        where=where,
        columns=bad.columns,
    )


def batches(
    path: str, options: AuditOptions, unread: UnreadColumns | None = None
) -> Iterator[PreferenceBatch]:
    """The dataset as the audit reads it, and ``--fix`` reads it again."""
    return read_preferences(PromptSource(path=path), columns=options.columns, unread=unread)


def prompt_texts(batch: PreferenceBatch) -> list[str]:
    """What the users say in each prompt."""
    return [
        "\n\n".join(turn["content"] for turn in turns if turn["role"] == "user")
        for turns in batch.pairs["prompt"].to_pylist()
    ]


_UNITS = {"chars": "characters", "words": "words", "tokens": "tokens"}


def _near(
    texts: list[str], prompts: npt.NDArray[np.uint64], options: AuditOptions
) -> npt.NDArray[np.bool_]:
    """Pairs whose prompt nearly repeats an earlier, other prompt."""
    found = np.zeros(len(prompts), np.bool_)
    if not options.near_duplicates or not texts:
        return found
    distinct, first, of_prompt = np.unique(prompts, return_index=True, return_inverse=True)
    order = np.argsort(first)
    hits = near_duplicates(
        [texts[first[place]] for place in order], options.near_duplicates, seed=options.seed
    )
    repeated = np.zeros(len(distinct), np.bool_)
    repeated[order] = [hit is not None for hit in hits]
    result: npt.NDArray[np.bool_] = repeated[of_prompt]
    return result


def _drops(
    found: Mapping[str, npt.NDArray[Any]],
    repeats: Repeats,
    near: npt.NDArray[np.bool_],
    options: AuditOptions,
) -> tuple[npt.NDArray[np.int8], tuple[str, ...]]:
    """Why ``--fix`` drops each pair: the first reason that holds."""
    masks = {
        "identical": repeats.identical,
        "contradictory": repeats.contradictory,
        "circular": repeats.circular,
        "unclosed_thought": unclosed(found),
        "duplicate": repeats.duplicate,
        **{
            f"overlap:{one.name}": found["overlap"] == number
            for number, one in enumerate(options.against)
        },
        "near_duplicate_prompt": near,
    }
    drops = np.zeros(len(near), np.int8)
    for place, mask in reversed(list(enumerate(masks.values(), 1))):
        drops[mask] = place
    return drops, ("", *masks)


def _histogram(
    chosen: npt.NDArray[np.int32], rejected: npt.NDArray[np.int32]
) -> tuple[list[int], list[int], list[int]]:
    """At most 24 bins of a round width up to the 99th percentile; longer ones are in the last."""
    longest = max(1, int(np.percentile(np.concatenate([chosen, rejected]), 99)))
    widths = (mantissa * 10**power for power in range(10) for mantissa in (1, 2, 5))
    width = next(width for width in widths if longest < 24 * width)
    edges = np.arange(0, longest + 2 * width, width)
    last = edges[-1] - 1
    counts = [np.histogram(np.minimum(one, last), edges)[0].tolist() for one in (chosen, rejected)]
    return edges.tolist(), counts[0], counts[1]
