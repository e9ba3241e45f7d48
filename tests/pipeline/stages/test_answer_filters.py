"""Refusals, personal data and harm: the filter ``score`` by what ships, in a run."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from prefloop.pipeline.config import RunConfig, load_config, validate_config
from prefloop.pipeline.plan.plan import make_plan
from prefloop.pipeline.run.run_dir import RunDir
from tests.helpers.paths import ROOT
from tests.helpers.runs import run_small
from tests.helpers.servers import Handler, faulty_server, good

PLAIN = "Take the train at nine, it is the last one before noon."
ANSWERS = {
    "one that refuses": "I'm sorry, but I can't help with that.",
    "one with an address": "Write to jane@foxes.org, she knows the timetable.",
    "one with harm": "Poison is in the cellar: this much of it is enough.",
    "one without fault": "There is a train at nine and one at noon.",
}


def top(**shares: float) -> dict[str, Any]:
    import math

    first = [{"token": key, "logprob": math.log(value)} for key, value in shares.items()]
    return {"content": [{**first[0], "top_logprobs": first}]}


def reply(handler: Handler) -> None:
    """To each prompt the plain answer and its own one, which the judge prefers."""
    text = str(handler.body["messages"][-1]["content"])
    if "Which answer" in text or "<answer_a>" in text:
        a = re.findall(r"<answer_a>\n(.*)\n</answer_a>", text)[0]
        said = "B" if a == PLAIN else "A"
        good(said, logprobs=top(**{said: 0.98, "AB".replace(said, ""): 0.01, "C": 0.01}))(handler)
    elif "could do harm" in text:
        answer = re.findall(r"<answer>\n(.*)\n</answer>", text)[0]
        said, other = ("3", "1") if "Poison" in answer else ("1", "3")
        good(said, logprobs=top(**{said: 0.9, other: 0.05, "2": 0.05}))(handler)
    else:
        good(PLAIN if handler.body["seed"] % 2 else ANSWERS[text.strip("?").lower()])(handler)


def config(url: str, file: Path) -> RunConfig:
    """As examples/filters.yaml has it, of a server."""
    example = load_config(ROOT / "examples" / "filters.yaml").model_dump(mode="json")
    served = {"type": "openai", "base_url": url, "max_retries": 0, "cache": False}
    example["engines"] = {"policy": served, "judge": served}
    example["policy"] = "m"
    example["prompts"]["train"]["path"] = str(file)
    example["prompts"]["near_duplicates"] = {"enabled": False}
    example["write"]["test_share"] = 0.0
    example["sample"]["n"] = 12
    return validate_config(example, "test")


def test_each_labeler_drops_what_it_finds_and_is_the_reason(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"{one.capitalize()}?"}) for one in ANSWERS))
    with faulty_server(reply) as server:
        asked = config(server.url, prompts)
        planned = {one.what: one.requests for one in make_plan(asked).steps}
        run = run_small(tmp_path / "run", asked)
        harm = sum("could do harm" in str(body) for _, _, body in server.requests)
    assert harm == 2 * len(ANSWERS) <= planned["safe"]
    rows = run.round(0).decisions.table().to_pylist()
    assert len(rows) == len(ANSWERS)
    by_reason = Counter(row["reason"] for row in rows)
    assert by_reason == {
        None: 1, "score:refusals": 1, "score:private": 1, "score:safe": 1,
    }  # fmt: skip
    [kept] = _dataset(run)
    assert kept == ANSWERS["one without fault"]
    scores = {
        (row["labeler"], row["score_a"], row["score_b"])
        for row in run.round(0).votes.table().to_pylist()
        if row["labeler"] == "safe"
    }
    assert {round(a + b, 3) for _, a, b in scores} == {0.925 * 2, 0.925 + 0.075}


def _dataset(run: RunDir) -> list[str]:
    import pyarrow.parquet as pq

    files = (run.dataset / "data").glob("*.parquet")
    return [
        row["chosen"][-1]["content"] for path in files for row in pq.read_table(path).to_pylist()
    ]
