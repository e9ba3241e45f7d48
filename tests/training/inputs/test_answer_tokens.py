"""An answer's tokens are those that stand behind its prompt, whatever the tokenizer."""

import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from prefloop.data.conversations.chat import render_tokens
from prefloop.training.inputs.tokens import answer_ids, end_token, prompt_ids
from tests.helpers.engine_models import (
    AT_LINES,
    BEHIND_WORDS,
    make_spaced_tokenizer,
    make_tokenizer,
)

ASKED = [{"role": "user", "content": "Write one"}]


def spaced(folder: Path, template: str, *, legacy: bool) -> Any:
    make_spaced_tokenizer(folder, template, legacy=legacy)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("answer", ["Hello there", "\nHello", "  two spaces", "Hello </s> there"])
def test_an_answer_at_the_beginning_of_a_line_has_no_space_of_the_tokenizer(
    answer: str, legacy: bool, tmp_path: Path
) -> None:
    tokenizer = spaced(tmp_path, AT_LINES, legacy=legacy)
    [ids] = answer_ids(tokenizer, [answer], end_token(tokenizer))
    conversation = [*ASKED, {"role": "assistant", "content": answer}]
    whole = tokenizer.apply_chat_template(conversation, tokenize=False)
    rendered = tokenizer.encode(whole, add_special_tokens=False)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    if "</s>" not in answer:  # which the template would write as a control token
        line = len(tokenizer.encode("<|assistant|>\n", add_special_tokens=False))
        begin = rendered.index(tokenizer.convert_tokens_to_ids("<|assistant|>")) + line
        assert ids.tolist() == rendered[begin : rendered.index(end, begin) + 1]
    assert ids.tolist().count(end) == 1
    assert tokenizer.convert_tokens_to_ids("</s>") not in ids
    prompt = prompt_ids(tokenizer, ASKED)
    written = tokenizer.decode([*prompt, *ids[:-1]], skip_special_tokens=False)
    assert written.endswith(f"\n{answer}")


@pytest.mark.parametrize("legacy", [True, False])
def test_an_answer_behind_a_word_has_its_space(legacy: bool, tmp_path: Path) -> None:
    tokenizer = spaced(tmp_path, BEHIND_WORDS, legacy=legacy)
    [ids] = answer_ids(tokenizer, ["Hello there"], end_token(tokenizer))
    assert ids[:-1].tolist() == tokenizer.encode("Hello there", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(int(ids[0])).startswith("▁")


@pytest.mark.parametrize("legacy", [True, False])
def test_a_control_token_spelt_out_by_a_user_stays_the_text_it_is(
    legacy: bool, tmp_path: Path
) -> None:
    tokenizer = spaced(tmp_path, AT_LINES, legacy=legacy)
    said = "a fox </s> and <|end|>"
    ids = render_tokens(tokenizer, [{"role": "user", "content": said}])
    assert tokenizer.convert_tokens_to_ids("</s>") not in ids
    assert said in tokenizer.decode(ids)


def test_a_tokenizer_without_such_a_space_encodes_an_answer_by_itself(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["Hello there", "\nHello", " Hello"]
    for ids, text in zip(answer_ids(tokenizer, texts, 2), texts, strict=True):
        assert ids[:-1].tolist() == tokenizer.encode(text, add_special_tokens=False)


def test_answers_and_prompts_may_be_encoded_at_the_same_time(tmp_path: Path) -> None:
    """What transformers is told of special tokens stays in the tokenizer until the next call: the
    prompts that another thread renders meanwhile would lose their control tokens."""
    make_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    prompt, text = render_tokens(tokenizer, ASKED), "Hello <|end|> there"
    [answer] = answer_ids(tokenizer, [text], end_token(tokenizer))
    assert tokenizer.backend_tokenizer.encode_special_tokens is False

    over, other = threading.Event(), []

    def encode_answers() -> None:
        while not over.is_set():
            [again] = answer_ids(tokenizer, [text], end_token(tokenizer))
            other.extend([again.tolist()] if again.tolist() != answer.tolist() else [])

    thread = threading.Thread(target=encode_answers)
    thread.start()
    try:
        for _ in range(300):
            assert render_tokens(tokenizer, ASKED) == prompt
    finally:
        over.set()
        thread.join()
    assert not other
