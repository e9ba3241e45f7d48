"""The user's cache folder, known without what is kept in it: every command asks for it."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where what is known of this machine is kept: ``prefloop`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "prefloop"
