"""Do answers come in the language of their prompt? On a sample, and where one can be sure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_CHARS = 1_000
"""The beginning of a text tells its language."""
_LEAST_LETTERS = 40
"""Shorter texts (a number, a name, a line of code) are not judged."""
_SURE = 0.99


@dataclass
class Languages:
    """Languages (ISO 639-1) in a sample of pairs. A text is judged where it has at least 40
    letters and the identifier is at least 99 % sure."""

    sample: int = 0
    """Pairs drawn."""
    judged: int = 0
    """Of these, pairs whose three texts could all be judged."""
    chosen_differs: int = 0
    """Judged pairs whose chosen answer is in another language than the prompt."""
    rejected_differs: int = 0
    either_differs: int = 0
    prompts: Counter[str] = field(default_factory=Counter)
    """Judged prompts by language."""
    examples: list[str] = field(default_factory=list)


class Sample:
    """``size`` of the rows offered, each with the same chance; the same rows for the same seed."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._random = np.random.default_rng(seed)
        self._lots: npt.NDArray[np.float64] = np.empty(0)
        self._rows: pa.Table | None = None

    def offer(self, rows: pa.Table) -> None:
        """Draw a lot for each of ``rows`` and keep the lowest so far."""
        lots = np.concatenate([self._lots, self._random.random(len(rows))])
        kept = np.arange(len(lots))
        if len(lots) > self._size:
            kept = np.sort(np.argpartition(lots, self._size)[: self._size])
        new = kept[kept >= len(self._lots)] - len(self._lots)
        old = kept[kept < len(self._lots)]
        if len(new) or self._rows is None:
            picked = rows.take(pa.array(new, pa.int64()))
            both = [picked] if self._rows is None else [self._rows.take(pa.array(old)), picked]
            # Small pieces of many batches would keep all of these batches alive.
            self._rows = pa.concat_tables(both).combine_chunks()
            self._lots = lots[kept]

    def rows(self) -> pa.Table | None:
        """The rows drawn, in their order; None if none was offered."""
        return self._rows


def find_languages(pairs: pa.Table, most_examples: int = 5) -> Languages:
    """Languages of the prompts' last turns and of both answers. ``pairs``: schema PREFERENCE."""
    identify = _identifier()
    found = Languages(sample=len(pairs))
    for row in pairs.to_pylist():
        prompt = identify(row["prompt"][-1]["content"])
        chosen, rejected = identify(row["chosen"]), identify(row["rejected"])
        if prompt is None or chosen is None or rejected is None:
            continue
        found.judged += 1
        found.prompts[prompt] += 1
        found.chosen_differs += chosen != prompt
        found.rejected_differs += rejected != prompt
        if prompt not in (chosen, rejected) or chosen != rejected:
            found.either_differs += 1
            if len(found.examples) < most_examples:
                found.examples.append(
                    f"{row['source']}:{row['row']} ({prompt} → {chosen}, {rejected})"
                )
    return found


def languages_of(texts: Iterable[str]) -> Counter[str]:
    """The texts by language (ISO 639-1), of those that can be judged."""
    identify = _identifier()
    return Counter(one for one in map(identify, texts) if one is not None)


def language_of(text: str) -> str | None:
    """The language (ISO 639-1) of one text; null where it cannot be judged."""
    return _identifier()(text)


@cache
def _identifier() -> Callable[[str], str | None]:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def identify(text: str) -> str | None:
        beginning = text[:_CHARS]
        if sum(map(str.isalpha, beginning)) < _LEAST_LETTERS:
            return None
        language, sure = model.classify(beginning)
        return str(language) if sure >= _SURE else None

    return identify
