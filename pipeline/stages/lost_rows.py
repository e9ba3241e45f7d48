"""A prompt of a block that was sampled has an answer, or a row in quarantine that says why not.

Where that row is gone, one that says so takes its place, so that the counts of a run go on adding
up.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.data.quarantine import BadRow, quarantine_table
from prefloop.data.shards import ShardFolder
from prefloop.pipeline.run.context import RoundContext

logger = logging.getLogger(__name__)

REASON_LOST = "reason_lost"


def restore_sample_quarantine(context: RoundContext) -> None:
    """Put back what the round's blocks that are sampled need in quarantine.

    The journal says of which blocks all prompts were answered; the others are looked at.
    """
    folder = context.folder
    failed = {
        note.get("block"): note.get("failed")
        for note in context.run.notes()
        if note["stage"] == "sample" and note["round"] == context.index
    }
    shards = folder.quarantine("sample")
    told, asked = set(shards.indices()), set(folder.prompts.indices())
    for index in folder.candidates.indices():
        if failed.get(index) == 0 or index in told or index not in asked:
            continue
        answered = folder.candidates.read(index, ["prompt_id"])["prompt_id"]
        restore_quarantine(shards, index, folder.prompts.read(index), answered, context.index)


@dataclass(frozen=True)
class AnswerBlock:
    """Where a block's answers lie, and the prompts without."""

    answers: ShardFolder
    quarantine: ShardFolder
    index: int
    round: int

    def keep(self, prompts: pa.Table, answers: pa.Table, failed: pa.Table) -> bool:
        """Write the ``answers`` to ``prompts`` and those that ``failed``, unless another did that
        meanwhile: then its answers stand, and false is returned."""
        if self.answers.exists(self.index):
            return False
        # The shard of answers says that the block is done, so it comes last.
        if len(failed):
            self.quarantine.replace(self.index, failed)
        else:  # of an earlier try that was killed
            self.quarantine.remove([self.index])
        if self.answers.write(self.index, answers):
            return True
        # The other was done between the two lines above: what failed here did not fail there.
        self.quarantine.remove([self.index])
        answered = self.answers.read(self.index, ["prompt_id"])["prompt_id"]
        restore_quarantine(self.quarantine, self.index, prompts, answered, self.round)
        return False


def restore_quarantine(
    shards: ShardFolder, index: int, prompts: pa.Table, answered: pa.ChunkedArray, round_index: int
) -> None:
    """Put those of ``prompts`` that are not among ``answered`` (ids) into shard ``index`` of the
    quarantine, if that is not there."""
    if shards.exists(index):
        return
    lost = prompts.filter(pc.invert(pc.is_in(prompts["prompt_id"], answered.combine_chunks())))
    if not len(lost):
        return
    path = shards.path(index)
    logger.warning(
        "%s is missing: why %d prompt(s) have no answer is not known any more", path, len(lost)
    )
    rows = [
        BadRow(
            row["source"],
            row["row"],
            "prompt",
            REASON_LOST,
            "it has no answer, and the file that said why was lost",
            json.dumps(row, ensure_ascii=False),
        )
        for row in lost.to_pylist()
    ]
    shards.write(index, quarantine_table("sample", rows, round_index=round_index))
