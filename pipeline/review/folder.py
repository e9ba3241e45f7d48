"""What is known here about a review: which pairs were pushed, how they were drawn, what came back.

REVIEW/
  review.json            server, dataset, mode, and the run or file that it is about
  criteria.json          what people are asked of each answer besides the verdict, if anything
  draw-*.parquet         for each draw, the chance that every pair had to be in it
  pushed/part-*.parquet  which candidate stood as A and which as B
  responses.parquet      every response of every person, as last pulled or imported
  tasks/                 what Label Studio is given
  left_out.parquet       what of the files last imported from it was of no use, and why
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from prefloop.data.prompts.criteria import criteria_of
from prefloop.data.schemas import ADDED, QUARANTINE
from prefloop.data.shards import ShardFolder, atomic_write_json, read_shard, write_shard
from prefloop.pipeline.review.by_criterion.criterion_questions import AskedCriteria
from prefloop.pipeline.review.definition import Mode
from prefloop.pipeline.review.errors import ReviewError

PUSHED = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("answer_a_id", pa.string(), nullable=False),
        pa.field("answer_b_id", pa.string(), nullable=False),
        pa.field("chosen_id", pa.string(), nullable=False),  # by the decision when it was pushed
        pa.field("p_chosen", pa.float64(), nullable=False),
        pa.field("place", pa.string(), nullable=False),  # where to find it, for people
        # hash of the texts as they were shown; null where the server keeps them
        pa.field("shown", pa.string(), metadata=ADDED),
    ]
)
"""A pair that was pushed."""

CHANCE = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("chance", pa.float64(), nullable=False),
        pa.field("p_chosen", pa.float64(), nullable=False),  # the jury's, when it was drawn
        # in the order in which they are shown; null: not drawn, or of a version that did not say
        pa.field("place", pa.int32(), metadata=ADDED),
    ]
)
"""The chance of every pair that could be drawn to be in a draw, and which are in it."""

RESPONSE = pa.schema(
    [
        pa.field("response_id", pa.string(), nullable=False),
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string()),  # null where the server no longer knows the person
        pa.field("username", pa.string(), nullable=False),
        # submitted | draft | discarded; "gone": it was there, and the server has it no more;
        # "replaced": by a later one of the same person
        pa.field("status", pa.string(), nullable=False),
        pa.field("verdict", pa.string()),  # a | b | tie | both_bad, in the order shown
        pa.field("reason", pa.string()),
        pa.field("inserted_at", pa.string(), nullable=False),
        pa.field("updated_at", pa.string(), nullable=False),
        # JSON list, in the order of criteria.json: the numbers of the choices for a and b
        pa.field("criteria", pa.string(), metadata=ADDED),
    ]
)
"""One person's response to one pair."""

_ASKED = ("criteria", "left_out")

ReviewTool = Literal["argilla", "label-studio"]
"""Where people answer."""


@dataclass(frozen=True)
class Review:
    """What a review is."""

    name: str
    """Of the dataset in Argilla."""
    workspace: str
    server: str
    dataset_id: str
    """In Argilla; for Label Studio, what its tasks call the review."""
    mode: Mode
    overlap: int
    """Submitted responses that complete a record."""
    source: str
    """The run directory or the dataset that it is about."""
    is_run: bool
    tool: ReviewTool = "argilla"


