"""The transformers engine: the embedded default, in this process, wherever torch runs.

Requests of a block are computed together in batches of similar prompt length, or of prompts that
begin alike where it is much cheaper to compute what they share once (a judge's). Where answers may
be of very different lengths, rows of a batch take the places of those of the one before as these
end. Every (prompt, sample) has its own seed, so its tokens do not depend on what it is batched
with, and the batches of a block are always the same ones, so neither do their last bits.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import StopStringCriteria

from prefloop.data.conversations.answer_edges import end_tokens, verdict_token_ids
from prefloop.data.conversations.chat import render_tokens
from prefloop.data.conversations.tokenizing import beyond_embedding
from prefloop.data.protocol import (
    Completion,
    EngineDied,
    EngineFailed,
    Request,
    RequestRejected,
    Sampling,
)
from prefloop.labelers.scorers.compute_threads import compute_with
from prefloop.pipeline.engines.answer_reader import (
    AnswerReader,
    ReadAnswer,
    longest,
    template_kwargs,
)
from prefloop.pipeline.engines.blocks import BlockQueue, Pending
from prefloop.pipeline.engines.decoding.decoder import Drawn, StopStrings, decode, decode_batches
from prefloop.pipeline.engines.decoding.trial import require_steps
from prefloop.pipeline.engines.defaults import Advice, completed
from prefloop.pipeline.engines.padding import cut_by_length
from prefloop.pipeline.engines.prefixes import Work, can_share, families_of, width_of
from prefloop.pipeline.engines.settings import TransformersEngine
from prefloop.pipeline.engines.weights import (
    check_template_tokens,
    load_model,
    load_tokenizer,
    usable_device,
)
from prefloop.training.inputs.tokens import TokenIds
from prefloop.training.policy.logprobs import BATCH, WHOLE, Scores, share_logprobs
from prefloop.training.policy.rotary import rotary_limit

logger = logging.getLogger(__name__)

T = TypeVar("T")
TokenRow = tuple[Pending, int]
"""A request and the index of one of its seeds."""
RowBatch = Sequence[TokenRow]

_UNEVEN = 16
"""Answers that may have so many tokens are taken to end at different ones."""

# Two engines in one process (policy and judge) take turns: each wants all cores.
_COMPUTE = threading.Lock()


class HfEngine:
    """Engine over ``AutoModelForCausalLM``. Use it from one event loop."""

    supports_json_schema = False
    is_transformers = True
    """Its weights are read as those of any comparison would be."""

    def __init__(
        self, config: TransformersEngine, model: str, *, revision: str | None = None
    ) -> None:
        """Load ``model`` (a folder or hub name). Raises ``EngineFailed``."""
        self._config = config
        self._base = model
        self._revision = revision
        self._device = usable_device(config.device)
        self._tokenizer = load_tokenizer(
            model, revision=revision, trust_remote_code=config.trust_remote_code
        )
        begin = partial(compute_with, config.threads)
        self._worker = ThreadPoolExecutor(1, "hf-engine", initializer=begin)
        self._running = 0
        self._blocks = BlockQueue(self._start, lambda: self._running == 0, config.block_wait_s)
        self._verdicts: dict[str, tuple[int, ...]] = {}
        self._unspelled: set[tuple[str, ...]] = set()  # stop strings that were warned of
        self._tasks: set[asyncio.Future[None]] = set()
        self._closed = False
        self._load(model)

    async def generate(self, request: Request) -> list[Completion]:
        """See ``prefloop.data.protocol.Engine``. Waits until the request's block is complete."""
        if self._closed:
            raise EngineFailed("the engine is closed")
        request = completed(request, self._config, self._advice)
        if request.json_schema is not None:
            raise EngineFailed(
                "the transformers engine cannot constrain an answer to a JSON schema",
                "use a judge that reads the verdict's token (parser: token), or engine type vllm",
            )
        try:
            prompt = self._prompt(request)
        except RequestRejected:
            self._blocks.arrive(request, None)
            raise
        pending = Pending(request, prompt, asyncio.get_running_loop().create_future())
        self._blocks.arrive(request, pending)
        return await pending.done

    async def load_policy(self, path: str) -> None:
        """See ``prefloop.data.protocol.Engine``. Batches already started end with the old
        weights."""
        await self._in_worker(lambda: self._load(path))

    def logprobs(
        self,
        prompts: Sequence[TokenIds],
        answers: Sequence[TokenIds],
        share: tuple[int, int] = WHOLE,
    ) -> Scores:
        """log p(answer | prompt) in nats of a share of token ids under the weights that it serves,
        in the calling thread. See ``prefloop.training.policy.logprobs.share_logprobs``."""
        with _COMPUTE:
            return share_logprobs(self._model, prompts, answers, batch_size=BATCH, share=share)

    async def aclose(self) -> None:
        """See ``prefloop.data.protocol.Engine``."""
        if self._closed:
            return
        self._closed = True
        for pending in self._blocks.close():
            _fail(pending, EngineFailed("the engine was closed while requests waited"))
        await asyncio.to_thread(self._worker.shutdown)
        del self._model

    def _prompt(self, request: Request) -> tuple[int, ...]:
        prompt = tuple(
            render_tokens(
                self._tokenizer, request.messages, template_kwargs=template_kwargs(request)
            )
        )
        if max(prompt, default=0) >= self._embeddings:
            raise RequestRejected(
                "token_beyond_embedding", beyond_embedding(max(prompt), self._embeddings)
            )
        wanted = len(prompt) + longest(request)
        if self._context is not None and wanted > self._context:
            raise RequestRejected(
                "context_overflow",
                f"{len(prompt)} prompt tokens + max_tokens {longest(request)} > {self._context}",
            )
        if self._rotary_limit is not None and len(prompt) <= self._rotary_limit < wanted:
            raise RequestRejected(
                "context_overflow",
                f"{len(prompt)} prompt tokens + max_tokens {longest(request)} > "
                f"{self._rotary_limit}, from where on this model has another rotary embedding: "
                "lower max_tokens, or set the engine's type to vllm",
            )
        for choice in request.choices or ():
            if choice not in self._verdicts:
                self._verdicts[choice] = verdict_token_ids(self._tokenizer, choice)
        return prompt

    def _start(self, block: list[Pending]) -> None:
        self._running += 1
        task = asyncio.ensure_future(self._run(block))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, block: list[Pending]) -> None:
        loop = asyncio.get_running_loop()

        def answer(pending: Pending, completions: list[Completion]) -> None:
            loop.call_soon_threadsafe(_resolve, pending, completions)

        try:
            await self._in_worker(lambda: self._compute(block, answer))
        except Exception as error:  # noqa: BLE001  # a model's code may raise anything
            failure = error if isinstance(error, EngineFailed) else _explained(error)
            for pending in block:
                _fail(pending, failure)
        finally:
            self._running -= 1

    async def _in_worker(self, work: Callable[[], T]) -> T:
        def alone() -> T:
            with _COMPUTE:
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._worker, alone)

    def _compute(
        self, block: list[Pending], answer: Callable[[Pending, list[Completion]], None]
    ) -> None:
        """In the worker thread: all batches of ``block``, answering requests as they complete."""
        answers: dict[int, dict[int, Completion]] = defaultdict(dict)
        for batches in _runs(block, self._config.batch_size, self._model):
            for (pending, index), completion in self._decode(batches):
                got = answers[id(pending)]
                got[index] = completion
                if len(got) == len(pending.request.seeds):
                    answer(pending, [got[i] for i in range(len(got))])

    def _decode(self, batches: Sequence[RowBatch]) -> Iterator[tuple[TokenRow, Completion]]:
        """The rows of ``batches`` (which may take each other's places), complete, as they end; at
        last those whose verdict is asked for."""
        rows = list(chain.from_iterable(batches))
        watch = self._watched(rows)
        sampling = _sampling(rows[0][0].request)
        voting: list[tuple[int, Drawn]] = []
        for number, drawn in decode_batches(
            self._model,
            [[(pending.prompt, pending.request.seeds[i]) for pending, i in b] for b in batches],
            sampling,
            end_ids=self._end_ids,
            stops=self._stops(sampling),
            watch_ids=watch,
        ):
            pending, _ = rows[number]
            if pending.request.choices is None:
                said = self._reader.read(drawn.token_ids, pending.request)
                differ = self._reader.differs(drawn.token_ids, said, pending.request)
                completion = _completion(pending, drawn, said, None)
                yield rows[number], replace(completion, ids_differ=differ)
            else:
                voting.append((number, drawn))
        voting.sort(key=lambda row: row[0])
        size = self._config.batch_size
        for part in (voting[at : at + size] for at in range(0, len(voting), size)):
            asked, found = [rows[number] for number, _ in part], [drawn for _, drawn in part]
            read = [
                self._reader.read(drawn.token_ids, pending.request)
                for (pending, _), drawn in zip(asked, found, strict=True)
            ]
            first = self._first_of_answers(asked, found, read, watch)
            for row, drawn, said, choices in zip(asked, found, read, first, strict=True):
                yield row, _completion(row[0], drawn, said, choices)

    def _watched(self, batch: RowBatch) -> list[int]:
        choices = sorted({c for pending, _ in batch for c in pending.request.choices or ()})
        return [token for choice in choices for token in self._verdicts[choice]]

    def _first_of_answers(
        self,
        batch: RowBatch,
        drawn: Sequence[Drawn],
        read: Sequence[ReadAnswer],
        watch: Sequence[int],
    ) -> list[dict[str, float] | None]:
        """The choices' log-probabilities as each answer's first token: of a model that thought,
        its thought is read once more, and the answer's first token asked for behind it."""
        found = [
            None if said.unfinished else self._choice_logprobs(pending.request.choices, watch, row)
            for (pending, _), row, said in zip(batch, drawn, read, strict=True)
        ]
        late = [i for i, (pending, _) in enumerate(batch)
                if pending.request.choices is not None and read[i].has_verdict]  # fmt: skip
        if late:
            rows = [batch[i] for i in late]
            watch = self._watched(rows)
            again = decode(
                self._model,
                [batch[i][0].prompt + read[i].thought_ids for i in late],
                [pending.request.seeds[index] for pending, index in rows],
                replace(rows[0][0].request.sampling, max_tokens=1),
                end_ids=self._end_ids,
                watch_ids=watch,
            )
            for i, row in zip(late, again, strict=True):
                found[i] = self._choice_logprobs(batch[i][0].request.choices, watch, row)
        return found

    def _choice_logprobs(
        self, choices: Sequence[str] | None, watch: Sequence[int], row: Drawn
    ) -> dict[str, float] | None:
        if choices is None:
            return None
        seen = dict(zip(watch, row.first_logprobs, strict=True))
        return {
            choice: float(np.logaddexp.reduce([seen[token] for token in self._verdicts[choice]]))
            for choice in choices
        }

    def _stops(self, sampling: Sampling) -> StopStrings | None:
        if not sampling.stop:
            return None
        try:
            criteria = StopStringCriteria(self._tokenizer, list(sampling.stop))
            return StopStrings(criteria, self._reader.silent_ids)
        except ValueError:  # no token of the vocabulary ends with a part of one
            if sampling.stop not in self._unspelled:
                self._unspelled.add(sampling.stop)
                logger.warning(
                    "no token of %s ends any of the stop strings %s: no answer will stop there",
                    self._base, ", ".join(map(repr, sampling.stop)),
                )  # fmt: skip
            return None

    def _load(self, path: str) -> None:
        self._model = load_model(
            path,
            base=self._base,
            device=self._device,
            dtype=_dtype(self._config.dtype, self._device),
            revision=self._revision,
            trust_remote_code=self._config.trust_remote_code,
        )
        self._advice = Advice.of(self._model.generation_config)
        self._context = getattr(
            self._model.config.get_text_config(), "max_position_embeddings", None
        )
        self._rotary_limit = rotary_limit(self._model)
        self._end_ids = end_tokens(self._tokenizer, self._model.generation_config.eos_token_id)
        self._embeddings = int(self._model.get_input_embeddings().weight.shape[0])
        check_template_tokens(self._tokenizer, path, self._embeddings)
        require_steps(self._model, path)
        self._reader = AnswerReader(self._tokenizer, self._end_ids)


