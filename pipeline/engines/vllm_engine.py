"""The vLLM engine: ``AsyncLLM`` driven from this process, fed one request for each seed.

vLLM batches continuously by itself, so requests are handed on as they come. What is particular to
the CPU build is in ``_engine_args``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import difflib
import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefloop.data.conversations.answer_edges import end_tokens, verdict_token_ids
from prefloop.data.conversations.chat import render_tokens
from prefloop.data.protocol import Completion, EngineDied, EngineFailed, Request, RequestRejected
from prefloop.pipeline.engines.answer_reader import (
    AnswerReader,
    ReadAnswer,
    longest,
    template_kwargs,
)
from prefloop.pipeline.engines.defaults import advice_of, completed
from prefloop.pipeline.engines.settings import VllmEngine
from prefloop.pipeline.engines.weights import (
    adapter_rank,
    configured_ends,
    is_adapter,
    load_tokenizer,
)

if TYPE_CHECKING:
    from vllm import CompletionOutput, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.v1.engine.async_llm import AsyncLLM

_DEAD = "look for vLLM's own error above; the same command resumes the run"
_MIN_BATCHED_TOKENS = 4096


class VllmInProcess:
    """Engine over ``AsyncLLM``. Made by ``start``; use it from the event loop that started it."""

    supports_json_schema = True

    def __init__(self, config: VllmEngine, model: str, revision: str | None, llm: AsyncLLM) -> None:
        """Use ``start`` instead."""
        self._config = config
        self._model = model
        self._revision = revision
        self._adapter: LoRARequest | None = None
        self._ids = itertools.count(1)
        self._verdicts: dict[str, tuple[int, ...]] = {}
        self._tokenizer = load_tokenizer(
            model, revision=revision, trust_remote_code=config.trust_remote_code
        )
        self._llm: AsyncLLM | None = llm
        self._woke = False
        self._sums: Any = None
        self._set_ends()

    @classmethod
    async def start(
        cls, config: VllmEngine, model: str, *, revision: str | None = None
    ) -> VllmInProcess:
        """Start vLLM on ``model`` (folder or hub name); half a minute. Raises ``EngineFailed``."""
        llm = await asyncio.to_thread(_start_llm, config, model, revision)
        return cls(config, model, revision, llm)

    async def generate(self, request: Request) -> list[Completion]:
        """See ``prefloop.data.protocol.Engine``."""
        llm = self._running()
        request = completed(request, self._config, self._advice)
        prompt = render_tokens(
            self._tokenizer, request.messages, template_kwargs=template_kwargs(request)
        )
        limit = llm.model_config.max_model_len
        if len(prompt) + longest(request) > limit:
            raise RequestRejected(
                "context_overflow",
                f"{len(prompt)} prompt tokens + max_tokens {longest(request)} > {limit}",
            )
        for choice in request.choices or ():
            if choice not in self._verdicts:
                self._verdicts[choice] = verdict_token_ids(self._tokenizer, choice)
        seeds = (self._complete(llm, request, prompt, seed) for seed in request.seeds)
        return list(await asyncio.gather(*seeds))

    async def load_policy(self, path: str) -> None:
        """See ``prefloop.data.protocol.Engine``.

        A LoRA adapter is added to the running engine (needs ``enable_lora``). Whole weights are
        reloaded in place on a GPU; the CPU build's reload leaves wrong weights behind, so there
        the engine is started anew. Either way:
        ``prefloop.pipeline.engines.policy_check.verify_policy`` it.
        """
        if is_adapter(path):
            await self._load_adapter(path)
        elif path == self._model:
            await self._serve_adapter(None)
        elif _on_cpu():
            await self.restart(path)
        else:
            llm = self._running()
            await _explained(llm.pause_generation(mode="wait"))
            await _explained(llm.collective_rpc("reload_weights", kwargs={"weights_path": path}))
            await _explained(llm.resume_generation())
            self._model, self._adapter = path, None
            self._set_ends()
            await self._forget_prefixes(llm)

    async def restart(self, path: str) -> None:
        """Serve ``path`` from a new vLLM process. For weights that cannot be loaded in place."""
        await self.aclose()
        if is_adapter(path):
            self._llm = await asyncio.to_thread(
                _start_llm, self._config, self._model, self._revision
            )
            await self._load_adapter(path)
        else:
            self._llm = await asyncio.to_thread(_start_llm, self._config, path, None)
            self._model, self._revision, self._adapter = path, None, None
            self._set_ends()

    @property
    def is_dead(self) -> bool:
        """Whether vLLM's own processes are gone, so that only a new engine can answer."""
        return self._llm is not None and bool(self._llm.errored)

    @property
    def can_sleep(self) -> bool:
        """Whether the engine can give its GPU to another and come back."""
        return self._llm is not None and bool(self._llm.model_config.enable_sleep_mode)

    async def sleep(self) -> None:
        """Free the GPU's memory: weights go to main memory, the KV cache is given up.

        No request may be in flight. Needs ``can_sleep``. Raises ``EngineFailed``.
        """
        llm = self._running()
        if not self._woke:
            self._sums = await _checksums(llm)
        # In this mode requests end first; the default one would cut them off.
        await _explained(llm.sleep(level=1, mode="wait"))

    async def wake_up(self) -> None:
        """Serve again the weights that went to sleep. Raises ``EngineFailed`` where they are not
        the same ones, which is looked at once: it takes longer than waking."""
        llm = self._running()
        await _explained(llm.wake_up())
        if self._woke:
            return
        self._woke = True
        if await _checksums(llm) != self._sums:
            raise EngineFailed(
                "vLLM woke up with other weights than it went to sleep with",
                "set enable_sleep_mode: false in the engine; the same command resumes the run",
            )

    async def aclose(self) -> None:
        """See ``prefloop.data.protocol.Engine``."""
        llm, self._llm = self._llm, None
        if llm is not None:
            if (reading := getattr(llm, "output_handler", None)) is not None:
                # It is told to end after its engine has, and now and then reports in a traceback
                # before it hears of it that the engine died.
                reading.cancel()
            await asyncio.to_thread(llm.shutdown)
            # Its __del__ shuts down once more at exit, when vLLM's modules are already gone.
            llm.shutdown = _already_shut_down

    def _set_ends(self) -> None:
        self._end_ids = end_tokens(self._tokenizer, configured_ends(self._model, self._revision))
        self._reader = AnswerReader(self._tokenizer, self._end_ids)
        self._advice = advice_of(self._model, self._revision)

    async def _load_adapter(self, path: str) -> None:
        from vllm.lora.request import LoRARequest

        llm, rank = self._running(), adapter_rank(path)
        if not self._config.enable_lora:
            raise EngineFailed(f"{path} is a LoRA adapter", "set enable_lora: true in the engine")
        if rank > self._config.max_lora_rank:
            raise EngineFailed(
                f"the adapter {path} has rank {rank}, over {self._config.max_lora_rank}",
                f"set max_lora_rank: {rank} in the engine",
            )
        number = next(self._ids)  # ids are never reused: vLLM caches adapters by id
        new = LoRARequest(f"policy-{number}", number, path)
        await _explained(llm.add_lora(new))
        await self._serve_adapter(new)

    async def _serve_adapter(self, new: LoRARequest | None) -> None:
        """Serve ``new``, or the bare model, and let the old adapter go."""
        llm, old = self._running(), self._adapter
        self._adapter = new
        if old is not None:
            await _explained(llm.remove_lora(old.lora_int_id))
        await self._forget_prefixes(llm)

    async def _forget_prefixes(self, llm: AsyncLLM) -> None:
        """Keys and values that another policy computed must not answer for this one."""
        if not await _explained(llm.reset_prefix_cache()):
            raise EngineFailed(
                "vLLM's prefix cache could not be reset: requests are still running",
                "load a policy only when no request is in flight",
            )

    async def _complete(
        self, llm: AsyncLLM, request: Request, prompt: list[int], seed: int
    ) -> Completion:
        if request.json_schema is not None and request.thought_tokens:
            return await self._constrained_answer(llm, request, prompt, seed)
        watch = sorted({i for c in request.choices or () for i in self._verdicts[c]})
        params = _sampling_params(request, seed, watch, self._end_ids)
        output = await self._generate(llm, request, prompt, params)
        said = self._reader.read(output.token_ids, request)
        first = output
        if request.choices is not None and said.has_verdict:
            # Its prefix is cached: prompt and thought are not computed again.
            one = replace(request, thought_tokens=None,
                          sampling=replace(request.sampling, max_tokens=1))  # fmt: skip
            params = _sampling_params(one, seed, watch, self._end_ids)
            first = await self._generate(llm, request, [*prompt, *said.thought_ids], params)
        choices = None if said.unfinished else self._choice_logprobs(request, first)
        completion = _completion(said, output, len(prompt), choices)
        if request.choices is not None:
            return completion
        return replace(completion, ids_differ=self._reader.differs(output.token_ids, said, request))

    async def _constrained_answer(
        self, llm: AsyncLLM, request: Request, prompt: list[int], seed: int
    ) -> Completion:
        """A thought as the model likes it, and behind it an answer held to the JSON schema: the
        schema would forbid the thought."""
        free = replace(request, json_schema=None)
        params = _sampling_params(free, seed, [], self._end_ids)
        thought = await self._generate(llm, request, prompt, params)
        said = self._reader.read(thought.token_ids, request)
        if said.unfinished:
            return _completion(said, thought, len(prompt), None)
        bound = replace(request, thought_tokens=None)
        params = _sampling_params(bound, seed, [], self._end_ids)
        begun = [*prompt, *said.thought_ids]
        answer = await self._generate(llm, request, begun, params)
        text = self._reader.read(answer.token_ids, request, thought_over=True).text
        raw = None
        if said.reasoning is not None and said.raw_text is not None:
            raw = said.raw_text.removesuffix(said.text) + text
        known = thought.cumulative_logprob is not None and not said.thought_ids
        return Completion(
            text=text,
            token_ids=(*said.thought_ids, *answer.token_ids),
            finish_reason=str(answer.finish_reason),
            logprob=answer.cumulative_logprob if known else None,
            prompt_tokens=len(prompt),
            completion_tokens=len(said.thought_ids) + len(answer.token_ids),
            reasoning=said.reasoning,
            reasoning_tokens=len(said.thought_ids),
            raw_text=raw,
        )

    async def _generate(
        self, llm: AsyncLLM, request: Request, prompt: list[int], params: SamplingParams
    ) -> CompletionOutput:
        from vllm import TokensPrompt

        stream = llm.generate(
            TokensPrompt(prompt_token_ids=prompt),
            params,
            f"{request.request_id}-{next(self._ids)}",
            lora_request=self._adapter,
        )

        async def last() -> CompletionOutput:
            async for result in stream:
                if result.finished:
                    return result.outputs[0]
            raise EngineDied("vLLM ended a request without an answer", _DEAD)

        output: CompletionOutput = await _explained(last())
        if output.finish_reason not in ("stop", "length"):
            raise EngineDied(f"vLLM gave up a request: {output.finish_reason}", _DEAD)
        return output

    def _choice_logprobs(
        self, request: Request, output: CompletionOutput
    ) -> Mapping[str, float] | None:
        if request.choices is None:
            return None
        import numpy as np

        assert output.logprobs is not None
        first = output.logprobs[0]
        return {
            choice: float(np.logaddexp.reduce([first[i].logprob for i in self._verdicts[choice]]))
            for choice in request.choices
        }

    def _running(self) -> AsyncLLM:
        if self._llm is None:
            raise EngineFailed("the engine is closed")
        return self._llm


