"""Do all endpoints serve the same model? What ``GET /models`` says of it, where a server has that.

Only what is plain counts: a server may answer to more names than it lists, and give a model's place
instead of its name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from prefloop.data.protocol import EngineFailed
from prefloop.pipeline.engines.endpoints.endpoint import Endpoint
from prefloop.pipeline.engines.openai.connections.response import TransportError
from prefloop.pipeline.engines.openai.server_words import load_body, one_line

_LONGEST_S = 10.0
_FEW = 5


@dataclass(frozen=True)
class Served:
    """What a server lists: all ``names``, and of the model asked about what it is (``root``, as
    vLLM and SGLang say it) and how many tokens it reads."""

    names: tuple[str, ...]
    root: str | None = None
    longest: int | None = None


@dataclass(frozen=True)
class Compared:
    """``lacking`` says of endpoints, by name, that they have no such model; ``notes`` are
    differences that may mean nothing."""

    lacking: Mapping[str, str]
    notes: tuple[str, ...]


async def served_by(endpoint: Endpoint, model: str, timeout_s: float) -> Served | None:
    """What ``endpoint`` lists; null where it does not say."""
    try:
        async with asyncio.timeout(min(timeout_s, _LONGEST_S)):
            response = await endpoint.transport.get("/models")
    except (TransportError, EngineFailed, TimeoutError):
        return None
    return None if response.status != 200 else served_in(response.body, model)


def served_in(body: bytes, model: str) -> Served | None:
    """What the body of such an answer says; null where it is none."""
    try:
        listed = load_body(body)
    except ValueError:
        return None
    rows = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(rows, list):
        return None
    known = [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]
    found = next((row for row in known if row["id"] == model), {})
    root, longest = found.get("root"), found.get("max_model_len")
    return Served(
        tuple(row["id"] for row in known),
        root if isinstance(root, str) and root else None,
        longest if isinstance(longest, int) else None,
    )


def others_in(model: str, served: Served | None) -> str | None:
    """The models that a server lists where ``model`` is none of them, in words; null where it is
    one, also by a part of its name, where nobody can tell, and of the long lists of those who serve
    many."""
    if served is None or not 0 < len(served.names) <= _FEW:
        return None
    wanted = _parts(model)
    return None if any(wanted & _parts(name) for name in served.names) else _listed(served)


def _parts(name: str) -> set[str]:
    """What ``name`` may be called too: without its owner or folder, tag or ending."""
    plain = name.strip().lower().rstrip("/")
    last = plain.rpartition("/")[2]
    return {plain, last, last.partition(":")[0], last.removesuffix(".gguf")}


def _listed(served: Served) -> str:
    few = ", ".join(repr(one_line(each, 60)) for each in served.names[:_FEW])
    more = f" and {len(served.names) - _FEW} more" if len(served.names) > _FEW else ""
    return f"{few or 'no model'}{more}"


def compared(model: str, served: Mapping[str, Served | None]) -> Compared:
    """What differs between endpoints, by their names, that are all to serve ``model``."""
    said = {name: one for name, one in served.items() if one is not None}
    having = [name for name, one in said.items() if model in one.names]
    lacking = {}
    if having:  # else it is a name that servers do not list
        for name, one in said.items():
            if model not in one.names:
                lacking[name] = f"it lists {_listed(one)}, and not {model!r}"
    roots = {name: said[name].root for name in having if said[name].root}
    longest = {name: said[name].longest for name in having if said[name].longest}
    notes = []
    if len({(root or "").rstrip("/").rpartition("/")[2] for root in roots.values()}) > 1:
        told = ", ".join(f"{name} {one_line(root or '', 80)!r}" for name, root in roots.items())
        notes.append(f"{model!r} may not be the same model everywhere: {told}")
    if len(set(longest.values())) > 1:
        told = ", ".join(f"{name} {number}" for name, number in longest.items())
        notes.append(f"{model!r} reads prompts of different length: {told} tokens")
    return Compared(lacking, tuple(notes))
