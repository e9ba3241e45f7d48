"""Blocks worked on by a Ray cluster.

Ray Data has the indices of the blocks and hands them to workers, each an actor with the engines of
the stage; it restarts those that die, and gives their blocks to others. The rows of blocks never
pass through it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from prefloop.data.storage.commits import committed
from prefloop.pipeline.config import RunConfig
from prefloop.pipeline.engines.settings import VllmEngine
from prefloop.pipeline.executors.attempts import Attempts
from prefloop.pipeline.executors.attempts_board import AttemptsOnBoard
from prefloop.pipeline.executors.block_task import BlockJob, ExecutorFailed, Take
from prefloop.pipeline.executors.block_worker import (
    BlockWorker,
    JobOf,
    StoredRun,
    WorkOrder,
    facts_in,
    table_in,
    unpacked,
    versions_here,
)
from prefloop.pipeline.executors.resources import (
    WorkerNeeds,
    blocks_at_hand,
    of_one_worker,
    share_rates,
    worker_needs,
)
from prefloop.training.cluster.joining import ClusterError, import_ray, join_cluster

logger = logging.getLogger(__name__)

_ADDRESS = "executor.address"
_STOP_S = 30.0
"""Seconds that workers have to stop; then the connection to the cluster is closed on them."""


class RayExecutor:
    """Has blocks worked on by the cluster of ``config.executor``."""

    def __init__(
        self,
        config: RunConfig,
        root: Path,
        policy_now: Callable[[], str | None],
        job_of: JobOf,
        store: StoredRun | None = None,
    ) -> None:
        """``root``: the run directory, and ``store`` what it is a copy of, or in one;
        ``policy_now``: the checkpoint that ``policy`` means, null for the starting policy;
        ``job_of`` is called in the workers.

        Raises ``ExecutorFailed`` where Ray is not installed.
        """
        _import_ray()
        self.config, self.root, self.job_of = config, root.absolute(), job_of
        self.store = store
        self._policy_now = policy_now
        self._is_ours = False

    @property
    def shares_files(self) -> bool:
        """See ``prefloop.pipeline.executors.block_task.Executor``."""
        return self.store is None

    async def open(self, job: BlockJob) -> RayJob:
        """See ``prefloop.pipeline.executors.block_task.Executor``."""
        await asyncio.to_thread(self._connect)
        return RayJob(self, job, self._policy_now())

    async def aclose(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._is_ours:
            self._is_ours = False
            await asyncio.to_thread(_import_ray().shutdown)

    def _connect(self) -> None:
        settings = self.config.executor
        try:
            joined = join_cluster(settings.address, _ADDRESS, working_dir=settings.working_dir)
        except ClusterError as error:
            raise ExecutorFailed(str(error)) from None
        self._is_ours = self._is_ours or joined
        if settings.working_dir is not None and not self._is_ours:
            raise ExecutorFailed(
                "executor.working_dir is sent when the cluster is joined, and this process has "
                "joined it already: leave out ray.init, or executor.working_dir"
            )


@dataclass(frozen=True)
class RayJob:
    """A job that workers of a cluster do."""

    executor: RayExecutor
    job: BlockJob
    policy: str | None

    async def run(self, blocks: Sequence[int], *, begin: Callable[[int], None], take: Take) -> None:
        """See ``prefloop.pipeline.executors.block_task.OpenJob``; ``begin`` hears nothing."""
        del begin  # no request is made in this process
        attempts = await asyncio.to_thread(self._begin_tries)
        rows = _Rows(partial(self._rows, list(blocks), attempts))
        heard = _Heard()
        try:
            async for row in rows:
                heard.say(row["said"])
                await self._take(row, attempts, take)
        finally:
            await asyncio.to_thread(attempts.end)
            await rows.aclose()

    def _begin_tries(self) -> Attempts | AttemptsOnBoard:
        if self.executor.store is None:
            return Attempts.begin(self.executor.root)
        # What has come since the last commit, as a policy's folder, is to be read by workers.
        committed(self.executor.root / "config.yaml")
        return AttemptsOnBoard.begin()

    async def _take(
        self, row: Mapping[str, Any], attempts: Attempts | AttemptsOnBoard, take: Take
    ) -> None:
        if problem := row.get("problem"):
            raise unpacked(problem)
        if over := row.get("over"):
            raise ExecutorFailed(
                f"a worker does not see {over}: let run_dir be a folder that all nodes share"
            )
        facts, held = facts_in(row), row.get("held", 0)

        async def keep() -> bool:
            if isinstance(attempts, AttemptsOnBoard):
                tables = tuple(map(table_in, row["tables"]))
            elif held:
                tables = await asyncio.to_thread(attempts.held, facts.block, held)
            else:  # a worker did it
                return True
            return await self.job.shelf.keep(facts.block, tables)

        await take(facts, keep)

    def _rows(
        self, blocks: Sequence[int], attempts: Attempts | AttemptsOnBoard
    ) -> Iterator[dict[str, Any]]:
        """What the workers say, as it comes. Runs in a thread."""
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        needs = self._needs()
        calls = self.job.in_flight
        if self.executor.config.blocks_in_flight is None:
            calls = max(calls, blocks_at_hand(len(blocks), needs.most or 1))
        indices = [{"block": index} for index in blocks]
        done = ray.data.from_items(indices, override_num_blocks=len(indices)).map_batches(
            BlockWorker,
            batch_size=1,
            batch_format="numpy",
            zero_copy_batch=False,
            compute=ray.data.ActorPoolStrategy(
                min_size=needs.least,
                max_size=needs.most,
                max_concurrent_calls_per_actor=calls,
                max_tasks_in_flight_per_actor=2 * calls,
            ),
            num_cpus=needs.cpus,
            num_gpus=needs.gpus or None,
            accelerator_type=needs.accelerator,
            runtime_env={"env_vars": self._environment(needs)},
            fn_constructor_kwargs={
                "order": self._order(attempts, needs),
                "job_of": self.executor.job_of,
                "board": attempts.board if isinstance(attempts, AttemptsOnBoard) else None,
            },
        )
        batches = iter(done.iter_batches(batch_size=None, prefetch_batches=0))
        try:
            for batch in batches:
                for row in batch["row"]:
                    yield json.loads(row)
        finally:
            batches.close()

    def _needs(self) -> WorkerNeeds:
        import ray

        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(node.get("GPU", 0) for node in alive)
        needs = worker_needs(self.executor.config, self.job.task, has_gpus=gpus > 0)
        rooms = [
            min(
                int(node.get("CPU", 0) // needs.cpus),
                int(node.get("GPU", 0) // needs.gpus) if needs.gpus else 1_000_000,
            )
            for node in alive
        ]
        room = sum(rooms)
        if not room:
            logger.warning(
                "no node of the cluster has the %g CPUs and %g GPUs of a worker: the stage waits "
                "for one that has",
                needs.cpus,
                needs.gpus,
            )
        most = needs.most or max(room, needs.least)
        return replace(needs, most=most)

    def _environment(self, needs: WorkerNeeds) -> dict[str, str]:
        """Of the workers. As many threads as this process would take: with another number, sums are
        made in another order, and the last bits differ."""
        if not needs.computes:
            return {}
        import torch

        return {"OMP_NUM_THREADS": str(torch.get_num_threads())}

    def _order(self, attempts: Attempts | AttemptsOnBoard, needs: WorkerNeeds) -> WorkOrder:
        executor = self.executor
        settings = executor.config.executor
        config = of_one_worker(executor.config).model_dump(mode="json")
        for name, engine in executor.config.engines.items():
            # In an actor, vLLM would ask Ray for more of them.
            if isinstance(engine, VllmEngine) and engine.tensor_parallel_size > 1:
                own = {"distributed_executor_backend": "mp"}
                config["engines"][name]["engine_args"] = own | engine.engine_args
            if needs.most:
                share_rates(config["engines"][name], needs.most)
        return WorkOrder(
            task=replace(self.job.task, root=self.job.task.root.absolute()),
            config=config,
            root=executor.root,
            policy=self.policy and str(Path(self.policy).absolute()),
            folder=None if settings.working_dir else Path.cwd(),
            generation=attempts.folder if isinstance(attempts, Attempts) else Path(),
            attempts=settings.attempts,
            in_flight=self.job.in_flight,
            versions=versions_here(),
            host=socket.gethostname(),
            store=executor.store,
        )


class _Rows:
    """An iterator that blocks, in a thread, as one that does not."""

    def __init__(self, rows: Callable[[], Iterator[dict[str, Any]]]) -> None:
        self._make = rows
        self._loop = asyncio.get_running_loop()
        self._come: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()
        self._stopped = threading.Event()
        self._ended = asyncio.Event()
        # No thread of the pool, which the process would wait for.
        threading.Thread(target=self._feed, daemon=True, name="ray rows").start()

    def __aiter__(self) -> _Rows:
        return self

    async def __anext__(self) -> dict[str, Any]:
        match await self._come.get():
            case None:
                raise StopAsyncIteration
            case Exception() as error:
                raise error
            case row:
                return row

    async def aclose(self) -> None:
        """End it, and wait until it has: who is behind it stops by themselves."""
        self._stopped.set()
        try:
            await asyncio.wait_for(self._ended.wait(), _STOP_S)
        except TimeoutError:
            logger.warning("the workers do not stop: the connection to the cluster is closed")
            await asyncio.to_thread(_import_ray().shutdown)

    def _feed(self) -> None:
        try:
            rows = self._make()
            for row in rows:
                if self._stopped.is_set():
                    break
                self._put(row)
            rows.close()  # type: ignore[attr-defined]
            self._put(None)
        except Exception as error:  # noqa: BLE001  # handed on
            self._put(_explained(error))
        finally:
            self._loop.call_soon_threadsafe(self._ended.set)

    def _put(self, row: dict[str, Any] | Exception | None) -> None:
        self._loop.call_soon_threadsafe(self._come.put_nowait, row)


class _Heard:
    """Says what workers said, each thing once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, lines: Sequence[tuple[int, str]]) -> None:
        for level, line in lines:
            if line not in self._said:
                self._said.add(line)
                logger.log(level, "%s", line)


def _explained(error: Exception) -> Exception:
    """``error`` as one line where Ray raised it."""
    ray = _import_ray()
    if not isinstance(error, ray.exceptions.RayError):
        return error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ExecutorFailed(
        f"Ray could not have the blocks worked on: {type(error).__name__}: "
        f"{lines[-1] if lines else 'no reason given'}: is the same prefloop installed on all "
        "nodes? Blocks that were done are kept: the same command goes on"
    )


def _import_ray() -> Any:
    try:
        return import_ray("executor.type ray")
    except ClusterError as error:
        raise ExecutorFailed(str(error)) from None
