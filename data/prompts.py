"""Prompts in: raw rows become prompts, and every row that does not says why.

Invariant: rows read = train prompts + held-out prompts + quarantined + dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from data.config import Columns, PromptsConfig, PromptSource
from data.dedup import near_duplicates, overlaps
from data.errors import InputError
from data.hashing import content_id, derive_seed, prompt_id
from data.readers import BadRow, RawRow, read_rows
from data.schemas import DROPPED, PROMPT, QUARANTINE

_ROLES = {
    "system": "system", "user": "user", "assistant": "assistant",
    "human": "user", "gpt": "assistant",  # as ShareGPT names them
}  # fmt: skip
_REMEDY_COLUMN = "name the right one in prompts.train.columns"

Prompt = dict[str, Any]
"""A row of schema PROMPT."""


@dataclass(frozen=True)
class PromptTables:
    """Everything that was read: schemas PROMPT, PROMPT, QUARANTINE and DROPPED."""

    train: pa.Table
    heldout: pa.Table
    quarantine: pa.Table
    dropped: pa.Table
    read: int


@dataclass
class _Sorted:
    """Rows of one source on their way to prompts."""

    prompts: list[Prompt] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0

    def drop(self, matches: Sequence[str | None], reason: str) -> None:
        """Move the prompts that match something to the dropped ones."""
        pairs = list(zip(self.prompts, matches, strict=True))
        self.prompts = [prompt for prompt, match in pairs if match is None]
        self.dropped += [_dropped(prompt, reason, match) for prompt, match in pairs if match]


class _Unusable(Exception):
    """A row that is no prompt: the field at fault, a reason, and what to do about it."""

    def __init__(self, column: str | None, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.column, self.reason, self.detail = column, reason, detail


def load_prompts(config: PromptsConfig, *, seed: int) -> PromptTables:
    """Read the train and held-out prompts, drop repeats and overlaps, quarantine bad rows.

    A train prompt that repeats an earlier one, or overlaps with the held-out prompts or a named
    evaluation set, is dropped with that reason; so is a repeat among the held-out ones. Order is
    that of the sources. Raises :class:`InputError` for an unreadable source, a column mapping that
    fits no row, or, with ``on_bad_row: fail``, the first bad row.
    """
    train = _read(config.train, config, "prompts.train")
    heldout = _Sorted()
    if config.heldout:
        heldout = _read(config.heldout, config, "prompts.heldout")
        _drop_repeats(heldout, config, seed)
    _drop_exact(train, config)
    _drop_overlaps(train, heldout.prompts, "heldout", config, seed)
    for other in config.exclude_overlap:
        others = _read(other.source, config, f"prompts.exclude_overlap.{other.name}")
        _drop_overlaps(train, others.prompts, other.name, config, seed)
    _drop_near(train, config, seed)
    if not config.heldout:
        held = [_is_held_out(prompt, config.heldout_share, seed) for prompt in train.prompts]
        pairs = list(zip(train.prompts, held, strict=True))
        heldout.prompts = [prompt for prompt, out in pairs if out]
        train.prompts = [prompt for prompt, out in pairs if not out]
    bad = train.bad + heldout.bad
    return PromptTables(
        train=pa.Table.from_pylist(train.prompts, schema=PROMPT),
        heldout=pa.Table.from_pylist(heldout.prompts, schema=PROMPT),
        quarantine=pa.Table.from_pylist(list(map(_quarantined, bad)), schema=QUARANTINE),
        dropped=pa.Table.from_pylist(train.dropped + heldout.dropped, schema=DROPPED),
        read=train.read + heldout.read,
    )


def parse_row(raw: RawRow, columns: Columns) -> Prompt | BadRow:
    """``raw`` as a row of schema PROMPT, or why it is none."""
    try:
        return _prompt(raw, columns)
    except _Unusable as error:
        return BadRow(
            raw.source, raw.row, error.column, error.reason, error.detail, _json(raw.fields)
        )


def _read(source: PromptSource, config: PromptsConfig, key: str) -> _Sorted:
    found = _Sorted()
    contents_by_id: dict[str, str] = {}
    names: set[str] = set()
    for raw in read_rows(source):
        found.read += 1
        row: Prompt | BadRow
        if isinstance(raw, BadRow):
            row = raw
        else:
            names.update(raw.fields)
            row = _checked_id(parse_row(raw, source.columns), raw, source.columns, contents_by_id)
        if isinstance(row, BadRow):
            if config.on_bad_row == "fail" and row.reason != "missing_column":
                raise InputError(_one_line(row))
            found.bad.append(row)
        else:
            found.prompts.append(row)
    if names and not found.prompts and all(b.reason == "missing_column" for b in found.bad):
        raise InputError(
            f"{source.path}: no row has a column {source.columns.prompt!r} or "
            f"{source.columns.messages!r}; its columns are {', '.join(sorted(names))}: set "
            f"{key}.columns.prompt to the right one"
        )
    if config.on_bad_row == "fail" and found.bad:
        raise InputError(_one_line(found.bad[0]))
    return found


def _checked_id(
    row: Prompt | BadRow, raw: RawRow, columns: Columns, contents_by_id: dict[str, str]
) -> Prompt | BadRow:
    """``row``, unless its id of the source stands for another prompt already."""
    if isinstance(row, BadRow) or columns.id is None:
        return row
    explicit = str(raw.fields[columns.id])
    if contents_by_id.setdefault(explicit, row["prompt_id"]) == row["prompt_id"]:
        return row
    return BadRow(
        raw.source, raw.row, columns.id, "duplicate_id",
        f"id {explicit!r} stands for another prompt above: give each prompt an id of its own",
        _json(raw.fields),
    )  # fmt: skip


def _prompt(raw: RawRow, columns: Columns) -> Prompt:
    fields = raw.fields
    answer = None
    if fields.get(columns.messages) is not None:
        messages, answer = _conversation(fields[columns.messages], columns.messages)
    else:
        messages = [{"role": "user", "content": _text(fields, columns.prompt)}]
    if columns.id is not None and fields.get(columns.id) is None:
        raise _Unusable(
            columns.id, "missing_id", "every row needs an id, or set columns.id to null"
        )
    reference = answer
    if columns.reference is not None and fields.get(columns.reference) is not None:
        reference = _text(fields, columns.reference)
    used = {columns.prompt, columns.messages, columns.reference}
    wanted = (
        columns.metadata if columns.metadata is not None else [k for k in fields if k not in used]
    )
    kept = {name: fields[name] for name in wanted if name in fields}
    if columns.id is not None:
        kept["id"] = fields[columns.id]
    metadata = _json(kept)
    _check_unicode(metadata, None)
    return {
        "prompt_id": prompt_id(messages),
        "messages": messages,
        "reference": reference,
        "metadata": metadata,
        "source": raw.source,
        "row": raw.row,
    }


def _text(fields: Mapping[str, Any], column: str) -> str:
    if column not in fields:
        raise _Unusable(
            column, "missing_column", f"there is {', '.join(sorted(fields))}: {_REMEDY_COLUMN}"
        )
    value = fields[column]
    if value is None:
        raise _Unusable(column, "null", "fill it in, or remove the row")
    if not isinstance(value, str):
        raise _Unusable(
            column, "wrong_type", f"found {type(value).__name__}, needs text: {_REMEDY_COLUMN}"
        )
    if not value.strip():
        raise _Unusable(column, "empty", "fill it in, or remove the row")
    _check_unicode(value, column)
    return value


def _check_unicode(text: str, column: str | None) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Unusable(
            column, "not_utf8",
            f"character {error.start + 1} is no Unicode character: save the file as UTF-8",
        ) from None  # fmt: skip


def _conversation(value: Any, column: str) -> tuple[list[dict[str, str]], str | None]:
    """The turns up to the last user turn, and the assistant's answer to it if there is one."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _Unusable(
            column, "wrong_type",
            f"found {type(value).__name__}, needs a list of {{role, content}}: {_REMEDY_COLUMN}",
        )  # fmt: skip
    turns = [_turn(turn, number, column) for number, turn in enumerate(value, start=1)]
    answer = None
    if turns and turns[-1]["role"] == "assistant":
        answer = turns.pop()["content"]
    if not turns or turns[-1]["role"] != "user":
        raise _Unusable(
            column, "bad_messages", "a conversation has to end with a user turn (and may have the "
            "assistant's answer to it behind it)",
        )  # fmt: skip
    if any(turn["role"] == "system" for turn in turns[1:]):
        raise _Unusable(column, "bad_messages", "a system turn may only come first")
    return turns, answer


