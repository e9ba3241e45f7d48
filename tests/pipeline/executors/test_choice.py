"""Who works on the blocks of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefloop.pipeline.executors.block_task import ExecutorFailed
from prefloop.pipeline.executors.block_worker import StoredRun
from prefloop.pipeline.executors.local import LocalExecutor
from prefloop.pipeline.executors.ray import RayExecutor
from prefloop.pipeline.run.models import Models
from prefloop.pipeline.run.run_dir import RunDir
from prefloop.pipeline.work import executor_of
from tests.helpers.runs import small_config


def test_workers_share_no_files_of_a_run_on_a_store(tmp_path: Path) -> None:
    folder = tmp_path / "stores" / "one"
    folder.mkdir(parents=True)
    (folder / "store.json").write_text(json.dumps({"address": "s3://bucket/run"}))
    run, config = RunDir(folder / "run"), small_config()
    models = Models(config)
    assert isinstance(executor_of(config, run, models), LocalExecutor)
    on_ray = executor_of(small_config(executor={"type": "ray"}), run, models)
    assert isinstance(on_ray, RayExecutor)
    assert on_ray.store == StoredRun("s3://bucket/run", run.root)
    capped = {"default": {"type": "openai", "max_total_tokens": 9}}
    criteria = {"model": "m"}
    rubric = {"type": "judge", "name": "r", "judge": "rubric", "model": "m", "criteria": criteria}
    for changes, said in (
        ({"engines": capped}, r"engines\.default\.max_total_tokens is counted in a file"),
        ({"label": {"labelers": [rubric]}}, "the criteria that labeler r has written are files"),
    ):
        with pytest.raises(ExecutorFailed, match=f"{said} of all workers.*s3://bucket/run"):
            executor_of(small_config(executor={"type": "ray"}, **changes), run, models)
    trained = small_config(train={"cluster": {"workers": 2}})
    with pytest.raises(ExecutorFailed, match=r"train\.cluster: the run directory s3://bucket/run"):
        executor_of(trained, run, models)
