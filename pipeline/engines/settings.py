"""The engines' settings. Defaults are the vetted ones; keys and passwords are never settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from prefloop.data.strict import LATER, FreeMapping, Strict
from prefloop.pipeline.engines.endpoints.endpoint_settings import (
    EndpointConfig,
    check_address,
    check_variable,
    headers_of_both,
)
from prefloop.pipeline.engines.handed_on import (
    check_engine_args,
    check_fields,
    check_headers,
)
from prefloop.pipeline.engines.openai.batch.batch_settings import BatchSettings

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
MemoryMode = Literal["auto", "keep_open", "one_at_a_time"]
"""How many models are in memory at once; see the run's key ``memory``."""
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ONE_NUMBER, TWO_NUMBERS = "a number", "two numbers"
"""Which of the two a value of ``replicas`` is: no keys, and never shown."""
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ReplicaRange(Strict):
    """So many processes of an engine, as there is room for."""

    min: PositiveInt = 1
    """Fewer are an error."""
    max: PositiveInt
    """No more, even where there is room."""

    @model_validator(mode="after")
    def _in_order(self) -> ReplicaRange:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


def _how_many(value: Any) -> str:
    return TWO_NUMBERS if isinstance(value, dict | ReplicaRange) else ONE_NUMBER


Replicas = Annotated[
    Annotated[PositiveInt, Tag(ONE_NUMBER)] | Annotated[ReplicaRange, Tag(TWO_NUMBERS)],
    Discriminator(_how_many),
]
"""How many processes an engine has."""


class TransformersEngine(Strict):
    """Plain ``transformers`` on this machine: the embedded default, runs wherever torch runs."""

    type: Literal["transformers"] = "transformers"
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d{1,3})?)$")
    """``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ..."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto`` is float32 on the CPU and bfloat16 on a GPU."""
    batch_size: PositiveInt = 64
    """Sequences decoded together. The embedded models on 2 cores are fastest at 64; a model of 135
    million parameters on one core decodes 182 tokens/s at 96 and 143 at 32. More need more memory:
    each holds keys and values of its whole sequence."""
    threads: PositiveInt | None = None
    """CPU threads of torch; null leaves torch's own choice, all cores. Training in the same process
    computes with as many, where this is the policy's engine and has one process.

    On a machine that does other work as well, leave it a core: threads that wait for a displaced
    one spin. Seen with a tiny model on 2 cores, tokens/s with 2 threads and with 1: idle machine
    18,000 and 11,000, busy machine 400 and 5,000.
    """
    block_wait_s: PositiveFloat = 60.0
    """An idle engine computes an incomplete block of requests after this many seconds."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""
    chat_template_kwargs: Annotated[FreeMapping, LATER] = {}  # noqa: RUF012
    """Variables of the chat template in every request, such as ``enable_thinking: false``."""
    reasoning_effort: Annotated[str | None, LATER] = None
    """For every request, as the model names it (``low``, ``high``)."""
    replicas: Annotated[Replicas, LATER] = 1
    """Processes that share the work on this machine, each with the whole model. On GPUs each has
    one of its own; on the CPU they share the cores out, and each has ``threads`` of them. They take
    whole blocks from one queue, so with the same ``threads`` any number of them makes the same
    dataset, byte for byte. ``{min: 1, max: 8}``: as many as there are GPUs, or cores, for. 1
    computes in the run's own process. On a cluster (``executor``), so many workers."""
    cpus: Annotated[PositiveFloat | None, LATER] = None
    """CPUs of each worker of a cluster (``executor``), beside ``executor.cpus``."""
    accelerator_type: Annotated[str | None, LATER] = None
    """Kind of GPU of each worker of a cluster, as Ray names it (``H100``); null: any."""

    @model_validator(mode="after")
    def _has_devices_for_all(self) -> TransformersEngine:
        if self.replica_range[1] > 1 and self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(
                f"replicas: each gets a GPU of its own, and device {self.device!r} names one for "
                "all: set device: auto, or replicas: 1"
            )
        return self

    @property
    def replica_range(self) -> tuple[int, int]:
        """The least and the most processes."""
        return _replica_range(self.replicas)

    @property
    def gpus_of_replica(self) -> int:
        """GPUs of each process, where it computes on GPUs."""
        return 1


