"""What a comparison calls a policy: a folder, a name at the hub or a server, a run, a round."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from prefloop.data.hashing import content_id
from prefloop.data.storage.objects import is_address
from prefloop.pipeline.config import POLICY, PoolMember, RunConfig
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.engines.weights import adapter_base, is_adapter
from prefloop.pipeline.remote.door import local_path
from prefloop.pipeline.run.models import checkpoint, revision
from prefloop.pipeline.run.promotion import keeping
from prefloop.pipeline.run.run_dir import RunDir, RunError
from prefloop.training.policy.checkpoints import TOKENIZER_FILES

_ROUND = re.compile(r"(.+):(\d{1,3})")
_SHAPE = ("architectures", "vocab_size", "hidden_size", "num_hidden_layers")


@dataclass(frozen=True)
class NamedPolicy:
    """One of the policies that are compared."""

    name: str
    """As it was given."""
    model: str
    """Its checkpoint's folder, or what its server calls it."""
    engine: str
    is_served: bool

    @property
    def key(self) -> str:
        """Two policies with the same key answer alike."""
        found = revision(self.model) if not self.is_served else self.model
        return content_id(self.engine, found)

    @property
    def member(self) -> PoolMember:
        """How it is asked: a local one is what ``policy`` means at the time."""
        return PoolMember(
            name=POLICY, engine=self.engine, model=self.model if self.is_served else POLICY
        )

    @property
    def base(self) -> str:
        """The whole model that its engine is opened with."""
        return adapter_base(self.model) if is_adapter(self.model) else self.model

    @property
    def family(self) -> str:
        """Policies of one family can be served by one engine, one after the other: they have the
        same tokenizer, template and shape, and adapters the same base."""
        if self.is_served:
            return content_id("served", self.engine)
        about = [self.engine, self.base if is_adapter(self.model) else ""]
        folder = Path(self.base)
        digest = hashlib.blake2b()
        for file in sorted({file for one in TOKENIZER_FILES for file in folder.glob(one)}):
            digest.update(file.name.encode() + file.read_bytes())
        try:
            settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            settings = {}
        return content_id(*about, digest.hexdigest(), *(str(settings.get(key)) for key in _SHAPE))


def named_policy(name: str, config: RunConfig) -> NamedPolicy:
    """The policy that is called ``name``: ``RUN`` (the policy to keep of a run), ``RUN:2`` (that of
    its round 2), a checkpoint's or an adapter's folder, a hub name; where ``sample.engine`` is a
    server, what that calls it; ``NAME@ENGINE`` asks another of the config's engines.

    Raises ``RunError`` where a run has no such policy, and ``EngineFailed`` where there is nothing
    of that name.
    """
    what, engine = name, config.sample.engine
    before, _, behind = name.rpartition("@")
    if before and behind in config.engines:
        what, engine = before, behind
    if engine not in config.engines:  # nothing was to be sampled
        raise RunError(
            f"the config has no engine {engine!r} to ask the policies with: add it to `engines`, "
            "name another with sample.engine, or write POLICY@ENGINE"
        )
    if isinstance(config.engines[engine], OpenAIEngine):
        if Path(what).is_dir() or is_address(what):
            raise RunError(
                f"{what} is a folder, and the engine {engine!r} is a server, which knows models by "
                "name: give that name, or a local engine as FOLDER@ENGINE"
            )
        return NamedPolicy(name, what, engine, is_served=True)
    return NamedPolicy(name, _local(what), engine, is_served=False)


def _local(what: str) -> str:
    found = _ROUND.fullmatch(what)
    if found and (run := RunDir(local_path(found[1], weights=True))).config.is_file():
        index = int(found[2])
        folder = run.round(index).policy
        if not folder.is_dir():
            there = [str(one.index) for one in run.rounds() if one.policy.is_dir()]
            has = f"it has those of {', '.join(there)}" if there else "it has none yet"
            raise RunError(f"{what}: the run {run.root} has no policy of round {index}: {has}")
        return str(folder)
    folder = local_path(what, weights=True)
    if RunDir(folder).config.is_file() and not (folder / "config.json").is_file():
        best = keeping(RunDir(folder)).folder
        if best is None:
            raise RunError(
                f"{what}: no round of this run did better than its start, so it has no policy to "
                f"keep: name a round, as "
                f"{what}:0"
            )
        return str(best.policy)
    return checkpoint(what, served=False)
