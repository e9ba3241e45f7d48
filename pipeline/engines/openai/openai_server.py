"""The HTTP engine: any OpenAI-compatible server, or several of them.

One request goes out for each seed, or, with ``n_per_request``, for several of them. It goes:
response cache, then tries with exponential backoff, each under the budget and the rate limits. What
a try can end in is decided in ``openai_errors``; what is sent, in ``openai_wire``; what is read, in
``reply_reader``; what is asked for, what came of it at which price, and whose fault it is where
nothing did, in ``asking``. Of several servers, each try goes to the one whose turn it is
(``endpoints``). In ``mode: batch`` requests go out in jobs (``batch``), and each line that comes
back goes through the same door.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from aiolimiter import AsyncLimiter

from prefloop.data.errors import StorageError
from prefloop.data.hashing import folder_revision
from prefloop.data.protocol import (
    Completion,
    EngineFailed,
    EverythingRefused,
    PartlyRejected,
    Request,
    RequestRejected,
    Sampling,
)
from prefloop.pipeline.engines.defaults import completed
from prefloop.pipeline.engines.endpoints.endpoint import Endpoint, EndpointTurn, endpoints_of
from prefloop.pipeline.engines.endpoints.models_served import compared, served_by
from prefloop.pipeline.engines.endpoints.pool import Pool
from prefloop.pipeline.engines.openai.api_key import ApiKey
from prefloop.pipeline.engines.openai.asking.answer_counts import AnswerCounts
from prefloop.pipeline.engines.openai.asking.choices import read_answers
from prefloop.pipeline.engines.openai.asking.faults import LOOK_AT_SERVER, Faults, after
from prefloop.pipeline.engines.openai.asking.question import Questioner, ServerQuestion
from prefloop.pipeline.engines.openai.asking.several import SeveralAnswers, number_of
from prefloop.pipeline.engines.openai.batch.asked_live import is_asked_live
from prefloop.pipeline.engines.openai.batch.job_folder import JobFolder, jobs_beside
from prefloop.pipeline.engines.openai.batch.job_lines import LineAnswer
from prefloop.pipeline.engines.openai.batch.job_server import JobServer
from prefloop.pipeline.engines.openai.batch.jobs import Door, Jobs
from prefloop.pipeline.engines.openai.batch.price_mark import marked, share_in
from prefloop.pipeline.engines.openai.batches import Batches, put_together, shared, taken_apart
from prefloop.pipeline.engines.openai.budget import Budget, Charge
from prefloop.pipeline.engines.openai.connections.response import Response, TransportError
from prefloop.pipeline.engines.openai.health import Health
from prefloop.pipeline.engines.openai.ledger import Amount, ledger_at
from prefloop.pipeline.engines.openai.openai_errors import TransientError
from prefloop.pipeline.engines.openai.openai_wire import (
    PROBE,
    PROBE_TOKENS,
)
from prefloop.pipeline.engines.openai.parameters import Place
from prefloop.pipeline.engines.openai.reply_reader import (
    GarbledResponseError,
    Reply,
    read_usage,
)
from prefloop.pipeline.engines.openai.response_cache import ResponseCache
from prefloop.pipeline.engines.openai.server_words import (
    Said,
    is_error,
    load_body,
    one_line,
    said_by,
    strict_json,
)
from prefloop.pipeline.engines.openai.transport import written
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.engines.weights import is_adapter, load_tokenizer

logger = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.5
_PROBES_OF_POLICY = 4
_FIRST_AGAIN = 3
"""Times that a request over several endpoints goes first again after a try that failed."""
_MOST_REFUSALS = 28
"""Times that a request is refused for the load of several endpoints that answer others, before it
is taken to be one that they do not want."""
_FAILED_TOGETHER = 3
"""Requests of several prompts that fail, in a row, before each is asked alone."""
_LOOKS_FOR_CHOICES = 4
"""Empty answers, which tell nothing, before the others are no longer held up."""


@dataclass(frozen=True, slots=True)
class _Read:
    """``body``: an answer as the cache has it. ``replies``: what it says, null for each that lacks
    of several; there is one at least."""

    body: str
    replies: tuple[Reply | None, ...]

    @property
    def reply(self) -> Reply:
        """The only one, or the first that came."""
        return self.replies[0] or next(reply for reply in self.replies if reply is not None)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Whether a server has an adapter, what it ``said``, and whether there was no answer."""

    is_there: bool
    said: str
    is_gone: bool = False


