"""Which held-out prompts are kept for the end, and why: what chose a policy flatters it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from prefloop.data.hashing import content_id
from prefloop.data.schemas import PROMPT
from prefloop.data.shards import ShardFolder
from prefloop.labelers.statistics.estimate import wilson
from prefloop.pipeline.run.final_split import final_ids, ids_of_rounds
from prefloop.pipeline.run.promotion import promotion_confidence
from prefloop.pipeline.run.run_dir import RunError
from prefloop.training.config import EvaluateConfig, FinalConfig

IDS = [content_id("prompt", number) for number in range(400)]


def test_a_prompts_lot_hangs_on_itself_and_the_seed() -> None:
    whole = final_ids(IDS, FinalConfig(share=0.3), seed=1)
    assert 0.2 < len(whole) / len(IDS) < 0.4
    assert final_ids(IDS[::-1], FinalConfig(share=0.3), seed=1) == whole
    assert final_ids(IDS[:100], FinalConfig(share=0.3), seed=1) == whole & set(IDS[:100])
    assert final_ids(IDS, FinalConfig(share=0.3), seed=2) != whole
    assert whole < final_ids(IDS, FinalConfig(share=0.6), seed=1)
    assert len(final_ids(IDS, FinalConfig(size=17), seed=1)) == 17


def test_both_sides_have_a_prompt() -> None:
    for share in (1e-9, 1 - 1e-9):
        assert len(final_ids(IDS[:2], FinalConfig(share=share), seed=1)) == 1
    assert final_ids(IDS[:1], FinalConfig(), seed=1) == frozenset()
    assert final_ids(IDS, None, seed=1) == frozenset()
    with pytest.raises(RunError, match=r"evaluate.final.size is 400, and only 400 prompts are"):
        final_ids(IDS, FinalConfig(size=400), seed=1)


def test_the_limit_counts_the_prompts_of_the_rounds(tmp_path: Path) -> None:
    heldout = ShardFolder(tmp_path, PROMPT)
    rows = [
        dict.fromkeys(PROMPT.names) | {"prompt_id": one, "messages": [], "metadata": "{}",
         "source": "s", "row": 0} for one in IDS[:20]
    ]  # fmt: skip
    heldout.write(0, pa.Table.from_pylist(rows[:12], schema=PROMPT))
    heldout.write(1, pa.Table.from_pylist(rows[12:], schema=PROMPT))
    final = FinalConfig(size=8)
    apart = final_ids(IDS[:20], final, seed=5)
    assert ids_of_rounds(heldout, EvaluateConfig(), 5) is None
    assert ids_of_rounds(heldout, EvaluateConfig(final=final), 5) == set(IDS[:20]) - apart
    left = [one for one in IDS[:20] if one not in apart]
    found = ids_of_rounds(heldout, EvaluateConfig(final=final, limit=10), 5)
    assert found == set(left[:10])


def test_what_chose_a_policy_flatters_it_and_the_final_prompts_do_not() -> None:
    """A policy that wins 52 % of all prompts, kept where the rounds' prompts say that it won."""
    rng = np.random.default_rng(3)
    rounds, prompts, true = 5, 300, 0.52
    confidence = promotion_confidence(EvaluateConfig(promote_error="round"), rounds)
    low = np.array([wilson(won / prompts, prompts, confidence)[0] for won in range(prompts + 1)])
    seen = rng.binomial(prompts, true, size=(20_000, rounds))
    kept = (low[seen] > 0.5).any(axis=1)
    first = seen[kept, (low[seen[kept]] > 0.5).argmax(axis=1)] / prompts
    unseen = rng.binomial(prompts, true, size=int(kept.sum())) / prompts
    assert first.mean() > 0.56
    assert unseen.mean() == pytest.approx(true, abs=0.002)
