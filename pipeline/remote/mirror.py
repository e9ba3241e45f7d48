"""A folder and the objects below an address, made the same in either direction."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from prefloop.data.storage.lease import Lease
from prefloop.data.storage.objects import Found, Objects
from prefloop.pipeline.remote import changes
from prefloop.pipeline.remote.changes import StoreChanges, all_at_once
from prefloop.pipeline.remote.known_objects import Known, KnownObjects
from prefloop.pipeline.remote.local_tree import EMPTY, LocalTree, is_slow, state_of
from prefloop.pipeline.remote.log_pieces import LogPieces, is_piece

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


class Mirror:
    """The folder ``root`` and ``objects``; ``known`` remembers in what they were the same."""

    def __init__(self, objects: Objects, root: Path, known: KnownObjects) -> None:
        self.objects = objects
        self.root = root
        self._known = known
        self._tree = LocalTree(root)
        self._logs = LogPieces(objects, root)
        self._is_broken = False

    def fetch(self, *, weights: bool = True) -> int:
        """Make the folder what the store has, whatever was in it; returns the number of objects
        there. Without ``weights``, those of models that are not here yet stay away."""
        found = changes.view(self.objects)
        self._logs.seen(found.values())
        there = {name: one for name, one in found.items() if not is_piece(name)}
        here = self._tree.all()
        same = {name for name, one in there.items() if self._is_same(name, one, here)}
        lacking = {
            name: one
            for name, one in there.items()
            if name not in same and (weights or not name.endswith(_WEIGHTS))
        }
        for name in {*here, *self._known.names()} - same - lacking.keys():
            self._known.drop(name)
            if name.rpartition("/")[2] != EMPTY:
                (self.root / name).unlink(missing_ok=True)
        self.root.mkdir(parents=True, exist_ok=True)
        states = all_at_once(lambda item: self._download(*item), lacking.items())
        for name, known in zip(lacking, states, strict=True):
            self._known.set(name, known)
        self._logs.fetch()
        self._remove_empty(there)
        self._tree.forget()
        return len(found)

    def compare(self) -> None:
        """Take the folder for what is right, and see what of it is on the store: :meth:`send` does
        the rest."""
        found = changes.view(self.objects)
        self._logs.seen(found.values())
        there = {name: one for name, one in found.items() if not is_piece(name)}
        for name in [*self._known.names()]:
            if name not in there:
                self._known.drop(name)
        for name, one in there.items():
            known = self._known.get(name)
            if known is None or known.version != one.version:
                self._known.set(name, Known(self._state_if_same(name, one), one.version))
        self._tree.forget()

    def written(self, path: Path) -> None:
        """The file ``path`` in the folder was written."""
        self._tree.written(path)

    def send(self, lease: Lease, *, slow: bool = False) -> None:
        """Make the store what the folder is, all at once or not at all. ``slow``: with what is
        written into at any moment, and the logs. Raises ``StorageError``."""
        lease.require()
        if self._is_broken:  # what was begun last was not finished
            changes.recover(self.objects)
            self.compare()
            self._is_broken = False
        self._is_broken = True
        wanted, states = self._differences(slow)
        if len(wanted):
            versions = changes.apply(self.objects, wanted)
            for name in wanted.removed:
                self._known.drop(name)
            for name, version in versions.items():
                self._known.set(name, Known(states[name], version))
        self._is_broken = False
        if slow:
            self._logs.send()

    def _differences(self, slow: bool) -> tuple[StoreChanges, dict[str, str]]:
        """What is to be done on the store, and the states of the files that it is done for."""
        created: dict[str, Path | bytes] = {}
        replaced: dict[str, tuple[Path, str]] = {}
        removed: list[str] = []
        states: dict[str, str] = {}
        looked = dict(self._tree.changed(slow=slow))
        for folder in self._known.folders:
            if folder not in looked and not (self.root / folder).is_dir():
                looked[folder] = {}
        for folder, files in looked.items():
            known = self._known.folders.get(folder, {})
            at = f"{folder}/" if folder else ""
            for file, state in files.items():
                name, path = at + file, self.root / folder / file
                states[name] = state
                if file not in known:
                    created[name] = b"" if file == EMPTY else path
                elif known[file].state != state:
                    replaced[name] = path, known[file].version
            removed += [at + file for file in known if file not in files]
        # As the run itself does it: what says that others are there goes first, shards backwards.
        removed.sort(key=lambda name: (name.endswith(".parquet"), name.endswith(EMPTY)))
        return StoreChanges(created, replaced, removed), states

    def _is_same(self, name: str, one: Found, here: Mapping[str, str]) -> bool:
        known = self._known.get(name)
        if known is None or known.version != one.version:
            return False
        return here.get(name) == known.state

    def _download(self, name: str, one: Found) -> Known:
        path = self.root / name
        if path.name == EMPTY:
            path.parent.mkdir(parents=True, exist_ok=True)
            return Known(EMPTY, one.version)
        if path.parent.is_file():
            path.parent.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            version = self.objects.download(one.name, temporary)
            seconds = one.modified.timestamp()
            os.utime(temporary, (seconds, seconds))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        # What was put beside another object in a change that was not over has a version of its own.
        return Known(state_of(path), version if one.name == name else "")

    def _state_if_same(self, name: str, one: Found) -> str:
        path = self.root / name
        if path.name == EMPTY:
            return EMPTY
        if not path.is_file() or path.stat().st_size != one.size:
            return ""
        return state_of(path) if path.read_bytes() == self.objects.get(one.name) else ""

    def _remove_empty(self, wanted: Mapping[str, Found]) -> None:
        """A folder whose files are gone is gone; hidden files alone do not keep it."""
        for folder, _, _ in os.walk(self.root, topdown=False):
            path = Path(folder)
            name = str(path.relative_to(self.root))
            if path != self.root and not is_slow(name) and f"{name}/{EMPTY}" not in wanted:
                try:
                    path.rmdir()
                except OSError:
                    continue