class OpenAIServer:
    """Engine over one OpenAI-compatible HTTP server, or several. Use it from one event loop."""

    def __init__(
        self,
        config: OpenAIEngine,
        model: str,
        *,
        cache: Path | None = None,
        ledger: Path | None = None,
        place: Place | None = None,
    ) -> None:
        """``model`` is the name the server gives it; ``cache`` is the folder for its responses
        where ``config`` names none; ``ledger`` is the file with what the engine has spent, by
        default beside the cache; ``place`` is where the config says so. Sends nothing. Raises
        ``EngineFailed``."""
        self._config = config
        self._place = place or Place()
        self._endpoints = endpoints_of(config)
        self._address = _in_words([endpoint.name for endpoint in self._endpoints])
        self._only = EndpointTurn(self._endpoints[0])
        self._pool: Pool | None = None
        if config.endpoints:
            self._pool = Pool(config, self._endpoints, name=self._place.engine, mend=self._mend)
        self._comparing: asyncio.Task[None] | None = None
        self.differences: tuple[str, ...] = ()
        """How the models of several endpoints differ, as far as they say."""
        self._adapter: dict[str, str] | None = None
        self._tokenizer = None if config.tokenizer is None else load_tokenizer(config.tokenizer)
        self._questions = Questioner(config, model, self._tokenizer)
        self._counts = AnswerCounts(config, self._tokenizer, self._address)
        self._health = Health()
        self._faults = Faults(
            self._health,
            self._questions,
            self._try_once,
            place=self._place,
            address=self._address,
            pause_s=min(1.0, config.max_backoff_s),
        )
        self.several = SeveralAnswers(config.n_per_request, self._address, self._place.engine)
        """Whether the server gives several answers to one request."""
        folder = config.cache_dir or cache
        self._cache = ResponseCache(folder) if config.cache and folder else None
        ledger = ledger or _ledger_path(config, cache)
        self._budget = Budget(config.max_total_tokens, config.max_cost, ledger_at(ledger))
        self.asks_anew = False
        """Ask whatever was answered before; answers are kept all the same."""
        self._gives_choices = False
        self._looked_for_choices = 0
        self._until_choices = asyncio.Lock()
        self._no_choices: EverythingRefused | None = None
        self._concurrency = config.concurrency
        self._slots = asyncio.Semaphore(self._concurrency)
        self._taking = asyncio.Lock()
        self._batches: Batches[ServerQuestion, Reply] = Batches(self._ask_together)
        self._shares = config.api == "completions"
        """Whether several prompts may be put into one request."""
        self._failed_together = 0
        self._jobs = self._jobs_in(ledger)
        self._until_measured = asyncio.Lock()
        # A bucket holds what it fills with in a short time: no burst at a run's start.
        rpm, tpm = config.requests_per_minute, config.tokens_per_minute
        self._request_rate = None if rpm is None else AsyncLimiter(1, 60 / rpm)
        self._token_rate = None if tpm is None else AsyncLimiter(tpm / 6, 10)

    @property
    def supports_json_schema(self) -> bool:
        """Whether ``Request.json_schema`` is honoured."""
        return self._config.api == "chat" or self._config.vllm_extensions

    @property
    def n_per_request(self) -> int:
        """Answers to one prompt that may go into one request: who wants several of them does well
        to ask for them together."""
        return self._config.n_per_request

    @property
    def spent(self) -> Amount:
        """Tokens and money that the engine has used, before this process too; answers from the
        cache are free."""
        return self._budget.spent

    async def generate(self, request: Request) -> list[Completion]:
        """See ``prefloop.data.protocol.Engine``."""
        request = completed(request, self._config)
        if self._jobs is not None and not is_asked_live():
            self._jobs.came(request)
        prompt = self._questions.prompt(request)
        if len(request.seeds) == 1:  # a judge's: no further task for it
            reply = await self._answer(self._questions.one(request, request.seeds[0], prompt))
            return [self._counts.completion(request, reply, prompt)]
        groups = self.several.groups(request)
        found = await asyncio.gather(*(self._answers(request, seeds, prompt) for seeds in groups))
        outcomes = [
            self._counts.completion(request, answer, prompt)
            if isinstance(answer, Reply)
            else answer
            for answer in itertools.chain.from_iterable(found)
        ]
        completions = [one for one in outcomes if isinstance(one, Completion)]
        for refused in outcomes:
            if isinstance(refused, RequestRejected):
                if not completions:
                    raise refused
                raise PartlyRejected(refused.reason, refused.detail, tuple(outcomes))
        return completions

    async def load_policy(self, path: str) -> None:
        """See ``prefloop.data.protocol.Engine``. Only LoRA adapters, into a vLLM server that allows
        it."""
        if self._jobs is not None:
            raise EngineFailed(
                f"{self._place.engine} asks in batches, which are for fixed models: it cannot load "
                f"{path}",
                "set mode: live",
            )
        remedy = (
            "start the server with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora, set "
            "vllm_extensions: true, and train LoRA adapters; or use engine type vllm"
        )
        if not (self._config.vllm_extensions and is_adapter(path)):
            raise EngineFailed(f"an HTTP server cannot load {path}", remedy)
        # The name says the content, so cached responses of another adapter cannot answer.
        name = f"policy-{folder_revision(Path(path))}"
        adapter = {"lora_name": name, "lora_path": str(Path(path).resolve())}
        await self._see_that_models_agree()
        asked = self._endpoints if self._pool is None else self._pool.endpoints
        found = await asyncio.gather(*(self._load_at(endpoint, adapter) for endpoint in asked))
        failed = {
            endpoint: loaded
            for endpoint, loaded in zip(asked, found, strict=True)
            if not loaded.is_there
        }
        if len(failed) == len(asked):
            told = "; ".join(
                f"{one.name} does not load {path}: {failed[one].said}" for one in asked
            )
            raise EngineFailed(told, remedy)
        self._questions.model, self._adapter = name, adapter
        if self._pool is None:
            return
        for endpoint, loaded in failed.items():
            problem = f"it does not load {path}: {loaded.said}"
            if loaded.is_gone:
                logger.warning("%s: %s: %s", self._place.engine, endpoint.name, problem)
            else:
                self._pool.leave(endpoint, EngineFailed(f"{endpoint.name}: {problem}", remedy))
        # Behind one address may be several servers, and one of them has loaded it.
        probed = [one for one in asked if one not in failed for _ in range(_PROBES_OF_POLICY)]
        said = await asyncio.gather(*(self._problem_at(endpoint) for endpoint in probed))
        for endpoint, error in zip(probed, said, strict=True):
            if isinstance(error, EngineFailed):
                self._pool.leave(endpoint, error)

    async def ask_each(self) -> list[tuple[str, str]]:
        """Of each of several endpoints its name and what is wrong with it; empty where it answers a
        harmless request. None of them is left for it."""
        await self._see_that_models_agree()
        problems = await asyncio.gather(*(self._problem_at(one) for one in self._endpoints))
        found = []
        for endpoint, problem in zip(self._endpoints, problems, strict=True):
            left_out = None if self._pool is None else self._pool.left_out(endpoint)
            found.append((endpoint.name, str(left_out or problem or "")))
        return found

    async def problem_of_jobs(self) -> str | None:
        """What is wrong with the server's batch API; empty where it lists jobs, null where none is
        going to be asked for."""
        if self._jobs is None:
            return None
        return await JobServer(self._endpoints[0], self._config, self._questions.model).problem()

    async def aclose(self) -> None:
        """See ``prefloop.data.protocol.Engine``."""
        if self._jobs is not None:
            await self._jobs.aclose()
        self._budget.close()
        if self._comparing is not None:
            self._comparing.cancel()
        if self._pool is not None:
            self._pool.close()
        for endpoint in self._endpoints:
            await endpoint.transport.aclose()
        if self._cache is not None:
            self._cache.close()

    async def _answers(
        self, request: Request, seeds: Sequence[int], prompt: Sequence[int] | None
    ) -> list[Reply | RequestRejected]:
        """The answers for ``seeds``, by one request where these are several; what lacks then is
        asked for alone."""
        alone = [self._questions.one(request, seed, prompt) for seed in seeds]
        if len(alone) == 1:
            return [await self._answer_or_refusal(alone[0])]
        found: Sequence[Reply | None] = [None] * len(seeds)
        refusal: RequestRejected | None = None
        try:
            together = self._questions.several(request, seeds, prompt)
            found = await self._answer_several(together, alone)
        except RequestRejected as rejected:
            refusal = rejected
        lacking = [at for at, reply in enumerate(found) if reply is None]
        answers: list[Reply | RequestRejected | None] = [*found]
        for at, answer in zip(
            lacking,
            await asyncio.gather(*(self._answer_or_refusal(alone[at]) for at in lacking)),
            strict=True,
        ):
            answers[at] = answer
        if refusal is not None and any(isinstance(answer, Reply) for answer in answers):
            self.several.refused(refusal, len(seeds))
        return [answer for answer in answers if answer is not None]

    async def _answer_several(
        self, question: ServerQuestion, alone: Sequence[ServerQuestion]
    ) -> Sequence[Reply | None]:
        """The answers to a question for several, null for each that has to be asked for ``alone``.

        Raises ``RequestRejected``."""
        if (known := self._kept(question)) is not None:
            self._health.ever_answered = True
            return known.replies
        nothing: list[Reply | None] = [None] * question.n
        if not self.several.may_ask(question.n) or self._is_kept_any(alone):
            return nothing
        async with self._several_slots(question.n):
            if not self.several.may_ask(question.n):  # as was seen meanwhile
                return nothing
            read = await self._try_until_answered(question)
        self._health.answered()
        self.several.came(number_of(read.replies), question.n)
        if self._cache is not None:
            await self._cache.put(question.key, read.body)
        return read.replies

    def _is_kept_any(self, questions: Sequence[ServerQuestion]) -> bool:
        """Whether any was answered before: then these are asked one by one, now as then."""
        if self._cache is None or self.asks_anew:
            return False
        return self._cache.has_any([question.key for question in questions])

    async def _answer_or_refusal(self, question: ServerQuestion) -> Reply | RequestRejected:
        try:
            return await self._answer(question)
        except RequestRejected as rejected:
            return rejected

    async def _answer(self, question: ServerQuestion) -> Reply:
        if (known := self._kept(question)) is not None:
            self._health.ever_answered = True
            self._gives_choices |= known.reply.first_logprobs is not None
            return known.reply
        jobs = None if is_asked_live() else self._jobs
        if jobs is not None and await jobs.has(question):
            return await self._ask_in_job(jobs, question)
        if question.wants_choices and self._is_unsure_of_choices:
            # One at a time until the first came: an answer without them is paid in vain.
            async with self._until_choices:
                if self._is_unsure_of_choices:
                    return await self._ask(question)
        if jobs is not None and self._budget.is_unsure:
            # What a limit is to hold for is measured at one request, not at thousands.
            async with self._until_measured:
                if self._budget.is_unsure:
                    return await self._ask(question)
        if jobs is not None:
            return await self._ask_in_job(jobs, question)
        if self._shares and (kind := shared(question.body)) is not None:
            reply = await self._batches.do(kind, question)
            if reply is not None:
                return reply
        return await self._ask(question)

    def _jobs_in(self, ledger: Path | None) -> Jobs[ServerQuestion, _Read] | None:
        """The engine's jobs, in a folder beside ``ledger``; null where it asks at once."""
        config = self._config
        if config.mode == "live":
            if ledger is not None and config.cache:
                self._warn_of_jobs(JobFolder(jobs_beside(ledger)))
            return None
        if ledger is None:
            raise EngineFailed(
                f"{self._place.engine} asks in batches, and has no folder to keep its jobs in",
                "set cache_dir, or mode: live",
            )
        return Jobs(
            config.batch,
            JobServer(self._endpoints[0], config, self._questions.model),
            JobFolder(jobs_beside(ledger)),
            self._budget,
            Door(
                read=self._read_line,
                keep=self._keep_line,
                kept=self._kept,
                question=self._questions.sent_before,
                most=self._counts.most,
            ),
        )

    def _warn_of_jobs(self, folder: JobFolder) -> None:
        try:
            records = folder.records()
        except StorageError:  # who asks for jobs says so
            return
        mine = [one for one in records if one.is_open and one.model == self._questions.model]
        if mine:
            logger.warning(
                "%s: %d requests are in jobs that were begun in mode: batch, which takes them up; "
                "mode: live asks for all that has no answer yet, and both are paid",
                self._place.engine,
                sum(one.requests for one in mine),
            )

    async def _ask_in_job(
        self, jobs: Jobs[ServerQuestion, _Read], question: ServerQuestion
    ) -> Reply:
        began = time.monotonic()
        try:
            reply = (await jobs.ask(question)).reply
        except TransientError as error:
            failure = await self._failed_in_jobs(question, error, began)
        except RequestRejected as rejected:
            failure = await self._faults.refused(question, rejected)
        else:
            self._gives_choices |= reply.first_logprobs is not None
            return reply
        raise failure from None

    async def _failed_in_jobs(
        self, question: ServerQuestion, error: TransientError, began: float
    ) -> Exception:
        tries = self._config.batch.max_tries
        if await self._faults.answers_others(question, began, began):
            return self._faults.hopeless(question, error, tries)
        return EngineFailed(f"{self._address}: {error}, {after(tries)} in jobs", LOOK_AT_SERVER)

    def _read_line(self, question: ServerQuestion, answer: LineAnswer, charge: Charge) -> _Read:
        """What a line of a job says: see ``Door``."""
        response = Response(answer.status, {}, answer.body)
        try:
            read = self._read(self._only, question, response, charge)
        except GarbledResponseError as error:
            said = self._endpoints[0].key.blot(str(error))
            raise TransientError(said, reason="unparsable_answer") from None
        self._health.answered()
        share = self._config.batch.share
        return _Read(marked(read.body, share), (replace(read.reply, price_share=share),))

    async def _keep_line(self, question: ServerQuestion, read: _Read) -> None:
        is_whole = read.reply.has_choices or not question.wants_choices
        if self._cache is not None and is_whole:
            await self._cache.put(question.key, read.body)

    async def _ask_together(self, questions: Sequence[ServerQuestion]) -> list[Reply | None]:
        """The answers to questions whose bodies are shared, by one request; null for each that has
        to be asked alone: there, whatever is wrong is found out."""
        nothing: list[Reply | None] = [None] * len(questions)
        async with self._several_slots(len(questions)):
            if not self._shares:
                return nothing
            try:
                found = await self._try_together(questions)
            except (TransientError, RequestRejected, EngineFailed):
                return nothing
        self._failed_together = 0 if found and any(found) else self._failed_together + 1
        if found is None or self._failed_together == _FAILED_TOGETHER:
            self._shares = False
            logger.info("%s: prompts are asked alone from now on", self._address)
        if found is None or not any(found):
            return nothing
        self._health.answered()
        if self._cache is not None:
            await asyncio.gather(
                *(
                    self._cache.put(question.key, one.body)
                    for question, one in zip(questions, found, strict=True)
                    if one is not None
                )
            )
        return [None if one is None else one.reply for one in found]

    async def _try_together(self, questions: Sequence[ServerQuestion]) -> list[_Read | None] | None:
        """Bodies for the cache and answers, null for each that is none; null altogether where the
        server does not take prompts together, or does not say which answer is whose."""
        most = sum((self._counts.most(one) for one in questions), Amount())
        if self._pool is None:
            await self._keep_rates(most)
            return await self._together_at(self._only, questions)
        await self._see_that_models_agree()
        return await self._pool.do(
            lambda turn: self._together_at(turn, questions), most.tokens, count=len(questions)
        )

    async def _together_at(
        self, turn: EndpointTurn, questions: Sequence[ServerQuestion]
    ) -> list[_Read | None] | None:
        prices = [self._counts.most(one) for one in questions]
        async with self._budget.reserved(sum(prices, Amount())) as charge:
            charge.spent = charge.most
            try:
                response = await turn.post(
                    "/completions", put_together([one.body for one in questions])
                )
            except TransportError as error:
                charge.spent = charge.most if error.was_sent else Amount()
                raise TransientError(str(error), was_sent=error.was_sent) from None
            except EngineFailed:
                charge.spent = Amount()
                raise
            if not 200 <= response.status < 300:
                charge.spent = Amount()
                if self._pool is not None:  # which has to know why
                    said = turn.endpoint.said(response)
                    self._complain(turn, questions[0], response.status, said, response)
                return [None] * len(questions)
            try:
                bodies = taken_apart(
                    strict_json(response.body), [one.body["prompt"] for one in questions]
                )
            except ValueError:
                bodies = None
            if bodies is None:
                return None
            found, charge.spent = [], Amount()
            for question, body, price in zip(questions, bodies, prices, strict=True):
                own = Charge(price)
                found.append(self._taken(turn, question, body, own))
                charge.spent += own.spent
            return found

    def _taken(
        self, turn: EndpointTurn, question: ServerQuestion, body: Mapping[str, Any], charge: Charge
    ) -> _Read | None:
        try:
            read = self._read(turn, question, Response(200, {}, written(body)), charge)
        except (GarbledResponseError, RequestRejected, TransientError, EngineFailed):
            return None
        return None if question.wants_choices and not read.reply.has_choices else read

    @asynccontextmanager
    async def _several_slots(self, count: int) -> AsyncIterator[None]:
        """``count`` of the requests that may be under way at once, or all of them."""
        taken = 0
        try:
            async with self._taking:  # one by one, or two would wait for each other's
                while taken < min(count, self._concurrency):
                    await self._slots.acquire()
                    taken += 1
            yield
        finally:
            for _ in range(taken):
                self._slots.release()

    async def _ask(self, question: ServerQuestion) -> Reply:
        if question.wants_choices and self._no_choices is not None:
            raise self._no_choices
        async with self._slots:
            read = await self._try_until_answered(question)
            self._health.answered()
            if _lacks_choices(question, read.reply) and not self._gives_choices:
                read = await self._try_until_answered(question)
                self._refuse_without_choices(question, read.reply)
        reply = read.reply
        if question.wants_choices:
            self._looked_for_choices += 1
            self._gives_choices |= reply.first_logprobs is not None
        is_whole = reply.has_choices or not question.wants_choices
        if self._cache is not None and is_whole:
            await self._cache.put(question.key, read.body)
        return reply

    def _kept(self, question: ServerQuestion) -> _Read | None:
        """The answer from the cache, if there is one and it is a good one."""
        if self._cache is None or self.asks_anew:
            return None
        if (body := self._cache.get(question.key)) is None:
            return None
        try:
            replies = read_answers(body, question, self._counts.count)
        except (GarbledResponseError, RequestRejected, RecursionError):
            return None
        share = share_in(body)
        if share != 1:
            replies = tuple(one and replace(one, price_share=share) for one in replies)
        read = _Read("", replies)
        return None if question.wants_choices and not read.reply.has_choices else read

    @property
    def _is_unsure_of_choices(self) -> bool:
        return not self._gives_choices and self._looked_for_choices < _LOOKS_FOR_CHOICES

    def _refuse_without_choices(self, question: ServerQuestion, reply: Reply) -> None:
        """Raise ``EngineFailed`` where a second answer lacks log-probabilities as well: every
        further one would be paid in vain."""
        if _lacks_choices(question, reply):
            self._no_choices = EverythingRefused(
                f"{self._address} gives no log-probabilities for the verdicts, in 2 answers of 2",
                f"set {self._place.other_judge('JSON or text')}, or take a server that honours "
                "logprobs and top_logprobs",
            )
            raise self._no_choices

    async def _try_until_answered(self, question: ServerQuestion) -> _Read:
        failed: list[float] = []
        try:
            if self._pool is not None:
                return await self._try_in_turns(question)
            while True:
                try:
                    return await self._try_once(question)
                except TransientError as error:
                    failed.append(time.monotonic())
                    if len(failed) > self._config.max_retries:
                        return await self._try_a_last_time(question, error, failed)
                    wait = self._wait(error, len(failed))
                await asyncio.sleep(wait)
        except RequestRejected as rejected:
            failure = await self._faults.refused(question, rejected)
        raise failure from None

    async def _try_in_turns(self, question: ServerQuestion) -> _Read:
        """The same over several endpoints, each of which the pool gives the rest it needs. That one
        is busy or gone is no fault of the request; that all are, the pool says."""
        began, refused, failed = time.monotonic(), 0, list[float]()
        while True:
            try:
                # One that is refused time and again must not be in the way of the others.
                first = 0 < refused + len(failed) <= _FIRST_AGAIN
                return await self._try_once(question, again=first)
            except TransientError as error:
                now, is_busy = time.monotonic(), error.is_busy or error.status == 503
                if not error.was_sent:
                    continue
                if is_busy:
                    refused += 1
                    if refused > _MOST_REFUSALS and now - began > self._config.timeout_s:
                        detail = f"{error}, after {refused} tries, while others are answered"
                        raise RequestRejected(error.reason, detail) from None
                    continue
                failed.append(now)
                if len(failed) <= self._config.max_retries:
                    continue
                if await self._faults.answers_others(question, failed[-2:][0], now):
                    try:
                        return await self._try_once(question, again=True)
                    except TransientError as last:
                        if last.was_sent and not last.is_busy and last.status != 503:
                            raise self._faults.hopeless(question, last, len(failed)) from None
                failed.clear()

    async def _try_a_last_time(
        self, question: ServerQuestion, error: TransientError, failed: Sequence[float]
    ) -> _Read:
        """What comes of a request that no try helped: an answer after all, where the server is
        back; its rejection, where the server answers others; or the run's end."""
        stop = EngineFailed(f"{self._address}: {error}, {after(len(failed))}", LOOK_AT_SERVER)
        if error.is_busy or not await self._faults.answers_others(
            question, failed[-2:][0], failed[-1]
        ):
            raise stop from None
        try:
            return await self._try_once(question)
        except TransientError as last:
            if last.is_busy:
                raise stop from None
            error = last
        raise self._faults.hopeless(question, error, len(failed)) from None

    async def _try_once(self, question: ServerQuestion, *, again: bool = False) -> _Read:
        """One try, at the endpoint whose turn it is; ``again``: it had a turn before."""
        if self._pool is None:
            await self._keep_rates(self._counts.most(question))
            return await self._try_at(self._only, question)
        await self._see_that_models_agree()
        return await self._pool.do(
            lambda turn: self._try_at(turn, question),
            self._counts.most(question).tokens,
            count=question.n,
            again=again,
        )

    async def _try_at(self, turn: EndpointTurn, question: ServerQuestion) -> _Read:
        path = "/chat/completions" if self._config.api == "chat" else "/completions"
        async with self._budget.reserved(self._counts.most(question)) as charge:
            charge.spent = charge.most  # whatever ends the wait: the server may have answered
            try:
                response = await turn.post(path, question.body)
            except TransportError as error:
                charge.spent = charge.most if error.was_sent else Amount()
                failure: Exception = TransientError(str(error), was_sent=error.was_sent)
            except EngineFailed:
                charge.spent = Amount()
                raise
            else:
                try:
                    return self._read(turn, question, response, charge)
                except GarbledResponseError as error:
                    said = turn.endpoint.key.blot(str(error))
                    failure = TransientError(said, reason="unparsable_answer")
            # Raised within the budget's block: what was charged is kept whatever comes.
            raise failure from None

    async def _see_that_models_agree(self) -> None:
        """Compare what several endpoints say they serve, once; those that have no such model are
        left."""
        if self._pool is None or (self._comparing is not None and self._comparing.done()):
            return
        if self._comparing is None:
            self._comparing = asyncio.create_task(self._compare(self._pool))
        await asyncio.shield(self._comparing)

    async def _compare(self, pool: Pool) -> None:
        model = self._questions.model
        served = await asyncio.gather(
            *(served_by(one, model, self._config.timeout_s) for one in self._endpoints)
        )
        names = [endpoint.name for endpoint in self._endpoints]
        found = compared(model, dict(zip(names, served, strict=True)))
        for endpoint in self._endpoints:
            if (lacks := found.lacking.get(endpoint.name)) is not None:
                remedy = "serve the model there by this name, or take the endpoint out"
                pool.leave(endpoint, EngineFailed(f"{endpoint.name}: {lacks}", remedy))
        self.differences = found.notes
        for note in found.notes:
            logger.warning("%s: %s", self._place.engine, note)

    async def _load_at(self, endpoint: Endpoint, adapter: Mapping[str, str]) -> _Loaded:
        """Have one server load a LoRA adapter."""
        try:
            response = await endpoint.transport.post("/load_lora_adapter", adapter)
        except TransportError as error:
            return _Loaded(is_there=False, said=str(error), is_gone=True)
        except EngineFailed as failed:
            if self._pool is None:
                raise
            return _Loaded(is_there=False, said=failed.problem)
        said = f"status {response.status}: {endpoint.said(response).words}"
        return _Loaded(is_there=response.status < 400 or "already" in said, said=said)

    async def _mend(self, endpoint: Endpoint) -> bool:
        """Whether a server that has no such model, as it was started anew, has it again, or is
        gone once more."""
        if self._adapter is None:
            return False
        loaded = await self._load_at(endpoint, self._adapter)
        return loaded.is_there or loaded.is_gone

    async def _problem_at(self, endpoint: Endpoint) -> Exception | None:
        """What is wrong with one endpoint; null where it answers a harmless request."""
        plain = Sampling(temperature=None, top_p=None, max_tokens=PROBE_TOKENS)
        probe = Request("probe", PROBE, plain, (0,))
        question = self._questions.one(probe, 0, self._questions.prompt(probe))
        try:
            await self._try_at(EndpointTurn(endpoint), question)
        except (TransientError, RequestRejected, EngineFailed) as error:
            return error
        return None

    async def _keep_rates(self, most: Amount) -> None:
        if self._request_rate is not None:
            await self._request_rate.acquire()
        if self._token_rate is not None:
            await self._token_rate.acquire(min(most.tokens, self._token_rate.max_rate))

    def _read(
        self, turn: EndpointTurn, question: ServerQuestion, response: Response, charge: Charge
    ) -> _Read:
        """The answer in ``response``, and its body for the cache. Sets what it is charged, also
        where it is none."""
        charge.spent, endpoint = Amount(), turn.endpoint
        if response.status >= 300 or response.status < 200:
            self._charge_refusal(question, response, charge)
            self._complain(turn, question, response.status, endpoint.said(response), response)
        kept: str | None = None
        try:
            body, kept = _strictly(response.body)
        except ValueError as error:
            if response.body.lstrip()[:1] == b"{":  # cut off on its way
                charge.spent = charge.most
            words = one_line(endpoint.said(response).words, 100) or "an empty body"
            raise GarbledResponseError(
                f"garbage instead of an answer: {words} ({one_line(str(error), 80)})"
            ) from None
        self._charge(question, body, charge)
        try:
            replies = read_answers(body, question, self._counts.count)
            kept = endpoint.key.strike(json.dumps(body) if kept is None else kept)
        except RecursionError:
            raise GarbledResponseError("garbage instead of an answer: nested too deeply") from None
        except GarbledResponseError:
            said = said_by(body)
            if is_error(body) and said.status is not None:
                self._complain(turn, question, said.status, endpoint.blotted(said), response)
            raise
        except RequestRejected as rejected:
            self._health.answered()
            raise RequestRejected(rejected.reason, endpoint.key.blot(rejected.detail)) from None
        if endpoint.key.strikes:
            replies = tuple(one and _struck(one, endpoint.key) for one in replies)
        usage = read_usage(body) if question.n > 1 else None
        charge.spent = self._counts.taken(question, replies, usage)
        return _Read(kept, replies)

    def _complain(
        self,
        turn: EndpointTurn,
        question: ServerQuestion,
        status: int,
        said: Said,
        response: Response,
    ) -> NoReturn:
        """Raise what an answer with an error's status means."""
        endpoint = turn.endpoint
        failure = endpoint.failures.classify(status, said, response.headers, question.body)
        if self._pool is None:
            is_known = self._health.ever_answered
        else:
            is_known = self._pool.has_answered(endpoint)
        if isinstance(failure, EngineFailed) and status == 403 and is_known:
            # The key is good, as others got through: some servers withhold single answers so.
            failure = RequestRejected("refused_by_server", f"status 403: {said.words}")
        raise failure from None

    def _charge(self, question: ServerQuestion, body: Any, charge: Charge) -> None:
        """Charge what a body says it took; one with choices that does not say, the most."""
        try:
            usage = read_usage(body)
        except GarbledResponseError:
            charge.spent = charge.most
            return
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        if prompt is not None or completion is not None:
            charge.spent = self._counts.price(prompt or question.prompt_tokens, completion or 0)
        elif isinstance(body, dict) and body.get("choices"):
            charge.spent = charge.most

    def _charge_refusal(self, question: ServerQuestion, response: Response, charge: Charge) -> None:
        """Charge what the body of an error says that it took; most say nothing, and took it."""
        try:
            body = load_body(response.body)
        except ValueError:
            return
        if isinstance(body, dict) and isinstance(body.get("usage"), dict):
            self._charge(question, body, charge)

    def _wait(self, error: TransientError, tries: int) -> float:
        """Exponential backoff with jitter, and never less than the server asks for."""
        longest = self._config.max_backoff_s
        backoff = random.uniform(0.0, min(longest, _FIRST_BACKOFF_S * 2.0 ** min(tries - 1, 60)))
        # A server that asks for hours is not obeyed: the retries run out and the run can resume.
        return max(backoff, min(error.retry_after or 0.0, 10 * longest))


