"""The one door through which training reads files, whoever wrote them.

Rows come out in one form: a prompt as a conversation, an answer as a text, a label as yes or no.
What is certain is mended: a prompt that is one text is a user's turn (a transcript its turns),
roles and keys of other formats are ours by another name, a conversation that repeats its prompt
ends in the answer. What is not is dropped, with its reason and the place of the first such row. The
prompt itself says which prompt a row has: ids of others are often null, or shared by several.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefloop.data.conversations.conversation import conversation_of, plain, turns_text
from prefloop.data.conversations.reasoning import as_turn, split_thought
from prefloop.data.hashing import prompt_id
from prefloop.data.preferences.layouts import TIE_STATUS
from prefloop.data.preferences.pair_rows import earlier_turns
from prefloop.data.protocol import Message
from prefloop.data.sources.class_names import batch_by_names, names_in_schema
from prefloop.data.sources.tool_turns import (
    full_turns,
    is_thought,
    thought_of,
    tools_of,
    turns_of,
)
from prefloop.data.sources.turns import (
    Unusable,
    conversation_in,
    refuse_null_word,
    refuse_texts,
)
from prefloop.data.utf8 import is_blank, says_nothing
from prefloop.training.errors import TrainingError

UNREADABLE = "unreadable"
_BATCH = 1024
_OURS = frozenset({"system", "user", "assistant", "tool"})
_ANSWERED = ("user", "tool")
_NOBODY_ASKS = "ends with a turn of the {}, where the answer follows a user's or a tool's: mend it"
_TOOLS = ("tools", "prompt_turns")
_TOOL_KEYS = ("tool_calls", "tool_call_id", "function_call")
_YES_NO: dict[str, int] = {
    "true": 1, "false": 0, "1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1,
}  # fmt: skip
_FORM = 'is not one assistant message: write it as [{"role": "assistant", "content": "..."}]'
_PROMPT_FORM = 'is not a conversation: write it as [{"role": "user", "content": "..."}]'
_PAIR = "triples have prompt, chosen and rejected, each a list of {role, content}"
_SINGLE = "single answers have prompt, completion and label"


_SYSTEMS = ("system", "system_prompt")
_HISTORY = "history"
"""Questions and answers before the prompt."""
_PAIR_COLUMNS = (
    "prompt", "chosen", "rejected", "p_chosen", "margin", "chosen_id", "rejected_id", _HISTORY,
    "status", *_TOOLS, *_SYSTEMS,
)  # fmt: skip
_ANSWER_COLUMNS = ("prompt", "completion", "label", "candidate_id", _HISTORY, *_TOOLS, *_SYSTEMS)


@dataclass
class Dropped:
    """Rows that are not used, by reason, and where the first of each reason stands."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str, detail: str) -> None:
        """Count a row; ``where`` names it and ``detail`` says what is wrong with it."""
        self.counts[reason] += 1
        self.first.setdefault(reason, f"{where}: {detail}" if where else detail)

    def as_dict(self) -> dict[str, int]:
        """Rows by reason, in the order of their names."""
        return dict(sorted(self.counts.items()))

    def said(self) -> str:
        """Reasons and counts, the commonest first, and where that one is met first; empty where
        nothing was dropped."""
        if not self.counts:
            return ""
        ranked = sorted(self.counts.items(), key=lambda one: (-one[1], one[0]))
        counts = ", ".join(f"{number} {reason}" for reason, number in ranked)
        return f"{counts}; first: {' '.join(self.first[ranked[0][0]].split())}"


@dataclass(frozen=True)
class TripleRow:
    """One pair."""

    where: str
    """File and row, for messages."""
    prompt: list[Message]
    chosen: str
    rejected: str
    p_chosen: float
    """1 where nobody said."""
    margin: float
    """NaN where it is no number; 1 where the file has none."""
    chosen_id: str | None = None
    """The candidate's, as ``rejected_id``; null where the file does not say."""
    rejected_id: str | None = None


@dataclass(frozen=True)
class AnswerRow:
    """One answer and whether it is one to write."""

    where: str
    prompt: list[Message]
    text: str
    good: bool
    candidate_id: str | None = None


