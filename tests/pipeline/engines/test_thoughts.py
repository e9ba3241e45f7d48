"""A model's thought and its answer, from real engines of models that think."""

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import pytest

from prefloop.data.conversations.answer_edges import thinking_off, thought_opening
from prefloop.data.protocol import Completion, Request, Sampling
from prefloop.pipeline.engines.factory import build_engine
from prefloop.pipeline.engines.settings import TransformersEngine, VllmEngine
from prefloop.pipeline.engines.weights import load_tokenizer


def ask(word: str, **changes) -> Request:
    return Request(
        word,
        ({"role": "user", "content": f"Which? {word}"},),
        Sampling(temperature=0.0, max_tokens=4),
        (1,),
        **{"thought_tokens": 60, **changes},
    )


def answers(model: str, *requests: Request, config=None):
    async def go():
        engine = await build_engine(config or TransformersEngine(), model)
        try:
            return [one for [one] in await asyncio.gather(*map(engine.generate, requests))]
        finally:
            await engine.aclose()

    return asyncio.run(go())


def check_thoughts(model: str, further: Request, config=None) -> Completion:
    """Four answers, and the one to ``further`` as it came."""
    one, two, never, quick, last = answers(
        model, ask("one"), ask("two", choices=("A", "B")), ask("never", thought_tokens=20),
        ask("two", thought_tokens=None, chat_template_kwargs={"enable_thinking": False}),
        further, config=config,
    )  # fmt: skip
    assert (one.text, one.reasoning, one.finish_reason) == ("A", "We see one.", "stop")
    assert one.answer_tokens == 2  # "A" and the end token
    assert one.raw_text.endswith("\n\nA")
    assert "We see one." in one.raw_text
    assert len(one.token_ids) == one.completion_tokens
    # The verdict's log-probabilities are those behind the thought, which begins with an "A".
    assert (two.text, two.reasoning) == ("B", "First A, but then two.")
    assert two.choice_logprobs["B"] > math.log(0.9) > two.choice_logprobs["A"]
    assert (never.text, never.finish_reason) == ("", "length")
    assert never.reasoning.startswith("And so on")
    assert never.answer_tokens == 0
    assert (quick.text, quick.reasoning, quick.reasoning_tokens) == ("A", None, 0)
    assert quick.raw_text is None
    return last


def test_a_thought_is_no_answer(thinking_model: str) -> None:
    check_thoughts(thinking_model, ask("one"))


def test_what_a_template_says_about_thoughts(thinking_model: str) -> None:
    tokenizer = load_tokenizer(thinking_model)
    opened = Path(thinking_model).name.startswith(("opened", "special_opened"))
    assert bool(thought_opening(tokenizer)) is opened
    assert thought_opening(tokenizer, {"enable_thinking": False}) == ""
    assert thinking_off(tokenizer) == {"enable_thinking": False}


def test_the_raw_text_is_what_was_generated(thinking_model: str) -> None:
    [one] = answers(thinking_model, ask("one"))
    tokenizer = load_tokenizer(thinking_model)
    opening = thought_opening(tokenizer)
    written = tokenizer.decode(one.token_ids[:-1], skip_special_tokens=False)
    assert one.raw_text == opening + written


SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"enum": ["A", "B"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}


@pytest.mark.vllm
@pytest.mark.parametrize("thinking_model", ["tags", "special_opened"], indirect=True)
def test_vllm_takes_thoughts_off_too(thinking_model: str) -> None:
    """Marks that are text and marks that are tokens of their own, thoughts that the model opens
    and thoughts that are opened for it; and a JSON answer behind a thought."""
    behind = ask("one", json_schema=SCHEMA)
    longer = replace(behind, sampling=replace(behind.sampling, max_tokens=20))
    as_json = check_thoughts(thinking_model, longer, config=VllmEngine(max_model_len=200))
    assert as_json.reasoning == "We see one."
    assert as_json.text in ('{"verdict":"A"}', '{"verdict":"B"}')
    assert as_json.raw_text.endswith(as_json.text)
