"""What an HTTP failure means for a run: try again, reject this request, or stop with one line."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping

import openai

from prefloop.data.protocol import EngineFailed, RequestRejected
from prefloop.pipeline.engines.settings import OpenAIEngine

_OVERFLOW = ("context_length_exceeded", "context length", "maximum model length", "max_model_len")
_LONGEST_MESSAGE = 300


class TransientError(Exception):
    """Worth another try, after ``retry_after`` seconds if the server names a time."""

    def __init__(self, problem: str, retry_after: float | None = None) -> None:
        super().__init__(problem)
        self.retry_after = retry_after


def classify(error: openai.APIError, config: OpenAIEngine, model: str, key: str) -> Exception:
    """The error of ours that stands for ``error``. ``key`` is blotted out of what servers say."""
    if isinstance(error, openai.APITimeoutError):
        return TransientError(f"no answer within {config.timeout_s:g} s")
    if not isinstance(error, openai.APIStatusError):
        return TransientError(f"no connection ({error.__cause__ or error})".replace(key, "***"))
    status, code = error.status_code, error.code
    said = error.body.get("message") if isinstance(error.body, dict) else None
    message = str(said or error.message).replace(key, "***")[:_LONGEST_MESSAGE]
    if status in (401, 403):  # the server's message is left out: it may quote the key
        return EngineFailed(
            f"{config.base_url} refuses the key (status {status})",
            f"put a valid key into the environment variable {config.api_key_env}",
        )
    if code == "insufficient_quota" or status == 402:
        return EngineFailed(
            f"{config.base_url}: the account's quota is used up",
            "top it up; the same command resumes the run",
        )
    if status == 404:
        return EngineFailed(
            f"{config.base_url} has no model {model!r}, or no {config.api} API (status 404)",
            f"GET {config.base_url}/models lists the names that it serves",
        )
    if status in (408, 409, 425, 429) or status >= 500:
        return TransientError(f"status {status}: {message}", _retry_after(error.response.headers))
    overflow = status == 413 or any(sign in f"{code} {message}".lower() for sign in _OVERFLOW)
    return RequestRejected(
        "context_overflow" if overflow else "refused_by_server", f"status {status}: {message}"
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from a Retry-After header that holds seconds or a date."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        date = email.utils.parsedate_tz(value)
        return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())
