"""Which model runs where: names to checkpoints, one engine object for each, policies swapped in."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from prefloop.data.conversations.conversation import as_sampled
from prefloop.data.embedded import resolve_embedded
from prefloop.data.hashing import folder_revision, json_hash
from prefloop.data.protocol import Engine, EngineFailed, Message
from prefloop.data.shards import ShardFolder
from prefloop.data.storage.objects import is_address
from prefloop.data.strict import fingerprint
from prefloop.labelers.base import Labeler
from prefloop.labelers.config import (
    ImplicitRewardLabeler,
    JudgeLabeler,
    LabelerConfig,
    OwnModelLabeler,
    RewardModelLabeler,
    VerifierLabeler,
)
from prefloop.labelers.factory import build_labeler
from prefloop.labelers.judges.folder import question_revision
from prefloop.labelers.judges.rubric.rubric_shelf import RubricShelf
from prefloop.labelers.judges.rubric.writing import WritingDesk
from prefloop.labelers.scorers.compute_threads import computing_with
from prefloop.pipeline.config import POLICY, PoolMember, RunConfig
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.engines.openai.openai_server import OpenAIServer
from prefloop.pipeline.engines.openai.parameters import Place
from prefloop.pipeline.engines.policy_check import TOLERANCE_NATS, PolicyMismatch, verify_policy
from prefloop.pipeline.engines.replicas.replicated import ReplicatedEngine
from prefloop.pipeline.engines.settings import (
    MemoryMode,
    OpenAIEngine,
    TransformersEngine,
    sequences_at_once,
)
from prefloop.pipeline.engines.weights import is_adapter, load_tokenizer
from prefloop.pipeline.executors.local import Admission, LocalExecutor
from prefloop.pipeline.machine.engine_load import EngineLoads
from prefloop.pipeline.machine.footprint import (
    ASLEEP,
    Footprint,
    engine_footprint,
    own_model_footprint,
    scoring_footprint,
    training_footprint,
)
from prefloop.pipeline.machine.hardware import (
    CPU,
    capacity,
    device_beside,
    device_named,
    devices_of,
    dtype_on,
    replicas_of,
)
from prefloop.pipeline.machine.model_shape import model_shape
from prefloop.pipeline.machine.residency import USABLE, ModelKey, Residency, who_leaves
from prefloop.pipeline.machine.seats import (
    RestartingEngine,
    ScoringEngine,
    SeatedEngine,
    SeatedLabeler,
    SleepingEngine,
)
from prefloop.pipeline.machine.stage_memory import (
    StageMemory,
    beside_training,
    judging_longest,
    sampling_longest,
    stage_memory,
)
from prefloop.pipeline.remote.door import local_path
from prefloop.pipeline.run.context import RunContext, blocks_in_flight, most_in_flight
from prefloop.training.policy.log_ratios import PolicyAndReference, Scoring
from prefloop.training.policy.logprobs import (
    Placement,
    ReadShare,
    ScoredTexts,
    Scorer,
    Scores,
    loaded_reader,
    scored_tokens,
)
from prefloop.training.session.setup import has_gpu

logger = logging.getLogger(__name__)

_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
BLOCKS_IN_TURN = 16
"""Blocks that one engine works on before another has its turn, where there is room for one only. A
kill loses what the engines did for them so far."""
PROBES = 4
"""Conversations whose log-probabilities are compared after new weights were loaded."""


def checkpoint(model: str, *, served: bool, trust_remote_code: bool = False) -> str:
    """Where ``model`` lies: an embedded name, a hub name or an address on an object store becomes a
    local folder.

    ``served`` names (models of an HTTP server) stay as they are. From the hub only safetensors
    and text files are fetched, and code if it is trusted. Raises ``EngineFailed`` where there is
    no such model.
    """
    name = resolve_embedded(model)
    if served or Path(name).is_dir():
        return name
    if is_address(name):
        return str(local_path(name, weights=True))
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


def _local_models(config: RunConfig) -> int:
    """How many models of a run may need memory of this machine: where it is one, nobody takes
    turns, and nothing need be asked about the machine."""
    named = {(config.sample.engine, POLICY)}
    named |= {(member.engine, member.model) for member in config.sample.pool}
    judges = [one for one in config.all_labelers if isinstance(one, JudgeLabeler)]
    named |= {asked for judge in judges for asked in judge.asked}
    local = [key for key in named if not isinstance(config.engines[key[0]], OpenAIEngine)]
    rewards = sum(isinstance(one, RewardModelLabeler) for one in config.all_labelers)
    return len(local) + rewards


class Models:
    """The engines of a run, built when first needed, and the policy that they serve.

    What it hands out are seats: the engine behind one is in memory while it is asked, and may make
    room for another meanwhile, as the config's ``memory`` says.

    Invariant: an engine that was given new weights is not handed out before its log-probabilities
    were found equal to those of transformers on the same checkpoint (where it is not transformers
    itself, which has nothing else to be compared with).
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        cache: Path | None = None,
        ledgers: Path | None = None,
        rubrics: Path | None = None,
    ) -> None:
        """``cache``: folder for the responses of servers, a folder in it for each engine;
        ``ledgers``: folder for what each engine has spent, by its name, by default the same;
        ``rubrics``: folder for criteria that are written for prompts, null keeps none.

        Raises ``EngineFailed`` if the starting policy is nowhere to be found.
        """
        self._config = config
        self._cache = cache
        self._ledgers = ledgers
        self._rubrics = rubrics
        self.probes: list[tuple[Message, ...]] = []
        """A few conversations for comparing log-probabilities after a swap."""
        self._checkpoints: dict[ModelKey, str] = {}
        self._start = self.checkpoint_of(POLICY, config.sample.engine)
        self._policy = self._start
        self._engines: dict[ModelKey, Engine] = {}
        self._serving: dict[ModelKey, str] = {}
        self._asleep: set[ModelKey] = set()
        self._known: dict[ModelKey, Engine] = {}
        """Engines that were opened once, maybe closed: they tell what such an engine can do."""
        self._reward_models: dict[ModelKey, SeatedLabeler] = {}
        self._loaded: dict[ModelKey, Labeler] = {}
        self._verifiers: dict[VerifierLabeler, Labeler] = {}
        self._revisions: dict[str, str] = {}
        self._footprints: dict[ModelKey, Footprint] = {}
        self._residency = Residency(config.memory, self._room)
        self._swapping = asyncio.Lock()
        self._loads = EngineLoads()

    @property
    def start(self) -> str:
        """The starting policy's checkpoint."""
        return self._start

    @property
    def policy(self) -> str:
        """The checkpoint that ``policy`` means now."""
        return self._policy

    @property
    def blocks_in_flight(self) -> int:
        """Blocks to work on at once: more where engines of one stage take turns, as each turn
        costs the opening of an engine, or its waking."""
        wanted = blocks_in_flight(self._config)
        return max(wanted, BLOCKS_IN_TURN) if self._take_turns else wanted

    @property
    def admission(self) -> Admission | None:
        """How further blocks begin where the engines have room; null where their number is given,
        or engines take turns."""
        if self._config.blocks_in_flight is not None or self._take_turns:
            return None
        return Admission(self._loads, most_in_flight(self._config))

    @cached_property
    def _take_turns(self) -> bool:
        """Whether engines of one stage make room for each other."""
        several = self._config.memory != "keep_open" and _local_models(self._config) > 1
        return several and any(
            one.in_turn for one in self._stages_here() if one.stage in ("sample", "label")
        )

    def _stages_here(self) -> list[StageMemory]:
        try:
            return stage_memory(self._config)
        except EngineFailed:
            if self._config.executor.type == "ray":  # the GPUs are those of other stages' workers
                return []
            raise

    def working(self, context: RunContext) -> RunContext:
        """``context`` with as many blocks at once, in this process, as these have room for."""
        return replace(
            context,
            blocks_in_flight=self.blocks_in_flight,
            executor=LocalExecutor(lambda: self.admission),
        )

    def take_probes(self, prompts: ShardFolder, system_prompt: str | None) -> None:
        """Take some of the first of ``prompts`` as probes, those without tools where there are any;
        none where there are none."""
        rows = [row for index in prompts.indices()[:1] for row in prompts.read(index).to_pylist()]
        rows.sort(key=lambda row: row["tools"] is not None or row["turns"] is not None)
        self.probes = [as_sampled(row, system_prompt) for row in rows[:PROBES]]

    def use_policy(self, path: str) -> None:
        """Let ``policy`` mean the checkpoint (or LoRA adapter) at ``path`` from now on."""
        self._policy = path

    async def engine(self, engine: str, model: str) -> Engine:
        """The engine named ``engine`` serving ``model``; both as the config names them."""
        key = (engine, model)
        # Where another would have to leave, it comes with the first request: a stage opens all that
        # it needs before it asks any.
        if key not in self._known or not self._crowds(key):
            async with self._seat(key):
                pass
        settings = self._config.engines[engine]
        load = partial(self._loads.carrying, key, sequences_at_once(settings))
        return SeatedEngine(partial(self._seat, key), self._known[key], load)

    def opened(self, engine: str, model: str) -> Engine | None:
        """The engine itself that is behind the seats of these names; null where it is closed."""
        return self._engines.get((engine, model))

    def ask_anew(self, engine: str, model: str, anew: bool) -> bool:
        """Let a server be asked whatever it answered before, or no more; false where the engine is
        none, and keeps no answers."""
        opened = self._engines.get((engine, model))
        if isinstance(opened, OpenAIServer):
            opened.asks_anew = anew
        return isinstance(opened, OpenAIServer)

    async def without_cache(self, engine: str, model: str) -> Engine:
        """The server that :meth:`engine` gives, asked at once, and anew whatever it answered
        before; its costs count as ever. The caller closes it."""
        settings = self._config.engines[engine]
        assert isinstance(settings, OpenAIEngine)
        return await build_engine(
            settings.model_copy(update={"cache": False, "mode": "live"}),
            self._policy if model == POLICY else model,
            cache=self._cache and self._cache / engine,
            ledger=self._ledgers and self._ledgers / f"{engine}.spent.jsonl",
            place=_place(self._config, engine, model),
        )

    async def reward_model(self, labeler: OwnModelLabeler) -> Labeler:
        """The labeler that ``labeler`` describes; its models stay loaded from round to round, as
        far as there is room.

        Raises ``LabelerError`` or ``TrainingError`` where they are no such models.
        """
        key = _own_key(labeler)
        if key not in self._reward_models:
            seat = partial(self._reward_seat, labeler)
            async with seat():  # what is no reward model is refused now
                pass
            load = partial(self._loads.carrying, key, 1)
            self._reward_models[key] = SeatedLabeler(labeler.name, seat, load)
        return self._reward_models[key]

    async def labeler(self, labeler: LabelerConfig, *, keeps: bool = True) -> Labeler:
        """The labeler that ``labeler`` describes, with the engine or the model it asks for. Without
        ``keeps``, criteria that it writes for prompts are forgotten with it.

        Raises ``LabelerError`` where it cannot be made.
        """
        if isinstance(labeler, OwnModelLabeler):
            return await self.reward_model(labeler)
        if isinstance(labeler, VerifierLabeler):
            if labeler not in self._verifiers:  # its processes have imported the function
                self._verifiers[labeler] = build_labeler(
                    labeler, engine=None, seed=self._config.seed
                )
            return self._verifiers[labeler]
        engine, desk = None, None
        if isinstance(labeler, JudgeLabeler):
            engine = await self.engine(labeler.engine, labeler.model)
            desk = await self._desk(labeler, keeps=keeps)
        return build_labeler(labeler, engine=engine, seed=self._config.seed, desk=desk)

    async def _desk(self, labeler: JudgeLabeler, *, keeps: bool) -> WritingDesk | None:
        """With what the criteria of a judge are written, where they are."""
        writer = labeler.writer
        if writer is None:
            return None
        engine = await self.engine(writer.engine, writer.model)
        if self._rubrics is None or not keeps:
            return WritingDesk(engine)
        about = {
            "writer": fingerprint(writer),
            "revision": revision(self.checkpoint_of(writer.model, writer.engine)),
            "question": question_revision(labeler.judge),
            "seed": self._config.seed,
        }
        folder = self._rubrics / f"{labeler.name}-{json_hash(about)[:12]}"
        return WritingDesk(engine, RubricShelf(folder, about))

    async def labelers(
        self, labelers: Iterable[LabelerConfig], *, anew: bool = False
    ) -> list[Labeler]:
        """Those that ``labelers`` describe, in their order. Raises as ``labeler`` does.

        ``anew``: their servers are asked whatever they answered before.
        """
        wanted = list(labelers)
        for labeler in wanted:
            for engine, model in labeler.asked if isinstance(labeler, JudgeLabeler) else ():
                await self.engine(engine, model)
                self.ask_anew(engine, model, anew)
        return [await self.labeler(labeler) for labeler in wanted]

    def member_revision(self, member: PoolMember) -> str:
        """Revision of the policy that ``member`` of the pool samples from."""
        path = (
            self._policy
            if member.model == POLICY
            else self.checkpoint_of(member.model, member.engine)
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
            (model, engine)
            for labeler in self._config.all_labelers
            if isinstance(labeler, JudgeLabeler)
            for engine, model in labeler.asked
        ]
        if opponent := self._config.evaluate.opponent:
            asked.append((opponent.model, opponent.engine or self._config.sample.engine))
        found = {
            model: revision(self.checkpoint_of(model, engine))
            for model, engine in asked
            if model != POLICY
        }
        for labeler in self._config.all_labelers:
            if isinstance(labeler, OwnModelLabeler):
                folders = zip(labeler.models, _own_checkpoints(labeler), strict=True)
                found |= {model: revision(folder) for model, folder in folders}
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
        await self._close((engine, model))

    async def make_room(self) -> None:
        """Let this machine's models make room for training, whose memory it needs: on a GPU all of
        them, elsewhere those beside which it does not fit.

        A sleeping engine stays where training fits beside what it keeps of the GPU. Servers stay:
        what they count goes on.
        """
        mode: MemoryMode = "one_at_a_time" if has_gpu() else self._config.memory
        needs = self._training_footprint()
        for key in who_leaves(mode, needs, self._residency.inside(), capacity):
            self._residency.forget([key])
            await self._leave(key)
        for device in needs.devices:
            room = USABLE * capacity(device) - needs.bytes
            asleep = [key for key in self._asleep if device in self._devices(key)]
            for key in asleep[max(int(room / ASLEEP), 0) :]:
                await self._close(key)

    async def release(self) -> None:
        """Close every engine, reward model and verifier; they come back when asked for."""
        self._reward_models.clear()
        self._verifiers.clear()
        for key in [*self._loaded, *self._engines]:
            await self._close(key)

    @asynccontextmanager
    async def scoring(self, dtype: str | None = None) -> AsyncIterator[Scorer]:
        """The log-probabilities of answers under checkpoints, on the device and in the type that
        the policy is sampled with (or in ``dtype``): by the engine where it serves the checkpoint,
        else by a model that is loaded for it, for which others make room.

        It is to be called in a thread, while the engines are asked nothing.
        """
        settings = self._config.engines[self._config.sample.engine]
        device = device_beside(settings)
        named = "auto" if isinstance(settings, OpenAIEngine) else settings.dtype
        usual = dtype_on(named, device)
        at = Placement(device, dtype or usual)
        longest = sampling_longest(self._config)
        key = ("log-probabilities", "")
        footprint = scoring_footprint(self._start, at.device, at.dtype, longest)
        async with self._residency.place(key, footprint, enter=_nothing, leave=_nothing):
            _free_cached()
            yield Scorer(at.dtype, partial(self._reader, at, by_engine=at.dtype == usual))
        self._residency.forget([key])
        _free_cached()

    def _reader(
        self, at: Placement, checkpoint: Path, texts: ScoredTexts, *, by_engine: bool
    ) -> ReadShare:
        key = (self._config.sample.engine, POLICY)
        engine: object = self._engines.get(key)
        serves = by_engine and self._serving.get(key) == str(checkpoint)
        if serves and isinstance(engine, ScoringEngine):
            return _with_threads(
                self._threads, partial(engine.logprobs, *scored_tokens(checkpoint, texts))
            )
        _free_cached()
        return _with_threads(self._threads, loaded_reader(checkpoint, texts, at))

    @property
    def _threads(self) -> int | None:
        """Threads that the policy is computed with; null: as torch finds them."""
        settings = self._config.engines[self._config.sample.engine]
        return settings.threads if isinstance(settings, TransformersEngine) else None

    def _training_footprint(self) -> Footprint:
        longest = sampling_longest(self._config)
        if self._config.train is None:  # for another model, of the policy's kind
            settings = self._config.engines[self._config.sample.engine]
            return engine_footprint(settings, self._start, longest)
        return training_footprint(self._config.train, self._start, longest)

    def _crowds(self, key: ModelKey) -> bool:
        """Whether somebody would have to leave for ``key``."""
        inside = self._residency.inside()
        return key not in inside and bool(
            who_leaves(self._config.memory, self._footprint(key), inside, self._room)
        )

    def _room(self, device: str) -> int:
        """Bytes of ``device`` for engines: less where a training goes on meanwhile."""
        return capacity(device) - beside_training(self._config, device)

    def _footprint(self, key: ModelKey) -> Footprint:
        if key not in self._footprints:
            self._footprints[key] = self._footprint_of(key)
        return self._footprints[key]

    def _footprint_of(self, key: ModelKey) -> Footprint:
        engine, model = key
        longest = sampling_longest(self._config)
        for labeler in self._config.all_labelers:
            if isinstance(labeler, JudgeLabeler) and key in labeler.asked:
                longest = judging_longest(labeler, longest)
        name = self._start if model == POLICY else model
        return engine_footprint(self._config.engines[engine], name, longest)

    def _devices(self, key: ModelKey) -> tuple[str, ...]:
        return devices_of(self._config.engines[key[0]])

    @asynccontextmanager
    async def _seat(self, key: ModelKey) -> AsyncIterator[Engine]:
        """The engine of ``key``, in memory and serving what its model means now."""
        engine, model = key
        wanted = self._policy if model == POLICY else self.checkpoint_of(model, engine)
        async with self._residency.place(
            key,
            self._footprint(key),
            enter=partial(self._enter, key, wanted),
            leave=partial(self._leave, key),
        ):
            async with self._swapping:
                if self._serving[key] != wanted:
                    await self._swap(key[0], self._engines[key], self._serving[key], wanted)
                    self._serving[key] = wanted
            yield self._engines[key]

    async def _enter(self, key: ModelKey, wanted: str) -> None:
        """Wake the engine of ``key``, or open it."""
        _free_cached()
        engine, model = key
        if key in self._asleep:
            sleeper = self._engines[key]
            assert isinstance(sleeper, SleepingEngine)
            logger.info("engine %s: waking", engine)
            await sleeper.wake_up()
            self._asleep.discard(key)
            return
        base = self._start if model == POLICY and is_adapter(wanted) else wanted
        logger.info("engine %s: loading %s", engine, base)
        self._engines[key] = self._known[key] = await build_engine(
            self._config.engines[engine],
            base,
            cache=self._cache and self._cache / engine,
            ledger=self._ledgers and self._ledgers / f"{engine}.spent.jsonl",
            place=_place(self._config, engine, model),
        )
        self._serving[key] = base

    async def _leave(self, key: ModelKey) -> None:
        """Put the engine of ``key`` to sleep, or close it: another needs its memory."""
        engine: object = self._engines.get(key)
        if isinstance(engine, SleepingEngine) and engine.can_sleep and self._fits_asleep(key):
            logger.info("engine %s: sleeping", key[0])
            await engine.sleep()
            self._asleep.add(key)
        else:
            logger.info("%s: making room", key[0])
            await self._close(key)

    def _fits_asleep(self, key: ModelKey) -> bool:
        """Whether main memory has room for the weights of ``key`` while it sleeps."""
        asleep = sum(
            model_shape(self._serving[one]).parameters * replicas_of(self._config.engines[one[0]])
            for one in [*self._asleep, key]
        )
        return 2 * asleep < capacity(CPU) // 2

    async def _close(self, key: ModelKey) -> None:
        self._residency.forget([key])
        self._asleep.discard(key)
        self._serving.pop(key, None)
        self._loaded.pop(key, None)
        engine = self._engines.pop(key, None)
        if engine:
            await engine.aclose()
        _free_cached()

    @asynccontextmanager
    async def _reward_seat(self, labeler: OwnModelLabeler) -> AsyncIterator[Labeler]:
        """The models of ``labeler``, in memory."""
        key = _own_key(labeler)
        if key not in self._footprints:
            self._footprints[key] = own_model_footprint(labeler, sampling_longest(self._config))

        async def enter() -> None:
            _free_cached()
            logger.info("labeler %s: loading %s", labeler.name, " and ".join(labeler.models))
            self._loaded[key] = await asyncio.to_thread(_load_own, labeler, self._config.seed)

        leave = partial(self._leave, key)
        async with self._residency.place(key, self._footprints[key], enter=enter, leave=leave):
            yield self._loaded[key]

    def checkpoint_of(self, model: str, engine: str) -> str:
        """Where the weights lie that ``engine`` has for ``model``; a server's name for it as is."""
        key = (engine, model)
        if key not in self._checkpoints:
            name = self._config.policy if model == POLICY else model
            served = isinstance(self._config.engines.get(engine), OpenAIEngine)
            self._checkpoints[key] = checkpoint(name, served=served)
        return self._checkpoints[key]

    async def _swap(self, name: str, engine: Engine, previous: str, path: str) -> None:
        """Let ``engine`` serve ``path``, for sure: in place, or else from a new engine process."""
        dtype = getattr(self._config.engines[name], "dtype", "auto")
        if dtype == "auto":
            dtype = "bfloat16" if has_gpu() else "float32"
        verify = partial(
            verify_policy,
            checkpoint=path,
            probes=self.probes,
            tolerance_nats=TOLERANCE_NATS[dtype],
            previous=previous if Path(previous).exists() else None,
        )
        checked = not getattr(engine, "is_transformers", False)
        if checked and isinstance(engine, ReplicatedEngine):
            engine.check_by(verify)
        await engine.load_policy(path)
        if not checked:
            return
        try:
            difference = await verify(engine)
        except PolicyMismatch as mismatch:
            if not isinstance(engine, RestartingEngine):
                raise
            logger.warning("%s; starting vLLM anew", mismatch)
            await engine.restart(path)
            difference = await verify(engine)
        logger.info("%s serves %s: %.1e nats a token off transformers", name, path, difference)


