"""Code that is to pass tests, run where it can harm nothing: see ``cage``."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from prefloop.labelers.scorers.shipped.cage import Limits, run_caged
from prefloop.labelers.scorers.shipped.outcomes import UNPARSED, WRONG, GoldError, gold_of

_BLOCK = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PYTHON = ("", "py", "python", "python3")


def score(
    text: str,
    *,
    reference: str | None,
    metadata: Mapping[str, Any],
    options: Mapping[str, Any],
    **_: Any,
) -> float:
    """The share of tests that the answer's Python code passes.

    The code is the last fenced block of Python, or the whole answer where it has no block and is
    Python. Tests, in the metadata column ``options["gold"]``: a list of statements as in MBPP, each
    a test; one text of code as in HumanEval, a single test, whose ``check`` is called with the
    function that the column ``entry_point`` names; or a list of ``{"input": .., "output": ..}``,
    for programs that read and print. Raises ``GoldError`` where it holds none of these.
    """
    code = code_of(text)
    tests = _tests(gold_of(reference, metadata, options), metadata)
    if code is None:
        return UNPARSED
    limits = Limits(options["seconds"], options["memory_mb"])
    if isinstance(tests[0], dict):
        passed = [
            _same(run_caged(code, limits, given=test["input"]).printed, test["output"])
            for test in tests
        ]
    else:
        passed = run_caged(code, limits, tests).passed
    return sum(passed) / len(tests) if passed else WRONG


def code_of(text: str) -> str | None:
    """The Python code in an answer; null where there is none."""
    blocks = [
        textwrap.dedent(code)
        for language, code in _BLOCK.findall(text)
        if language.lower() in _PYTHON
    ]
    if blocks:
        return next((one for one in reversed(blocks) if _is_python(one)), blocks[-1])
    return text if _is_python(text) and not _is_prose(text) else None


def _is_python(code: str) -> bool:
    try:
        return bool(ast.parse(code).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_prose(text: str) -> bool:
    """A word or a number is Python as well, but no answer in code."""
    return all(isinstance(part, ast.Expr) for part in ast.parse(text).body)


def _tests(gold: Any, metadata: Mapping[str, Any]) -> list[Any]:
    if isinstance(gold, str):
        entry = metadata.get("entry_point")
        if isinstance(entry, str) and "def check" in gold:
            if not entry.isidentifier():
                raise GoldError(f"entry_point {entry[:80]!r} is no name of a function")
            gold = f"{gold}\n\ncheck({entry})\n"
        gold = [gold]
    if isinstance(gold, list) and gold:
        if all(isinstance(one, str) for one in gold):
            for one in gold:
                if not _is_python(one):
                    raise GoldError(f"a test is not Python: {one[:80]!r}")
            return gold
        programs = [one for one in gold if isinstance(one, Mapping)]
        if len(programs) == len(gold) and all(
            isinstance(one.get(key), str) for one in programs for key in ("input", "output")
        ):
            return [dict(one) for one in programs]
    raise GoldError(
        "the tests are neither code, nor a list of statements, nor a list of objects with input "
        "and output"
    )


def _same(printed: str | None, wanted: str) -> bool:
    """Line by line, but for spaces at the ends of lines and of the whole."""
    if printed is None:
        return False
    both = ([line.rstrip() for line in one.strip().splitlines()] for one in (printed, wanted))
    left, right = both
    return left == right
