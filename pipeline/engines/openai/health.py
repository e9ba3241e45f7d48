"""Is it this request, or is it the server? What an engine knows of how others fared."""

from __future__ import annotations

import time
from collections import Counter

MOST_IN_A_ROW = 8
"""Different requests that fail, with none that got through, before the server is at fault."""


class Health:
    """Which requests got through lately, and which failed since."""

    def __init__(self) -> None:
        self.ever_answered = False
        """Whether a request of the run was answered, now or before (from the cache)."""
        self._last_answer = -1.0
        self._last_failed_probe = -1.0
        self._failed: dict[str, str] = {}
        self.row_began = -1.0
        """When the first of the requests in a row failed."""

    def answered(self) -> None:
        """The server answered a request of the run."""
        self.ever_answered = True
        self.alive()
        self._failed.clear()

    def alive(self) -> None:
        """The server answered something."""
        self._last_answer = time.monotonic()

    def answered_since(self, moment: float) -> bool:
        """Whether anything got through after ``moment``."""
        return self._last_answer > moment

    def probe_failed(self) -> None:
        """Even a harmless request got no answer."""
        self._last_failed_probe = time.monotonic()

    def probe_failed_since(self, moment: float) -> bool:
        """Whether a harmless request failed after ``moment``."""
        return self._last_failed_probe > moment

    def failed(self, key: str, reason: str) -> int:
        """Note that the request ``key`` failed for good; how many have, in a row."""
        if not self._failed:
            self.row_began = time.monotonic()
        self._failed[key] = reason
        return len(self._failed)

    @property
    def commonest_reason(self) -> str:
        """Why most of the requests of the row failed."""
        return Counter(self._failed.values()).most_common(1)[0][0]
