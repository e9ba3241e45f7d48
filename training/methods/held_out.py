"""Pairs that are measured while a training runs, and never trained on."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from prefloop.data.hashing import prompt_id
from prefloop.training.errors import TrainingError
from prefloop.training.inputs.pairs import Pairs, draw_triples, tokenised, triples_in
from prefloop.training.inputs.rows import Dropped, prompts_in
from prefloop.training.session.job import Job


def held_out_pairs(job: Job, tokenizer: Any, max_length: int) -> Pairs:
    """The pairs that ``stop_early`` measures, on prompts that are not trained on. Raises
    ``TrainingError`` where there are none."""
    assert job.config.stop_early is not None
    dropped = Dropped()
    triples = triples_in(job.held_out, dropped)
    trained = prompts_in([*job.files, *job.replay])
    fresh = [prompt_id(one) not in trained for one in triples["prompt"].to_pylist()]
    triples = draw_triples(
        triples.filter(pa.array(fresh, pa.bool_())), job.config.stop_early.max_pairs, job.seed
    )
    pairs, _ = tokenised(
        triples, tokenizer, max_length=max_length, dropped=dropped, rendering=job.rendering
    )
    if not len(pairs):
        why = f" ({dropped.said()})" if dropped.counts else ""
        raise TrainingError(
            f"stop_early has no held-out pair to measure{why}: in a run they are the test split "
            "(write.test_share), with `prefloop train` those of --test; or leave it out"
        )
    return pairs
