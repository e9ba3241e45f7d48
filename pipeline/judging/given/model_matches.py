"""Who was compared with whom, and what came of it: the rows of a file with verdicts as matches.

A match is two models' answers to one prompt, as one judge saw them, in one or in both orders.
Besides what ``prefloop.pipeline.judging.given.games`` reads, these are taken:

* any layout with two answers and a label, or ``verdict`` (with ``p_first``, ``swapped``, ``judge``)
  in the label's place, that names the two models: ``model_a`` and ``model_b``, ``generator_1`` and
  ``generator_2`` and the like, or PandaLM's ``cmp_key``;
  An answer without text counts: its model was judged for it;
* the same without the answers, where ``question_id`` or the prompt says what was asked;
* MT-Bench's ``*_single.jsonl``: the answers of two models to a question are a match, a tie where
  their scores are within 0.1, as FastChat has it; a score of -1 is none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from prefloop.data.config import PromptSource
from prefloop.data.errors import InputError
from prefloop.data.hashing import prompt_id
from prefloop.data.preferences.labels import LABELS, PairLabel, SeenLabels, label_text, read_label
from prefloop.data.preferences.layouts import (
    GATHERED,
    LABEL_COLUMNS,
    LABEL_NAMES,
    Layout,
    PreferenceColumns,
    find_layout,
    models_of_pair,
)
from prefloop.data.preferences.pair_rows import parse_comparison
from prefloop.data.preferences.ratings import as_number, model_name
from prefloop.data.quarantine import BadRow
from prefloop.data.sources.files import read_rows
from prefloop.data.sources.rows import RawRow, bad, counted
from prefloop.data.utf8 import is_blank, listed
from prefloop.labelers.base import Preference
from prefloop.pipeline.judging.given.games import (
    Game,
    NoVerdict,
    Tool,
    check_preferences,
    is_weighted,
    judge_of,
    opposite,
    read_games,
    swapped_flag,
    tool_of,
)

_SINGLE = ("question_id", "model", "score")
_PROMPTS = ("question_id", "prompt", "instruction", "question", "id")
"""What may say which prompt a row without answers is about."""
_TIE_DELTA = 0.1
_EMPTY = "\N{EMPTY SET}"
_EXAMPLES = 3


@dataclass(frozen=True)
class Match:
    """Two models' answers to one prompt, and the verdicts of one judge on them."""

    judge: str
    prompt: str
    """What repeats: two turns of a question are of one prompt."""
    models: tuple[str, str]
    games: tuple[Game, ...]
    lengths: tuple[int, int] | None = None
    """Of both answers in characters, where they are in the file."""

    @property
    def outcome(self) -> float | None:
        """1 where the first model wins, 0 where the second does, 0.5 for a tie, and a probability
        where the judge gave them; null where a verdict is missing. Two orders that contradict each
        other are a tie."""
        if any(game.said == "invalid" for game in self.games):
            return None
        soft = [game.p_first for game in self.games if game.p_first is not None]
        if len(soft) == len(self.games):
            return sum(soft) / len(soft)
        words = {game.said for game in self.games}
        return {"a": 1.0, "b": 0.0}.get(words.pop(), 0.5) if len(words) == 1 else 0.5

    def turned(self) -> Match:
        """The same with the two models the other way round."""
        games = tuple(
            Game(
                opposite(one.said),
                None if one.p_first is None else 1 - one.p_first,
                None if one.swapped is None else not one.swapped,
            )
            for one in self.games
        )
        lengths = self.lengths and (self.lengths[1], self.lengths[0])
        return Match(self.judge, self.prompt, (self.models[1], self.models[0]), games, lengths)


@dataclass
class Matches:
    """What a file holds."""

    matches: list[Match] = field(default_factory=list)
    rows: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Rows that are no match, by reason."""
    examples: list[str] = field(default_factory=list)
    first: str | None = None
    """The first answer's model in the first row that is a match."""

    def refuse(self, row: BadRow) -> None:
        """Count one."""
        self.refused[row.reason] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(str(row))