def _strictly(data: bytes) -> tuple[Any, str | None]:
    """The JSON value in ``data``, and the same in ASCII, as the cache has it, where that is known
    already. A key stands in it as it is, without escapes. Raises ``ValueError``."""
    try:
        body = strict_json(data)
    except ValueError:
        return load_body(data), None
    kept = written(body)
    return body, kept.decode() if kept.isascii() else None


def _in_words(names: Sequence[str]) -> str:
    """Servers, by name, for a message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _lacks_choices(question: ServerQuestion, reply: Reply) -> bool:
    """Whether an answer came, and not the log-probabilities that were asked for with it."""
    return question.wants_choices and not reply.has_choices and bool(reply.text.strip())


def _struck(reply: Reply, key: ApiKey) -> Reply:
    """``reply`` without the key in it."""
    return replace(
        reply,
        text=key.strike(reply.text),
        reasoning=reply.reasoning and key.strike(reply.reasoning),
        raw_text=reply.raw_text and key.strike(reply.raw_text),
    )


def _ledger_path(config: OpenAIEngine, cache: Path | None) -> Path | None:
    """Beside the engine's folder in the run directory: a cache that runs share has its answers in
    common, not the budgets."""
    if cache is not None:
        return cache.with_name(f"{cache.name}.spent.jsonl")
    return config.cache_dir and config.cache_dir / "spent.jsonl"
