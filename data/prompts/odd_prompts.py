"""Prompts that hold what nobody asks: the words for a missing value (in a column of a template, or
as a reference answer), or a chat template that was rendered into them, so that the model's own is
put around it once more.

Both are texts like any other, so they are kept, counted and said.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from prefloop.data.config import Columns
from prefloop.data.prompts.prompt_rows import Prompt, prompt_columns
from prefloop.data.prompts.row_template import is_template
from prefloop.data.utf8 import is_null_word, shown

logger = logging.getLogger(__name__)

_RENDERED = re.compile(
    r"\A\s*(?:<\|[a-z_]{2,30}\|>|<｜[^<>]{2,30}｜>|(?:<s>|<bos>)?\s*(?:\[INST\]|<start_of_turn>))"
    r"|(?:\A|\s)(?:###\s*)?(?:ASSISTANT|Assistant|### Response|### Answer):\s*\Z"
    r"|<\|(?:im_start\|>)?assistant(?:\|>)?\s*\Z"
)
_BEGIN = 200
"""Characters at either end of a prompt that are looked at."""


class OddPrompts:
    """Counts them, and says so in the end."""

    def __init__(self, columns: Columns, key: str) -> None:
        """``key``: where the source stands in the config."""
        named = columns.prompt_column
        self._names = prompt_columns(columns) if is_template(named) else ()
        if columns.reference is not None:
            self._names = (*self._names, columns.reference)
        self._key = key
        self._null_words: Counter[str] = Counter()
        self._words: dict[str, str] = {}
        self._rendered = 0
        self._prompts = 0

    def look(self, fields: Mapping[str, Any], prompt: Prompt) -> None:
        """Take in a prompt, and the row that it was made of."""
        self._prompts += 1
        for name in self._names:
            value = fields.get(name)
            if isinstance(value, str) and is_null_word(value):
                self._null_words[name] += 1
                self._words.setdefault(name, value.strip())
        turns = prompt["messages"]
        if len(turns) == 1:
            text = turns[0]["content"]
            ends = text if len(text) <= 2 * _BEGIN else f"{text[:_BEGIN]} {text[-_BEGIN:]}"
            self._rendered += _RENDERED.search(ends) is not None

    def warn(self) -> None:
        """One warning for each column, and one for all that are rendered."""
        for name, rows in self._null_words.items():
            logger.warning(
                "%s: the column %r is the word %r in %s of %s rows, and is taken for a text there: "
                "leave it empty where there is nothing",
                self._key,
                shown(name),
                self._words[name],
                f"{rows:,}",
                f"{self._prompts:,}",
            )
        if self._rendered:
            logger.warning(
                "%s: %s of %s prompts hold a chat template's marks around their text (such as "
                "<|im_start|>, [INST] or ASSISTANT:), and the model's own are put around these: "
                "give the text alone, or the turns as {role, content}",
                self._key,
                f"{self._rendered:,}",
                f"{self._prompts:,}",
            )
