"""What a text looks like to a reader: letters, brackets and colons in their plainest form."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

_BLANK = "\u115f\u1160\u2800"
"""Letters and signs that print as nothing; all else that does is known by its category."""
_UNSEEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Me", "Mn", "Pc", "Pd", "Zl", "Zp", "Zs"}
"""Categories that a reader passes over within a word: controls, formats (what Unicode calls
default-ignorable is in one of these or in _BLANK), marks, spaces, hyphens and underscores."""
_DRAWN_AS = {
    "<": "〈⟨❮❬❰⧼⦑⟪《«≺˂ᐸ⪡≪⋖く◁◃◅⊲",
    ">": "〉⟩❯❭❱⧽⦒⟫》»≻˃ᐳ⪢≫⋗▷▹▻⊳",
    "[": "【〔〖❲⁅⟬⦋⦗", "]": "】〕〗❳⁆⟭⦌⦘", "|": "∣│┃❘⏐ǀ¦",
    ":": "∶꞉ː˸։׃܃܄፡᛬᠄⁝⁚ꓽ៖",
    "/": "⁄∕⧸╱⟋ノ⼃",
    # Cyrillic, Greek, Armenian, Cherokee, phonetic letters and small capitals, folded to small.
    "a": "аαɑᴀ", "b": "ьƅʙъ", "c": "сϲⅽᴄ", "d": "ԁɗᴅ", "e": "еҽєεᴇ℮", "f": "ƒꜰſϝ", "g": "ɡցɢԍ",
    "h": "һհʜн", "i": "іιıɩɪӏ", "j": "јϳȷᴊ", "k": "кκᴋ", "l": "ⅼʟ", "m": "мᴍ", "n": "пոηռɴνՙ",
    "o": "оοσօᴏ", "p": "рρᴘ", "q": "ԛզ", "r": "гʀᴦꭇ", "s": "ѕꜱ", "t": "тτᴛ", "u": "υսʋᴜ",
    "v": "ѵᴠ", "w": "ԝωաᴡш", "x": "хχ×", "y": "уγүʏ", "z": "ᴢ",
}  # fmt: skip
_PLAIN = {letter: plain for plain, letters in _DRAWN_AS.items() for letter in letters}


@lru_cache(maxsize=65_536)
def plain(character: str) -> str:
    """``character`` as a reader takes it: small letters and digits, other signs as they are, and
    a space for what is passed over."""
    if character in _BLANK or unicodedata.category(character) in _UNSEEN:
        return " "
    found = []
    for one in unicodedata.normalize("NFKD", _PLAIN.get(character, character)).casefold():
        if one in _BLANK or unicodedata.category(one) in _UNSEEN or one.isspace():
            found.append(" ")
        else:
            found.append(_PLAIN.get(one, one))
    return "".join(found) if any(one != " " for one in found) else " "


def skeleton(text: str) -> tuple[str, Sequence[int]]:
    """``text`` in plain characters, what is passed over as one space, and the place in ``text`` of
    each."""
    if text.isascii():
        return _ascii_skeleton(text)
    found: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        for one in plain(character):
            if one == " " and found and found[-1] == " ":
                continue
            found.append(one)
            places.append(place)
    return "".join(found), places


def _ascii_skeleton(text: str) -> tuple[str, Sequence[int]]:
    """The same for a text in ASCII, of which each character is one plain character."""
    seen = text.translate(_ASCII)
    if "  " not in seen:
        return seen, range(len(seen))
    kept = [(found.start(), found.end()) for found in _WITHOUT_RUNS.finditer(seen)]
    places = list(chain.from_iterable(range(start, end) for start, end in kept))
    return "".join(seen[start:end] for start, end in kept), places


_ASCII = {code: plain(chr(code)) for code in range(128)}
_WITHOUT_RUNS = re.compile("(?<! ) [^ ]*|[^ ]+")
"""Pieces of a text that leave out the spaces behind a space."""
