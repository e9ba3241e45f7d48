"""What an HTTP failure means for a run: try again, reject this request, or stop with one line."""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Mapping

from prefloop.data.protocol import RequestRejected
from prefloop.pipeline.engines.endpoints.endpoint_settings import EndpointConfig
from prefloop.pipeline.engines.openai.parameters import ParameterRefused, refused_fields
from prefloop.pipeline.engines.openai.server_words import Said
from prefloop.pipeline.engines.openai.transport import ServerFailed

_OVERFLOW = re.compile(
    r"context_length_exceeded|context[ _-]?(length|window|size)|max(imum)?[ _]?model[ _]?len"
    r"|maximum (sequence|input|prompt) length|(prompt|input|request) (is |was )?too (long|large)"
    r"|too many (input |prompt )?tokens|exceeds? (the (available |maximum )?)?context"
    r"|longer than the model|max_new_tokens.{0,40}(must be|given)|`?inputs`? must have less"
    r"|(input|prompt).{0,40}exceeds?.{0,20}(the maximum number of|max_num_)tokens"
    r"|(input|prompt).{0,40}exceeds? the maximum number of tokens|range of input length"
    r"|reduce the length of the (messages|prompt|input)",
)
_TOO_MANY_TO_GENERATE = re.compile(
    r"(maximum|allowed) value for .?max_(completion_)?tokens"
    r"|max_(completion_)?tokens\W{0,3} (must|should) be (less|lower|smaller|at most)"
)
"""What is said of a limit on answers, whatever the prompt; the context may be named beside it."""
_NEVER_FITS = re.compile(r"request too large")
"""A refusal for the load that is none: no rest makes the request smaller."""
_NO_MONEY = re.compile(
    r"insufficient[ _](credit|quota|balance|fund)|exceeded your current quota|payment required"
    r"|billing_(hard_limit|not_active)|out of credits|account balance|arrearage"
)
_WITHHELD = re.compile(r"moderat|flagged|safety|content[ _](policy|filter|management)|blocked by")
_SPANS = re.compile(
    r"(?=\d)(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?", re.ASCII
)
_NO_MODEL = re.compile(
    r"model_not_found|(model|deployment)\b.{0,120}(does not exist|not found|not exist|unknown"
    r"|no longer (available|exist))|(no such|unknown|invalid) model"
)


class TransientError(Exception):
    """Worth another try, after ``retry_after`` seconds if the server names a time.

    ``reason`` is that of the request's rejection, should no try help; ``is_busy``: the server says
    that it is the load, so that it is not this request's fault; ``status`` is that of its answer,
    null where none came; ``was_sent``: the server may have begun to work on it.
    """

    def __init__(
        self,
        problem: str,
        retry_after: float | None = None,
        *,
        reason: str = "failed_at_server",
        is_busy: bool = False,
        status: int | None = None,
        was_sent: bool = True,
    ) -> None:
        super().__init__(problem)
        self.status = status
        self.was_sent = was_sent
        self.retry_after = retry_after
        self.reason = reason
        self.is_busy = is_busy


class Failures:
    """Tells failures of one server apart; what it says has no key in it any more."""

    def __init__(self, server: EndpointConfig, api: str) -> None:
        """``server`` names its key's variable."""
        self._server = server
        self._api = api

    def classify(
        self, status: int, said: Said, headers: Mapping[str, str], body: Mapping[str, object]
    ) -> Exception:
        """The error of ours for an answer with ``status``; ``body`` is what was asked."""
        url, words = self._server.base_url, said.words or "no reason given"
        text = " ".join([*sorted(said.codes), words]).lower()
        shown = f"status {status}: {words}"
        if status in (429, 500, 501) and _is_too_long(status, text):
            return RequestRejected("context_overflow", shown)
        # Some servers take what they do not know for a fault of their own.
        if status in (500, 501) and (named := refused_fields(said, body, plainly=True)):
            return ParameterRefused("refused_by_server", shown, named, said.words)
        if status == 402 or (status in (400, 403, 429) and _NO_MONEY.search(text)):
            return ServerFailed(
                f"{url}: the account's quota is used up ({shown})",
                "top it up; the same command resumes the run",
            )
        if status == 403 and _WITHHELD.search(text):
            return RequestRejected("refused_by_server", shown)
        if status in (401, 403):
            return ServerFailed(
                f"{url} refuses the key ({shown})",
                f"put a valid key into the environment variable {self._server.api_key_env}",
            )
        if status in (408, 409, 425, 429) or status >= 500:
            busy = status in (425, 429, 529)
            return TransientError(shown, retry_after(headers), is_busy=busy, status=status)
        if status == 413 or _is_too_long(status, text):
            return RequestRejected("context_overflow", shown)
        if status in (404, 405, 410) or (status in (400, 422) and _NO_MODEL.search(text)):
            return ServerFailed(
                f"{url} has no model {str(body.get('model'))!r}, or no {self._api} API ({shown})",
                f"GET {url}/models lists the names that it serves; check model and base_url",
            )
        if named := refused_fields(said, body):
            return ParameterRefused("refused_by_server", shown, named, said.words)
        return RequestRejected("refused_by_server", shown)


def _is_too_long(status: int, text: str) -> bool:
    """Whether this prompt is too long for a server that said ``text``."""
    if status == 429:
        return bool(_NEVER_FITS.search(text))
    return bool(_OVERFLOW.search(text)) and not _TOO_MANY_TO_GENERATE.search(text)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from a header Retry-After that holds seconds, ``1m30s`` or a date, or from
    Retry-After-Ms; None for anything else."""
    if milliseconds := re.fullmatch(r"\d{1,12}(\.\d{1,12})?", headers.get("retry-after-ms", "")):
        return float(milliseconds[0]) / 1000
    value = headers.get("retry-after", "")
    if len(value) > 100:
        return None
    if spans := _SPANS.fullmatch(value.strip()):
        numbers = [float(number or 0) for number in spans.groups()]
        return sum(number * unit for number, unit in zip(numbers, (3600, 60, 1, 1e-3), strict=True))
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError, TypeError, IndexError):  # a date that does not exist
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
