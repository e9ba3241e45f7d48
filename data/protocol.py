"""The two records that pass between a stage or labeler and a generation engine, and the
protocol that both sides agree on.

Invariants every engine keeps:

* ``generate`` answers each request with exactly ``len(request.seeds)`` completions, in the
  order of the seeds, or raises; it never drops or pads.
* A prompt reaches the model as token ids with exactly one BOS (where the tokenizer has one).
* Log-probabilities are natural logarithms of the model's *untempered* distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from prefloop.data.errors import PrefloopError

Message = Mapping[str, Any]
"""One turn of a conversation: ``{"role": ..., "content": str}``, the role being ``system``,
``user``, ``assistant`` or ``tool``.

Tools and their calls stand beside the content, see ``prefloop.data.conversations.conversation``.
"""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw completions.

    ``temperature`` 0 is greedy. ``top_k`` 0 keeps the whole vocabulary. Of these three, null says
    nothing about it: a server is not sent it, and a local model draws as its generation config
    says, or from its plain distribution where that says nothing. ``max_tokens`` counts generated
    tokens, the end-of-sequence token included. ``stop`` strings are cut off the text.
    """

    temperature: float | None = 1.0
    top_p: float | None = 1.0
    top_k: int | None = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Thinking:
    """How much a model is to think: the fields of :class:`Request` of the same names."""

    thought_tokens: int | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    reasoning_effort: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One conversation to complete, once for each seed.

    ``choices``: if given, ``Completion.choice_logprobs`` holds the log-probability of each of
    these strings as the first token of the answer, behind the thought if there is one (``-inf``
    where the engine did not see it; not a number where it saw so little that it may be likely).
    ``json_schema``: if given, the answer is constrained to JSON of that schema where the engine
    can do so.
    ``thought_tokens``: tokens that the model may think before it answers, beside
    ``sampling.max_tokens`` for the answer; null where it is not expected to think.
    ``chat_template_kwargs``: variables of the chat template, such as ``enable_thinking``.
    ``reasoning_effort``: as the model or server names it (``low``, ``high``); null leaves it out.
    ``block`` and ``block_size``: requests of one block are announced to be ``block_size`` in
    number. An engine whose arithmetic depends on the batch (transformers) forms its batches
    within a block, so that a resumed run sees the batches an uninterrupted one saw.
    """

    request_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    seeds: tuple[int, ...]
    choices: tuple[str, ...] | None = None
    json_schema: Mapping[str, Any] | None = None
    block: str = ""
    block_size: int = 1
    thought_tokens: int | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    reasoning_effort: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of an engine.

    ``text``: the answer alone. ``reasoning``: what the model thought before it, without the marks
    around it; null where it did not think. A thought that never ended has no answer behind it:
    ``text`` is empty and ``finish_reason`` is ``"length"``.
    ``token_ids``: generated tokens, the end-of-sequence token included where one was generated;
    empty where the engine does not tell (some HTTP servers).
    ``logprob``: sum over ``token_ids`` in nats, ``None`` where the engine does not tell.
    ``choice_logprobs``: see ``Request.choices``; ``None`` where the engine does not tell.
    ``finish_reason``: ``"stop"`` or ``"length"``.
    ``completion_tokens``: all that was generated; ``reasoning_tokens`` of them are the thought and
    its marks.
    ``raw_text``: where the model thought, all that it wrote, marks and all, led by the mark that
    the template may have written for it; null otherwise, and where a server took them apart.
    ``ids_differ``: whether ``text``, encoded anew, is other tokens than ``token_ids``, or may be.
    ``cost``: price in the engine's currency (0 for local engines).
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprob: float | None
    prompt_tokens: int
    completion_tokens: int
    choice_logprobs: Mapping[str, float] | None = None
    cost: float = 0.0
    reasoning: str | None = None
    reasoning_tokens: int = 0
    raw_text: str | None = None
    ids_differ: bool = False

    @property
    def answer_tokens(self) -> int:
        """Tokens of the answer, its end token included."""
        return self.completion_tokens - self.reasoning_tokens


@runtime_checkable
class Engine(Protocol):
    """What sampling and judges need from a generation engine."""

    async def generate(self, request: Request) -> list[Completion]:
        """Complete ``request`` once for each of its seeds, in their order.

        Raises ``RequestRejected`` for a request that can never succeed (longer than the context,
        refused by the server): the caller quarantines that row and goes on. It may be a
        ``PartlyRejected``, where that holds for some of the seeds. Raises
        ``EngineFailed`` when the engine itself is unusable: the run stops and can be resumed.
        """
        ...

    async def load_policy(self, path: str) -> None:
        """Serve the weights at ``path`` (a checkpoint or LoRA adapter folder) from now on.

        Raises ``EngineFailed`` when this engine cannot change its weights.
        """
        ...

    async def aclose(self) -> None:
        """Free the engine's processes, threads and connections. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely an answer is under two models.

    ``policy`` and ``reference``: log-probabilities in nats, summed over the answer's ``tokens``,
    its end token included where it ended. ``read``: tokens of prompt and answer.
    """

    policy: float
    reference: float
    tokens: int
    read: int


@dataclass(frozen=True, slots=True)
class AnsweredPrompt:
    """An answer behind its prompt. ``complete``: false where it was cut off at its token limit."""

    messages: tuple[Message, ...]
    answer: str
    complete: bool = True


class Likelihoods(Protocol):
    """What a labeler needs from a policy and its reference."""

    def __call__(self, asked: Sequence[AnsweredPrompt]) -> list[Likelihood | RequestRejected]:
        """The likelihood of each answer, or why it has none."""
        ...


@dataclass
class RequestRejected(Exception):
    """This one request cannot be served; others can. ``reason`` is a short machine-readable word
    (``context_overflow``, ``refused_by_server``, ``unparsable_answer``, ``failed_at_server``)."""

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass
class PartlyRejected(RequestRejected):
    """Some of a request's completions are refused, and others are there: ``outcomes`` holds what
    came for each seed, in their order."""

    outcomes: tuple[Completion | RequestRejected, ...] = ()


@dataclass
class EngineFailed(PrefloopError):
    """The engine cannot go on. ``remedy`` says in one line what the user can do."""

    problem: str
    remedy: str = field(default="")

    def words(self) -> str:
        """See :class:`PrefloopError`."""
        return f"{self.problem} ({self.remedy})" if self.remedy else self.problem


@dataclass
class EngineDied(EngineFailed):
    """The engine's process is gone or cannot be trusted any more; a new one may do."""


@dataclass
class EverythingRefused(EngineFailed):
    """The engine works and answers, and serves no request as the config makes them."""

    exit_code = 3
