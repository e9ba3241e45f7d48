"""Files as the objects of a store: S3 and what speaks like it, Google Cloud Storage, Azure.

A file is created by one request that the store refuses where the name is taken, so the first writer
stays the first, whatever clock or machine the others have. Credentials come from the environment,
as every machine has its own; no object of this module holds them in what it shows or is pickled as.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from prefloop.data.errors import InputError, StorageError
from prefloop.data.storage.whole_files import Listed

SCHEMES = ("s3", "gs", "az")
"""What addresses of object stores begin with."""
LARGE = 64 << 20
"""Bytes from which a file is sent in parts. Stores cannot refuse those where a name is taken."""
_ADDRESS = re.compile(r"(?P<scheme>[a-z0-9]+):/{1,2}(?P<bucket>[^/?#\s]+)(?:/(?P<path>[^?#]*))?")
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_REGION, AWS_ENDPOINT_URL)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_WEAK = "W/"
"""What an e-tag begins with that has its quotes behind it."""
_SECONDS = 30
"""For how long a request that fails for the connection or the server is given again."""


class Found(NamedTuple):
    """An object as a listing has it."""

    name: str
    size: int
    version: str
    """Another one when it has been written again."""
    modified: datetime
    """By the store's clock."""


class ChangedMeanwhile(StorageError):
    """An object is not what it was when it was seen last: somebody else writes here."""


def is_address(path: str | Path) -> bool:
    """Whether ``path`` names objects of a store, also as ``Path`` writes it (``s3:/bucket/a``)."""
    return str(path).startswith(tuple(f"{scheme}:/" for scheme in SCHEMES))


def as_address(path: str | Path) -> str:
    """The address that ``path`` is, in the one way it is written. Raises ``InputError``."""
    match = _ADDRESS.fullmatch(str(path))
    names = [name for name in (match["path"] or "").split("/") if name] if match else []
    if not match or match["scheme"] not in SCHEMES or ".." in names or "@" in match["bucket"]:
        raise InputError(
            f"{_without_user(str(path))} is no address of an object store: write it as "
            "s3://BUCKET/FOLDER (or gs://, az://), and keys in the environment"
        )
    return "/".join([f"{match['scheme']}://{match['bucket']}", *names])