def pair_rows(files: Sequence[Path], dropped: Dropped) -> Iterator[TripleRow]:
    """The pairs of ``files`` in their order; rows that cannot be read are put into ``dropped``.

    Raises ``TrainingError`` for a file that is no Parquet or lacks a column.
    """
    for file in files:
        names = _names(file)
        _require(file, names, ("prompt", "chosen", "rejected"), _PAIR)
        for where, row in _rows(file, names, _PAIR_COLUMNS):
            try:
                _refuse_tie(row)
                prompt = _whole_prompt(row)
                yield TripleRow(
                    where,
                    _with_tools(prompt, row),
                    read_answer(row.get("chosen"), "chosen", prompt),
                    read_answer(row.get("rejected"), "rejected", prompt),
                    _probability(row.get("p_chosen")),
                    _number(row["margin"]) if "margin" in row else 1.0,
                    _id(row.get("chosen_id")),
                    _id(row.get("rejected_id")),
                )
            except Unusable as unusable:
                dropped.add(unusable.reason, where, f"{unusable.field} {unusable.detail}")


def answer_rows(files: Sequence[Path], dropped: Dropped) -> Iterator[AnswerRow]:
    """Each answer of ``files``; two for a pair. Otherwise as ``pair_rows``."""
    for file in files:
        names = _names(file)
        if "completion" not in names:
            for pair in pair_rows([file], dropped):
                yield AnswerRow(pair.where, pair.prompt, pair.chosen, True, pair.chosen_id)
                yield AnswerRow(pair.where, pair.prompt, pair.rejected, False, pair.rejected_id)
            continue
        _require(file, names, ("prompt", "completion", "label"), _SINGLE)
        _check_labels(file)
        for where, row in _rows(file, names, _ANSWER_COLUMNS):
            try:
                prompt = _whole_prompt(row)
                text = read_answer(row.get("completion"), "completion", prompt)
                label = read_label(row.get("label"))
                if label is None:
                    raise Unusable("label", "no_label", "is null: write true or false")
                shown, whose = _with_tools(prompt, row), _id(row.get("candidate_id"))
                yield AnswerRow(where, shown, text, label > 0, whose)
            except Unusable as unusable:
                dropped.add(unusable.reason, where, f"{unusable.field} {unusable.detail}")


