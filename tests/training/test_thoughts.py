"""A policy that thinks is trained on what it sampled, behind the prompt it was asked with."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefloop.data.conversations.answer_edges import thinking_off, thought_opening
from prefloop.data.conversations.chat import render_tokens
from prefloop.data.schemas import CANDIDATE
from prefloop.pipeline.engines.weights import load_tokenizer
from prefloop.training.inputs.answers import read_answers
from prefloop.training.inputs.pairs import read_triples, token_pairs
from prefloop.training.inputs.rendering import Rendering
from prefloop.training.inputs.tokens import answer_ids, end_token
from tests.helpers.dpo_data import triple
from tests.helpers.thinking_models import make_thinking_model
from tests.pipeline.engines.test_thoughts import answers, ask

PROMPT = [{"role": "user", "content": "Which? one"}]


def test_what_is_trained_is_what_was_sampled(thinking_model: str) -> None:
    [one] = answers(thinking_model, ask("one"))
    tokenizer = load_tokenizer(thinking_model)
    [ids] = answer_ids(tokenizer, [one.raw_text], end_token(tokenizer))
    assert tuple(ids) == one.token_ids


def test_an_answer_without_its_thought(thinking_model: str) -> None:
    """Asked not to think, the answer alone; behind a prompt that opens a thought, one that is
    closed at once."""
    tokenizer = load_tokenizer(thinking_model)
    end = end_token(tokenizer)
    plain = [*tokenizer.encode("A", add_special_tokens=False), end]
    [stripped] = answer_ids(tokenizer, ["A"], end, thinking_off(tokenizer))
    assert stripped.tolist() == plain
    [ids] = answer_ids(tokenizer, ["A"], end)
    if not thought_opening(tokenizer):
        assert ids.tolist() == plain
        return
    prompt = render_tokens(tokenizer, PROMPT)
    empty = render_tokens(tokenizer, PROMPT, template_kwargs={"enable_thinking": False})
    written = tokenizer.decode([*prompt, *ids])
    assert written.split() == tokenizer.decode([*empty, *plain]).split()


def test_a_mark_in_an_answer_is_plain_text(tmp_path: Path) -> None:
    model = make_thinking_model(tmp_path, marks=("[THINK]", "[/THINK]"), special=True)
    tokenizer = load_tokenizer(model)
    marks = set(tokenizer.convert_tokens_to_ids(["[THINK]", "[/THINK]"]))
    [ids] = answer_ids(tokenizer, ["Write [/THINK] to end."], end_token(tokenizer))
    assert marks.isdisjoint(ids.tolist())


def candidate(name: str, text: str, **more: object) -> dict[str, object]:
    """A row of ``schemas.CANDIDATE``."""
    return dict.fromkeys(CANDIDATE.names) | {
        "candidate_id": name * 32, "prompt_id": "p", "round": 0, "sample_index": 0, "text": text,
        "tokens": 2, "finish_reason": "stop", "origin": "sampled", "policy": "p",
        "policy_revision": "r", "seed": 0, "copies": 1, "prompt_tokens": 1, "cost": 0.0,
    } | more  # fmt: skip


def in_letters(tokenizer: Any, text: str) -> list[int]:
    """Other tokens that say ``text``, an end behind them."""
    letters = [token for letter in text for token in tokenizer.encode(letter)[1:]]
    return [*letters, end_token(tokenizer)]


def test_tokens_that_were_sampled_are_taken_as_they_are(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_thinking_model(tmp_path / "model"))
    raw = "<think>\nhm\n</think>\n\nB"
    odd, plain = in_letters(tokenizer, raw), in_letters(tokenizer, "Write one")
    thought = {"reasoning": "hm", "reasoning_tokens": 5, "raw_text": raw}
    found = [
        candidate("c", "B", token_ids=odd, **thought),
        candidate("d", "Write one", token_ids=plain),
        candidate("e", "cut at a", token_ids=in_letters(tokenizer, "cut at a stop")),
        candidate("f", "of another tokenizer", token_ids=[9, 10, 11]),
    ]
    pq.write_table(pa.Table.from_pylist(found, schema=CANDIDATE), tmp_path / "c.parquet")
    texts = [raw, "edited since", "Write one", "cut at a", "of another tokenizer"]
    names = ["c", "c", "d", "e", "f"]
    rows = [
        triple(index, text, "no", "Which? one") | {"chosen_id": name * 32}
        for index, (text, name) in enumerate(zip(texts, names, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    rendering = Rendering({}, (tmp_path / "c.parquet",))
    triples = read_triples([tmp_path / "t.parquet"])
    pairs = token_pairs(triples, tokenizer, max_length=200, rendering=rendering)
    assert pairs.chosen[0].tolist() == odd
    assert pairs.chosen[2].tolist() == plain
    again = answer_ids(tokenizer, texts, end_token(tokenizer))
    assert again[2].tolist() != plain
    for row in (1, 3, 4):
        assert np.array_equal(pairs.chosen[row], again[row])


def test_a_cut_answer_gets_no_end_that_it_never_wrote(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_thinking_model(tmp_path / "model"))
    end = end_token(tokenizer)
    row = dict.fromkeys(CANDIDATE.names) | {
        "candidate_id": "c" * 32, "prompt_id": "p", "round": 0, "sample_index": 0,
        "text": "and so", "tokens": 2, "finish_reason": "length", "origin": "sampled",
        "policy": "p", "policy_revision": "r", "seed": 0, "copies": 1, "prompt_tokens": 1,
        "cost": 0.0,
    }  # fmt: skip
    other = row | {"candidate_id": "d" * 32, "text": "done", "finish_reason": "stop"}
    pq.write_table(pa.Table.from_pylist([row, other], schema=CANDIDATE), tmp_path / "c.parquet")
    pq.write_table(pa.Table.from_pylist([triple(0, "and so", "done")]), tmp_path / "t.parquet")
    rendering = Rendering({}, (tmp_path / "c.parquet",))
    triples = read_triples([tmp_path / "t.parquet"])
    pairs = token_pairs(triples, tokenizer, max_length=200, rendering=rendering)
    assert end not in pairs.chosen[0]
    assert pairs.rejected[0][-1] == end
    answers = read_answers(
        [tmp_path / "t.parquet"], tokenizer, max_length=200, max_answers=None, seed=0,
        rendering=rendering,
    )  # fmt: skip
    assert sorted(ids[-1] == end for ids in answers.answers) == [False, True]