class VllmEngine(Strict):
    """vLLM on this machine (its workers are child processes)."""

    type: Literal["vllm"] = "vllm"
    dtype: Dtype = "auto"
    """``auto`` is float32 on the CPU and the checkpoint's own type on a GPU."""
    max_model_len: PositiveInt | None = None
    """Tokens of prompt and answer together; null is the model's own limit."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the GPU's memory for weights and KV cache. No effect on the CPU."""
    cpu_kv_cache_gib: PositiveInt = 1
    """KV cache on the CPU, in GiB (unless VLLM_CPU_KVCACHE_SPACE is set)."""
    tensor_parallel_size: PositiveInt = 1
    enforce_eager: bool | None = None
    """No compilation and no CUDA graphs; null is true on the CPU, false on a GPU."""
    enable_prefix_caching: bool = True
    enable_lora: bool = False
    """Needed to take new policies as LoRA adapters into the running engine."""
    max_lora_rank: PositiveInt = 64
    max_num_seqs: PositiveInt = 256
    """Sequences decoded together at most."""
    max_logprobs: PositiveInt = 20
    seed: int = 0
    """Of the engine; requests bring seeds of their own."""
    quantization: str | None = None
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""
    enable_sleep_mode: Annotated[bool | None, LATER] = None
    """While another model works on the GPU, the engine sleeps: its weights wait in main memory, its
    cache is given up, and waking takes seconds. False: it is closed, and started anew. Null is true
    on a GPU and false on the CPU, where vLLM cannot sleep."""
    chat_template_kwargs: Annotated[FreeMapping, LATER] = {}  # noqa: RUF012
    """Variables of the chat template in every request, such as ``enable_thinking: false``."""
    reasoning_effort: Annotated[str | None, LATER] = None
    """For every request, as the model names it (``low``, ``high``)."""
    engine_args: Annotated[FreeMapping, LATER] = {}  # noqa: RUF012
    """Further arguments of vLLM's ``AsyncEngineArgs``, such as ``kv_cache_dtype: fp8``, by their
    names there."""
    replicas: Annotated[Replicas, LATER] = 1
    """vLLM engines on this machine, each with the whole model on ``gpus`` of its own; on the CPU
    they share the cores out. A block goes to the one that has least to do. ``{min: 1, max: 8}``: as
    many as there are GPUs, or cores, for. 1 is driven from the run's own process. On a cluster
    (``executor``), so many workers."""
    gpus: Annotated[PositiveInt | None, LATER] = None
    """GPUs of each of several ``replicas``; null is ``tensor_parallel_size``. More are for what
    ``engine_args`` say, such as ``pipeline_parallel_size``."""
    cpus: Annotated[PositiveFloat | None, LATER] = None
    """CPUs of each worker of a cluster (``executor``), beside ``executor.cpus``."""
    accelerator_type: Annotated[str | None, LATER] = None
    """Kind of GPU of each worker of a cluster, as Ray names it (``H100``); null: any."""

    @field_validator("engine_args")
    @classmethod
    def _are_not_ours(cls, given: FreeMapping) -> FreeMapping:
        return check_engine_args(given, own=cls.model_fields)

    @model_validator(mode="after")
    def _has_gpus_for_its_tensors(self) -> VllmEngine:
        if self.gpus is not None and self.gpus < self.tensor_parallel_size:
            raise ValueError(
                f"gpus: {self.gpus} are fewer than tensor_parallel_size: "
                f"{self.tensor_parallel_size}; leave gpus out, or raise it"
            )
        return self

    @property
    def replica_range(self) -> tuple[int, int]:
        """The least and the most processes."""
        return _replica_range(self.replicas)

    @property
    def gpus_of_replica(self) -> int:
        """GPUs of each process, where it computes on GPUs."""
        return self.gpus or self.tensor_parallel_size


LocalEngine = TransformersEngine | VllmEngine
"""An engine that computes on this machine."""


def _replica_range(given: int | ReplicaRange) -> tuple[int, int]:
    return (given.min, given.max) if isinstance(given, ReplicaRange) else (given, given)


