"""Models may be loaded in several threads at a time: by two runs in one process, or by a labeler
beside an engine."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from transformers import PreTrainedModel

from prefloop.data.embedded import resolve_embedded
from prefloop.labelers.scorers.sequence_scores import SequenceScorer
from prefloop.pipeline.engines import weights
from prefloop.training.policy import checkpoints
from tests.helpers.reward_models import make_llama_reward

_AT_ONCE = 4


@pytest.fixture
def untouched() -> Iterator[Callable[[], bool]]:
    """What transformers takes away while it loads is there again, whatever the test found."""
    patched = (PreTrainedModel, "tie_weights"), (PreTrainedModel, "init_weights"), (
        torch.nn.init, "kaiming_uniform_"), (torch.nn.init, "normal_")  # fmt: skip
    before = [getattr(owner, name) for owner, name in patched]
    yield lambda: [getattr(owner, name) for owner, name in patched] == before
    for (owner, name), value in zip(patched, before, strict=True):
        setattr(owner, name, value)


def test_models_that_are_loaded_at_the_same_time_are_whole(
    tmp_path: Path, untouched: Callable[[], bool]
) -> None:
    folder, scorer = resolve_embedded("embedded:judge"), make_llama_reward(tmp_path / "scorer")
    begin = Barrier(_AT_ONCE)

    def load(number: int) -> bool:
        begin.wait()
        for _ in range(3):
            if number == 0:
                SequenceScorer(scorer, device="cpu")
                continue
            if number % 2:
                model = checkpoints.load_model(Path(folder), dtype=torch.float32)
            else:
                device = torch.device("cpu")
                model = weights.load_model(folder, base=folder, device=device, dtype=torch.float32)
            if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
                return False
        return True

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        assert all(pool.map(load, range(_AT_ONCE)))
    assert untouched()
