"""What people can be asked about: the decided pairs of a run, or a preference dataset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.config import PromptSource
from prefloop.data.conversations.reasoning import answer_alone
from prefloop.data.hashing import content_id, pair_id, prompt_id
from prefloop.data.preferences import PreferenceColumns, read_preferences
from prefloop.data.utf8 import is_blank
from prefloop.labelers.config import LabelConfig
from prefloop.labelers.jury.verdict_table import (
    VERDICT_COLUMNS,
    merge_votes,
    read_votes_and_pairs,
)
from prefloop.labelers.people import is_human
from prefloop.pipeline.config import load_config
from prefloop.pipeline.review.errors import ReviewError
from prefloop.pipeline.run.round_jury import with_labels_of
from prefloop.pipeline.run.run_dir import RunDir

_LONGEST = 100_000


@dataclass(frozen=True)
class Population:
    """The pairs that a review can draw from."""

    pair_ids: list[str]
    p_chosen: np.ndarray
    agreement: np.ndarray


@dataclass(frozen=True)
class Subject:
    """A pair with all that a person gets to see of it, and what is recorded with it."""

    pair_id: str
    prompt_id: str
    round: int
    messages: Sequence[dict[str, str]]
    texts: dict[str, str]
    """Both answers by candidate id."""
    policies: dict[str, str]
    """Who wrote each."""
    chosen_id: str
    """By the decision."""
    decision: str
    """``chosen``, or the reason of a pair without a winner (``tie``)."""
    p_chosen: float
    margin: float | None
    agreement: float | None
    verdicts: dict[str, str]
    """What each labeler says: the id of the candidate it prefers, or tie or invalid."""
    place: str
    """Where to find it, for people."""


class Subjects(Protocol):
    """A source of pairs."""

    label: LabelConfig | None
    """How they were labelled; null where nobody here knows."""
    labelers: tuple[str, ...]

    def population(self) -> Population:
        """Every pair that can be drawn."""
        ...

    def read(self, pair_ids: Sequence[str]) -> Iterator[Subject]:
        """The pairs with these ids, in this order, a block or so in memory at a time; those that
        are not decided any more are passed over."""
        ...


class RunSubjects:
    """The pairs of a run: the kept ones, or with ``everything`` all that were decided; a pair of
    two rounds is that of the first."""

    def __init__(self, run: RunDir, *, everything: bool = False) -> None:
        self.run = run
        self.everything = everything
        self.config = load_config(run.config)
        self.label: LabelConfig | None = self.config.label
        configs = [*(with_labels_of(self.config, one) for one in run.rounds()), self.config]
        names = (labeler.name for one in configs for labeler in one.label.labelers)
        self.labelers = tuple(dict.fromkeys(names))
        self._block_of: dict[str, tuple[int, int]] = {}

    def population(self) -> Population:
        """Raises :class:`ReviewError` where nothing is decided yet."""
        ids: list[str] = []
        p_chosen, agreement = [], []
        for folder in self.run.rounds():
            for index in folder.decisions.indices():
                at = folder.index, index
                table = folder.decisions.read(
                    index, ["pair_id", "p_chosen", "agreement", "kept", "reason"]
                )
                wanted = table["kept"]
                if self.everything:
                    reasons = pc.fill_null(table["reason"], "")
                    wanted = pc.invert(pc.equal(reasons, "no_valid_vote"))
                there = table["pair_id"].to_pylist()
                # Of a policy that was kept, two rounds may have the same answers.
                first = pa.array([self._block_of.get(one) in (None, at) for one in there])
                self._block_of |= {one: at for one in there if one not in self._block_of}
                table = table.filter(pc.and_(wanted, first))
                ids += table["pair_id"].to_pylist()
                p_chosen.append(table["p_chosen"].to_numpy())
                agreement.append(table["agreement"].to_numpy())
        if not ids:
            raise ReviewError(
                f"{self.run.root}: has no decided pair to look at: let `prefloop run` label first"
            )
        return Population(ids, np.concatenate(p_chosen), np.concatenate(agreement))

    def read(self, pair_ids: Sequence[str]) -> Iterator[Subject]:
        """``population`` has to be called before."""
        by_block: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
        for one in pair_ids:
            if one in self._block_of:
                by_block[self._block_of[one]].append(one)
        found: dict[str, Subject] = {}
        for (round_index, index), wanted in by_block.items():
            found |= {
                subject.pair_id: subject for subject in self._block(round_index, index, set(wanted))
            }
        yield from (found[one] for one in pair_ids if one in found)

    def _block(self, round_index: int, index: int, wanted: set[str]) -> Iterator[Subject]:
        folder = self.run.round(round_index)
        rows = [row for row in folder.decisions.read(index).to_pylist() if row["pair_id"] in wanted]
        prompts = {
            row["prompt_id"]: row["messages"]
            for row in folder.prompts.read(index, ["prompt_id", "messages"]).to_pylist()
        }
        columns = ["candidate_id", "text", "policy", "policy_revision"]
        answers = {
            row["candidate_id"]: row for row in folder.candidates.read(index, columns).to_pylist()
        }
        said = self._verdicts(round_index, index, wanted)
        for row in rows:
            ids = (row["chosen_id"], row["rejected_id"])
            yield Subject(
                pair_id=row["pair_id"],
                prompt_id=row["prompt_id"],
                round=round_index,
                messages=prompts[row["prompt_id"]],
                texts={one: answers[one]["text"] for one in ids},
                policies={
                    one: f"{answers[one]['policy']}@{answers[one]['policy_revision']}"
                    for one in ids
                },
                chosen_id=row["chosen_id"],
                decision="tie" if row["p_chosen"] == 0.5 else "chosen",
                p_chosen=row["p_chosen"],
                margin=row["margin"],
                agreement=row["agreement"],
                verdicts=said.get(row["pair_id"], {}),
                place=f"round {round_index}, prompt {row['prompt_id'][:8]}",
            )

    def _verdicts(
        self, round_index: int, index: int, wanted: set[str]
    ) -> dict[str, dict[str, str]]:
        votes = self.run.round(round_index).votes.read(index, VERDICT_COLUMNS)
        votes = votes.filter(pc.is_in(votes["pair_id"], pa.array(sorted(wanted), pa.string())))
        if not len(votes):
            return {}
        read, pairs = read_votes_and_pairs(votes)
        verdicts = merge_votes(read, len(pairs))
        found: dict[str, dict[str, str]] = {}
        for at, pair in enumerate(pairs.to_pylist()):
            words = {1: pair["a_id"], 0: "tie", -1: pair["b_id"]}
            found[pair["pair_id"]] = {
                name: words[int(verdicts.verdict[at, place])]
                if verdicts.valid[at, place]
                else "invalid"
                for place, name in enumerate(read.labelers)
                if not is_human(name)
            }
        return found


class DatasetSubjects:
    """The pairs of any preference dataset that an audit reads. Equal pairs count once."""

    label: LabelConfig | None = None
    labelers: tuple[str, ...] = ()

    def __init__(self, path: str, columns: PreferenceColumns | None = None) -> None:
        self.path = path
        self.columns = columns

    def population(self) -> Population:
        """Raises :class:`ReviewError` where there is no pair, ``InputError`` for what is none."""
        ids: dict[str, None] = {}
        for row in self._rows():
            ids.setdefault(_ids(row)[0])
        if not ids:
            raise ReviewError(f"{self.path}: holds no pair to look at: see `prefloop audit`")
        # Nobody here knows how sure the labels are: all pairs are alike.
        return Population(list(ids), np.full(len(ids), 0.5), np.ones(len(ids)))

    def read(self, pair_ids: Sequence[str]) -> Iterator[Subject]:
        wanted, found = set(pair_ids), dict[str, Subject]()
        for row in self._rows():
            pair, chosen_id, rejected_id, prompt = _ids(row)
            if pair in wanted and pair not in found:
                found[pair] = Subject(
                    pair_id=pair,
                    prompt_id=prompt,
                    round=0,
                    messages=row["prompt"],
                    texts={chosen_id: row["chosen"], rejected_id: row["rejected"]},
                    policies={},
                    chosen_id=chosen_id,
                    decision="chosen",
                    p_chosen=1.0,
                    margin=None,
                    agreement=None,
                    verdicts={},
                    place=f"{Path(row['source']).name}:{row['row']}",
                )
        yield from (found[one] for one in pair_ids if one in found)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The pairs of two different answers, without the thoughts before them."""
        for batch in read_preferences(PromptSource(path=self.path), columns=self.columns):
            for row in batch.pairs.to_pylist():
                both = {one: answer_alone(row[one]) for one in ("chosen", "rejected")}
                if both["chosen"] != both["rejected"] and not any(map(is_blank, both.values())):
                    yield row | both


def cut(text: str) -> str:
    """``text`` as people are shown it: what is very long ends with a note, and what is empty says
    that it is."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}\n… ({len(text) - _LONGEST:,} more characters)"
    return text if text.strip() else "(empty)"


def _ids(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """Ids of the pair, its chosen and rejected answer, and its prompt."""
    prompt = prompt_id(row["prompt"])
    chosen, rejected = (content_id(prompt, row[name]) for name in ("chosen", "rejected"))
    return pair_id(prompt, chosen, rejected), chosen, rejected, prompt