def _runs(block: list[Pending], size: int, model: Any) -> Iterator[list[RowBatch]]:
    """Rows of ``block`` in batches of at most ``size``: one ``Sampling`` a batch, similar prompt
    lengths together or prompts that share, whatever the order of arrival. Batches of one run take
    each other's places."""
    limit = rotary_limit(model)  # beyond it a prompt would change what shorter ones are
    groups: dict[tuple[Sampling, bool], list[Pending]] = defaultdict(list)
    for pending in sorted(block, key=lambda p: (len(p.prompt), p.request.request_id)):
        is_long = limit is not None and len(pending.prompt) > limit
        groups[_sampling(pending.request), is_long].append(pending)
    for sampling, is_long in sorted(groups, key=repr):
        found = list(_batches(groups[sampling, is_long], size, model, sampling.max_tokens))
        whole = [parts[0] for parts in found if len(parts) == 1]
        if len(whole) > 1 and sampling.max_tokens >= _UNEVEN and can_share(model):
            yield whole
            found = [parts for parts in found if len(parts) > 1]
        for batch in chain.from_iterable(found):
            yield [batch]


def _batches(
    asked: list[Pending], size: int, model: Any, passes: int
) -> Iterator[Sequence[RowBatch]]:
    """Rows of ``asked``, the shortest prompts first, in batches of at most ``size``: those together
    that come of one for their prompts' lengths."""
    prompts = list(dict.fromkeys(pending.prompt for pending in asked))
    families = families_of(model, prompts)
    if families is not None:
        place = {prompts[row]: at for at, row in enumerate(chain.from_iterable(families))}
        asked = sorted(asked, key=lambda pending: place[pending.prompt])  # stable: by ids as well
    rows = [(pending, index) for pending in asked for index in range(len(pending.request.seeds))]
    parts = -(-len(rows) // size)
    for part in range(parts):  # even parts: no small rest
        batch = rows[part * len(rows) // parts : (part + 1) * len(rows) // parts]
        if families is not None:
            yield [batch]
            continue
        own = [pending.prompt for pending, _ in batch]
        yield list(cut_by_length(batch, own, Work(width_of(model)), passes))


def _completion(
    pending: Pending, row: Drawn, said: ReadAnswer, choices: dict[str, float] | None
) -> Completion:
    return Completion(
        text=said.text,
        token_ids=row.token_ids,
        finish_reason="stop" if row.ended and not said.unfinished else "length",
        logprob=row.logprob,
        prompt_tokens=len(pending.prompt),
        completion_tokens=len(row.token_ids),
        choice_logprobs=choices,
        reasoning=said.reasoning,
        reasoning_tokens=len(said.thought_ids),
        raw_text=said.raw_text,
    )


def _sampling(request: Request) -> Sampling:
    """How the tokens of ``request`` are drawn, those of its thought included."""
    return replace(request.sampling, max_tokens=longest(request))


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _resolve(pending: Pending, completions: list[Completion]) -> None:
    if not pending.done.done():  # done already: its caller was cancelled
        pending.done.set_result(completions)


def _fail(pending: Pending, error: EngineFailed) -> None:
    if not pending.done.done():
        pending.done.set_exception(error)


def _explained(error: Exception) -> EngineFailed:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return EngineFailed("out of memory while decoding", "lower the engine's batch_size")
    return EngineDied(f"the transformers engine failed: {type(error).__name__}: {error}")
