"""The engines' settings. Defaults are the vetted ones; keys and passwords are never settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from prefloop.data.strict import Strict

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class TransformersEngine(Strict):
    """Plain ``transformers`` in this process: the embedded default, runs wherever torch runs."""

    type: Literal["transformers"] = "transformers"
    device: str = "auto"
    """``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ..."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto`` is float32 on the CPU and bfloat16 on a GPU."""
    batch_size: PositiveInt = 64
    """Sequences decoded together. Measured on 2 cores: 64 is 8% faster than 128, 40% than 256."""
    threads: PositiveInt | None = None
    """CPU threads of torch; null leaves torch's own choice, all cores.

    On a machine that does other work as well, leave it a core: threads that wait for a displaced
    one spin. Seen with a tiny model on 2 cores, tokens/s with 2 threads and with 1: idle machine
    18,000 and 11,000, busy machine 400 and 5,000.
    """
    block_wait_s: PositiveFloat = 60.0
    """An idle engine computes an incomplete block of requests after this many seconds."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""


class VllmEngine(Strict):
    """vLLM in this process (its workers are child processes)."""

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


class OpenAIEngine(Strict):
    """Any OpenAI-compatible HTTP server: ``vllm serve``, a cloud API, ..."""

    type: Literal["openai"] = "openai"
    base_url: str = "http://127.0.0.1:8000/v1"
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key (unset: no key is sent)."""
    api: Literal["chat", "completions"] = "chat"
    """``completions`` sends token ids rendered here (needs ``tokenizer``)."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer, for ``api: completions``."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the chat API calls the limit; OpenAI's newer models want ``max_completion_tokens``."""
    logprobs: bool = True
    """Ask for log-probabilities. False for servers that refuse them."""
    vllm_extensions: bool = False
    """The server is vLLM: send top_k, ask for token ids, load LoRA adapters over HTTP."""
    max_concurrency: PositiveInt = 32
    timeout_s: PositiveFloat = 120.0
    max_retries: Annotated[int, Field(ge=0)] = 6
    max_backoff_s: PositiveFloat = 60.0
    """Longest wait between two tries, unless the server asks for a longer one."""
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    max_total_tokens: PositiveInt | None = None
    """Stop (resumably) when this many tokens, prompts included, have been used."""
    max_cost: PositiveFloat | None = None
    """Stop (resumably) when this much has been spent, in the currency of the prices."""
    price_per_million_prompt_tokens: Annotated[float, Field(ge=0)] = 0.0
    price_per_million_completion_tokens: Annotated[float, Field(ge=0)] = 0.0
    cache: bool = True
    """Keep every response on disk, by what it was asked, and never pay for the same one twice."""
    cache_dir: Path | None = None
    """Folder of the response cache; null is ``cache/NAME`` in the run directory, NAME being the
    engine's. Runs that name the same folder share their responses."""

    @model_validator(mode="after")
    def _is_usable(self) -> OpenAIEngine:
        if "@" in self.base_url:
            raise ValueError("base_url must not hold a password: use api_key_env")
        if self.api == "completions" and self.tokenizer is None:
            raise ValueError("api: completions needs tokenizer: FOLDER (prompts are token ids)")
        prices = self.price_per_million_prompt_tokens + self.price_per_million_completion_tokens
        if self.max_cost is not None and prices == 0:
            raise ValueError("max_cost needs price_per_million_prompt_tokens or ..._completion_...")
        return self


EngineConfig = Annotated[
    TransformersEngine | VllmEngine | OpenAIEngine, Field(discriminator="type")
]
"""One of the engines, told apart by ``type``."""