def _completion(
    said: ReadAnswer,
    output: CompletionOutput,
    prompt_tokens: int,
    choices: Mapping[str, float] | None,
) -> Completion:
    return Completion(
        text=said.text,
        token_ids=tuple(output.token_ids),
        finish_reason="length" if said.unfinished else str(output.finish_reason),
        logprob=output.cumulative_logprob,
        prompt_tokens=prompt_tokens,
        completion_tokens=len(output.token_ids),
        choice_logprobs=choices,
        reasoning=said.reasoning,
        reasoning_tokens=len(said.thought_ids),
        raw_text=said.raw_text,
    )


async def _checksums(llm: AsyncLLM) -> Any:
    """Of the weights in memory; null where this version of vLLM has none."""
    if not hasattr(llm, "compute_weight_checksums"):
        return None
    return await _explained(llm.compute_weight_checksums())


def _already_shut_down() -> None:
    pass


def _sampling_params(
    request: Request, seed: int, watch: list[int], ends: list[int]
) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling, schema = request.sampling, request.json_schema
    assert None not in (sampling.temperature, sampling.top_p, sampling.top_k)  # filled in
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=longest(request),
        stop=list(sampling.stop),
        # vLLM knows the tokenizer's EOS alone: the template's end of a turn is often another.
        stop_token_ids=ends,
        seed=seed,
        # 0: of the drawn token only. vLLM's default mode is the untempered distribution.
        logprobs=len(watch),
        logprob_token_ids=watch or None,
        flat_logprobs=True,
        # Text is made once, at the end; only stop strings need it on the way.
        detokenize=bool(sampling.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=_json_of(schema) if schema else None,
    )


