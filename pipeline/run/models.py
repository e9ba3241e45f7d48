"""Which model runs where: names to checkpoints, one engine object for each, policies swapped in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from prefloop.data.conversation import with_system_prompt
from prefloop.data.embedded import resolve_embedded
from prefloop.data.hashing import folder_revision
from prefloop.data.protocol import Engine, EngineFailed, Message
from prefloop.data.shards import ShardFolder
from prefloop.labelers.base import Labeler
from prefloop.labelers.config import JudgeLabeler, LabelerConfig, RewardModelLabeler
from prefloop.labelers.factory import build_labeler
from prefloop.pipeline.config import POLICY, PoolMember, RunConfig
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.engines.policy_check import TOLERANCE_NATS, PolicyMismatch, verify_policy
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.engines.vllm_engine import VllmInProcess
from prefloop.pipeline.engines.weights import is_adapter, load_tokenizer
from prefloop.training.session.setup import has_gpu

logger = logging.getLogger(__name__)

_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
PROBES = 4
"""Conversations whose log-probabilities are compared after new weights were loaded."""


def checkpoint(model: str, *, served: bool, trust_remote_code: bool = False) -> str:
    """Where ``model`` lies: an embedded name or hub name becomes a local folder.

    ``served`` names (models of an HTTP server) stay as they are. From the hub only safetensors
    and text files are fetched, and code if it is trusted. Raises ``EngineFailed`` where there is
    no such model.
    """
    name = resolve_embedded(model)
    if served or Path(name).is_dir():
        return name
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        code = ["*.py"] if trust_remote_code else []
        return snapshot_download(name, allow_patterns=[*_HUB_FILES, *code])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise EngineFailed(
            f"{model}: no such folder, and the hub does not give it ({type(error).__name__})",
            "give the folder of a checkpoint, or a hub name that this machine can reach",
        ) from None


def revision(path: str) -> str:
    """What tells two versions of a checkpoint apart: the hub's commit, or a hash of the files."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    if folder.parent.name == "snapshots":
        return folder.name[:12]
    return folder_revision(folder)


