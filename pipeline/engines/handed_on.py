"""What an engine's settings hand on to a server or to vLLM as it is: nothing that prefloop sets
itself, and no keys."""

from __future__ import annotations

import re
from collections.abc import Collection

from pydantic import JsonValue

from prefloop.data.strict import FreeMapping

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
KEY_BEGINS = re.compile(
    r"(sk|pk|rk|hf|gsk|r8|ghp|gho|glpat|xai|pplx|nvapi|fw|key|api)[-_](?![A-Z_]+$)"
    r"|AIza|AKIA|eyJ|Bearer",
    re.ASCII,
)
"""How the keys of well-known servers begin, which no variable's name does."""

_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OWN_HEADERS = {"content-type", "content-length", "host", "accept-encoding", "connection"}
_RANDOM = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9_+/=]{20,}")
_SECRET = re.compile(r"auth|key|token|secret|cookie|passw|credential|signature", re.IGNORECASE)
"""What is in the names of headers and fields that hold keys."""
_OWN_FIELDS = {
    "model": "the model is named where the engine is used",
    "messages": "the prompt goes there",
    "prompt": "the prompt goes there",
    "seed": "set the run's seed, or leave_out: [seed]",
    "temperature": "set temperature where the engine is used, or leave_out: [temperature]",
    "top_p": "set top_p where the engine is used, or leave_out: [top_p]",
    "max_tokens": "set max_tokens where the engine is used",
    "max_completion_tokens": "set max_tokens where the engine is used, and max_tokens_field",
    "stop": "set stop where the engine is used",
    "logprobs": "set logprobs on the engine",
    "top_logprobs": "set top_logprobs on the engine",
    "response_format": "the judge's parser sets it",
    "structured_outputs": "the judge's parser sets it",
    "return_token_ids": "set vllm_extensions on the engine",
    "chat_template_kwargs": "set chat_template_kwargs on the engine",
    "reasoning_effort": "set reasoning_effort on the engine",
    "n": "set n_per_request on the engine",
    "best_of": "all answers are kept",
    "stream": "answers are read whole",
    "stream_options": "answers are read whole",
    "echo": "the answer alone is read",
}
"""Fields of a request that prefloop sets itself, or could not read the answer with, and why."""
_OWN_ARGS = {
    "model": "the model is named where the engine is used",
    "revision": "the model is named where the engine is used",
    "tokenizer": "it comes with the model",
    "served_model_name": "nothing is served",
    "load_format": "only safetensors are loaded",
    "generation_config": "set temperature, top_p or top_k to null where the engine is used",
    "override_generation_config": "set temperature, top_p and the like where the engine is used",
    "logprobs_mode": "log-probabilities are those of the untempered distribution",
    "disable_log_stats": "it is always true",
    "use_tqdm_on_load": "it is always false",
    "kv_cache_memory_bytes": "set cpu_kv_cache_gib or gpu_memory_utilization on the engine",
}
"""Arguments of vLLM's engine that prefloop sets itself, and what to do instead."""


def check_engine_args(given: FreeMapping, *, own: Collection[str]) -> FreeMapping:
    """``given``, if none of it is set by prefloop; ``own`` are the keys of the engine's settings.

    Raises ``ValueError`` that says what to do instead.
    """
    for name in given:
        if name in own:
            raise ValueError(f"{name!r} is a key of the engine itself: set it there")
        if name in _OWN_ARGS:
            raise ValueError(f"{name!r} is set by prefloop: {_OWN_ARGS[name]}")
    return given


def check_fields(given: FreeMapping) -> FreeMapping:
    """``given``, if they may stand in a request's body. Raises ``ValueError``."""
    for name in given:
        if name in _OWN_FIELDS:
            raise ValueError(f"{name!r} is set by prefloop: {_OWN_FIELDS[name]}")
    if _holds_key(given):
        raise ValueError(
            "must not hold a key: use api_key_env, or extra_headers with $NAME for the "
            "environment variable NAME"
        )
    return given


def check_headers(given: dict[str, str]) -> dict[str, str]:
    """``given``, if they may be headers, none of which shows a key. Raises ``ValueError``."""
    for name, value in given.items():
        if not _HEADER.fullmatch(name):
            raise ValueError("has a name that no HTTP header has")
        if name.lower() in _OWN_HEADERS:
            raise ValueError(f"{name!r} is set by prefloop: leave it out")
        if value.startswith("$"):
            if not VARIABLE.fullmatch(value[1:]) or looks_like_key(value[1:]):
                raise ValueError(f"{name!r}: $NAME must name an environment variable")
        elif _SECRET.search(name) or KEY_BEGINS.match(value) or _RANDOM.fullmatch(value):
            # Not shown: it may be a key.
            raise ValueError(
                f"{name!r} may hold a key: give $NAME, and put the value into the environment "
                "variable NAME"
            )
        elif not value.strip() or not value.isascii() or not value.isprintable():
            raise ValueError(f"{name!r} has a value that no HTTP header can hold")
    lower = [name.lower() for name in given]
    if twice := next((name for name in given if lower.count(name.lower()) > 1), None):
        raise ValueError(f"{twice!r} is given twice")
    return given


def looks_like_key(name: str) -> bool:
    """Whether something that could be a variable's name is rather a key."""
    has_digit, is_mixed = any(map(str.isdigit, name)), name not in (name.upper(), name.lower())
    is_random = len(name) >= 16 and has_digit and (is_mixed or "_" not in name)
    return bool(KEY_BEGINS.match(name)) or is_random


def _holds_key(value: JsonValue, name: str = "") -> bool:
    """Whether a text in ``value`` may be a key, by how it begins or by its field's ``name``."""
    if isinstance(value, dict):
        return any(_holds_key(item, key) for key, item in value.items())
    if isinstance(value, list):
        return any(_holds_key(item, name) for item in value)
    if not isinstance(value, str):
        return False
    named = bool(_SECRET.search(name)) and not name.lower().endswith("tokens")
    return (named and len(value) > 7) or (bool(KEY_BEGINS.match(value)) and len(value) > 19)
