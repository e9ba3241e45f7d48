"""``prefloop publish``: a run's dataset or policy to the hub, looked through first."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefloop.data.errors import InputError
from prefloop.pipeline.config import validate_config
from prefloop.pipeline.publish.checked_files import SensitiveFinds, look_through
from prefloop.pipeline.publish.dataset_copy import copy_dataset
from prefloop.pipeline.publish.hub_upload import RepoKind, Uploaded, require_hub, upload
from prefloop.pipeline.publish.policy_copy import copy_policy
from prefloop.pipeline.run.run_dir import RunDir, RunError

_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z]{2,4})?")


@dataclass(frozen=True)
class PublishOptions:
    """What is published, and how."""

    licence: str
    languages: tuple[str, ...] = ()
    """Of the card; empty: those found in the prompts."""
    policy: bool = False
    """The policy that the run keeps, instead of its dataset."""
    public: bool = False
    allow_findings: bool = False
    dry_run: bool = False
    """Make and look through the files, and send nothing."""


@dataclass(frozen=True)
class Published:
    """What was published, or would be."""

    repo: str
    kind: RepoKind
    files: dict[str, int]
    """Bytes by file."""
    finds: SensitiveFinds
    stopped: bool
    """Nothing was sent, for what was found."""
    uploaded: Uploaded | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "repo": self.repo,
            "kind": self.kind,
            "files": self.files,
            "finds": self.finds.as_dict(),
            "stopped": self.stopped,
            "uploaded": asdict(self.uploaded) if self.uploaded else None,
        }


def publish_run(run: RunDir, repo: str, options: PublishOptions) -> Published:
    """Make the files, look through them, and send them where nothing sensitive was found or it may
    be sent. Raises ``InputError``, ``RunError`` and ``UploadFailed``."""
    _check(repo, options)
    if not options.dry_run:
        require_hub()
    with _copy(run, repo, options) as folder:
        finds = look_through(folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
        kind: RepoKind = "model" if options.policy else "dataset"
        stopped = bool(finds.kinds) and not options.allow_findings
        done = None
        if not stopped and not options.dry_run:
            done = upload(folder, repo, kind, public=options.public)
    return Published(repo, kind, files, finds, stopped, done)


def _check(repo: str, options: PublishOptions) -> None:
    if not _REPO.fullmatch(repo):
        raise InputError(f"{repo!r}: write the name on the hub as ORG/NAME")
    if not _LICENCE.fullmatch(options.licence):
        raise InputError(
            f"--license {options.licence!r}: write it as the hub does, such as apache-2.0, "
            "cc-by-4.0 or other"
        )
    for one in options.languages:
        if not _LANGUAGE.fullmatch(one):
            raise InputError(f"--language {one!r}: write a code such as en or pt-BR")


@contextmanager
def _copy(run: RunDir, repo: str, options: PublishOptions) -> Iterator[Path]:
    """A folder beside the run's files that holds what is sent, and is gone afterwards."""
    folder = run.root / ".publish"
    with run.lock():
        if run.decides_again():
            raise RunError(
                f"{run.root}: its votes changed and not all pairs are decided again: give "
                "`prefloop run` first"
            )
        if not options.policy:
            run.require_whole_dataset()
        config = validate_config(run.read_config(), str(run.config))
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        folder.mkdir()
        try:
            make = copy_policy if options.policy else copy_dataset
            make(
                config, run, folder,
                repo=repo, licence=options.licence, languages=options.languages,
            )  # fmt: skip
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