def _json_of(schema: Mapping[str, Any]) -> StructuredOutputsParams:
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(json=dict(schema))


async def _explained(work: Any) -> Any:
    """Await ``work`` with vLLM's errors as ours."""
    from vllm.exceptions import VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    try:
        return await work
    except EngineDeadError as error:
        raise EngineDied("vLLM's engine process died", _DEAD) from error
    except VLLMClientError as error:
        raise RequestRejected("refused_by_server", str(error)) from error
    except EngineGenerateError as error:
        raise EngineDied(f"vLLM failed: {error.__cause__ or error}", _DEAD) from error
    except (EngineFailed, RequestRejected, asyncio.CancelledError):
        raise
    except Exception as error:  # remote errors arrive as whatever the worker raised
        raise EngineDied(f"vLLM failed: {error}", _DEAD) from error


def _start_llm(config: VllmEngine, model: str, revision: str | None) -> AsyncLLM:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # a run reports to nobody
    try:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise EngineFailed(
            f"vLLM cannot be imported: {error}",
            "pip install 'prefloop[vllm]' on a GPU machine, 'prefloop[cpu]' on one without",
        ) from error
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs) if field.init}
    for name in config.engine_args.keys() - known:
        near = difflib.get_close_matches(name, known, n=1)
        raise EngineFailed(
            f"engine_args has {name!r}, which vLLM's AsyncEngineArgs does not know",
            f"write {near[0]!r}" if near else "take it out; `vllm serve --help` lists them",
        )
    try:
        args = AsyncEngineArgs(model=model, revision=revision, **_engine_args(config, model))
        with _environment(TORCHDYNAMO_DISABLE="1" if args.enforce_eager else "0"):
            return AsyncLLM.from_engine_args(args)
    except Exception as error:  # its start-up raises anything, from pydantic's to torch's errors
        raise EngineFailed(f"vLLM does not start on {model}: {error}", _DEAD) from error


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Environment for the child processes that start meanwhile.

    vLLM compiles a helper of its log-probabilities even in eager mode: 18 s at the first request.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _engine_args(config: VllmEngine, model: str) -> dict[str, Any]:
    args: dict[str, Any] = {
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enforce_eager": bool(config.enforce_eager),
        "enable_prefix_caching": config.enable_prefix_caching,
        "enable_lora": config.enable_lora,
        "max_lora_rank": config.max_lora_rank,
        "max_num_seqs": config.max_num_seqs,
        "max_logprobs": config.max_logprobs,
        "seed": config.seed,
        "quantization": config.quantization,
        "trust_remote_code": config.trust_remote_code,
        "load_format": "safetensors",
        # An answer is drawn as the request says, not as the model's generation_config suggests.
        "generation_config": "vllm",
        # Free whitespace lets a small model fill its answer with newlines until it is cut off. Only
        # with a backend that is named does vLLM forbid it.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    } | config.engine_args
    if not _on_cpu():
        return args | {
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "enable_sleep_mode": _sleeps(config),
        }
    from transformers import AutoConfig

    context = config.max_model_len or AutoConfig.from_pretrained(model).max_position_embeddings
    args |= {
        "dtype": "float32" if config.dtype == "auto" else config.dtype,
        "enforce_eager": config.enforce_eager is not False,
        # Seeded requests kill the CPU build's engine when prefills are chunked.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(context, _MIN_BATCHED_TOKENS),
    }
    if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        # Unset, it would claim 92% of a NUMA node and refuse to start beside anything else.
        args["kv_cache_memory_bytes"] = config.cpu_kv_cache_gib * 2**30
    return args


def _sleeps(config: VllmEngine) -> bool:
    """Whether the engine is started so that it can sleep."""
    if config.enable_sleep_mode is not None:
        return config.enable_sleep_mode
    from vllm.platforms import current_platform

    # The allocator that it needs comes with vLLM's compiled parts, and not with all builds.
    known = getattr(current_platform, "is_cumem_allocator_available", lambda: False)
    return bool(current_platform.is_sleep_mode_available() and known())


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())
