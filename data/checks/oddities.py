"""Characters that hint at a damaged or unclean text.

Lone surrogates cannot stand in an Arrow string: such rows are unreadable (``not_utf8``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.checks.shapes import Shapes
from prefloop.data.utf8 import NULL_WORD

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Oddity:
    """A pattern (RE2) to look for, and what a hit means."""

    name: str
    pattern: str
    where: Literal["ascii_control", "beyond_ascii", "markup", "short"]
    """Which texts can have it at all (see ``Shapes``); those beyond ASCII are searched for each."""
    severity: Severity
    what: str
    remedy: str


_SHORT = 16
_CP1252 = "\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
"""What the bytes 80 to BF become when UTF-8 is read as Windows-1252 or Latin-1."""

ODDITIES = (
    Oddity(
        "replacement_character", "\ufffd", "beyond_ascii", "warning",
        "U+FFFD, left where bytes could not be decoded",
        "make the file again from its source with the right encoding",
    ),
    Oddity(
        "mojibake", f"[ÃÐÑ][{_CP1252}]|â€[{_CP1252}]|Â[\u00a0-\u00bf]|ðŸ", "beyond_ascii",
        "warning", "UTF-8 that was read as Windows-1252 or Latin-1 (Ã©, â€™)",
        "decode the source as UTF-8, or mend the texts with ftfy",
    ),
    Oddity(
        "control_character", "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f\u0080-\u009f]",
        "ascii_control", "warning", "control characters other than tab and line ends",
        "remove them, unless they are meant (terminal output)",
    ),
    Oddity(
        "zero_width", "[\u200b\u2060\ufeff\u00ad\u180e]", "beyond_ascii", "warning",
        "invisible characters: zero-width space, byte order mark, soft hyphen",
        "remove them: they split tokens and carry nothing",
    ),
    Oddity(
        "bidi_control", "[\u202a-\u202e\u2066-\u2069]", "beyond_ascii", "warning",
        "controls of the writing direction, which can hide text from readers",
        "look at these rows; remove the controls unless the text is right-to-left",
    ),
    Oddity(
        "mixed_script", "[A-Za-z][\u0430-\u044f\u0410-\u042f]|[\u0430-\u044f\u0410-\u042f][A-Za-z]",
        "beyond_ascii", "warning", "Latin and Cyrillic letters within a word",
        "look for look-alike letters in these rows",
    ),
    Oddity(
        "html", r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,5}|#x[0-9a-fA-F]{2,4});"
        r"|</?(?i:p|br|div|span|font|td|tr|li|ul|ol)(?:\s[^<>]*)?/?>",
        "markup", "info", "HTML tags or entities", "unescape and strip them, unless code is meant",
    ),
    Oddity(
        "template_token", r"<\|[A-Za-z0-9_]+\|>|\[/?INST\]|<(?:start|end)_of_turn>|</s>\s*$",
        "markup", "warning", "control tokens of a chat template written out as text",
        "strip them: in training they would end or open a turn",
    ),
    Oddity(
        "null_word", NULL_WORD, "short", "warning",
        "nothing but a word that programs write for a missing value (None, nan, N/A)",
        "look whether the text was lost, or is meant",
    ),
)  # fmt: skip


def find_oddities(texts: pa.Array, shape: Shapes) -> npt.NDArray[np.uint16]:
    """Which oddities each of ``texts`` (``string``, no nulls) has: uint16 [N], bit i for
    ``ODDITIES[i]``."""
    found = np.zeros(len(texts), dtype=np.uint16)
    groups = {
        "ascii_control": shape.control | shape.beyond_ascii,
        "beyond_ascii": shape.beyond_ascii,
        "markup": shape.markup,
        "short": shape.chars <= _SHORT,
    }
    for group, rows in groups.items():
        places = np.flatnonzero(rows)
        if not len(places):
            continue
        picked = texts.take(pa.array(places))
        for bit, oddity in enumerate(ODDITIES):
            if oddity.where == group:
                hits = pc.match_substring_regex(picked, oddity.pattern)
                found[places[hits.to_numpy(zero_copy_only=False)]] |= np.uint16(1 << bit)
    return found
