"""Labels that people give to a run's pairs through a table: the queue out, their labels in."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError
from prefloop.data.hashing import derive_seed
from prefloop.data.preferences.labels import LABELS, PairLabel, SeenLabels, read_label
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.files import read_rows
from prefloop.data.sources.rows import RawRow, counted
from prefloop.labelers.statistics.review_draw import Strategy, draw
from prefloop.pipeline.judging.delimiter import delimiter_hint
from prefloop.pipeline.report.excerpts import rows_with, with_parts
from prefloop.pipeline.run.run_dir import RunDir

QUEUE_COLUMNS = (
    "pair_id", "prompt", "answer_1", "answer_2", "verdict", "reason", "annotator", "answer_1_id",
    "answer_2_id", "inclusion",
)  # fmt: skip
"""Of the table that people fill in: ``verdict`` 1, 2 or tie."""

_SIDES: dict[PairLabel, float] = {"a": 1.0, "b": 0.0, "tie": 0.5}
_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a cell may not begin with: spreadsheets take it for a formula, or pass over it to one."""


@dataclass(frozen=True)
class PeopleLabel:
    """What people say about one pair, several of them by majority."""

    a_id: str
    b_id: str
    """The pair's two candidates as they stand in the decision's votes."""
    preference_for_a: float
    """1 where a is preferred, 0 where b is, 0.5 for a tie or no majority."""
    inclusion: float | None
    """Probability with which the pair was drawn for people to see; null where nobody said."""

    def side_of(self, candidate_id: str) -> float:
        """1 where ``candidate_id`` is the preferred one, 0 where the other is, 0.5 for a tie."""
        return self.preference_for_a if candidate_id == self.a_id else 1 - self.preference_for_a


def write_queue(
    run: RunDir, path: Path, *, n: int, strategy: Strategy, seed: int, everything: bool = False
) -> int:
    """Write a table (CSV, QUEUE_COLUMNS) of ``n`` kept pairs for people to label; its rows.

    ``everything`` draws from all decided pairs. Which answer stands first is drawn by seed, as is
    the order of the rows, and nothing in the table says what the labelers think: where people get
    as far as its middle, that half was drawn as the whole was. Raises ``InputError`` where there is
    no pair or ``path`` exists.
    """
    if path.exists():
        raise InputError(f"{path}: exists: people may have filled it in; give another --out")
    found: list[pa.Table] = []
    for folder in run.rounds():
        columns = ["pair_id", "p_chosen", "agreement", "kept", *(["reason"] if everything else [])]
        for table in with_parts(folder.decisions, columns):
            shown = table["kept"]
            if everything:
                unknown = pc.equal(table["reason"], "no_valid_vote")
                shown = pc.or_(shown, pc.invert(pc.fill_null(unknown, False)))
            rows = table.select(["pair_id", "p_chosen", "agreement", "part"]).filter(shown)
            of_round = pa.array(np.full(len(rows), folder.index))
            found.append(rows.append_column("round", of_round))
    if not any(map(len, found)):
        raise InputError(f"{run.root}: has no kept pair to look at: run it first")
    pairs = pa.concat_tables(found)
    confidence, shared = (pairs[name].to_numpy() for name in ("p_chosen", "agreement"))
    drawn = draw(pairs["pair_id"], confidence, shared, n, strategy, seed=seed)
    order = np.random.default_rng(derive_seed(seed, "queue order")).permutation(len(drawn.index))
    index, inclusion = drawn.index[order], drawn.inclusion[order]
    chosen = pairs.select(["pair_id", "round", "part"]).take(pa.array(index)).to_pylist()
    texts = _texts(run, chosen, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, QUEUE_COLUMNS)
        writer.writeheader()
        for row, chance in zip(texts, inclusion.tolist(), strict=True):
            whole = {**row, "inclusion": repr(chance)}
            writer.writerow({name: _cell(text) for name, text in whole.items()})
    return len(texts)


def _cell(text: str) -> str:
    """``text`` as a table shows it and never as a formula, which a prompt or an answer could be."""
    return f"'{text}" if text.startswith(_FORMULAS) else text


def _uncelled(value: object) -> str:
    """The opposite of ``_cell``, for what a spreadsheet may have made of a field."""
    text = "" if value is None else str(value)
    return text[1:] if text.startswith("'") else text


