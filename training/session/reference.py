"""The reference policy's log-probabilities of the training data: computed once, kept as columns.

They depend on the data and the reference alone, so that a training that was killed, another loss
or another learning rate on the same data finds them in the file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefloop.data.shards import write_shard
from prefloop.training.inputs.pairs import Pairs
from prefloop.training.inputs.tokens import TokenIds
from prefloop.training.policy.logprobs import sequence_logprobs
from prefloop.training.session.setup import processes

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_KEY = b"made_from"


def kept_columns(file: Path | None, key: str, compute: Callable[[], pa.Table]) -> pa.Table:
    """The table in ``file`` if it was made from what ``key`` is the hash of, else ``compute``'s,
    which is put there. Columns are float64, in nats, one row for each row of the training data.

    Without ``file`` nothing is kept."""
    if file is None:
        return compute()
    if file.is_file():
        try:
            schema = pq.read_schema(file)
            if (schema.metadata or {}).get(_KEY) == key.encode():
                return pq.read_table(file).replace_schema_metadata()
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s cannot be read (%s) and is made again", file, error)
    table = compute()
    if is_first():
        marked = table.replace_schema_metadata({_KEY: key.encode()})
        write_shard(marked, file, marked.schema)
    return table


def append_columns(table: pa.Table, columns: pa.Table) -> pa.Table:
    """``table`` with ``columns``, row for row."""
    for name in columns.column_names:
        table = table.append_column(name, columns[name])
    return table


def is_first() -> bool:
    """Whether this is the process that writes."""
    if processes() == 1:
        return True
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def shared_logprobs(
    model: Any,
    prompts: Sequence[TokenIds],
    answers: Sequence[TokenIds],
    *,
    batch_size: int,
    autocast: torch.dtype | None,
) -> np.ndarray:
    """``prefloop.training.policy.logprobs.sequence_logprobs`` [N], each process computing its share
    of the rows."""
    if processes() == 1:
        return sequence_logprobs(model, prompts, answers, batch_size=batch_size, autocast=autocast)
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState()
    assert state.num_processes == processes(), "the launched processes have not joined"
    rows = range(state.process_index, len(answers), state.num_processes)
    mine = sequence_logprobs(
        model, [prompts[row] for row in rows], [answers[row] for row in rows],
        batch_size=batch_size, autocast=autocast,
    )  # fmt: skip
    found = np.zeros(len(answers))
    for part, values in gather_object([(list(rows), mine.tolist())]):
        found[part] = values
    return found


def no_reference(pairs: int) -> pa.Table:
    """In place of ``reference_logps``, for losses that no reference goes into."""
    nothing = np.zeros(pairs)
    return pa.table({"ref_chosen_logps": nothing, "ref_rejected_logps": nothing})


def reference_logps(
    pairs: Pairs,
    model: Any,
    *,
    batch_size: int,
    autocast: torch.dtype | None,
    ld_alpha: float | None,
) -> pa.Table:
    """Log-probabilities (float64, nats) of both answers of each pair under ``model``, in columns of
    the names that TRL's collator reads.

    With ``ld_alpha`` the tokens of an answer beyond the length of the other one count so much.
    """

    def logps_of(answers: list[TokenIds]) -> np.ndarray:
        return shared_logprobs(
            model, pairs.prompts * 2, answers, batch_size=batch_size, autocast=autocast
        )

    logps = logps_of(pairs.chosen + pairs.rejected)
    if ld_alpha is not None:
        shared = [min(map(len, both)) for both in zip(pairs.chosen, pairs.rejected, strict=True)]
        answers = zip(pairs.chosen + pairs.rejected, shared * 2, strict=True)
        common = logps_of([answer[:length] for answer, length in answers])
        logps = common + ld_alpha * (logps - common)
    chosen, rejected = np.split(logps, 2)
    return pa.table({"ref_chosen_logps": chosen, "ref_rejected_logps": rejected})
