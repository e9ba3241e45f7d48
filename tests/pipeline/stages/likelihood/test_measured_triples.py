"""Held-out triples are measured in the tokens that answers like them are trained on."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefloop.data.schemas import CANDIDATE, TRIPLE
from prefloop.pipeline.run.context import RunContext
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.stages.likelihood.measured_texts import TRIPLES, TextsOfPolicy
from prefloop.training.policy.checkpoints import load_tokenizer
from tests.helpers.dpo_data import triple
from tests.helpers.engine_models import make_model
from tests.helpers.runs import small_config


def candidate(name: str, text: str, **more: Any) -> dict[str, Any]:
    return dict.fromkeys(CANDIDATE.names) | {
        "candidate_id": name, "prompt_id": "p", "round": 0, "sample_index": 0, "text": text,
        "tokens": 2, "finish_reason": "stop", "origin": "sampled", "policy": "p",
        "policy_revision": "r", "seed": 0, "copies": 1, "prompt_tokens": 1, "cost": 0.0,
    } | more  # fmt: skip


def test_a_cut_answer_has_no_end_and_sampled_tokens_count(tmp_path: Path) -> None:
    policy = Path(make_model(tmp_path / "policy", layers=1))
    tokenizer = load_tokenizer(policy)
    letters = [token for letter in "a fox" for token in tokenizer.encode(letter)[1:]]
    sampled = [*letters, tokenizer.eos_token_id]
    run = RunDir(tmp_path / "run")
    rows = [
        candidate("c", "a fox", token_ids=sampled),
        candidate("d", "and so on", finish_reason="length"),
    ]
    run.round(0).candidates.replace(0, pa.Table.from_pylist(rows, schema=CANDIDATE))
    file = run.dataset / "data" / "test-round-000-00000.parquet"
    file.parent.mkdir(parents=True)
    pairs = [
        triple(0, "a fox", "and so on") | {"chosen_id": "c", "rejected_id": "d"},
        triple(1, "a fox", "of people") | {"chosen_id": "e", "rejected_id": "f"},
    ]
    pq.write_table(pa.Table.from_pylist(pairs, schema=TRIPLE), file)
    context = RunContext.of(small_config(), run).round(0)
    found = TextsOfPolicy(1, True, policy).find(TRIPLES, context)
    assert found is not None
    assert found.texts.answers == [sampled, "a fox", "and so on", "of people"]
    assert found.texts.complete == [True, True, False, True]
