"""The whole loop with vLLM as the sampling engine: policies swapped into the running engine."""

import importlib.util
from pathlib import Path

import pytest
import torch

from prefloop.pipeline.run.run_dir import EVALUATION, RunDir
from tests.helpers.runs import VERIFIER, dataset_rows, run_small, small_config

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vLLM is not installed (pip install 'prefloop[cpu]' or 'prefloop[vllm]')",
    ),
]


def assert_compared(run: RunDir) -> None:
    """The policy that was trained answered the held-out prompts, and was compared."""
    assert sum(map(len, dataset_rows(run).values())) > 0
    swapped, start = run.answers(1).table(), run.answers(0).table()
    assert set(swapped["policy_revision"].to_pylist()) != set(start["policy_revision"].to_pylist())
    assert swapped["logprob"].to_pylist() != start["logprob"].to_pylist()
    names = run.round(0).metrics.read(EVALUATION)["name"].to_pylist()
    assert {"win_rate", "kl"} <= set(names)


def test_adapters_go_into_the_running_engine_at_every_leg_and_at_the_end(tmp_path: Path) -> None:
    config = small_config(
        engines={"default": {"type": "vllm", "enable_lora": True}},
        label={"labelers": [VERIFIER]},
        filter={"filters": [{"type": "identical"}], "strategy": {"type": "best_vs_worst"}},
        train={
            "online": True, "batch_size": 4, "learning_rate": 1e-2, "warmup_ratio": 0,
            "lora": {"r": 8, "alpha": 16},
        },
    )  # fmt: skip
    run = run_small(tmp_path, config)
    revisions = [
        set(run.round(0).candidates.read(leg)["policy_revision"].to_pylist()) for leg in range(4)
    ]
    assert all(len(one) == 1 for one in revisions)
    assert len(set.union(*revisions)) == 4
    assert_compared(run)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_whole_weights_go_into_the_engine_on_a_gpu(tmp_path: Path) -> None:
    config = small_config(
        engines={
            "default": {"type": "vllm", "gpu_memory_utilization": 0.3, "dtype": "float32"}
        },
        label={"labelers": [VERIFIER]},
        train={"learning_rate": 1e-2, "batch_size": 2},
    )  # fmt: skip
    assert_compared(run_small(tmp_path, config))
