"""The HTTP engine: any OpenAI-compatible server, or several of them.

One request goes out for each seed, or, with ``n_per_request``, for several of them. It goes:
response cache, then tries with exponential backoff, each under the budget and the rate limits. What
is asked for, how often it is tried, what came of it at which price, and whose fault it is where
nothing did, is in ``asking``; what a try can end in, in ``openai_errors``; what is sent, in
``openai_wire``; what is read, in ``reply_reader``. Of several servers, each try goes to the one
whose turn it is (``endpoints``). In ``mode: batch`` requests go out in jobs (``batch``), and each
line that comes back goes through the same door.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prefloop.data.hashing import folder_revision
from prefloop.data.protocol import (
    Completion,
    EngineFailed,
    PartlyRejected,
    Request,
    RequestRejected,
    Sampling,
)
from prefloop.pipeline.engines.defaults import completed
from prefloop.pipeline.engines.endpoints.endpoint import Endpoint, TurnNotTaken
from prefloop.pipeline.engines.endpoints.models_served import others_in, served_by
from prefloop.pipeline.engines.endpoints.servers import Servers
from prefloop.pipeline.engines.openai.asking.answer_counts import AnswerCounts
from prefloop.pipeline.engines.openai.asking.asked_together import AskedTogether
from prefloop.pipeline.engines.openai.asking.faults import LOOK_AT_SERVER, Faults, after
from prefloop.pipeline.engines.openai.asking.kept_answers import KeptAnswers
from prefloop.pipeline.engines.openai.asking.one_try import OneTry
from prefloop.pipeline.engines.openai.asking.outcomes import Outcomes, ServerAnswer
from prefloop.pipeline.engines.openai.asking.question import Questioner, ServerQuestion
from prefloop.pipeline.engines.openai.asking.retries import Retries
from prefloop.pipeline.engines.openai.asking.several import SeveralAnswers, number_of
from prefloop.pipeline.engines.openai.asking.slots import Slots
from prefloop.pipeline.engines.openai.asking.verdict_logprobs import VerdictLogprobs
from prefloop.pipeline.engines.openai.batch.asked_live import is_asked_live
from prefloop.pipeline.engines.openai.batch.job_folder import JobFolder, jobs_beside
from prefloop.pipeline.engines.openai.batch.job_lines import LineAnswer
from prefloop.pipeline.engines.openai.batch.job_server import JobServer
from prefloop.pipeline.engines.openai.batch.jobs import Door, Jobs
from prefloop.pipeline.engines.openai.batch.open_jobs import warn_of_open_jobs
from prefloop.pipeline.engines.openai.batch.price_mark import marked
from prefloop.pipeline.engines.openai.batches import Batches, shared
from prefloop.pipeline.engines.openai.budget import Budget, Charge
from prefloop.pipeline.engines.openai.connections.response import Response
from prefloop.pipeline.engines.openai.health import Health
from prefloop.pipeline.engines.openai.ledger import Amount, ledger_at
from prefloop.pipeline.engines.openai.openai_errors import TransientError
from prefloop.pipeline.engines.openai.openai_wire import PROBE, PROBE_TOKENS
from prefloop.pipeline.engines.openai.parameters import Place
from prefloop.pipeline.engines.openai.reply_reader import GarbledResponseError, Reply
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.engines.weights import is_adapter, load_tokenizer


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
        tokenizer = None if config.tokenizer is None else load_tokenizer(config.tokenizer)
        self._questions = Questioner(config, model, tokenizer)
        self._servers = Servers(config, self._questions, self._place.engine)
        address = self._servers.address
        self._counts = AnswerCounts(config, tokenizer, address)
        self._health = Health()
        self._outcomes = Outcomes(self._counts, self._health, self._servers.pool)
        ledger = ledger or _ledger_path(config, cache)
        self._budget = Budget(config.max_total_tokens, config.max_cost, ledger_at(ledger))
        names = [endpoint.name for endpoint in self._servers.endpoints]
        self.several = SeveralAnswers(config.n_per_request, names, self._place.engine)
        """Whether the servers give several answers to one request."""
        one_try = OneTry(
            config, self._servers, self._outcomes, self._counts, self._budget, self.several
        )
        self._one_try = one_try
        self._faults = Faults(
            self._health,
            self._questions,
            one_try.do,
            place=self._place,
            address=address,
            pause_s=min(1.0, config.max_backoff_s),
        )
        self._retries = Retries(config, one_try, self._faults, address)
        self._slots = Slots(config.concurrency)
        folder = config.cache_dir or cache
        self._kept = KeptAnswers(folder if config.cache else None, self._counts)
        self._verdicts = VerdictLogprobs(address, self._place)
        self._together = AskedTogether(
            self._servers, one_try, self._outcomes, self._counts, self._budget
        )
        self._batches: Batches[ServerQuestion, Reply] = Batches(self._ask_together)
        self._jobs = self._jobs_in(ledger)
        self._until_measured = asyncio.Lock()

    @property
    def asks_anew(self) -> bool:
        """Ask whatever was answered before; answers are kept all the same."""
        return self._kept.asks_anew

    @asks_anew.setter
    def asks_anew(self, value: bool) -> None:
        self._kept.asks_anew = value

    @property
    def differences(self) -> tuple[str, ...]:
        """How the models of several endpoints differ, as far as they say."""
        return self._servers.differences

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
        await self._servers.load(name, path, remedy, self._problem_at)

    async def ask_each(self) -> list[tuple[str, str]]:
        """Of each of several endpoints its name and what is wrong with it; empty where it answers a
        harmless request. None of them is left for it."""
        return await self._servers.ask_each(self._problem_at)

    async def other_models(self) -> str | None:
        """What the only server lists, where the model that is asked is not in it: it may answer
        with another, whatever it is asked for. Null where there is no sign of that."""
        if self._servers.pool is not None:
            return None
        model, [endpoint] = self._questions.model, self._servers.endpoints
        others = others_in(model, await served_by(endpoint, model, self._config.timeout_s))
        return others and f"it lists {others}, and not {model!r}"

    async def problem_of_jobs(self) -> str | None:
        """What is wrong with the server's batch API; empty where it lists jobs, null where none is
        going to be asked for."""
        if self._jobs is None:
            return None
        return await JobServer(
            self._servers.endpoints[0], self._config, self._questions.model
        ).problem()

    async def aclose(self) -> None:
        """See ``prefloop.data.protocol.Engine``."""
        if self._jobs is not None:
            await self._jobs.aclose()
        self._budget.close()
        await self._servers.aclose()
        self._kept.close()

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
        if (known := self._kept.get(question)) is not None:
            self._health.ever_answered = True
            return known.replies
        nothing: list[Reply | None] = [None] * question.n
        if not self.several.may_ask(question.n) or self._kept.has_any(alone):
            return nothing
        async with self._slots.taken(question.n):
            if not self.several.may_ask(question.n):  # as was seen meanwhile
                return nothing
            try:
                answer = await self._retries.until_answered(question)
            except TurnNotTaken:
                return nothing
        self._health.answered()
        self.several.came(number_of(answer.replies), question.n, answer.came_from)
        await self._kept.keep(question, answer)
        return answer.replies

    async def _answer_or_refusal(self, question: ServerQuestion) -> Reply | RequestRejected:
        try:
            return await self._answer(question)
        except RequestRejected as rejected:
            return rejected

    async def _answer(self, question: ServerQuestion) -> Reply:
        if (known := self._kept.get(question)) is not None:
            self._health.ever_answered = True
            self._verdicts.see(known.reply)
            return known.reply
        jobs = None if is_asked_live() else self._jobs
        if jobs is not None and await jobs.has(question):
            return await self._ask_in_job(jobs, question)
        if self._verdicts.is_unsure_of(question):
            async with self._verdicts.until_sure:
                if self._verdicts.is_unsure_of(question):
                    return await self._ask(question)
        if jobs is not None and self._budget.is_unsure:
            # What a limit is to hold for is measured at one request, not at thousands.
            async with self._until_measured:
                if self._budget.is_unsure:
                    return await self._ask(question)
        if jobs is not None:
            return await self._ask_in_job(jobs, question)
        if self._together.is_on and (kind := shared(question.body)) is not None:
            reply = await self._batches.do(kind, question)
            if reply is not None:
                return reply
        return await self._ask(question)

    async def _ask(self, question: ServerQuestion) -> Reply:
        async def ask() -> ServerAnswer:
            answer = await self._retries.until_answered(question)
            self._health.answered()
            return answer

        async with self._slots.taken():
            answer = await self._verdicts.asked_for(question, ask)
        await self._kept.keep(question, answer)
        return answer.reply

    async def _ask_together(self, questions: Sequence[ServerQuestion]) -> list[Reply | None]:
        """The answers to questions whose bodies are shared; null for each that has to be asked
        alone."""
        async with self._slots.taken(len(questions)):
            if not self._together.is_on:
                return [None] * len(questions)
            found = await self._together.ask(questions)
        answers = [
            (question, answer)
            for question, answer in zip(questions, found, strict=True)
            if answer is not None
        ]
        if answers:
            self._health.answered()
            await asyncio.gather(*(self._kept.keep(*one) for one in answers))
        return [None if answer is None else answer.reply for answer in found]

    def _jobs_in(self, ledger: Path | None) -> Jobs[ServerQuestion, ServerAnswer] | None:
        """The engine's jobs, in a folder beside ``ledger``; null where it asks at once."""
        config = self._config
        if config.mode == "live":
            if ledger is not None and config.cache:
                warn_of_open_jobs(ledger, self._questions.model, self._place.engine)
            return None
        if ledger is None:
            raise EngineFailed(
                f"{self._place.engine} asks in batches, and has no folder to keep its jobs in",
                "set cache_dir, or mode: live",
            )
        return Jobs(
            config.batch,
            JobServer(self._servers.endpoints[0], config, self._questions.model),
            JobFolder(jobs_beside(ledger)),
            self._budget,
            Door(
                read=self._read_line,
                keep=self._kept.keep,
                kept=self._kept.get,
                question=self._questions.sent_before,
                most=self._counts.most,
            ),
        )

    async def _ask_in_job(
        self, jobs: Jobs[ServerQuestion, ServerAnswer], question: ServerQuestion
    ) -> Reply:
        began = time.monotonic()
        try:
            reply = (await jobs.ask(question)).reply
        except TransientError as error:
            failure = await self._failed_in_jobs(question, error, began)
        except RequestRejected as rejected:
            failure = await self._faults.refused(question, rejected)
        else:
            self._verdicts.see(reply)
            return reply
        raise failure from None

    async def _failed_in_jobs(
        self, question: ServerQuestion, error: TransientError, began: float
    ) -> Exception:
        tries = self._config.batch.max_tries
        if await self._faults.answers_others(question, began, began):
            return self._faults.hopeless(question, error, tries)
        return EngineFailed(
            f"{self._servers.address}: {error}, {after(tries)} in jobs", LOOK_AT_SERVER
        )

    def _read_line(
        self, question: ServerQuestion, answer: LineAnswer, charge: Charge
    ) -> ServerAnswer:
        """What a line of a job says: see ``Door``."""
        response = Response(answer.status, {}, answer.body)
        try:
            found = self._outcomes.read(self._servers.only, question, response, charge)
        except GarbledResponseError as error:
            said = self._servers.endpoints[0].key.blot(str(error))
            raise TransientError(said, reason="unparsable_answer") from None
        self._health.answered()
        share = self._config.batch.share
        return ServerAnswer(marked(found.body, share), (replace(found.reply, price_share=share),))

    async def _problem_at(self, endpoint: Endpoint) -> Exception | None:
        """What is wrong with one endpoint; null where it answers a harmless request."""
        plain = Sampling(temperature=None, top_p=None, max_tokens=PROBE_TOKENS)
        probe = Request("probe", PROBE, plain, (0,))
        question = self._questions.one(probe, 0, self._questions.prompt(probe))
        return await self._one_try.problem_at(endpoint, question)


def _ledger_path(config: OpenAIEngine, cache: Path | None) -> Path | None:
    """Beside the engine's folder in the run directory: a cache that runs share has its answers in
    common, not the budgets."""
    if cache is not None:
        return cache.with_name(f"{cache.name}.spent.jsonl")
    return config.cache_dir and config.cache_dir / "spent.jsonl"
