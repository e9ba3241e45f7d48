"""Content ids and derived seeds: what makes a resumed run equal to an uninterrupted one."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SEPARATOR = "\x1f"
_SORTED = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=str)
_LARGE = 64 << 20
"""Bytes from which on the digest of a file is kept."""
_SETTLED_NS = 2_000_000_000


def content_id(*parts: str | int) -> str:
    """Hash ``parts`` to 32 hexadecimal characters (BLAKE2b, 128 bits).

    Parts are separated, so ``("ab", "c")`` and ``("a", "bc")`` differ.
    """
    joined = _SEPARATOR.join(map(str, parts)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=16).hexdigest()


def prompt_id(messages: Sequence[Mapping[str, str]]) -> str:
    """Id of a conversation: a hash of its roles and contents."""
    return content_id(*(message[key] for message in messages for key in ("role", "content")))


def pair_id(prompt: str, a: str, b: str) -> str:
    """Id of the pair of candidates ``a`` and ``b`` of a prompt, whatever their order."""
    first, second = sorted((a, b))
    return content_id(prompt, first, second)


def derive_seed(*parts: str | int) -> int:
    """A seed in [0, 2**31) from ``parts``, e.g. (run seed, round, prompt id, sample index).

    31 bits, because some engines take no larger per-request seed.
    """
    return int.from_bytes(bytes.fromhex(content_id(*parts))[:4], "big") & 0x7FFFFFFF


def derive_seeds(led_by: Sequence[str | int], each: Iterable[str]) -> NDArray[np.int64]:
    """:func:`derive_seed` of the parts ``led_by`` and, after them, each of ``each``."""
    before = "".join(f"{part}{_SEPARATOR}" for part in led_by)
    hashed = hashlib.blake2b
    digests = b"".join(
        hashed((before + one).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for one in each
    )
    return np.frombuffer(digests, ">u4")[::4].astype(np.int64) & 0x7FFFFFFF


def json_hash(value: object) -> str:
    """Hash of a JSON value, independent of the order of object keys."""
    return content_id(_SORTED.encode(value))


def folder_revision(folder: Path) -> str:
    """Hash (12 hexadecimal characters) of the weights, tokenizer and config files in ``folder``.

    Two policies with the same revision answer alike: it covers file contents, not timestamps. What
    large files hold is remembered (see :class:`_KeptDigests`).
    """
    digest = hashlib.blake2b(digest_size=6)
    kept = _KeptDigests(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix in {".safetensors", ".json", ".jinja", ".model"}:
            digest.update(path.name.encode())
            digest.update(kept.of(path))
    kept.store()
    return digest.hexdigest()


class _KeptDigests:
    """BLAKE2b of the files of a folder; those of large files are kept from one start to the next,
    as 16 GB of weights take 18 s to read.

    They lie in the user's cache folder, a small file for each folder of weights, and count only
    where a file's size, times and inode are what they were. Where that cache cannot be read or
    written, files are read, and nothing is said.
    """

    def __init__(self, folder: Path) -> None:
        caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        self._file = (
            Path(caches).expanduser() / "prefloop" / "hashes" / content_id(str(folder.resolve()))
        )
        self._known: dict[str, list[Any]] | None = None
        self._seen: dict[str, list[Any]] = {}

    def of(self, path: Path) -> bytes:
        """The digest of the file at ``path``."""
        stamp = _stamp(path)
        if stamp[0] < _LARGE:
            return _digest(path)
        if self._known is None:
            self._known = self._read()
        kept = self._known.get(path.name)
        if isinstance(kept, list) and kept[:-1] == stamp:
            with suppress(ValueError, TypeError):
                self._seen[path.name] = kept
                return bytes.fromhex(kept[-1])
        found = _digest(path)
        # A file that changed just now may change again within the clock's grain.
        if stamp == _stamp(path) and time.time_ns() - max(stamp[1:3]) > _SETTLED_NS:
            self._seen[path.name] = [*stamp, found.hex()]
        return found

    def store(self) -> None:
        """Keep what was found out."""
        if not self._seen or self._seen == self._known:
            return
        partial = self._file.with_name(f".{self._file.name}.tmp-{os.getpid()}")
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(self._seen), encoding="utf-8")
            partial.replace(self._file)

    def _read(self) -> dict[str, list[Any]]:
        with suppress(OSError, ValueError, RecursionError):
            known = json.loads(self._file.read_text(encoding="utf-8"))
            if isinstance(known, dict):
                return known
        return {}


def _stamp(path: Path) -> list[int]:
    """What changes where the contents of a file do."""
    about = path.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_dev]


def _digest(path: Path) -> bytes:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "blake2b").digest()