def _turn(turn: Any, number: int, column: str) -> dict[str, str]:
    where = f"{column}[{number - 1}]"
    if not isinstance(turn, Mapping):
        raise _Unusable(
            where, "bad_messages", f"found {type(turn).__name__}, needs role and content"
        )
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if role not in _ROLES:
        raise _Unusable(where, "bad_messages", f"role {role!r}: use system, user or assistant")
    if not isinstance(content, str) or not content.strip():
        raise _Unusable(where, "bad_messages", "its content has to be text, and not empty")
    _check_unicode(content, where)
    return {"role": _ROLES[role], "content": content}


def _drop_repeats(rows: _Sorted, config: PromptsConfig, seed: int) -> None:
    _drop_exact(rows, config)
    _drop_near(rows, config, seed)


def _drop_exact(rows: _Sorted, config: PromptsConfig) -> None:
    """Conversations that are the same but for white space around their turns.

    What has the same prompt id has to go even where ``deduplicate`` is off: rows are joined by it.
    """
    first: dict[str, str] = {}
    matches: list[str | None] = []
    for prompt in rows.prompts:
        key = _stripped_id(prompt) if config.deduplicate else prompt["prompt_id"]
        earlier = first.setdefault(key, _place(prompt))
        matches.append(None if earlier == _place(prompt) else earlier)
    rows.drop(matches, "exact_duplicate")


