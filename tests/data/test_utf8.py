"""What is written for text that no terminal should be given."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st

from prefloop.data.utf8 import one_line, shown_block

ANY = st.text(st.characters(exclude_categories=[]))
STEERS = [*map(chr, range(32)), *map(chr, range(127, 160)), "\u202e", "\u2028", "\u2066", "\ud800"]


@given(ANY | st.text(alphabet="\x1b[31m\x07\r\n\t\x9b\u202e\u2028a\ud800"))
@example("".join(STEERS))
def test_nothing_steers_the_terminal(text: str) -> None:
    assert not set(STEERS) & set(one_line(text))
    assert not (set(STEERS) - {"\n", "\t"}) & set(shown_block(text))


@given(ANY)
def test_json_stays_the_same_json(text: str) -> None:
    written = json.dumps({"a": text}, ensure_ascii=False, indent=2)
    assert json.loads(shown_block(written, as_json=True)) == {"a": text}


def test_plain_text_stays() -> None:
    assert one_line("two  words\nand é \U0001f600") == "two words and é \U0001f600"
    assert shown_block(" a\n\tb") == " a\n\tb"
    assert one_line("\x1b[31mred\x7f") == "\\x1b[31mred\\x7f"