def _texts(run: RunDir, drawn: Sequence[dict[str, Any]], seed: int) -> list[dict[str, str]]:
    """The prompts and answers of the pairs ``drawn`` (``pair_id``, ``round``, ``part``), in their
    order; each shard is read once, and only those that have one of them."""
    ranks: defaultdict[tuple[int, int], dict[str, int]] = defaultdict(dict)
    for rank, pair in enumerate(drawn):
        ranks[pair["round"], pair["part"]][pair["pair_id"]] = rank
    rows: dict[int, dict[str, str]] = {}
    for (index, part), of_part in sorted(ranks.items()):
        folder = run.round(index)
        columns = ["pair_id", "prompt_id", "chosen_id", "rejected_id"]
        pairs = rows_with(folder.decisions, part, "pair_id", of_part, columns)
        asked = {pair["prompt_id"] for pair in pairs}
        answered = {pair[f"{side}_id"] for pair in pairs for side in ("chosen", "rejected")}
        prompts, texts = (
            {row[key]: row[name] for row in rows_with(shards, part, key, ids, [key, name])}
            for shards, key, name, ids in (
                (folder.prompts, "prompt_id", "messages", asked),
                (folder.candidates, "candidate_id", "text", answered),
            )
        )
        for pair in pairs:
            ids = sorted((pair["chosen_id"], pair["rejected_id"]))
            if derive_seed(seed, pair["pair_id"], "queue") % 2:
                ids.reverse()
            rows[of_part[pair["pair_id"]]] = {
                "pair_id": pair["pair_id"],
                "prompt": _shown(prompts[pair["prompt_id"]]),
                "answer_1": texts[ids[0]],
                "answer_2": texts[ids[1]],
                "answer_1_id": ids[0],
                "answer_2_id": ids[1],
            }
    return [rows[rank] for rank in range(len(drawn))]


def _shown(messages: Sequence[dict[str, str]]) -> str:
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"[{turn['role']}] {turn['content']}" for turn in messages)


def read_people(paths: Sequence[str], run: RunDir) -> dict[str, PeopleLabel]:
    """The labels in tables that ``write_queue`` wrote and people filled in, by pair.

    Rows without a verdict are passed over. Of several labels on a pair the majority counts. Raises
    ``InputError`` for rows that cannot be read, pairs that the run does not have, and where there
    is no label at all.
    """
    said: dict[str, list[float]] = {}
    inclusion: dict[str, float | None] = {}
    tables = [(path, list(counted(read_rows(PromptSource(path=path))))) for path in paths]
    pairs = _pairs(run, [row for _, rows in tables for row in rows])
    for path, rows in tables:
        seen = SeenLabels()
        for row in rows:
            if isinstance(row, BadRow):
                raise InputError(str(row) + delimiter_hint([row.content]))
            where = f"{row.source}, row {row.row}"
            for name in ("pair_id", "answer_1_id", "verdict"):
                if name not in row.fields:
                    raise InputError(
                        f"{where}: has no {name!r}: `prefloop queue` writes the table"
                        + delimiter_hint(row.fields)
                    )
            given = row.fields["verdict"]
            if isinstance(given, str):
                given = _uncelled(given)
            if _blank(given):
                continue
            seen.look(given, "verdict")
            verdict = read_label(given, LABELS, "answer_1", "answer_2")
            pair = _uncelled(row.fields["pair_id"])
            if verdict is None:
                shown = str(given).strip().lower()[:80]
                raise InputError(f"{where}, field 'verdict': {shown!r} is none of 1, 2, tie")
            if pair not in pairs:
                raise InputError(f"{where}: {run.root} has no pair {pair}: is it another run's?")
            first = _uncelled(row.fields["answer_1_id"])
            if first not in pairs[pair]:
                raise InputError(f"{where}: the pair has no answer {first}")
            side = _SIDES[verdict]
            said.setdefault(pair, []).append(side if first == pairs[pair][0] else 1 - side)
            inclusion[pair] = _chance(row.fields.get("inclusion"), where)
        seen.check(path, "write 1, 2 or tie")
    if not said:
        raise InputError(f"{', '.join(paths)}: nobody filled in a `verdict`: write 1, 2 or tie")
    return {
        pair: PeopleLabel(*pairs[pair], _majority(sides), inclusion[pair])
        for pair, sides in said.items()
    }


def _blank(value: object) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _chance(value: object, where: str) -> float | None:
    if value in (None, ""):
        return None
    try:
        chance = float(str(value))
    except ValueError:
        chance = -1.0
    if not 0 < chance <= 1 + 1e-9:
        raise InputError(
            f"{where}, field 'inclusion': {value!r} is no probability: leave it as it was written"
        )
    return chance


def _majority(sides: Sequence[float]) -> float:
    (most, times), *others = Counter(sides).most_common()
    return 0.5 if others and others[0][1] == times else most


def _pairs(run: RunDir, rows: Sequence[RawRow | BadRow]) -> dict[str, tuple[str, str]]:
    """The candidates a and b of every pair in ``rows`` that was voted on."""
    asked = {
        _uncelled(row.fields["pair_id"])
        for row in rows
        if isinstance(row, RawRow) and "pair_id" in row.fields
    }
    wanted = pa.array(sorted(asked), pa.string())
    found: dict[str, tuple[str, str]] = {}
    for folder in run.rounds():
        for votes in folder.votes.batches(["pair_id", "a_id", "b_id"]):
            mine = votes.filter(pc.is_in(votes["pair_id"], wanted))
            for pair, a, b in zip(*(column.to_pylist() for column in mine.columns), strict=True):
                found.setdefault(pair, (a, b))
    return found