def _drop_near(rows: _Sorted, config: PromptsConfig, seed: int) -> None:
    if not config.near_duplicates.enabled:
        return
    prompts = rows.prompts
    matches = near_duplicates(list(map(_joined, prompts)), config.near_duplicates, seed=seed)
    rows.drop(_places(prompts, matches), "near_duplicate")


def _drop_overlaps(
    rows: _Sorted, others: Sequence[Prompt], name: str, config: PromptsConfig, seed: int
) -> None:
    if not others:
        return
    same = {_stripped_id(other): _place(other) for other in others}
    rows.drop([same.get(_stripped_id(prompt)) for prompt in rows.prompts], f"overlap:{name}")
    if config.near_duplicates.enabled:
        texts, other_texts = list(map(_joined, rows.prompts)), list(map(_joined, others))
        matches = overlaps(texts, other_texts, config.near_duplicates, seed=seed)
        rows.drop(_places(others, matches), f"overlap:{name}")


def _places(prompts: Sequence[Prompt], matches: Sequence[int | None]) -> list[str | None]:
    return [None if match is None else _place(prompts[match]) for match in matches]


def _place(prompt: Prompt) -> str:
    return f"{prompt['source']}:{prompt['row']}"


def _stripped_id(prompt: Prompt) -> str:
    return content_id(
        *(part for m in prompt["messages"] for part in (m["role"], m["content"].strip()))
    )


def _joined(prompt: Prompt) -> str:
    return "\n".join(message["content"] for message in prompt["messages"])


def _is_held_out(prompt: Prompt, share: float, seed: int) -> bool:
    return derive_seed(seed, "heldout", prompt["prompt_id"]) < share * 2**31


def _dropped(prompt: Prompt, reason: str, earlier: str) -> dict[str, Any]:
    kept = {name: prompt[name] for name in ("prompt_id", "source", "row", "messages")}
    return kept | {"reason": reason, "detail": f"repeats {earlier}"}


def _quarantined(bad: BadRow) -> dict[str, Any]:
    return {
        "stage": "prompts",
        "round": 0,
        "source": bad.source,
        "row": bad.row,
        "field": bad.field,
        "reason": bad.reason,
        "detail": bad.detail,
        # What is quarantined has to be storable whatever it holds.
        "content": bad.content.encode("utf-8", "backslashreplace").decode(),
    }


def _one_line(bad: BadRow) -> str:
    where = f"{bad.source}: row {bad.row}" + (f", field {bad.field}" if bad.field else "")
    return f"{where}: {bad.reason}: {bad.detail} (or set prompts.on_bad_row: quarantine)"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