class ReviewFolder:
    """A review's folder. Making the object touches nothing on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "review.json"
        self.pushed = ShardFolder(root / "pushed", PUSHED)
        self.tasks = root / "tasks"
        self.left_out = root / "left_out.parquet"
        self._responses = root / "responses.parquet"
        self._criteria = root / "criteria.json"

    def exists(self) -> bool:
        """Whether a review was pushed from here."""
        return self.file.is_file()

    def read(self) -> Review:
        """What the review is."""
        try:
            return Review(**json.loads(self.file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ReviewError(f"{self.file}: is no review: {error}") from None

    def read_of(self, tool: ReviewTool) -> Review:
        """What the review is, which people have to answer in ``tool``."""
        review = self.read()
        if review.tool != tool:
            ways = {
                "argilla": "in Argilla: `prefloop review push` and `pull` are for it",
                "label-studio": "in Label Studio: `prefloop review export` and `import` are for it",
            }
            raise ReviewError(
                f"{self.root}: people answer this review {ways[review.tool]}; another --name "
                "begins one"
            )
        return review

    def write(self, review: Review) -> None:
        """Keep what the review is."""
        self.root.mkdir(parents=True, exist_ok=True)
        atomic_write_json(self.file, asdict(review))

    def asked(self) -> AskedCriteria:
        """What people are asked about besides the verdict, as it was when the review began."""
        try:
            stored = json.loads(self._criteria.read_text(encoding="utf-8"))
            found = (stored[key] and criteria_of(stored[key]) for key in _ASKED)
            return AskedCriteria(*map(tuple, found))
        except FileNotFoundError:
            return AskedCriteria()
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ReviewError(
                f"{self._criteria}: holds no criteria ({error}): people's answers to them cannot "
                "be told apart; restore the file, or begin a review by another --name"
            ) from None

    def write_asked(self, asked: AskedCriteria) -> None:
        """Keep what people are going to be asked about; of nothing, no file."""
        if not asked.criteria:
            self._criteria.unlink(missing_ok=True)
            return
        self.root.mkdir(parents=True, exist_ok=True)
        told = {key: [one.model_dump(mode="json") for one in getattr(asked, key)] for key in _ASKED}
        atomic_write_json(self._criteria, told)

    def pairs(self) -> dict[str, dict[str, Any]]:
        """The pushed pairs (PUSHED) by id."""
        return {row["pair_id"]: row for row in self.pushed.table().to_pylist()}

    def responses(self) -> pa.Table:
        """What was pulled last (RESPONSE); empty before the first time."""
        if not self._responses.exists():
            return RESPONSE.empty_table()
        return read_shard(self._responses, RESPONSE)

    def write_responses(self, responses: pa.Table) -> None:
        """Keep what was pulled."""
        write_shard(responses, self._responses, RESPONSE)

    def write_left_out(self, rows: pa.Table) -> None:
        """Keep what of the last import was of no use (QUARANTINE); without any, no file."""
        if len(rows):
            write_shard(rows, self.left_out, QUARANTINE)
        else:
            self.left_out.unlink(missing_ok=True)

    def add_draw(self, name: str, chances: pa.Table) -> None:
        """Keep the draw ``name`` (CHANCE)."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_shard(chances, self._draw(name), CHANCE)

    def draw(self, name: str) -> pa.Table | None:
        """The draw ``name`` (CHANCE); null where it was not made."""
        path = self._draw(name)
        return read_shard(path, CHANCE) if path.exists() else None

    def _draw(self, name: str) -> Path:
        return self.root / f"draw-{name}.parquet"

    def draws(self) -> list[pa.Table]:
        """The chances (CHANCE) of every draw so far."""
        return [read_shard(path, CHANCE) for path in sorted(self.root.glob("draw-*.parquet"))]

    def confidence(self) -> dict[str, float]:
        """For every pair that could be drawn, how sure the jury was when it first could."""
        found: dict[str, float] = {}
        for table in self.draws():
            ids, sure = table["pair_id"].to_pylist(), table["p_chosen"].to_pylist()
            for pair, p_chosen in zip(ids, sure, strict=True):
                found.setdefault(pair, p_chosen)
        return found

    def inclusion(self) -> dict[str, float]:
        """For every pair the probability to be in any of the draws, 1 - product of (1 - chance)."""
        missed: dict[str, float] = {}
        for table in self.draws():
            ids, chances = table["pair_id"].to_pylist(), table["chance"].to_numpy()
            for pair, chance in zip(ids, np.clip(chances, 0, 1).tolist(), strict=True):
                missed[pair] = missed.get(pair, 1.0) * (1 - chance)
        return {pair: 1 - miss for pair, miss in missed.items() if miss < 1}
