"""Every message that docs/troubles.md quotes is one that the code can say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.helpers.markdown import fenced
from tests.helpers.paths import ROOT

PAGE = ROOT / "docs" / "troubles.md"
ROOMS = ("data", "labelers", "training", "pipeline")
VARIES = re.compile(r"…|[()]|%[\w.]+|\{\}|[:;] ")
"""What stands between the fixed words of a message, and between its parts: an error puts its
remedy in parentheses or behind a colon."""
LEAST = 15
"""Letters of a message that stand in the code in one piece, at least."""


def quoted() -> list[str]:
    """The messages of the page: paragraphs of its blocks of text."""
    blocks = (block.text for block in fenced(PAGE) if block.language == "text")
    return [" ".join(part.split()) for text in blocks for part in text.split("\n\n")]


def fixed_words(message: str) -> list[str]:
    pieces = (piece.strip(" :;,.") for piece in VARIES.split(message))
    return [piece for piece in pieces if len(piece) > 2]


def said(tree: ast.AST) -> Iterator[str]:
    """The fixed parts of all texts of a module but for its docstrings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = isinstance(node, ast.Constant) and node.value
        if id(node) not in docstrings and isinstance(text, str):
            yield text


@pytest.fixture(scope="module")
def source() -> str:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in files)
    return "\0".join(piece for tree in trees for text in said(tree) for piece in VARIES.split(text))


@pytest.mark.parametrize("message", quoted(), ids=lambda message: message[:50])
def test_a_quoted_message_is_in_the_code(message: str, source: str) -> None:
    pieces = fixed_words(message)
    assert max(map(len, pieces)) >= LEAST
    assert [piece for piece in pieces if piece not in source] == []


def test_reasons_in_tables_are_in_the_code(source: str) -> None:
    rows = re.findall(r"^\| `(the [^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.M)
    assert len(rows) >= 4
    assert [reason for reason in rows if reason not in source] == []


def test_the_page_is_looked_at() -> None:
    assert len(quoted()) > 20
