"""The page: self-contained, and nothing in it is loaded from or sent to anywhere else.

What models wrote enters it as JSON that cannot end its element, is put on the page as text alone,
and could not run if it were more: the page's policy allows no script but its own, by hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from prefloop.data.arrays import Ints
from prefloop.data.errors import InputError
from prefloop.data.shards import atomic_write_text
from prefloop.pipeline.report.pages import render_page
from prefloop.pipeline.report.redact import hide_environment_secrets
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.view.pair_facts import drawn, some
from prefloop.pipeline.view.pair_texts import BrowsedPairs, shown_pairs
from prefloop.pipeline.view.run_pairs import RunPairs
from prefloop.pipeline.view.triple_pairs import TriplePairs

LONGEST_TEXT = 20_000
"""Characters of a text in a page that is a file; the rest is counted. A server has all."""
_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def open_pairs(path: Path) -> BrowsedPairs:
    """The pairs of a run directory, a dataset folder or a Parquet file of triples.

    Raises ``InputError`` where there are none.
    """
    run = RunDir(path)
    if run.config.is_file():
        return RunPairs(run)
    if not path.exists():
        raise InputError(f"{path}: is not there: give a run directory, a dataset folder or a file")
    return TriplePairs(path)


def write_view(path: Path, out: Path, *, most: int, seed: int) -> Path:
    """Write ``most`` pairs of ``path`` as one page; returns ``out``. Raises as
    :func:`open_pairs`."""
    if most < 1:
        raise InputError(f"--pairs {most}: at least 1")
    if out.is_file() and out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--html {out}: is there and no page: choose a name that ends in .html")
    pairs = open_pairs(path)
    taken = some(pairs.facts, most, seed)
    why = {row: reason for reason, rows in taken.items() for row in rows.tolist()}
    order = drawn(pairs.facts, seed)
    rows = order[np.isin(order, np.fromiter(why, np.int64))]
    shown = shown_pairs(pairs, rows.tolist(), LONGEST_TEXT)
    about = {
        "why": {reason: len(found) for reason, found in taken.items()},
        "pairs": [{**pair, "why": why[pair["id"]]} for pair in shown],
    }
    atomic_write_text(out, render_view(pairs, rows, seed=seed, more=about))
    return out


def render_view(
    pairs: BrowsedPairs, rows: Ints | None = None, *, seed: int, more: dict[str, Any] | None = None
) -> str:
    """The page about ``rows`` (all where that is null), whose texts are in ``more``; without it, it
    asks the server that it came from."""
    facts = pairs.facts if rows is None else pairs.facts.take(pa.array(rows))
    data = {
        "name": pairs.name,
        "total": len(pairs.facts),
        "seed": seed,
        "served": more is None,
        "choices": _choices(facts),
        **(more or {}),
    }
    script, style = (_template(name) for name in ("view.js", "view.css"))
    return render_page(
        "view.html.jinja",
        name=pairs.name,
        policy=content_policy(script, style, served=more is None),
        script=Markup(script),  # noqa: S704 (ours)
        style=Markup(style),  # noqa: S704 (ours)
        data=Markup(script_json(data)),  # noqa: S704 (escaped)
    )


def content_policy(script: str, style: str, *, served: bool) -> str:
    """What the page may do: run this script, use this style, and ask its own server if it has
    one."""
    connect = "'self'" if served else "'none'"
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            "img-src data:",
            f"connect-src {connect}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def script_json(data: Any) -> str:
    """``data`` as JSON that can stand in a script element: nothing in it ends the element or a
    line, and no secret of the environment is in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    return hide_environment_secrets(text).translate(_ESCAPES)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _template(name: str) -> str:
    return (files("prefloop.pipeline") / "templates" / name).read_text(encoding="utf-8")


def _choices(facts: pa.Table) -> dict[str, list[tuple[str, int]]]:
    """The values that can be filtered by, and how many pairs have each."""
    labelers = Counter(
        name for names in facts["labelers"].to_pylist() if names for name in set(names)
    )
    counts = {
        name: Counter(value for value in facts[name].to_pylist() if value is not None)
        for name in ("round", "split", "fate")
    }
    return {
        name: [(str(value), count) for value, count in sorted(found.items())]
        for name, found in {**counts, "labeler": labelers}.items()
    }