class OpenAIEngine(Strict):
    """Any OpenAI-compatible HTTP server: ``vllm serve``, a cloud API, ..."""

    type: Literal["openai"] = "openai"
    base_url: str = "http://127.0.0.1:8000/v1"
    endpoints: Annotated[tuple[EndpointConfig, ...], LATER] = ()
    """Several servers of the same model in the place of ``base_url``. Each request goes to the one
    that is likely to answer first; one that is busy, gone or refuses its key is left to itself
    while the others answer. ``api_key_env``, ``max_concurrency``, ``requests_per_minute``,
    ``tokens_per_minute`` and ``extra_headers`` of the engine hold for each that has none of its
    own; what may be spent, and the prices, are the engine's."""
    mode: Annotated[Literal["live", "batch"], LATER] = "live"
    """``batch``: requests are collected and sent as jobs of the server's batch API (``/files`` and
    ``/batches``), which answers within a day, at about half the price. For fixed models."""
    batch: Annotated[BatchSettings, LATER] = Field(default_factory=BatchSettings)
    """For ``mode: batch``."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key (unset: no key is sent)."""
    api: Literal["chat", "completions"] = "chat"
    """``completions`` sends token ids rendered here (needs ``tokenizer``)."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer, for ``api: completions``, for counting the tokens of
    servers that do not, and for keeping the sampled tokens (of ``vllm_extensions``) of those
    answers alone whose text does not say them; without it, of all."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the chat API calls the limit; OpenAI's newer models want ``max_completion_tokens``."""
    logprobs: bool = True
    """Ask for log-probabilities. False for servers that refuse them."""
    top_logprobs: Annotated[int, Field(ge=1, le=20)] = 20
    """How many tokens a token judge asks the log-probabilities of; some servers take 5 at most."""
    leave_out: tuple[Literal["seed", "temperature", "top_p"], ...] = ()
    """Fields that are not sent, for servers that refuse them. Without ``seed`` the same run on
    another day gets other answers."""
    extra_body: Annotated[FreeMapping, LATER] = {}  # noqa: RUF012
    """Further fields of every request, such as ``provider: {order: [a, b]}``, by the names that
    the server gives them. They are written into the run directory: no place for keys."""
    extra_headers: Annotated[dict[str, str], LATER] = {}  # noqa: RUF012
    """Further HTTP headers. ``$NAME`` is the value of the environment variable NAME, and the only
    way to give one that holds a key: ``api-key: $AZURE_API_KEY``."""
    chat_template_kwargs: Annotated[FreeMapping, LATER] = {}  # noqa: RUF012
    """Variables of the chat template in every request, such as ``enable_thinking: false``; vLLM's
    and SGLang's servers know the field."""
    reasoning_effort: Annotated[str | None, LATER] = None
    """For every request, as the server names it (``low``, ``high``)."""
    vllm_extensions: bool = False
    """The server is vLLM: send top_k, ask for token ids, load LoRA adapters over HTTP."""
    n_per_request: Annotated[PositiveInt, LATER] = 1
    """Answers to one prompt that are asked for in one request (its field ``n``), at most: the
    prompt is read, and paid, once for them. 1: each is a request. More are for servers that honour
    ``n`` and draw each answer by another seed, as vLLM and OpenAI do (``prefloop check`` tells);
    several take 8 at most. What does not come is asked for alone."""
    max_concurrency: PositiveInt | None = None
    """Requests under way at once; of several prompts or answers in one, each counts. Null: 256 to
    vLLM (``vllm_extensions``), which works on so many together, and 32 to others."""
    timeout_s: Seconds = 120.0
    max_retries: Annotated[int, Field(ge=0)] = 6
    max_backoff_s: Seconds = 60.0
    """Longest wait between two tries, unless the server asks for a longer one."""
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    max_total_tokens: PositiveInt | None = None
    """Stop (resumably) when this many tokens, prompts included, have been used by all runs of the
    same directory."""
    max_cost: Price | None = None
    """Stop (resumably) when this much has been spent, in the currency of the prices, by all runs of
    the same directory."""
    price_per_million_prompt_tokens: Price = 0.0
    price_per_million_completion_tokens: Price = 0.0
    cache: bool = True
    """Keep every response on disk, by what it was asked, and never pay for the same one twice."""
    cache_dir: Path | None = None
    """Folder of the response cache; null is ``cache/NAME`` in the run directory, NAME being the
    engine's. Runs that name the same folder share their responses. These are found by model and
    request, whatever the address, as servers move: a server with another model under the same name
    needs a folder of its own."""

    @property
    def concurrency(self) -> int:
        """Requests under way at once, at most, over all servers."""
        return sum(one.max_concurrency or 0 for one in self.servers)

    @property
    def servers(self) -> tuple[EndpointConfig, ...]:
        """The servers that are asked, each with all that holds for it: ``endpoints``, or the one at
        ``base_url``."""
        return tuple(
            one.model_copy(
                update={
                    "api_key_env": one.api_key_env or self.api_key_env,
                    "max_concurrency": (
                        one.max_concurrency
                        or self.max_concurrency
                        or (256 if self.vllm_extensions else 32)
                    ),
                    "requests_per_minute": one.requests_per_minute or self.requests_per_minute,
                    "tokens_per_minute": one.tokens_per_minute or self.tokens_per_minute,
                    "extra_headers": headers_of_both(self.extra_headers, one.extra_headers),
                }
            )
            for one in self.endpoints or (EndpointConfig(base_url=self.base_url),)
        )

    @property
    def price_share(self) -> float:
        """Of the prices, what an answer costs in this mode."""
        return self.batch.share if self.mode == "batch" else 1.0

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the servers are."""
        return tuple(one.base_url for one in self.endpoints) or (self.base_url,)

    @model_validator(mode="before")
    @classmethod
    def _has_no_replicas(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "replicas" in raw:
            raise ValueError("replicas are processes on this machine: list servers in `endpoints`")
        return raw

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        return check_address(url)

    @field_validator("api_key_env")
    @classmethod
    def _is_variable(cls, name: str) -> str:
        return check_variable(name)

    @field_validator("extra_body")
    @classmethod
    def _are_other_fields(cls, given: FreeMapping) -> FreeMapping:
        return check_fields(given)

    @field_validator("extra_headers")
    @classmethod
    def _are_headers(cls, given: dict[str, str]) -> dict[str, str]:
        return check_headers(given)

    @model_validator(mode="after")
    def _is_usable(self) -> OpenAIEngine:
        if self.api == "completions" and self.tokenizer is None:
            raise ValueError("api: completions needs tokenizer: FOLDER (prompts are token ids)")
        if self.endpoints and self.base_url != type(self).model_fields["base_url"].default:
            raise ValueError("base_url stands beside endpoints, where it would not be asked: make "
                             "it one of the endpoints")  # fmt: skip
        asked = [(one.base_url.rstrip("/"), one.api_key_env) for one in self.servers]
        if twice := next((url for url, key in asked if asked.count((url, key)) > 1), None):
            raise ValueError(f"endpoints has {twice} twice, with the same key")
        if self.mode == "batch" and self.endpoints:
            raise ValueError("mode: batch sends its jobs to one server, and knows them there: give "
                             "base_url in the place of endpoints, or set mode: live")  # fmt: skip
        if self.mode == "batch" and self.n_per_request > 1:
            raise ValueError("mode: batch asks for each answer in a line of its own: set "
                             "n_per_request: 1, or mode: live")  # fmt: skip
        if self.mode == "batch" and not self.cache:
            raise ValueError("mode: batch keeps the answers of its jobs in the response cache: set "
                             "cache: true, or mode: live")  # fmt: skip
        prices = self.price_per_million_prompt_tokens + self.price_per_million_completion_tokens
        if self.max_cost == 0:
            raise ValueError("max_cost must be more than 0")
        if self.max_cost is not None and prices == 0:
            raise ValueError("max_cost needs price_per_million_prompt_tokens or ..._completion_...")
        return self


def sequences_at_once(engine: TransformersEngine | VllmEngine | OpenAIEngine) -> int:
    """Sequences that ``engine`` works on together, whatever block they belong to; 1 where its
    batches are those of a block, so that other blocks only wait, and where it collects those of as
    many blocks as it is said to."""
    if isinstance(engine, OpenAIEngine):
        return 1 if engine.mode == "batch" else engine.concurrency
    if isinstance(engine, VllmEngine):
        return engine.max_num_seqs * engine.replica_range[1]
    return 1


EngineConfig = Annotated[
    TransformersEngine | VllmEngine | OpenAIEngine, Field(discriminator="type")
]
"""One of the engines, told apart by ``type``."""