def read_matches(
    path: str, columns: PreferenceColumns | None = None, limit: int | None = None
) -> Matches:
    """The matches in ``path``.

    Raises ``InputError`` where it cannot be read, holds none, or its verdicts may mean one thing or
    another.
    """
    classes = (*LABEL_COLUMNS, "verdict")
    rows = list(counted(read_rows(PromptSource(path=path, limit=limit), classes=classes)))
    found = Matches(rows=len(rows))
    reader = _Reader(path, rows, columns)
    scored: list[RawRow] = []
    seen: dict[tuple[Any, ...], Match] = {}
    for row in rows:
        if isinstance(row, BadRow):
            found.refuse(row)
        elif set(_SINGLE) <= set(row.fields) and not models_of_pair(row.fields):
            scored.append(row)
        else:
            _put(row, reader.match(row), seen, found)
    for problem in _of_scores(scored, Path(path).name, seen):
        found.refuse(problem)
    reader.labels.check(path)
    found.matches = list(seen.values())
    if found.matches and found.first is None:
        found.first = found.matches[0].models[0]
    if not found.matches:
        first = f", e.g. {found.examples[0]}" if found.examples else ""
        raise InputError(f"{path}: holds no verdict on the answers of two models{first}")
    return found


def _put(
    row: RawRow,
    read: tuple[Match, tuple[Any, ...]] | BadRow,
    seen: dict[tuple[Any, ...], Match],
    found: Matches,
) -> None:
    """Take in a match; the two orders of one may stand in rows of their own."""
    if isinstance(read, BadRow):
        found.refuse(read)
        return
    match, texts = read
    if match.models[0] == match.models[1]:
        found.refuse(bad(row, None, "same_model", "both answers are of one model"))
        return
    found.first = found.first or match.models[0]
    swap = match.models[0] > match.models[1]
    ordered = match.turned() if swap else match
    key = (match.judge, match.prompt, ordered.models, texts[::-1] if swap else texts)
    known = seen.get(key)
    if known is None:
        seen[key] = ordered
        return
    orders = [one.swapped for one in (*known.games, *ordered.games)]
    if None in orders or len(set(orders)) < len(orders):
        found.refuse(bad(row, None, "duplicate", "an earlier row has the same match"))
        return
    seen[key] = replace(known, games=(*known.games, *ordered.games))


class _Reader:
    def __init__(
        self, path: str, rows: list[RawRow | BadRow], columns: PreferenceColumns | None
    ) -> None:
        self.labels = SeenLabels()
        self._name = Path(path).name.split(".")[0]
        self._columns = columns
        self._own: Mapping[str, PairLabel] = columns.labels if columns else {}
        preferences = [
            row.fields["preference"]
            for row in rows
            if isinstance(row, RawRow) and tool_of(row.fields) == "alpaca_eval"
        ]
        if not self._own:
            check_preferences(preferences, path)
        self._weighted = is_weighted(preferences)

    def match(self, row: RawRow) -> tuple[Match, tuple[Any, ...]] | BadRow:
        """The match in a row, and what tells it from others of these models on this prompt."""
        models = _models(row.fields)
        if models is None:
            there = listed(row.fields) or "nothing"
            return bad(
                row, None, "no_models",
                f"does not say which two models wrote the answers, only {there}: name them in "
                "model_a and model_b",
            )  # fmt: skip
        tool = None if "verdict" in row.fields else tool_of(row.fields)
        layout = self._layout(row, tool)
        try:
            return self._read(row, models, tool, layout)
        except NoVerdict as problem:
            return bad(row, problem.field, "bad_verdict", str(problem))

    def _layout(self, row: RawRow, tool: Tool | None) -> Layout | None:
        """Where the two answers stand, if they do."""
        replaced = tool is not None or "verdict" in row.fields
        names = [*row.fields, *(["label"] if replaced else [])]
        layout = find_layout(names, self._columns)
        if layout is None or layout.kind in (*GATHERED, "completions"):
            return None
        if replaced and layout.kind == "labelled":
            return replace(layout, kind="direct")  # the label stands elsewhere
        return layout

    def _read(
        self, row: RawRow, models: tuple[str, str], tool: Tool | None, layout: Layout | None
    ) -> tuple[Match, tuple[Any, ...]] | BadRow:
        fields = row.fields
        texts: tuple[str, ...] = ()
        lengths, verdict = None, None
        prompt = _named_prompt(fields)
        if layout is not None:
            layout.look(self.labels, fields)
            found = parse_comparison(_filled(row, layout), layout)
            if isinstance(found, BadRow):
                return found
            found = found.without_thoughts()
            prompt, verdict = prompt_id(found.prompt), found.verdict
            texts = tuple("" if text == _EMPTY else text for text in (found.first, found.second))
            lengths = len(texts[0]), len(texts[1])
        if prompt is None:
            return bad(row, None, "missing_column", "does not say what was asked: add question_id")
        if tool is not None:
            games = read_games(tool, fields, self._own, weighted=self._weighted)
        elif verdict is not None and "verdict" not in fields:
            games = [Game(verdict)]
        else:
            games = [self._plain(fields, models)]
        judge = judge_of(fields) or self._name
        match = Match(judge, prompt, models, tuple(games), lengths)
        return match, (texts or (label_text(fields.get("turn")) or "",) * 2)

    def _plain(self, fields: Mapping[str, Any], models: tuple[str, str]) -> Game:
        name = next((one for one in ("verdict", *LABEL_NAMES) if one in fields), None)
        if name is None:
            raise NoVerdict("verdict", None, "a verdict: there is no such column")
        value = fields[name]
        swapped = swapped_flag(fields.get("swapped"), "swapped")
        word = label_text(value)
        if word in (None, "invalid", "none", "null", "error") and not isinstance(value, list):
            return Game("invalid", None, swapped)
        named: Mapping[str | None, PairLabel] = {
            label_text(models[0]): "a", label_text(models[1]): "b",
        }  # fmt: skip
        said = named.get(word)
        if said is None:
            if not self._own:
                self.labels.look(value, name)
            columns = models_of_pair(fields) or ("response1", "response2")
            said = read_label(value, self._own or LABELS, columns[0], columns[1])
        if said is None:
            raise NoVerdict(name, value, f"1, 2, a, b, tie, {models[0]}, {models[1]}")
        p_first = as_number(fields.get("p_first"))
        if p_first is not None and not _fits(p_first, said):
            raise NoVerdict("p_first", p_first, "the probabilities that fit the verdict")
        return Game(said, p_first, swapped)


