"""A parameter that a server refuses, told from a prompt that it refuses: by what it says, and by
asking once more without.

Servers say it in many ways: ``param`` or ``loc`` in the body, or a name in a sentence. What they
say is only a hint, as a sentence may quote the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from prefloop.data.protocol import RequestRejected
from prefloop.pipeline.engines.openai.openai_wire import PENALTIES_OF_NONE, PROBE_TOKENS
from prefloop.pipeline.engines.openai.server_words import Said, quoted_fields

_CONTENT = {"messages", "prompt"}
_NEEDED = {"model", *_CONTENT}
"""Fields without which there is no request."""
_LIMITS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_LOGPROBS = ("logprobs", "top_logprobs")
_AMISS = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|extra (inputs|fields)|forbidden"
    r"|not (permitted|allowed|valid|known|a valid|available|enabled)|invalid|must be|should be"
    r"|out of range|too (large|small|many|high)|cannot|deprecated|less than|greater than|at most"
    r"|additional|only|requires|does not allow|cannot find"
)
_PLAINLY_AMISS = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown (param|field|arg|name)|extra (inputs|fields)"
)
_TOO_MANY = re.compile(
    r"at most|less than|greater than|between|maximum|max allowed|exceed|up to|<=|≤|too (many|large)"
    r"|\brange\b"
)
_NUMBER = re.compile(r"(?<![\w.])\d{1,7}(?!\w|\.\d)")


@dataclass(frozen=True)
class Place:
    """Where the config says what is sent to a server: for messages that name the key to set.

    ``askers`` are the sections that ask the model: ``sample``, ``label.labelers.NAME``.
    """

    engine: str = "engines.NAME"
    askers: tuple[str, ...] = ()

    def set_null(self, name: str) -> str:
        """How to send ``name`` no more, where a key of the only asker does that."""
        may = name == "temperature" or (name == "top_p" and self.askers == ("sample",))
        if may and len(self.askers) == 1:
            return f"{self.askers[0]}.{name}: null"
        return f"{self.engine}.leave_out: [{name}]"

    def other_judge(self, answers_in: str) -> str:
        """How to ask a judge that ``answers_in`` another form."""
        judges = [asker for asker in self.askers if asker.startswith(("label.", "evaluate."))]
        where = f"{judges[0]}.judge: " if len(judges) == 1 else ""
        shipped = " (pairwise_rationale, or one of your own)" if answers_in != "text" else ""
        return f"{where}a judge that answers in {answers_in}{shipped}"


@dataclass
class ParameterRefused(RequestRejected):
    """A refusal that names ``fields`` of what was sent, in the server's ``words``."""

    fields: tuple[str, ...] = ()
    words: str = ""


@dataclass(frozen=True)
class Mended:
    """A request without what was refused: ``field`` of it is other or gone, as ``remedy`` says.

    ``may_fit_others``: with a shorter prompt the field may be right as it is.
    """

    body: dict[str, Any]
    field: str
    remedy: str
    may_fit_others: bool = False


def refused_fields(said: Said, sent: Collection[str], *, plainly: bool = False) -> tuple[str, ...]:
    """The fields of ``sent`` that the server finds fault with, as far as its words go.

    ``plainly``: only where it says that it does not know them, as its status says otherwise.
    """
    if any(name in _CONTENT for name in said.fields):
        return ()
    words = said.words.lower()
    if plainly and not _PLAINLY_AMISS.search(words):
        return ()
    named = [name for name in said.fields if name in sent]
    if not named and _AMISS.search(words):
        named = quoted_fields(said.words, [name for name in sent if name not in _NEEDED])
    # Of two that may not come together, the less important one goes first.
    return tuple(sorted(dict.fromkeys(named), key=lambda name: name == "temperature"))


def mended(body: Mapping[str, Any], refused: ParameterRefused, place: Place) -> Mended | None:
    """``body`` without the field that is refused; null where it has none such that can go."""
    name = next((one for one in refused.fields if one in body and one not in _NEEDED), None)
    if name is None:
        return None
    rest = {key: value for key, value in body.items() if key != name}
    words = refused.words.lower()
    if name in _LIMITS:
        other = _LIMITS[name]
        if other in words or not _TOO_MANY.search(words):
            remedy = f"{place.engine}.max_tokens_field: {other}"
            return Mended(rest | {other: body[name]}, name, remedy)
        askers = " and ".join(f"{asker}.max_tokens" for asker in place.askers) or "max_tokens"
        few = min([PROBE_TOKENS, *(int(one) for one in _NUMBER.findall(words) if int(one))])
        remedy = f"{askers}: a smaller number"
        return Mended(dict(body) | {name: few}, name, remedy, may_fit_others=True)
    if name in _LOGPROBS:
        return _fewer_logprobs(body, name, words, place)
    return Mended(rest, name, _remedy(name, place))


def _fewer_logprobs(body: Mapping[str, Any], name: str, words: str, place: Place) -> Mended:
    counted = "top_logprobs" if "top_logprobs" in body else "logprobs"
    asked = body.get(counted)
    if _TOO_MANY.search(words) and isinstance(asked, int) and not isinstance(asked, bool):
        fewer = [int(found) for found in _NUMBER.findall(words) if 0 < int(found) < asked]
        if fewer:
            remedy = f"{place.engine}.top_logprobs: {max(fewer)}"
            return Mended(dict(body) | {counted: max(fewer)}, "top_logprobs", remedy)
    rest = {key: value for key, value in body.items() if key not in _LOGPROBS}
    remedy = f"{place.engine}.logprobs: false"
    if asked:  # a verdict was to be read from them
        remedy += f", and {place.other_judge('JSON or text')}"
    return Mended(rest, name, remedy)


def _remedy(name: str, place: Place) -> str:
    sample = [asker for asker in place.askers if asker == "sample"]
    if name in ("temperature", "top_p"):
        return place.set_null(name)
    if name == "seed":
        return f"{place.engine}.leave_out: [seed]"
    if name == "stop":
        return f"{''.join(sample) or 'sample'}.stop: []"
    if name == "top_k":
        return "sample.top_k: 0"
    if name == "response_format":
        return place.other_judge("text")
    if name in ("structured_outputs", "return_token_ids"):
        return f"{place.engine}.vllm_extensions: false"
    if name == "min_p" or name in PENALTIES_OF_NONE:
        engine = place.engine
        return f"take {name} out of {engine}.extra_body, or {engine}.vllm_extensions: false"
    if name in ("chat_template_kwargs", "reasoning_effort"):
        empty = "{}" if name == "chat_template_kwargs" else "null"
        return ", and ".join(f"{where}.{name}: {empty}" for where in (place.engine, *place.askers))
    return f"take {name} out of {place.engine}.extra_body"