class Objects:
    """The objects below an address, as a ``Storage``. Making it asks nobody and imports nothing."""

    def __init__(self, address: str) -> None:
        self.address = as_address(address)

    def __repr__(self) -> str:
        return f"Objects({self.address!r})"

    def __reduce__(self) -> tuple[type[Objects], tuple[str]]:
        return Objects, (self.address,)

    def get(self, name: str) -> bytes:
        """See ``Storage``."""
        obstore = _library(self.address)

        with self._refusals(name, "read"):
            return bytes(obstore.get(self._store, name).bytes())

    def create(self, name: str, content: bytes | memoryview) -> bool:
        """See ``Storage``."""
        return self.create_version(name, content) is not None

    def create_version(self, name: str, content: bytes | memoryview) -> str | None:
        """:meth:`create` that returns the version of what it wrote; null where a name is taken.

        A request may have been carried out and its answer lost; given again, it is refused. So
        where a name is taken by just this content, it counts as written.
        """
        obstore = _library(self.address)
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._refusals(name, "written"):
            try:
                put = obstore.put(self._store, name, content, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                found = obstore.get(self._store, name)
                same = found.meta["size"] == len(content) and bytes(found.bytes()) == content
                return _version(found.meta) if same else None
            return _version(put)

    def put(self, name: str, content: bytes | memoryview) -> None:
        """See ``Storage``."""
        obstore = _library(self.address)

        with self._refusals(name, "written"):
            obstore.put(self._store, name, content, use_multipart=False)

    def replace(self, name: str, content: bytes | memoryview, version: str) -> str:
        """Write an object in the place of that of ``version``; returns the new version.

        Raises ``ChangedMeanwhile`` where another one stands there, or none.
        """
        obstore = _library(self.address)
        from obstore.exceptions import PreconditionError

        with self._refusals(name, "written"):
            try:
                mode = self._only_in_place_of(name, version)
                put = obstore.put(self._store, name, content, mode=mode, use_multipart=False)
            except (PreconditionError, FileNotFoundError):
                found = self.find(name)
                if found and found.size == len(content) and self.get(name) == content:
                    return found.version
                raise ChangedMeanwhile(
                    f"{self.address}/{name} was changed by somebody else: another process works "
                    "there; end it, then run the same command again"
                ) from None
            return _version(put)

    def list(self, folder: str = "") -> Sequence[Listed]:
        """See ``Storage``."""
        obstore = _library(self.address)

        with self._refusals(folder, "listed"):
            found = obstore.list_with_delimiter(self._store, folder or None)["objects"]
        at = len(folder) + 1 if folder else 0
        return sorted(
            Listed(one["path"][at:], one["size"], _version(one))
            for one in found
            if not one["path"][at:].startswith(".")
        )

    def delete(self, name: str) -> None:
        """See ``Storage``."""
        self.delete_all([name])

    def delete_all(self, names: Sequence[str]) -> None:
        """Remove objects, in few requests."""
        obstore = _library(self.address)

        if not names:
            return
        with self._refusals(names[0], "removed"):
            try:
                obstore.delete(self._store, list(names))
            except FileNotFoundError:  # some stores say so of what is not there
                for name in names:
                    self._delete_one(name)

    def walk(self, folder: str = "") -> Iterator[Found]:
        """All objects below a folder."""
        obstore = _library(self.address)

        with self._refusals(folder, "listed"):
            for chunk in obstore.list(self._store, folder or None):
                for one in chunk:
                    yield _found(one)

    def find(self, name: str) -> Found | None:
        """An object, without its content; null where there is none."""
        obstore = _library(self.address)

        with self._refusals(name, "read"):
            try:
                return _found(obstore.head(self._store, name))
            except FileNotFoundError:
                return None

    def upload(self, name: str, path: Path) -> str | None:
        """:meth:`create_version` of the file ``path``, which may be large."""
        obstore = _library(self.address)

        if path.stat().st_size < LARGE:
            return self.create_version(name, path.read_bytes())
        if self.find(name):
            return None
        with self._refusals(name, "written"):
            return _version(obstore.put(self._store, name, path))

    def download(self, name: str, path: Path) -> str:
        """Write an object to the new file ``path``; returns its version. Raises
        ``FileNotFoundError``."""
        obstore = _library(self.address)

        with self._refusals(name, "read"):
            found = obstore.get(self._store, name)
            with path.open("wb") as file:
                for chunk in found.stream():
                    file.write(chunk)
            return _version(found.meta)

    def require_conditions(self, folder: str = "") -> datetime:
        """See that one can write here, and that the store refuses to create what is there: without
        that two machines could work on one run. Returns the store's time.

        Raises ``StorageError`` where it is not so.
        """
        name = f"{folder}/probe-{secrets.token_hex(8)}".lstrip("/")
        try:
            first, second = (self.create(name, mark) for mark in (b"1", b"2"))
            found = self.find(name)
        finally:
            self.delete(name)
        if not first or second or found is None:
            raise StorageError(
                f"{self.address}: the store lets a second writer replace what a first one created "
                "(it ignores If-None-Match): use a store that honours conditional writes, or a "
                "directory as run_dir"
            )
        return found.modified

    @cached_property
    def _store(self) -> Any:
        obstore = _library(self.address)
        endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3")
        plain = bool(endpoint and endpoint.startswith("http://"))
        with self._refusals("", "opened"):
            return obstore.store.from_url(
                self.address,
                client_options={
                    "allow_http": plain or os.environ.get("AWS_ALLOW_HTTP") == "true",
                    "connect_timeout": timedelta(seconds=10),
                },
                retry_config={"max_retries": 6, "retry_timeout": timedelta(seconds=_SECONDS)},
            )

    def _only_in_place_of(self, name: str, version: str) -> dict[str, str]:
        """The condition that an object is still of ``version``. Raises ``PreconditionError`` where
        it is seen not to be, and ``FileNotFoundError``."""
        if not self.address.startswith("gs:"):
            return {"e_tag": version if version.startswith(_WEAK) else f'"{version}"'}
        # Google compares numbers of its own, which its listings do not tell.
        from obstore.exceptions import PreconditionError

        obstore = _library(self.address)
        there = obstore.head(self._store, name)
        if _version(there) != version:
            raise PreconditionError(name)
        return {"version": there["version"]}

    def _delete_one(self, name: str) -> None:
        obstore = _library(self.address)

        try:
            obstore.delete(self._store, name)
        except FileNotFoundError:
            return

    @contextmanager
    def _refusals(self, name: str, done: str) -> Iterator[None]:
        """What the store's library raises, as one line with a remedy."""
        where = f"{self.address}/{name}".rstrip("/")
        try:
            yield
        except Exception as error:
            reason, remedy = _explained(error, self.address)
            if remedy is None:
                raise
            raise StorageError(f"{where}: cannot be {done}: {reason}: {remedy}") from None


def _library(address: str) -> Any:
    """The library that talks to stores; imported only where there is an address."""
    try:
        import obstore
        import obstore.store
    except ImportError:
        raise StorageError(
            f"{address}: object stores need the package obstore: "
            f"pip install 'prefloop[{address.partition(':')[0]}]'"
        ) from None
    return obstore


_REASONS = (
    (
        r"NoSuchBucket|ContainerNotFound|bucket does not exist",
        "there is no such bucket",
        "make it, or correct the address",
    ),
    (
        r"169\.254\.169\.254|metadata\.google|Account must be specified|[Cc]redentials?\b",
        "there are no credentials",
        "set {credentials}",
    ),
    (
        r"status code: 40[13]|AccessDenied|InvalidAccessKey|SignatureDoesNotMatch|Unauthenticated",
        "the store refuses it to these credentials",
        "give them the right to list, read, write and delete there, or set {credentials}",
    ),
    (
        r"error sending request|timed out|after \d+ retries",
        "the store does not answer",
        "check the network{endpoint}, then run the same command again",
    ),
)
"""What is to be found in a store's words, what it means, and what helps."""


def _explained(error: Exception, address: str) -> tuple[str, str | None]:
    """Why a request failed and what helps; null for what is no failure of the store."""
    is_missing = isinstance(error, FileNotFoundError)
    if not is_missing and not _of_obstore(error):
        return "", None
    text = str(error)
    for pattern, reason, remedy in _REASONS[: 1 if is_missing else None]:
        if re.search(pattern, text):
            scheme = address.partition(":")[0]
            endpoint = " (and AWS_ENDPOINT_URL)" if scheme == "s3" else ""
            return reason, remedy.format(credentials=_CREDENTIALS[scheme], endpoint=endpoint)
    if is_missing:
        return "", None
    first = " ".join(text.partition("\n")[0].split())[:200]
    return first, "mend that, then run the same command again"


def _of_obstore(error: Exception) -> bool:
    return any(base.__module__.startswith("obstore") for base in type(error).__mro__)


def _found(one: Any) -> Found:
    return Found(one["path"], one["size"], _version(one), one["last_modified"])


def _version(one: Any) -> str:
    """What the store calls this content of an object. Azure has it in quotes, or not, depending on
    who asks."""
    e_tag: str = one["e_tag"] or ""
    return e_tag if e_tag.startswith(_WEAK) else e_tag.strip('"')


def _without_user(text: str) -> str:
    """A user and password in an address are not repeated."""
    return re.sub(r"//[^/@]*@", "//...@", text)
