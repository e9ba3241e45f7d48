"""Words and sentences as IFEval counts them: NLTK's tokenizers, with its English Punkt model.

The model's tables come with a package (``punkt``), so nothing is downloaded.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

_WORD = re.compile(r"\w+")


def word_count(text: str) -> int:
    """Runs of letters, digits and underscores; ``isn't`` is two."""
    return len(_WORD.findall(text))


def sentence_count(text: str) -> int:
    """Sentences by the Punkt model."""
    return len(_sentences(text))


def capital_words(text: str) -> int:
    """Words and numbers with letters that are capitals only; ``WELL-KNOWN`` is one, ``I`` too."""
    tokens = (token for part in _sentences(text) for token in _tokenizer().tokenize(part))
    return sum(token.isupper() for token in tokens)


def _sentences(text: str) -> list[str]:
    return list(_punkt().tokenize(text))


@lru_cache(maxsize=1)
def _punkt() -> Any:
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    from punkt import load_model

    # The package splits by itself as well, but not on every text as NLTK does.
    tables, parameters = load_model("english"), PunktParameters()
    parameters.abbrev_types.update(tables.abbrev_types)
    parameters.collocations.update(tables.collocations)
    parameters.sent_starters.update(tables.sent_starters)
    parameters.ortho_context.update(tables.ortho_context)
    return PunktSentenceTokenizer(parameters)


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()
