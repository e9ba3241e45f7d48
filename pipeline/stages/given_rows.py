"""Answers that were there before the run: read once, and put beside the prompts they answer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from prefloop.data.config import PromptsConfig
from prefloop.data.conversations.reasoning import split_thought
from prefloop.data.errors import InputError
from prefloop.data.hashing import prompt_id
from prefloop.data.preferences.answer_sets import AnswerSet
from prefloop.data.preferences.answer_source import AnswerSource
from prefloop.data.preferences.given import read_answer_sets
from prefloop.data.prompts.load import PromptTables, load_prompts
from prefloop.data.prompts.prompt_rows import id_with_tools
from prefloop.data.prompts.source_table import SourceRows
from prefloop.data.quarantine import BadRow, quarantine_table
from prefloop.data.schemas import GIVEN, PROMPT
from prefloop.data.shards import atomic_write_json, damaged, read_json_object
from prefloop.data.sources.turns import Turn
from prefloop.data.utf8 import is_blank
from prefloop.pipeline.run.run_dir import RunDir

logger = logging.getLogger(__name__)

UNKNOWN = "given"
"""As the policy of an answer of which nobody says who wrote it, and the revision of all."""
_CHUNK = 10_000


@dataclass(frozen=True)
class GivenAnswers:
    """All that was read of a source of answers."""

    rows: pa.Table
    """Schema GIVEN; ``prompt_id`` is that of :func:`prompt_key`."""
    bad: list[BadRow]
    read: int
    """Sets of answers and rows without any."""
    sets: int
    single: int
    """Sets with one answer only, equal ones being one."""
    left_out: int
    """Answers without text, which are in no set."""
    pairs: str
    """As ``AnswerSource.pairs``."""
    own_prompts: bool
    """Whether the run's prompts are theirs: what is unreadable is among the prompts' then."""


def load_with_answers(
    prompts: PromptsConfig, given: AnswerSource | None, *, seed: int
) -> tuple[PromptTables, GivenAnswers | None]:
    """The prompts of a run, and the answers that are ``given``, by the ids of these prompts.

    Raises ``InputError`` as ``load_prompts`` does, and for a source of answers that cannot be read.
    """
    if given is None:
        return load_prompts(prompts, seed=seed), None
    own: list[dict[str, Any]] = []
    answers = _read(given, prompts, own)
    if not given.own_prompts:
        return load_prompts(prompts, seed=seed), answers
    bad = quarantine_table("prompts", answers.bad)
    train = SourceRows(pa.Table.from_pylist(own, PROMPT), bad, {}, len(own) + len(bad))
    return load_prompts(prompts, seed=seed, train=train), answers


def _read(given: AnswerSource, prompts: PromptsConfig, own: list[dict[str, Any]]) -> GivenAnswers:
    """Read ``given``; its prompts, one of each, are added to ``own``."""
    tables, pending = [GIVEN.empty_table()], list[dict[str, Any]]()
    bad: list[BadRow] = []
    tools: dict[str, str | None] = {}
    """Of each of the prompts."""
    read = sets = single = left_out = 0
    for found in read_answer_sets(given.source, given.named):
        read += 1
        if isinstance(found, AnswerSet) and _too_long(found, prompts):
            found = _refused(found, prompts)
        elif isinstance(found, AnswerSet) and given.own_prompts and _has_other_tools(found, tools):
            found = _with_other_tools(found)
        if isinstance(found, BadRow):
            if prompts.on_bad_row == "fail":
                raise InputError(f"{found} (prompts.on_bad_row is fail)")
            bad.append(found)
            continue
        rows = _rows_of(found, sets)
        left_out += found.left_out + len(found.answers) - len(rows)
        sets += 1
        single += len({row["text"] for row in rows}) == 1
        if (key := prompt_key(found.prompt)) not in tools:
            tools[key] = found.tools
            own.append(_prompt_of(found))
        pending += rows
        if len(pending) >= _CHUNK:
            tables.append(pa.Table.from_pylist(pending, GIVEN))
            pending.clear()
    tables.append(pa.Table.from_pylist(pending, GIVEN))
    return GivenAnswers(
        pa.concat_tables(tables), bad, read, sets, single, left_out, given.pairs, given.own_prompts
    )


def _rows_of(found: AnswerSet, number: int) -> list[dict[str, Any]]:
    """Rows of GIVEN; a thought is taken off its answer, and one without an answer left out."""
    rows = []
    for answer in found.answers:
        said = split_thought(answer.text, opened=None)
        if is_blank(said.answer):
            continue
        rows.append(
            {
                "prompt_id": prompt_key(found.prompt),
                "text": said.answer,
                "reasoning": said.reasoning,
                "policy": answer.model or UNKNOWN,
                "source": found.source,
                "row": answer.row,
                "set": number,
                "rating": answer.rating,
                "absolute": found.absolute,
                "ties": found.ties,
            }
        )
    return rows


def prompt_key(messages: Sequence[Turn]) -> str:
    """What prompts that read alike have in common: white space at the ends of turns aside."""
    return prompt_id([{**turn, "content": turn["content"].strip()} for turn in messages])


def _prompt_of(found: AnswerSet) -> dict[str, Any]:
    return {
        "prompt_id": id_with_tools(found.prompt, found.tools, found.turns),
        "messages": found.prompt,
        "reference": found.reference,
        "metadata": found.metadata,
        "source": found.source,
        "row": found.row,
        "tools": found.tools,
        "turns": found.turns,
    }


def _too_long(found: AnswerSet, prompts: PromptsConfig) -> bool:
    most = prompts.max_chars
    return most is not None and sum(len(turn["content"]) for turn in found.prompt) > most


def _refused(found: AnswerSet, prompts: PromptsConfig) -> BadRow:
    return BadRow(
        found.source,
        found.row,
        None,
        "too_long",
        f"the prompt has more characters than prompts.max_chars ({prompts.max_chars})",
        "\n\n".join(turn["content"] for turn in found.prompt),
    )


def _has_other_tools(found: AnswerSet, tools: Mapping[str, str | None]) -> bool:
    return tools.get(prompt_key(found.prompt), found.tools) != found.tools


def _with_other_tools(found: AnswerSet) -> BadRow:
    return BadRow(
        found.source,
        found.row,
        "tools",
        "other_tools",
        "the same conversation stands in an earlier row with other tools: say in its system turn "
        "what is another, or give one of the two in a source of its own",
        "\n\n".join(turn["content"] for turn in found.prompt),
    )


def write_given(run: RunDir, answers: GivenAnswers, prompts: pa.Table, block_size: int) -> None:
    """Write the answers to ``prompts`` (the run's), block by block, and how many there are.

    Answers to other prompts are counted; so are rows without answers, which are quarantined.
    """
    by_key: dict[str, list[int]] = {}
    for place, key in enumerate(answers.rows["prompt_id"].to_pylist()):
        by_key.setdefault(key, []).append(place)
    used = 0
    starts = range(0, len(prompts), block_size)
    for index, start in enumerate(starts):
        block = prompts.slice(start, block_size).select(["prompt_id", "messages"]).to_pylist()
        places, ids = list[int](), list[str]()
        for prompt in block:
            mine = by_key.get(prompt_key(prompt["messages"]), [])
            places += mine
            ids += [prompt["prompt_id"]] * len(mine)
        rows = answers.rows.take(pa.array(places, pa.int64()))
        run.given.replace(index, rows.set_column(0, GIVEN.field(0), pa.array(ids, pa.string())))
        used += len(places)
    run.given.keep_first(len(starts))
    quarantine = run.round(0).quarantine("given")
    if answers.bad and not answers.own_prompts:
        quarantine.replace(0, quarantine_table("given", answers.bad))
    else:  # of an earlier try that was killed
        quarantine.remove([0])
    others = len(answers.rows) - used
    counts = {
        "read": answers.read,
        "sets": answers.sets,
        "sets_with_one": answers.single,
        "answers": len(answers.rows),
        "used": used,
        "of_other_prompts": others,
        "without_text": answers.left_out,
        "unreadable": len(answers.bad),
    }
    atomic_write_json(run.given_counts, {**counts, "pairs": answers.pairs})
    for number, what in (
        (others, "are to prompts that are held out, dropped or not among those of the run"),
        (answers.left_out, "hold no text"),
    ):
        if number:
            logger.warning("sample.from: %s answers %s: they are not used", f"{number:,}", what)
    if answers.bad:
        logger.warning(
            "sample.from: %s rows hold no answers, as %s: all are in %s",
            f"{len(answers.bad):,}",
            answers.bad[0],
            (run.quarantine if answers.own_prompts else quarantine).folder,
        )


def read_given_counts(run: RunDir) -> dict[str, Any]:
    """What :func:`write_given` counted. Raises ``StorageError`` where the file is damaged."""
    remedy = "delete it and give `prefloop run` again, which reads the answers again"
    counts = read_json_object(run.given_counts, remedy)
    if type(counts.get("used")) is not int or counts.get("pairs") not in ("rows", "all"):
        raise damaged(run.given_counts, "no counts of answers", remedy)
    return counts
