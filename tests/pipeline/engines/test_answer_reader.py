"""Which of the generated tokens are the thought's, where the text alone says where it ends."""

from __future__ import annotations

import pytest

from prefloop.data.embedded import resolve_embedded
from prefloop.data.protocol import Request, Sampling
from prefloop.pipeline.engines.answer_reader import AnswerReader
from prefloop.pipeline.engines.weights import load_tokenizer

REQUEST = Request("r", ({"role": "user", "content": "Which?"},), Sampling(max_tokens=9), (1,))


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("<think>a fox</think>\n\nthe lantern", "the lantern"),
        ("<think>a fox</think>the harbor\n</think>\n\nthe lantern", "the lantern"),
        ("<think>a<think>b</think>the harbor</think>the lantern", "the lantern"),
        ("<think>a fox</think><response>the lantern</response>", "the lantern"),
        ("the lantern", "the lantern"),
    ],
)
def test_the_tokens_of_a_thought_are_those_before_the_answer(written: str, answer: str) -> None:
    tokenizer = load_tokenizer(resolve_embedded("embedded:policy"))
    ids = tokenizer.encode(written, add_special_tokens=False)
    assert tokenizer.decode(ids) == written
    found = AnswerReader(tokenizer, ()).read(ids, REQUEST)
    assert found.text == answer
    rest = tokenizer.decode(ids[len(found.thought_ids) :])
    assert rest.removesuffix("</response>").endswith(answer)
    assert rest.removesuffix("</response>").strip().removeprefix(">") == answer