def _place(config: RunConfig, engine: str, model: str) -> Place:
    """Which keys of ``config`` say what ``model`` is asked on ``engine``."""
    samples = any(m.engine == engine and m.model == model for m in config.sample.members())
    judges = (
        ("label.labelers", config.label.labelers),
        ("evaluate.judges", config.evaluate.judges),
        ("evaluate.final.judges", config.final_judges),
    )
    named = [
        f"{key}.{one.name}"
        for key, labelers in judges
        for one in labelers
        if isinstance(one, JudgeLabeler) and (engine, model) in one.asked
    ]
    return Place(f"engines.{engine}", (*(["sample"] if samples else []), *named))


def _by_characters(text: str) -> int:
    return len(text) // 4 + 1


def _own_key(labeler: OwnModelLabeler) -> ModelKey:
    return f"labeler {labeler.name}", labeler.model_dump_json()


def _own_checkpoints(labeler: OwnModelLabeler) -> list[str]:
    """The folders of a labeler's models."""
    trusted = isinstance(labeler, RewardModelLabeler) and labeler.trust_remote_code
    return [checkpoint(one, served=False, trust_remote_code=trusted) for one in labeler.models]


def _load_own(labeler: OwnModelLabeler, seed: int) -> Labeler:
    """The labeler that ``labeler`` describes, with its models in memory."""
    folders = _own_checkpoints(labeler)
    if not isinstance(labeler, ImplicitRewardLabeler):
        return build_labeler(labeler, engine=None, seed=seed, checkpoint=folders[0])
    device = device_named(labeler.device)
    scoring = Scoring(
        at=Placement(device, dtype_on(labeler.dtype, device)),
        batch_size=labeler.batch_size,
        max_length=labeler.max_length,
        template_kwargs=labeler.chat_template_kwargs,
    )
    policy, reference = map(Path, folders)
    likelihoods = PolicyAndReference(policy, reference, scoring)
    return build_labeler(labeler, engine=None, seed=seed, likelihoods=likelihoods)


def _with_threads(threads: int | None, read: ReadShare) -> ReadShare:
    """``read`` with so many threads, whoever computed in this process before: sums in another order
    differ in their last bits."""

    def reads(share: tuple[int, int]) -> Scores:
        with computing_with(threads):
            return read(share)

    return reads


async def _nothing() -> None:
    pass


def _free_cached() -> None:
    """Give back what torch keeps of a GPU for this process: another may need it now."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