def _id(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def prompts_in(files: Sequence[Path]) -> set[str]:
    """Ids of the prompts of ``files``; rows without a readable one are passed over."""
    found = set()
    for file in files:
        names = _names(file)
        _require(file, names, ("prompt",), _PAIR)
        for _, row in _rows(file, names, ("prompt",)):
            try:
                found.add(prompt_id(read_prompt(row.get("prompt"))))
            except Unusable:
                continue
    return found


def read_prompt(value: Any) -> list[Message]:
    """The conversation that ``value`` is. Raises ``Unusable``."""
    if isinstance(value, str):
        if is_blank(value):
            raise _unreadable("prompt", "holds no text")
        _refuse_no_prompt(value)
        turns = _without_open_turn(_turns_in_text(value, "prompt")) or _one_user_turn(value)
    else:
        turns = _turns(value, "prompt")
    if turns[-1]["role"] not in _ANSWERED:
        raise _unreadable("prompt", _NOBODY_ASKS.format(turns[-1]["role"]))
    return turns


def _refuse_no_prompt(text: str) -> None:
    try:
        refuse_null_word(text, "prompt")
        refuse_texts(text, "prompt")
    except Unusable as unusable:
        raise _unreadable("prompt", unusable.detail) from None


def _refuse_tie(row: Mapping[str, Any]) -> None:
    if row.get("status") == TIE_STATUS:
        raise Unusable("status", "tie", "says that neither answer is preferred")


def _whole_prompt(row: Mapping[str, Any]) -> list[Message]:
    """The prompt behind the turns and the system prompt of columns of their own. Raises
    ``Unusable``."""
    prompt = read_prompt(row.get("prompt"))
    earlier = plain(earlier_turns(row.get(_HISTORY), _HISTORY))
    begin = 1 if prompt[0]["role"] == "system" else 0
    return _with_system([*prompt[:begin], *earlier, *prompt[begin:]], row)


def _with_system(prompt: list[Message], row: Mapping[str, Any]) -> list[Message]:
    """``prompt`` behind the system prompt of its own column, unless it has one."""
    said = (row.get(name) for name in _SYSTEMS)
    system = next((one for one in said if isinstance(one, str) and not says_nothing(one)), None)
    if system is None or prompt[0]["role"] == "system":
        return prompt
    return [{"role": "system", "content": system}, *prompt]


def _with_tools(prompt: list[Message], row: Mapping[str, Any]) -> list[Message]:
    """``prompt`` with the tools of its row. Raises ``Unusable``."""
    tools, turns = tools_of(row.get("tools"), "tools"), row.get("prompt_turns")
    if turns is None:
        turns = turns_text(prompt)  # of a file that has whole turns in its prompts
    if tools is None and turns is None:
        return prompt
    try:
        return conversation_of(prompt, turns, tools)
    except (ValueError, TypeError, AttributeError):
        raise _unreadable("prompt_turns", "are not the turns of the prompt as JSON") from None


def read_answer(value: Any, column: str, prompt: Sequence[Message]) -> str:
    """The text of the assistant's answer to ``prompt``. Raises ``Unusable``."""
    text = _answer(value, column, prompt)
    if is_blank(text):
        raise Unusable(column, "empty_answer", "holds no text: delete the row")
    return text


def _answer(value: Any, column: str, prompt: Sequence[Message]) -> str:
    written = value
    if isinstance(value, str) and (written := _conversation_in(value, column)) is None:
        return value
    *before, last = _turns(written, column)
    if last["role"] != "assistant":
        raise _unreadable(column, _FORM)
    said = [turn for turn in prompt if turn["role"] != "system"]
    if before and plain(before) != plain(prompt) and plain(before) != plain(said):
        raise _unreadable(column, f"repeats another conversation than its prompt: {_FORM}")
    text = str(last["content"])
    thought = _thought_of_answer(written, column)
    if thought is None or split_thought(text, opened=None).reasoning is not None:
        return text
    return as_turn(thought, text)


def read_label(value: Any) -> int | None:
    """1 for yes, 0 or -1 for no; null where there is none. Raises ``ValueError`` for another
    value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    word = str(value).strip().casefold()
    if not word:
        return None
    if word not in _YES_NO:
        raise ValueError(value)
    return _YES_NO[word]


def _check_labels(file: Path) -> None:
    """Raise ``TrainingError`` unless the labels of ``file`` say yes and no in one way: ratings, or
    0 beside -1, would be read as something that nobody meant."""
    found: set[int] = set()
    for where, row in _rows(file, {"label"}, ("label",)):
        try:
            label = read_label(row.get("label"))
        except ValueError:
            raise TrainingError(
                f"{where}: label is {row['label']!r}: write true or false (1 and 0, or 1 and -1)"
            ) from None
        if label is not None:
            found.add(label)
        if {0, -1} <= found:
            raise TrainingError(
                f"{where}: label is {row['label']!r}, and others are 0 and -1: write true or "
                "false, so that it is sure what is a bad answer"
            )


def _names(file: Path) -> set[str]:
    try:
        return set(pq.read_schema(file).names)
    except (OSError, pa.ArrowException) as error:
        raise _no_parquet(file, error) from None


def require_columns(files: Sequence[Path], columns: Sequence[str]) -> None:
    """Raise ``TrainingError`` for a file that lacks one of ``columns``."""
    for file in files:
        _require(file, _names(file), columns, _PAIR)


def _require(file: Path, names: set[str], wanted: Sequence[str], kind: str) -> None:
    missing = [name for name in wanted if name not in names]
    if missing:
        raise TrainingError(f"{file}: has no column {missing[0]!r}: {kind}")


def _rows(
    file: Path, names: set[str], columns: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row's place and its ``columns``; empty where a string in it is no UTF-8."""
    number = 0
    wanted = [name for name in columns if name in names]
    try:
        with pq.ParquetFile(file) as parquet:
            classes = names_in_schema(parquet.schema_arrow, ("label",))
            for batch in parquet.iter_batches(batch_size=_BATCH, columns=wanted):
                for row in _dicts(batch_by_names(batch, classes)):
                    number += 1
                    yield f"{file}, row {number}", row
    except (OSError, pa.ArrowException) as error:
        raise _no_parquet(file, error) from None


def _dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        if len(batch) == 1:
            return [{}]
        return [row for index in range(len(batch)) for row in _dicts(batch.slice(index, 1))]
    return rows


def _no_parquet(file: Path, error: Exception) -> TrainingError:
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return TrainingError(f"{file}: cannot be read as Parquet: {first}")


def _turns(value: Any, column: str) -> list[Message]:
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not turns:
        raise _unreadable(column, _PROMPT_FORM if column == "prompt" else _FORM)
    found = [
        one
        for number, turn in enumerate(turns, 1)
        if not is_thought(turn)
        for one in _turn(turn, column, number)
    ]
    if not found:
        raise _unreadable(column, _PROMPT_FORM if column == "prompt" else _FORM)
    return found


def _turn(turn: Any, column: str, number: int) -> list[Message]:
    """The turn; none where it is a system's without text."""
    if isinstance(turn, dict):
        match turn:
            case {"role": str(role), "content": str(content)} if role in _OURS and not any(
                map(turn.get, _TOOL_KEYS)
            ):
                blank_system = role == "system" and is_blank(content)
                return [] if blank_system else [{"role": role, "content": content}]
        # Rows of mixed formats have all keys, and null for those of the other format.
        turn = {key: value for key, value in turn.items() if value is not None}
        if any(map(turn.get, _TOOL_KEYS)):
            return _tool_turn(turn, column, number)
        parts = turn.get("content")
        if isinstance(parts, list) and parts and all(map(_is_text_part, parts)):
            turn["content"] = "".join(part["text"] for part in parts)
    try:
        found = turns_of([turn], column)
    except Unusable as unusable:
        detail = unusable.detail.replace("turn 1 ", f"turn {number} ", 1)
        raise _unreadable(column, detail) from None
    return [{"role": one["role"], "content": one["content"]} for one in found]


def _tool_turn(turn: dict[str, Any], column: str, number: int) -> list[Message]:
    try:
        turns = [found for _, found in full_turns(turn, column)]
    except Unusable as unusable:
        detail = unusable.detail.replace("turn 1", f"turn {number}", 1)
        raise _unreadable(column, detail) from None
    texts = plain(turns)
    whole = [found.get("full", text) for found, text in zip(turns, texts, strict=True)]
    return conversation_of(texts, json.dumps(whole), None)


def _is_text_part(part: Any) -> bool:
    match part:
        case {"type": "text", "text": str()}:
            return True
    return False


def _thought_of_answer(turns: Any, column: str) -> str | None:
    """What was thought before the last of ``turns``, where the row has it apart. Raises
    ``Unusable``."""
    given = [turns] if isinstance(turns, dict) else turns
    if not any(is_thought(turn) or thought_of(turn) for turn in given):
        return None
    # Rows of mixed formats have all keys, and null for those of the other format.
    said = [{key: value for key, value in turn.items() if value is not None} for turn in given]
    *_, (_, last) = full_turns(said, column)
    return last.get("thought")


def _conversation_in(text: str, column: str) -> Any:
    """The turns that ``text`` spells out, as a list or as a transcript; null in plain text."""
    try:
        return conversation_in(text, column)
    except Unusable as unusable:
        raise _unreadable(column, unusable.detail) from None


def _turns_in_text(text: str, column: str) -> list[Message]:
    written = _conversation_in(text, column)
    return [] if written is None else _turns(written, column)


def _without_open_turn(turns: list[Message]) -> list[Message]:
    """Without the empty turn of an assistant that a transcript ends in where the answer follows."""
    if turns and turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
        return turns[:-1]
    return turns


def _one_user_turn(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _probability(value: Any) -> float:
    if value is None:
        return 1.0
    number = _number(value)
    if not 0 <= number <= 1:
        raise Unusable("p_chosen", "bad_p_chosen", f"is {value!r}: a probability is from 0 to 1")
    return number


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if math.isfinite(value) else math.nan


def _unreadable(column: str, detail: str) -> Unusable:
    return Unusable(column, UNREADABLE, detail)
