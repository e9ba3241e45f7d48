"""To the hub, through ``huggingface_hub``: what is there already is not sent again."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prefloop.data.errors import PrefloopError
from prefloop.pipeline.report.redact import hide_environment_secrets, redact

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RepoKind = Literal["dataset", "model"]
OURS = "prefloop"
"""Tag of the cards that prefloop writes."""
_OLD_FILES = {
    "dataset": [f"{name}/*.parquet" for name in ("data", "unpaired", "candidates", "votes")],
    "model": ["*.safetensors", "*.safetensors.index.json", "adapter_config.json"],
}
"""What would be read together with the new files if it stayed."""


class UploadFailed(PrefloopError):
    """The hub cannot be reached, or refuses."""


@dataclass(frozen=True)
class Uploaded:
    """Where it lies."""

    url: str
    commit: str
    changed: bool
    """False: the same files were there."""


def require_hub() -> None:
    """Raise ``UploadFailed`` where no upload can succeed: offline, or without a token."""
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        raise UploadFailed("HF_HUB_OFFLINE is set: unset it to publish, or see --dry-run")
    if not get_token():
        raise UploadFailed(
            "there is no token for the hub: set HF_TOKEN to one that may write, or run "
            "`hf auth login`"
        )


def upload(folder: Path, repo: str, kind: RepoKind, *, public: bool) -> Uploaded:
    """Make the files of ``folder`` those of ``repo``, in one commit; none where nothing differs.

    After an interruption the same call sends what is still missing. Raises ``UploadFailed``.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    with _failures(repo):
        before = _prepare(api, repo, kind, public=public)
        commit = api.upload_folder(
            folder_path=folder,
            repo_id=repo,
            repo_type=kind,
            commit_message="Publish with prefloop",
            delete_patterns=_OLD_FILES[kind],
        )
    place = "datasets/" if kind == "dataset" else ""
    return Uploaded(f"{api.endpoint}/{place}{repo}", commit.oid, commit.oid != before)


def _prepare(api: HfApi, repo: str, kind: RepoKind, *, public: bool) -> str | None:
    """Make the repository, or see that the one there may take the files; returns its commit."""
    api.create_repo(repo, repo_type=kind, private=not public, exist_ok=True)
    info = api.dataset_info(repo) if kind == "dataset" else api.model_info(repo)
    if not public and not info.private:
        raise UploadFailed(
            f"{repo} is there already and public: give --public, or make it private on the hub"
        )
    files = {one.rfilename for one in info.siblings or ()} - {".gitattributes", "README.md"}
    if files and OURS not in (info.tags or ()):
        raise UploadFailed(
            f"{repo} is there already and holds what prefloop did not publish: choose another name"
        )
    return info.sha


@contextmanager
def _failures(repo: str) -> Iterator[None]:
    """Errors of the hub in one line, without keys; its notes on metadata are no warnings here."""
    from huggingface_hub import errors

    # Of the HTTP client that the hub's library uses, whichever that is.
    no_connection: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Warnings while validating metadata")
            yield
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        said = _plain(error.server_message or str(error))
        remedy = {
            401: "the token is not valid: set HF_TOKEN to one that may write",
            403: f"the token may not write to {repo}: use one that may, or another name",
            404: "there is no such organisation, or the token may not see it",
        }.get(status, "the same command goes on from here")
        raise UploadFailed(f"{repo}: the hub answered {status} ({said}): {remedy}") from None
    except errors.HFValidationError as error:
        raise UploadFailed(f"{repo}: {_plain(str(error))}") from None
    except (OSError, RuntimeError, ValueError, no_connection) as error:
        raise UploadFailed(
            f"{repo}: cannot be uploaded: {_plain(str(error.__cause__ or error))}: the same "
            "command goes on from here"
        ) from None


def _plain(text: str) -> str:
    return str(redact(hide_environment_secrets(" ".join(text.split())[:300])))