def _filled(row: RawRow, layout: Layout) -> RawRow:
    """``row`` with a stand-in for answers without text: a model that wrote nothing was judged."""
    empty = {
        name: _EMPTY
        for name in (layout.a, layout.b)
        if isinstance(row.fields.get(name), str) and is_blank(row.fields[name])
    }
    return replace(row, fields={**row.fields, **empty}) if empty else row


def _fits(p_first: float, said: Preference) -> bool:
    return 0 <= p_first <= 1 and not (
        (said == "a" and p_first < 0.5) or (said == "b" and p_first > 0.5)
    )


def _named_prompt(fields: Mapping[str, Any]) -> str | None:
    found = (label_text(fields.get(name)) for name in _PROMPTS)
    return next((one for one in found if one is not None), None)


def _models(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    columns = models_of_pair(fields)
    names = [model_name(fields.get(name)) for name in columns]
    key = fields.get("cmp_key")
    if not columns and isinstance(key, str):
        names = [model_name(part) for part in key.split("_")]  # PandaLM
    if len(names) != 2 or names[0] is None or names[1] is None:
        return None
    return names[0], names[1]


def _of_scores(
    rows: list[RawRow], path: str, seen: dict[tuple[Any, ...], Match]
) -> Iterator[BadRow]:
    """Puts the matches of answers that had a score each into ``seen``; gives the rows of none."""
    name = path.split(".")[0]
    scores: dict[tuple[Any, ...], dict[str, tuple[float, RawRow]]] = defaultdict(dict)
    for row in rows:
        model, score = model_name(row.fields["model"]), as_number(row.fields["score"])
        question = label_text(row.fields["question_id"])
        if model is None or question is None:
            yield bad(row, "model", "no_models", "has no model or no question_id")
        elif score is None or score < 0:
            yield bad(row, "score", "no_score", "the judge's score could not be read")
        else:
            turn = label_text(row.fields.get("turn")) or "1"
            known = scores[judge_of(row.fields) or name, question, turn]
            if model in known:
                yield bad(row, None, "duplicate", "an earlier row has a score of this answer")
            else:
                known[model] = (score, row)
    for (judge, question, turn), of_models in scores.items():
        if len(of_models) == 1:
            [(_, row)] = of_models.values()
            yield bad(row, None, "single_answer", "no other model has a score for this question")
        for one, other in combinations(sorted(of_models), 2):
            gap = of_models[one][0] - of_models[other][0]
            said: Preference = "tie" if abs(gap) <= _TIE_DELTA else "a" if gap > 0 else "b"
            match = Match(judge, question, (one, other), (Game(said),))
            seen[judge, question, match.models, (turn, turn)] = match
