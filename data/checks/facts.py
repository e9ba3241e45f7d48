"""What an audit keeps of each pair: hashes, lengths and marks, about 70 bytes and no text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prefloop.data.arrays import Bools
from prefloop.data.checks.against import EvaluationSet
from prefloop.data.checks.identical import same_when_normalised
from prefloop.data.checks.oddities import find_oddities
from prefloop.data.checks.shapes import shapes
from prefloop.data.checks.text_hashes import conversation_hashes, text_hashes
from prefloop.data.checks.thoughts import find_thoughts
from prefloop.data.prompts.evaluation_sets import user_turns

Tokens = Callable[[list[str]], list[int]]
"""Number of tokens of each text."""

_COLUMNS = {
    "row": np.int64,
    "source": np.int32,
    "prompt": np.uint64,
    "chosen": np.uint64,
    "rejected": np.uint64,
    "same": np.bool_,
    "oddities": np.uint16,
    "disputed": np.bool_,
    "chosen_thoughts": np.uint8,
    "rejected_thoughts": np.uint8,
    "overlap": np.int8,
    "chosen_chars": np.int32,
    "rejected_chars": np.int32,
    "chosen_words": np.int32,
    "rejected_words": np.int32,
    "chosen_tokens": np.int32,
    "rejected_tokens": np.int32,
}


@dataclass
class Facts:
    """Facts of the pairs read so far, a column for each; ``gather`` joins what ``add`` found.

    ``source`` counts in ``sources``; ``prompt``, ``chosen`` and ``rejected`` are hashes; ``same``
    says that the answers are equal once normalised; ``oddities`` are those of the two answers and
    of the prompt's last turn (``prefloop.data.checks.oddities``), ``*_thoughts`` those of
    ``prefloop.data.checks.thoughts``; ``overlap`` is the number of the
    evaluation set that the prompt is in, or -1; ``*_tokens`` are there only with a tokenizer.
    """

    against: tuple[EvaluationSet, ...] = ()
    tokens: Tokens | None = None
    sources: list[str] = field(default_factory=list)
    _parts: list[dict[str, npt.NDArray[Any]]] = field(default_factory=list)

    def add(self, pairs: pa.Table, disputed: Bools) -> None:
        """Take in a batch of pairs (schema PREFERENCE), of which some are ``disputed`` by their
        scores."""
        if not len(pairs):
            return
        pairs = pairs.combine_chunks()
        prompt, chosen, rejected = (
            pairs[name].chunk(0) for name in ("prompt", "chosen", "rejected")
        )
        of_chosen, of_rejected = shapes(chosen), shapes(rejected)
        ends = prompt.offsets.to_numpy()[1:]
        asked = prompt.values.field("content").take(pa.array(ends - 1))
        part = {
            "row": pairs["row"].to_numpy(),
            "source": self._places(pairs["source"]),
            "prompt": conversation_hashes(prompt),
            "chosen": text_hashes(chosen),
            "rejected": text_hashes(rejected),
            "same": same_when_normalised(chosen, rejected, of_chosen, of_rejected),
            "oddities": find_oddities(chosen, of_chosen)
            | find_oddities(rejected, of_rejected)
            | find_oddities(asked, shapes(asked)),
            "disputed": disputed,
            "chosen_thoughts": find_thoughts(chosen),
            "rejected_thoughts": find_thoughts(rejected),
            "overlap": self._overlaps(prompt),
            "chosen_chars": of_chosen.chars,
            "rejected_chars": of_rejected.chars,
            "chosen_words": of_chosen.words,
            "rejected_words": of_rejected.words,
        }
        if self.tokens:
            part["chosen_tokens"] = np.array(self.tokens(chosen.to_pylist()), np.int32)
            part["rejected_tokens"] = np.array(self.tokens(rejected.to_pylist()), np.int32)
        self._parts.append(part)

    def gather(self) -> dict[str, npt.NDArray[Any]]:
        """All columns [N], in the order read."""
        names = [name for name in _COLUMNS if self.tokens or not name.endswith("_tokens")]
        found: dict[str, npt.NDArray[Any]] = {}
        for name in names:
            found[name] = np.concatenate(
                [np.empty(0, _COLUMNS[name]), *(part.pop(name) for part in self._parts)],
                dtype=_COLUMNS[name],
            )
        self._parts.clear()
        return found

    def _places(self, column: pa.ChunkedArray) -> npt.NDArray[np.int32]:
        encoded = column.chunk(0).dictionary_encode()
        for name in encoded.dictionary.to_pylist():
            if name not in self.sources:
                self.sources.append(name)
        places = np.array([self.sources.index(name) for name in encoded.dictionary.to_pylist()])
        found: npt.NDArray[np.int32] = places[encoded.indices.to_numpy()].astype(np.int32)
        return found

    def _overlaps(self, prompts: pa.Array) -> npt.NDArray[np.int8]:
        found = np.full(len(prompts), -1, np.int8)
        if not self.against:
            return found
        for row, turns in enumerate(prompts.to_pylist()):
            said = user_turns(turns)
            for number, one in enumerate(self.against):
                if one.find(said) is not None:
                    found[row] = number
                    break
        return found
