"""Recipes that were published, by name: what ``train.preset`` sets.

A preset is frozen: a run that was begun with one goes on with the same values. It sets keys of
``train`` alone; prompts, sampling and labelers are the run's own. Batches are those of all devices
of the recipe together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Preset = Literal["zephyr", "tulu3", "simpo", "iterative-dpo"]

STEP = "examples_per_step"
"""In a preset: pairs in an optimiser step, ``batch_size`` times ``gradient_accumulation``."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Tunstall et al. 2023 (arXiv 2310.16944); huggingface/alignment-handbook,
    # recipes/zephyr-7b-beta/dpo/config_full.yaml, on 8 GPUs.
    "zephyr": {
        "method": "dpo",
        "loss": "sigmoid",
        "beta": 0.01,
        "learning_rate": 5e-7,
        "lr_scheduler": "cosine",
        "warmup_ratio": 0.1,
        "epochs": 1.0,
        "max_length": 1024,
        STEP: 128,
    },
    # Lambert et al. 2024 (arXiv 2411.15124), section 5; allenai/open-instruct, docs/tulu3.md, the
    # launch of Llama-3.1-Tulu-3-8B-DPO (dpo_norm is TRL's sigmoid_norm).
    "tulu3": {
        "method": "dpo",
        "loss": "sigmoid_norm",
        "beta": 5.0,
        "learning_rate": 5e-7,
        "lr_scheduler": "linear",
        "warmup_ratio": 0.1,
        "epochs": 1.0,
        "max_length": 2048,
        STEP: 128,
    },
    # Meng et al. 2024 (arXiv 2405.14734); princeton-nlp/SimPO,
    # training_configs/llama-3-8b-instruct-simpo.yaml, on 4 GPUs (gamma_beta_ratio 0.55).
    "simpo": {
        "method": "dpo",
        "loss": "simpo",
        "beta": 2.5,
        "simpo_gamma": 1.375,
        "learning_rate": 1e-6,
        "lr_scheduler": "cosine",
        "warmup_ratio": 0.1,
        "epochs": 1.0,
        "max_length": 2048,
        STEP: 128,
    },
    # Dong et al. 2024, "RLHF Workflow" (arXiv 2405.07863); RLHFlow/Online-RLHF, run_loop2.sh, on 8
    # GPUs. Its sigmoid loss with label_smoothing 0.1, in the TRL of that time, is cdpo here; its
    # ref_model is the policy that each iteration begins with.
    "iterative-dpo": {
        "method": "dpo",
        "loss": "cdpo",
        "label_smoothing": 0.1,
        "beta": 0.1,
        "reference": "previous",
        "learning_rate": 5e-7,
        "lr_scheduler": "cosine",
        "warmup_ratio": 0.0,
        "epochs": 2.0,
        "max_length": 2048,
        STEP: 128,
    },
}
"""Values by the name of the preset and the key."""