class Models:
    """The engines of a run, built when first needed, and the policy that they serve.

    Invariant: an engine that was given new weights is not handed out before its log-probabilities
    were found equal to those of transformers on the same checkpoint (where it is not transformers
    itself, which has nothing else to be compared with).
    """

    def __init__(self, config: RunConfig, *, cache: Path | None = None) -> None:
        """``cache``: folder for the responses of servers, a folder in it for each engine.

        Raises ``EngineFailed`` if the starting policy is nowhere to be found.
        """
        self._config = config
        self._cache = cache
        self.probes: list[tuple[Message, ...]] = []
        """A few conversations for comparing log-probabilities after a swap."""
        self._start = self._checkpoint(POLICY, config.sample.engine)
        self._policy = self._start
        self._engines: dict[tuple[str, str], Engine] = {}
        self._serving: dict[tuple[str, str], str] = {}
        self._reward_models: dict[RewardModelLabeler, Labeler] = {}
        self._revisions: dict[str, str] = {}

    @property
    def start(self) -> str:
        """The starting policy's checkpoint."""
        return self._start

    @property
    def policy(self) -> str:
        """The checkpoint that ``policy`` means now."""
        return self._policy

    def take_probes(self, prompts: ShardFolder, system_prompt: str | None) -> None:
        """Take the first of ``prompts`` as probes; none where there are none."""
        self.probes = [
            with_system_prompt(row["messages"], system_prompt)
            for index in prompts.indices()[:1]
            for row in prompts.read(index).slice(0, PROBES).to_pylist()
        ]

    def use_policy(self, path: str) -> None:
        """Let ``policy`` mean the checkpoint (or LoRA adapter) at ``path`` from now on."""
        self._policy = path

    async def engine(self, engine: str, model: str) -> Engine:
        """The engine named ``engine`` serving ``model``; both as the config names them."""
        key = (engine, model)
        wanted = self._policy if model == POLICY else self._checkpoint(model, engine)
        if key not in self._engines:
            base = self._start if model == POLICY and is_adapter(wanted) else wanted
            logger.info("engine %s: loading %s", engine, base)
            self._engines[key] = await build_engine(
                self._config.engines[engine], base, cache=self._cache and self._cache / engine
            )
            self._serving[key] = base
        if self._serving[key] != wanted:
            await self._swap(engine, self._engines[key], self._serving[key], wanted)
            self._serving[key] = wanted
        return self._engines[key]

    async def reward_model(self, labeler: RewardModelLabeler) -> Labeler:
        """The labeler that ``labeler`` describes; its model stays loaded from round to round.

        Raises ``LabelerError`` where it is no reward model.
        """
        if labeler not in self._reward_models:
            folder = _reward_checkpoint(labeler)
            logger.info("labeler %s: loading %s", labeler.name, folder)
            self._reward_models[labeler] = await asyncio.to_thread(
                build_labeler, labeler, engine=None, seed=self._config.seed, checkpoint=folder
            )
        return self._reward_models[labeler]

    async def labeler(self, labeler: LabelerConfig) -> Labeler:
        """The labeler that ``labeler`` describes, with the engine or the model it asks for.

        Raises ``LabelerError`` where it cannot be made.
        """
        if isinstance(labeler, RewardModelLabeler):
            return await self.reward_model(labeler)
        engine = None
        if isinstance(labeler, JudgeLabeler):
            engine = await self.engine(labeler.engine, labeler.model)
        return build_labeler(labeler, engine=engine, seed=self._config.seed)

    async def labelers(self, labelers: Iterable[LabelerConfig]) -> list[Labeler]:
        """Those that ``labelers`` describe, in their order. Raises as ``labeler`` does."""
        return [await self.labeler(labeler) for labeler in labelers]

    def member_revision(self, member: PoolMember) -> str:
        """Revision of the policy that ``member`` of the pool samples from."""
        path = (
            self._policy
            if member.model == POLICY
            else self._checkpoint(member.model, member.engine)
        )
        if path not in self._revisions:
            self._revisions[path] = revision(path)
        return self._revisions[path]

    def revisions(self) -> dict[str, str]:
        """Revision of each model that the config names, by that name."""
        members = self._config.sample.pool
        asked = [(self._config.policy, self._config.sample.engine)]
        asked += [(m.model, m.engine) for m in members]
        asked += [
            (labeler.model, labeler.engine)
            for labeler in self._config.all_labelers
            if isinstance(labeler, JudgeLabeler)
        ]
        if opponent := self._config.evaluate.opponent:
            asked.append((opponent.model, opponent.engine or self._config.sample.engine))
        found = {
            model: revision(self._checkpoint(model, engine))
            for model, engine in asked
            if model != POLICY
        }
        for labeler in self._config.all_labelers:
            if isinstance(labeler, RewardModelLabeler):
                found[labeler.model] = revision(_reward_checkpoint(labeler))
        return found

    def token_counter(self) -> Callable[[str], int]:
        """Counts the tokens of an answer, its end token included, with the policy's tokenizer.

        A policy that is not used, and a served one without a known tokenizer, are counted at four
        characters a token.
        """
        if not self._config.uses_policy:
            return _by_characters
        engine = self._config.engines[self._config.sample.engine]
        name = engine.tokenizer if isinstance(engine, OpenAIEngine) else self._start
        if name is None:
            return _by_characters
        tokenizer = load_tokenizer(name)
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False)) + 1

    def counts_characters(self) -> bool:
        """Whether :meth:`token_counter` knows no tokenizer."""
        return self.token_counter() is _by_characters

    async def close(self, engine: str, model: str) -> None:
        """Close the engine named ``engine`` for ``model``; it comes back when asked for."""
        self._serving.pop((engine, model), None)
        opened = self._engines.pop((engine, model), None)
        if opened:
            await opened.aclose()

    async def make_room(self) -> None:
        """On a GPU, close all models, whose memory training or another model needs."""
        if has_gpu():
            await self.release()

    async def release(self) -> None:
        """Close every engine and reward model; they come back when asked for."""
        self._reward_models.clear()
        engines, self._engines, self._serving = self._engines, {}, {}
        for engine in engines.values():
            await engine.aclose()

    def _checkpoint(self, model: str, engine: str) -> str:
        name = self._config.policy if model == POLICY else model
        return checkpoint(name, served=isinstance(self._config.engines.get(engine), OpenAIEngine))

    async def _swap(self, name: str, engine: Engine, previous: str, path: str) -> None:
        """Let ``engine`` serve ``path``, for sure: in place, or else from a new engine process."""
        dtype = getattr(self._config.engines[name], "dtype", "auto")
        if dtype == "auto":
            dtype = "bfloat16" if has_gpu() else "float32"
        verify = partial(
            verify_policy,
            engine,
            path,
            self.probes,
            tolerance_nats=TOLERANCE_NATS[dtype],
            previous=previous if Path(previous).exists() else None,
        )
        await engine.load_policy(path)
        if getattr(engine, "is_transformers", False):
            return
        try:
            difference = await verify()
        except PolicyMismatch as mismatch:
            if not isinstance(engine, VllmInProcess):
                raise
            logger.warning("%s; starting vLLM anew", mismatch)
            await engine.restart(path)
            difference = await verify()
        logger.info("%s serves %s: %.1e nats a token off transformers", name, path, difference)


def _by_characters(text: str) -> int:
    return len(text) // 4 + 1


def _reward_checkpoint(labeler: RewardModelLabeler) -> str:
    return checkpoint(labeler.model, served=False, trust_remote_code=labeler.trust_remote_code)
