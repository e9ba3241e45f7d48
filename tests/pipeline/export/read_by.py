"""Reads an export as the project does that it is for: run by that project's own Python, as
``python read_by.py FORM FOLDER MODEL``. Prints a list of prompt, chosen and rejected, as JSON.

``MODEL`` is a folder with a tokenizer and its chat template."""

from __future__ import annotations

import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def llamafactory(folder: Path, _: str) -> list[dict[str, Any]]:
    """Its turns, as its converter aligns them: LLaMA-Factory's own names in ``dataset_info``."""
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    from llamafactory.data.loader import _load_single_dataset
    from llamafactory.data.parser import get_dataset_list

    given = SimpleNamespace(
        dataset_dir=str(folder), streaming=False, preprocessing_num_workers=None,
        max_samples=None, overwrite_cache=True, media_dir=str(folder), cache_dir=None,
        hf_hub_token=None, local_process_index=0, seed=0,
    )  # fmt: skip
    [attributes] = get_dataset_list(["train"], str(folder))
    assert attributes.ranking
    found = []
    for row in _load_single_dataset(attributes, given, given, given):
        chosen, rejected = (turn["content"] for turn in row["_response"])
        system = [{"role": "system", "content": row["_system"]}] if row["_system"] else []
        found.append({"prompt": system + row["_prompt"], "chosen": chosen, "rejected": rejected})
    return found


def openrlhf(folder: Path, model: str) -> list[dict[str, Any]]:
    """What its data set of pairs hands to DPO, with the arguments that stand beside the rows."""
    from openrlhf.datasets.reward_dataset import RewardDataset
    from openrlhf.datasets.utils import blending_datasets
    from transformers import AutoTokenizer

    words = (folder / "arguments.txt").read_text(encoding="utf-8").split()
    names: dict[str, Any] = {"apply_chat_template": True}
    for name, value in pairwise(words):
        if name.startswith("--data.") and not value.startswith("--"):
            names[name.removeprefix("--data.")] = value
    strategy = SimpleNamespace(
        print=lambda *_: None, is_rank_0=lambda: False, args=SimpleNamespace(
            data=SimpleNamespace(**names), use_ms=False),
    )  # fmt: skip
    rows = blending_datasets(str(folder / "train.jsonl"), None, strategy)
    read = RewardDataset(
        rows, AutoTokenizer.from_pretrained(model), 4096, strategy, is_dpo=True, num_processors=1
    )
    columns = zip(read.prompts, read.chosens, read.rejects, strict=True)
    return [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in columns]


def axolotl(folder: Path, model: str) -> list[dict[str, Any]]:
    """What its strategy for DPO makes of the rows, by the config that stands beside them."""
    import yaml
    from axolotl.prompt_strategies.dpo import load
    from datasets import load_dataset
    from transformers import AutoTokenizer

    config = yaml.safe_load((folder / "dataset.yaml").read_text(encoding="utf-8"))
    entry = config["datasets"][0]
    made = load(entry["type"], {**config, "chat_template": "tokenizer_default"}, dataset_idx=0)
    transform = made[0] if isinstance(made, tuple) else made
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = load_dataset(
        entry["ds_type"], data_files=str(folder / entry["path"]), split=entry["split"]
    )
    return [transform(row, tokenizer=tokenizer) for row in rows]


if __name__ == "__main__":
    form, where, model = sys.argv[1:]
    reader = {"alpaca": llamafactory, "llamafactory": llamafactory, "openrlhf": openrlhf,
              "axolotl": axolotl}[form]  # fmt: skip
    found = reader(Path(where), model)
    print("\n" + json.dumps(found))
