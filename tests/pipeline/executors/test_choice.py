"""Who works on the blocks of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefloop.pipeline.executors.block_task import ExecutorFailed
from prefloop.pipeline.executors.local import LocalExecutor
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.work import executor_of
from tests.helpers.runs import small_config


def test_workers_do_not_see_the_copy_of_a_store(tmp_path: Path) -> None:
    folder = tmp_path / "stores" / "one"
    folder.mkdir(parents=True)
    (folder / "store.json").write_text(json.dumps({"address": "s3://bucket/run"}))
    run, config = RunDir(folder / "run"), small_config()
    models = Models(config)
    assert isinstance(executor_of(config, run, models), LocalExecutor)
    on_ray = small_config(executor={"type": "ray"})
    with pytest.raises(ExecutorFailed, match="s3://bucket/run is worked on in a copy"):
        executor_of(on_ray, run, models)
    trained = small_config(train={"cluster": {"workers": 2}})
    with pytest.raises(ExecutorFailed, match=r"train\.cluster: the run directory s3://bucket/run"):
        executor_of(trained, run, models)
