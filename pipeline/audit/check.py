"""`prefloop audit`: what is wrong, odd or lopsided in a preference dataset.

One pass over the file keeps some 70 bytes a pair and no text; what pairs say about each other
(repeats, contradictions, cycles) is found in those. Every row is a pair or an unreadable row, and
every finding says how many rows it has, which, how bad that is and what to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from prefloop.data.checks.against import EvaluationSet
from prefloop.data.checks.facts import Facts, Tokens
from prefloop.data.checks.language import Languages, Sample, find_languages
from prefloop.data.checks.lengths import QUANTILES, LengthBias, length_bias
from prefloop.data.checks.oddities import ODDITIES, Severity
from prefloop.data.checks.repeats import Repeats, find_repeats
from prefloop.data.config import NearDuplicates, PromptSource
from prefloop.data.dedup import near_duplicates
from prefloop.data.preferences import PreferenceBatch, PreferenceColumns, read_preferences
from prefloop.data.sources.rows import escaped
from prefloop.pipeline.run.progress import StepProgress

_EXAMPLES = 5
_EXAMPLE_CHARS = 160
_APART = {
    "prompts_differ": (
        "the conversations of chosen and rejected do not share their prompt",
        "two answers to different prompts cannot be compared: delete the rows",
    ),
    "empty_answer": ("an answer holds no text", "delete the rows"),
    "tie": ("neither answer is preferred", "nothing to learn from: leave the rows out"),
}
"""Reasons of rows without a pair that are findings of their own; all others are unreadable."""
_OF_UNREADABLE = "no pair can be read from the row"


@dataclass(frozen=True)
class AuditOptions:
    """What to look for beyond the defaults."""

    columns: PreferenceColumns | None = None
    against: tuple[EvaluationSet, ...] = ()
    near_duplicates: NearDuplicates | None = None
    """Null: near-duplicate prompts are not looked for, which needs all prompts in memory."""
    tokens: Tokens | None = None
    languages: int = 2_000
    """Pairs whose languages are told; 0 for none."""
    seed: int = 0


@dataclass(frozen=True)
class Finding:
    """One thing found."""

    name: str
    count: int
    share: float
    """Of all rows."""
    severity: Severity
    """``error``: the rows teach something wrong or nothing; ``warning``: look at them; ``info``."""
    what: str
    remedy: str
    examples: tuple[str, ...]
    """``source:row``, with what is to be said about it."""
    dropped_by_fix: bool


@dataclass
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

    @property
    def has_errors(self) -> bool:
        """Whether any finding is an error."""
        return any(finding.severity == "error" for finding in self.findings)

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
    bad: Counter[str] = Counter()
    bad_examples: dict[str, list[str]] = {}
    sample = Sample(options.languages, options.seed) if options.languages else None
    texts: list[str] = []
    read = 0
    with StepProgress("audit", None, unit="rows") as progress:
        for batch in batches(path, options):
            read += batch.rows
            _count_bad(batch, bad, bad_examples)
            facts.add(batch.pairs)
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
    where = _Where(facts.sources, found["source"], found["row"])
    findings = [
        *_bad_findings(bad, bad_examples, read),
        *_pair_findings(found, repeats, near, options, rows=read, where=where),
        *_odd_findings(found, rows=read, where=where),
        *_language_finding(languages, read),
    ]
    order = {"error": 0, "warning": 1, "info": 2}
    units = ["chars", "words", *(["tokens"] if options.tokens else [])]
    lengths = [
        length_bias(_UNITS[unit], found[f"chosen_{unit}"], found[f"rejected_{unit}"])
        for unit in units
    ]
    return Audit(
        source=escaped(path),
        rows=read,
        pairs=len(drops),
        bad=bad,
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
    )


def batches(path: str, options: AuditOptions) -> Iterator[PreferenceBatch]:
    """The dataset as the audit reads it, and ``--fix`` reads it again."""
    return read_preferences(PromptSource(path=path), columns=options.columns)


def prompt_texts(batch: PreferenceBatch) -> list[str]:
    """What the users say in each prompt."""
    return [
        "\n\n".join(turn["content"] for turn in turns if turn["role"] == "user")
        for turns in batch.pairs["prompt"].to_pylist()
    ]


_UNITS = {"chars": "characters", "words": "words", "tokens": "tokens"}


class _Where(Sequence[str]):
    """``source:row`` of each pair."""

    def __init__(
        self, sources: Sequence[str], source: npt.NDArray[Any], row: npt.NDArray[Any]
    ) -> None:
        self._sources, self._source, self._row = sources, source, row

    def __getitem__(self, index: Any) -> Any:
        return f"{self._sources[self._source[index]]}:{self._row[index]}"

    def __len__(self) -> int:
        return len(self._row)


def _count_bad(batch: PreferenceBatch, bad: Counter[str], examples: dict[str, list[str]]) -> None:
    if not len(batch.bad):
        return
    bad.update(batch.bad["reason"].to_pylist())
    for row in batch.bad.slice(0, 10 * _EXAMPLES).to_pylist():
        of_reason = examples.setdefault(row["reason"], [])
        if len(of_reason) < _EXAMPLES:
            field_name = f", field {row['field']!r}" if row["field"] else ""
            of_reason.append(
                f"{row['source']}:{row['row']}{field_name}: {row['detail'][:_EXAMPLE_CHARS]}"
            )


def _bad_findings(
    bad: Counter[str], examples: Mapping[str, list[str]], rows: int
) -> Iterator[Finding]:
    for reason, count in bad.most_common():
        what, remedy = _APART.get(reason, (_OF_UNREADABLE, "mend the rows, or delete them"))
        name = reason if reason in _APART else f"unreadable:{reason}"
        severity: Severity = "info" if reason == "tie" else "error"
        yield Finding(
            name, count, count / rows, severity, what, remedy,
            tuple(examples.get(reason, ())), dropped_by_fix=True,
        )  # fmt: skip


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


def _pair_findings(
    found: Mapping[str, npt.NDArray[Any]],
    repeats: Repeats,
    near: npt.NDArray[np.bool_],
    options: AuditOptions,
    *,
    rows: int,
    where: _Where,
) -> Iterator[Finding]:
    def finding(
        name: str, mask: npt.NDArray[np.bool_], severity: Severity, what: str, remedy: str,
        *, fixed: bool = True, says: str = "",
    ) -> Iterator[Finding]:  # fmt: skip
        places = np.flatnonzero(mask)
        if len(places):
            examples = [
                where[place] + (f" {says} {where[repeats.partner[place]]}" if says else "")
                for place in places[:_EXAMPLES]
            ]
            share = len(places) / rows
            yield Finding(name, len(places), share, severity, what, remedy, tuple(examples), fixed)

    yield from finding(
        "identical", repeats.identical, "error", "chosen and rejected are the same text",
        "delete the rows: their gradient is noise",
    )  # fmt: skip
    yield from finding(
        "identical_but_for_form", found["same"] & ~repeats.identical, "warning",
        "chosen and rejected differ in letter case, white space or Unicode form only",
        "keep them only where the form is what is asked for", fixed=False,
    )  # fmt: skip
    yield from finding(
        "contradictory", repeats.contradictory, "error",
        f"{repeats.contradictions:,} pairs of answers are preferred both ways",
        "ask more annotators, or drop both: nobody knows which is right", says="contradicts",
    )  # fmt: skip
    yield from finding(
        "circular", repeats.circular, "error",
        f"{repeats.cycles:,} cycle{'s' if repeats.cycles > 1 else ''} of preferences (A over B, B "
        "over C, C over A)",
        "look for the wrong label among them, or drop all",
    )  # fmt: skip
    yield from finding(
        "duplicate", repeats.duplicate, "warning", "an earlier row has the same pair",
        "delete the later rows: they count twice in training", says="repeats",
    )  # fmt: skip
    for number, one in enumerate(options.against):
        yield from finding(
            f"overlap:{one.name}", found["overlap"] == number, "error",
            f"the prompt is in the evaluation set {one.name}",
            "delete the rows, or results on that set mean nothing",
        )  # fmt: skip
    yield from finding(
        "near_duplicate_prompt", near, "warning", "the prompt nearly repeats an earlier one",
        "keep one of each, unless the repetition is meant",
    )  # fmt: skip


def _odd_findings(
    found: Mapping[str, npt.NDArray[Any]], *, rows: int, where: _Where
) -> Iterator[Finding]:
    for bit, oddity in enumerate(ODDITIES):
        places = np.flatnonzero(found["oddities"] & np.uint16(1 << bit))
        if len(places):
            yield Finding(
                oddity.name, len(places), len(places) / rows, oddity.severity, oddity.what,
                oddity.remedy, tuple(where[place] for place in places[:_EXAMPLES]), False,
            )  # fmt: skip


def _language_finding(languages: Languages | None, rows: int) -> Iterator[Finding]:
    if languages and languages.either_differs:
        share = languages.either_differs / languages.judged
        yield Finding(
            "other_language", languages.either_differs, languages.either_differs / rows, "info",
            f"in a sample of {languages.sample:,} pairs ({languages.judged:,} of them long and "
            f"clear enough), {100 * share:.1f} % have an answer in another language than the "
            f"prompt: chosen {languages.chosen_differs:,}, rejected {languages.rejected_differs:,}",
            "look at them, unless translation is asked for", tuple(languages.examples), False,
        )  # fmt: skip


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
