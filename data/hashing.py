"""Content ids and derived seeds: what makes a resumed run equal to an uninterrupted one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

_SEPARATOR = b"\x1f"


def content_id(*parts: str | int) -> str:
    """Hash ``parts`` to 32 hexadecimal characters (BLAKE2b, 128 bits).

    Parts are separated, so ``("ab", "c")`` and ``("a", "bc")`` differ.
    """
    joined = _SEPARATOR.join(str(part).encode("utf-8", "surrogatepass") for part in parts)
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


def json_hash(value: object) -> str:
    """Hash of a JSON value, independent of the order of object keys."""
    return content_id(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str))


def folder_revision(folder: Path) -> str:
    """Hash (12 hexadecimal characters) of the weights, tokenizer and config files in ``folder``.

    Two policies with the same revision answer alike: it covers file contents, not timestamps.
    """
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(folder.iterdir()):
        if path.suffix in {".safetensors", ".json", ".jinja", ".model"}:
            digest.update(path.name.encode())
            with path.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "blake2b").digest())
    return digest.hexdigest()
