"""What an HTTP failure means for a run: try again, reject this request, or stop with one line."""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Collection, Mapping

from prefloop.data.protocol import EngineFailed, EverythingRefused, RequestRejected
from prefloop.pipeline.engines.openai.server_words import Said, quoted_fields
from prefloop.pipeline.engines.settings import OpenAIEngine

_OVERFLOW = re.compile(
    r"context_length_exceeded|context[ _-]?(length|window|size)|max(imum)?[ _]?model[ _]?len"
    r"|maximum (sequence|input|prompt) length|(prompt|input|request) (is |was )?too (long|large)"
    r"|too many (input |prompt )?tokens|exceeds? the (available |maximum )?context"
    r"|longer than the model",
)
_NO_MONEY = re.compile(
    r"insufficient[ _](credit|quota|balance|fund)|exceeded your current quota|payment required"
    r"|billing_(hard_limit|not_active)|out of credits|account balance|arrearage"
)
_WITHHELD = re.compile(r"moderat|flagged|safety|content[ _](policy|filter|management)|blocked by")
_NO_MODEL = re.compile(
    r"model_not_found|(model|deployment)\b.{0,120}(does not exist|not found|not exist|unknown"
    r"|no longer (available|exist))|(no such|unknown|invalid) model"
)
_AMISS = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|extra (inputs|fields)|forbidden"
    r"|not (permitted|allowed|valid|known|a valid|available)|invalid|must be|should be|out of range"
    r"|too (large|small|many|high)|cannot|deprecated|less than|greater than|at most|additional"
)
_CONTENT = {"messages", "prompt"}
_REMEDIES = {
    "model": "put the name that the server gives the model into model: (GET {url}/models)",
    "max_tokens": "set max_tokens_field: max_completion_tokens on the engine, or a smaller "
    "max_tokens",
    "max_completion_tokens": "set max_tokens_field: max_tokens on the engine, or a smaller "
    "max_tokens",
    "logprobs": "set logprobs: false on the engine, and use a judge that answers in JSON or text",
    "top_logprobs": "set top_logprobs: 5 (or fewer) on the engine, or logprobs: false",
    "response_format": "use a judge whose parser is text",
    "structured_outputs": "set vllm_extensions: false on the engine, or use another judge",
    "return_token_ids": "set vllm_extensions: false on the engine",
    "top_k": "set top_k: 0",
    "stop": "set stop: []",
} | dict.fromkeys(
    ("seed", "temperature", "top_p"),
    "set leave_out: [{field}] on the engine, so that the field is not sent, or another value",
)


class TransientError(Exception):
    """Worth another try, after ``retry_after`` seconds if the server names a time.

    ``reason`` is that of the request's rejection, should no try help; ``is_busy``: the server says
    that it is the load, so that it is not this request's fault.
    """

    def __init__(
        self,
        problem: str,
        retry_after: float | None = None,
        *,
        reason: str = "failed_at_server",
        is_busy: bool = False,
    ) -> None:
        super().__init__(problem)
        self.retry_after = retry_after
        self.reason = reason
        self.is_busy = is_busy


class Failures:
    """Tells failures of one server apart; what it says has no key in it any more."""

    def __init__(self, config: OpenAIEngine) -> None:
        self._config = config

    def classify(
        self, status: int, said: Said, headers: Mapping[str, str], body: Mapping[str, object]
    ) -> Exception:
        """The error of ours for an answer with ``status``; ``body`` is what was asked."""
        url, words = self._config.base_url, said.words or "no reason given"
        text = " ".join([*sorted(said.codes), words]).lower()
        shown = f"status {status}: {words}"
        if status == 402 or (status in (400, 403, 429) and _NO_MONEY.search(text)):
            return EngineFailed(
                f"{url}: the account's quota is used up ({shown})",
                "top it up; the same command resumes the run",
            )
        if status == 403 and _WITHHELD.search(text):
            return RequestRejected("refused_by_server", shown)
        if status in (401, 403):
            return EngineFailed(
                f"{url} refuses the key ({shown})",
                f"put a valid key into the environment variable {self._config.api_key_env}",
            )
        if status in (408, 409, 425, 429) or status >= 500:
            return TransientError(
                shown, retry_after(headers), is_busy=status in (429, 529) or status == 425
            )
        if status == 413 or _OVERFLOW.search(text):
            return RequestRejected("context_overflow", shown)
        if status in (404, 405, 410) or (status in (400, 422) and _NO_MODEL.search(text)):
            return EngineFailed(
                f"{url} has no model {str(body.get('model'))!r}, or no {self._config.api} API "
                f"({shown})",
                f"GET {url}/models lists the names that it serves; check model and base_url",
            )
        return RequestRejected("refused_by_server", shown)

    def refused_field(
        self, rejected: RequestRejected, said: Said, sent: Collection[str]
    ) -> EngineFailed | None:
        """The end of the run, if what the server refuses is a field that every request has."""
        fields = [field for field in sent if field not in _CONTENT]
        named = [field for field in said.fields if field in fields]
        if any(field in _CONTENT for field in said.fields) or rejected.reason == "context_overflow":
            return None
        if not named and _AMISS.search(said.words.lower()):
            named = quoted_fields(said.words, fields)
        if not named:
            return None
        url, field = self._config.base_url, named[0]
        remedy = _REMEDIES.get(field, "change what the engine sends for it").format(
            url=url, field=field
        )
        return EverythingRefused(f"{url} refuses the field {field!r} ({rejected.detail})", remedy)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from a Retry-After header that holds seconds or a date; None for anything else."""
    value = headers.get("retry-after", "")
    if len(value) > 100:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError, TypeError, IndexError):  # a date that does not exist
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
