"""The shipped prompts and models are what their cards say, and their recipe runs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from prefloop.labelers.scorers.constraints import satisfied, score, validate
from prefloop.training.tiny import grammar
from tests.helpers.paths import ROOT

EMBEDDED = ROOT / "data" / "embedded"
MODELS = EMBEDDED / "models"
LARGEST = 8_000_000  # bytes


def _rows(name: str) -> list[dict[str, Any]]:
    lines = (EMBEDDED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# Grammar ----------------------------------------------------------------------------------------


def test_grammar_is_deterministic() -> None:
    def draw(seed: int) -> list[tuple[str, str]]:
        rng = random.Random(seed)
        tasks = [grammar.write_task(rng) for _ in range(50)]
        return [(task.prompt, grammar.write_sloppy_answer(rng, task, 0.3)) for task in tasks]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_grammar_meets_what_it_is_told_to() -> None:
    rng = random.Random(3)
    written = 0
    for _ in range(300):
        task = grammar.write_task(rng)
        wanted = [rng.random() < 0.5 for _ in task.constraints]
        answer = grammar.write_answer(rng, task, wanted)
        if answer is not None:
            written += 1
            assert satisfied(task.constraints, answer) == wanted
    assert written > 285


def test_grammar_uses_every_constraint_type_it_names() -> None:
    rng = random.Random(4)
    tasks = [grammar.write_task(rng) for _ in range(300)]
    assert {c["type"] for task in tasks for c in task.constraints} == set(grammar.CONSTRAINT_TYPES)


# Prompts ----------------------------------------------------------------------------------------


def test_shipped_prompts() -> None:
    shipped, heldout = _rows("prompts"), _rows("heldout")
    for row in shipped + heldout:
        assert set(row) == {"prompt", "constraints", "reference"}
        assert row["constraints"]
        for item in row["constraints"]:
            validate(item)
        assert score(row["constraints"], row["reference"]) == 1.0
    texts = [row["prompt"] for row in shipped]
    assert len(set(texts)) >= 620
    assert len(texts) - len(set(texts)) == 6  # planted duplicates
    assert len(heldout) == len({row["prompt"] for row in heldout}) == 150
    assert len({row["prompt"] for row in heldout} & set(texts)) == 2  # planted overlap


def test_shipped_prompts_do_not_look_alike() -> None:
    datasketch = pytest.importorskip("datasketch")
    index = datasketch.MinHashLSH(threshold=0.8, num_perm=128)
    shipped = sorted({row["prompt"] for row in _rows("prompts")})
    heldout = [row["prompt"] for row in _rows("heldout")]
    near = 0
    for number, text in enumerate(heldout + shipped):
        words = text.lower().split()
        sketch = datasketch.MinHash(num_perm=128, seed=1)
        for gram in zip(words, words[1:], words[2:], strict=False):
            sketch.update(" ".join(gram).encode())
        if index.query(sketch):
            near += 1
        index.insert(str(number), sketch)
    assert 2 + 4 <= near < 0.03 * len(shipped)  # the planted ones, and hardly any other


# Models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["policy", "judge"])
def test_model_folder(name: str) -> None:
    folder = MODELS / name
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (folder / "model.safetensors").stat().st_size <= LARGEST
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"]
    assert config["head_dim"] in (32, 64)


def test_figures_are_recorded() -> None:
    figures = json.loads((MODELS / "recipe.json").read_text())
    assert 0.4 <= figures["policy"]["all_met"] <= 0.6
    assert figures["policy"]["mean_tokens"] < 30
    assert figures["judge"]["agreement"] >= 0.8
    assert figures["seconds"] < 45 * 60


def test_tokenizer_behaves_like_llamas() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODELS / "policy")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi \u00fc \u4e16"},
        {"role": "assistant", "content": "A fox."},
        {"role": "user", "content": "More."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<s><|system|>Be brief.<|end|><|user|>Hi \u00fc \u4e16<|end|>"
        "<|assistant|>A fox.<|end|><|user|>More.<|end|><|assistant|>"
    )
    assert tokenizer.encode("Hi")[0] == tokenizer.bos_token_id
    assert tokenizer.encode(text)[:2] == [tokenizer.bos_token_id] * 2  # the trap, as in Llama
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids) == text
    for verdict in ("A", "B"):
        assert tokenizer.encode(text + verdict, add_special_tokens=False)[:-1] == ids
    encoded = tokenizer.apply_chat_template(
        messages[:3], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = [
        token
        for token, bit in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        if bit
    ]
    assert tokenizer.decode(marked) == "A fox.<|end|>"
    judge = transformers.AutoTokenizer.from_pretrained(MODELS / "judge")
    assert judge.get_vocab() == tokenizer.get_vocab()


def test_chat_encoder_agrees_with_the_template() -> None:
    transformers = pytest.importorskip("transformers")
    from prefloop.training.tiny.chat import ChatEncoder

    tokenizer = transformers.AutoTokenizer.from_pretrained(MODELS / "policy")
    encoder = ChatEncoder(tokenizer)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi. A?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expected = tokenizer.encode(text, add_special_tokens=False)
    assert encoder.prompts(["Hi. A?"], "Be brief.") == [expected]


@pytest.fixture(scope="module")
def sampled() -> tuple[list[grammar.Task], list[list[str]]]:
    """A slice of the held-out prompts and fresh answers by the shipped policy."""
    transformers = pytest.importorskip("transformers")
    from prefloop.training.tiny.recipe import sample

    folder = MODELS / "policy"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tasks = [
        grammar.Task("", "", row["prompt"], tuple(row["constraints"]))
        for row in _rows("heldout")[:80]
    ]
    return tasks, sample(model, tokenizer, [task.prompt for task in tasks], 6, seed=11)


def test_policy_is_right_about_half_the_time(
    sampled: tuple[list[grammar.Task], list[list[str]]],
) -> None:
    tasks, answers = sampled
    whole = [
        score(task.constraints, text) == 1.0
        for task, texts in zip(tasks, answers, strict=True)
        for text in texts
    ]
    assert 0.35 <= sum(whole) / len(whole) <= 0.65
    words = [len(text.split()) for texts in answers for text in texts]
    assert sum(words) / len(words) < 25


def test_judge_agrees_with_the_verifier(
    sampled: tuple[list[grammar.Task], list[list[str]]],
) -> None:
    transformers = pytest.importorskip("transformers")
    from prefloop.training.tiny.recipe import measure_judge

    folder = MODELS / "judge"
    judge = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    figures = measure_judge(judge, tokenizer, *sampled, pairs_per_task=5)
    assert figures["pairs"] >= 150
    assert figures["agreement"] >= 0.8
    assert 0.4 <= figures["prefers_first"] <= 0.6


@pytest.mark.slow
def test_recipe_runs(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from prefloop.training.tiny.recipe import make_models

    lines: list[str] = []
    figures = make_models(tmp_path, seed=5, quick=True, progress=lines.append)
    assert lines
    assert figures["policy"]["samples"] > 0
    assert _files(tmp_path) == _files(EMBEDDED)


def _files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
