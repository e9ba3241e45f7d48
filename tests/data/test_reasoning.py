"""Where a thought ends and the answer begins, by the marks that models write."""

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from prefloop.data.conversations.reasoning import closing_of, is_mark, opened_by, split_thought

MARKS = [
    ("<think>\n", "\n</think>\n\n"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<unused94>thought\n", "<unused95>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("analysisWe ", "assistantfinal"),
]
PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="<>[]|◁▷\ufffe"))


@pytest.mark.parametrize(("begin", "end"), MARKS)
def test_every_mark(begin: str, end: str) -> None:
    both = split_thought(f"{begin}a thought{end}the answer")
    assert (both.answer, both.closed) == ("the answer", True)
    assert both.reasoning.removeprefix("We ") == "a thought"
    open_end = split_thought(f"{begin}a thought")
    assert (open_end.answer, open_end.closed) == ("", False)
    if begin.startswith("analysis"):
        return
    rest = split_thought(f"a thought{end}the answer", opened=True)
    assert (rest.reasoning, rest.answer) == ("a thought", "the answer")
    if "channel" not in begin:
        unknown = split_thought(f"a thought{end}the answer", opened=None)
        assert (unknown.reasoning, unknown.answer) == ("a thought", "the answer")
        # Known to open no thought: the mark is a word.
        assert split_thought(f"a thought{end}the answer").reasoning is None


@pytest.mark.parametrize(("begin", "end"), MARKS[1:7])
@pytest.mark.parametrize("quote", "\"'`")
def test_a_quotation_before_the_mark_and_one_behind_it(begin: str, end: str, quote: str) -> None:
    said = f"{quote}yes{quote}"
    found = split_thought(f"{begin}They want {said}{end}{said} is it.")
    assert (found.reasoning, found.answer) == (f"They want {said}", f"{said} is it.")
    word = f"{quote}{end}{quote}"
    for thought in (f"The mark is {word}.", f"{word} is the mark.", f"({word})"):
        assert split_thought(f"{begin}{thought}").closed is False
        found = split_thought(f"{begin}{thought}{end}the answer")
        assert (found.reasoning, found.answer) == (thought, "the answer")


def is_a_word(thought: str, answer: str) -> bool:
    """Whether a mark between the two stands in quotes, by all that can be seen."""
    quote = thought[-1:]
    return (
        bool(quote)
        and quote in "\"'`"
        and answer[:1] == quote
        and (thought[-2:-1].isspace() or thought[-2:-1] in tuple("([{:=\"'`") or len(thought) == 1)
        and not answer[1:2].isalnum()
    )


@given(PLAIN, PLAIN, st.sampled_from(MARKS[:7]))
@example("'", "'", MARKS[0])
@example('"yes"', '"yes"', MARKS[1])
def test_any_text(thought: str, answer: str, marks: tuple[str, str]) -> None:
    assume(marks == MARKS[0] or not is_a_word(thought, answer))
    text = f"{marks[0]}{thought}{marks[1]}{answer}"
    found = split_thought(text)
    assert found.answer == answer.lstrip()
    assert text[found.begins :] == found.answer
    assert split_thought(answer).reasoning is None or answer.lstrip().startswith("analysis")
    unfinished = split_thought(thought, opened=True)
    assert (unfinished.closed, unfinished.answer) == (False, "")


@pytest.mark.parametrize(
    "text",
    [
        "Write `</think>` to end it.",
        "The tag <think> opens, </think> closes.",
        'It says "</think>".',
        "analysis of the text",
        "No thought here.",
        "",
    ],
)
@pytest.mark.parametrize("opened", [False, None])
def test_words_about_thoughts(text: str, opened: bool | None) -> None:
    found = split_thought(text, opened)
    assert (found.reasoning, found.answer, found.closed) == (None, text, True)


def test_several_thoughts_and_none() -> None:
    assert split_thought("<think>a</think>\n<think>b</think> c").reasoning == "a\n\nb"
    assert split_thought("<think>\n\n</think>\n\nx").reasoning == ""
    final = split_thought("<|channel|>final<|message|>Hi<|return|>")
    assert (final.reasoning, final.answer) == (None, "Hi")
    # A model that writes the mark which its template wrote already.
    assert split_thought("<think>\na\n</think>\nb", opened=True).reasoning == "a"


def test_hostile_texts_take_linear_time() -> None:
    for text in ("<think>" * 50_000, "</think>" * 50_000, "<think></think>" * 20_000 + "x",
                 "`</think>`" * 30_000, "<think>" + "'</think>'" * 30_000):  # fmt: skip
        for opened in (False, True, None):
            split_thought(text, opened)


def test_the_end_of_a_prompt() -> None:
    assert opened_by("<|im_start|>assistant\n<think>\n") == "<think>\n"
    assert opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n") == ""
    assert opened_by("What does <think> mean?<|im_end|>\n<|im_start|>assistant\n") == ""
    assert opened_by("<|im_start|>assistant\n") == ""


def test_special_tokens_of_thoughts() -> None:
    assert all(map(is_mark, ["[THINK]", "</think>", "<|channel|>", "<|END_THINKING|>"]))
    assert not any(map(is_mark, ["<|im_end|>", "<s>", "[INST]", "<|eot_id|>"]))


FORMS = [
    # what is written, the thought, the answer
    ("<think>a<think>b</think>c</think>The answer", "a<think>b</think>c", "The answer"),
    ("<think>see:\n```\n<think>\nx\n</think>\n```\nso</think>The answer",
     "see:\n```\n<think>\nx\n</think>\n```\nso", "The answer"),
    ("<think>hm\n</think>\n\nhm too\n</think>\n\nThe answer",
     "hm\n</think>\n\nhm too", "The answer"),
    ("<think>hm</think><response>\nThe answer\n</response>\n", "hm", "The answer"),
    ("<think>hm</think><response>The answer", "hm", "The answer"),
    ("<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>The answer<|END_RESPONSE|>",
     "hm", "The answer"),
    ("<|begin_of_thought|>hm<|end_of_thought|>\n<|begin_of_solution|>\nThe answer\n"
     "<|end_of_solution|>", "hm", "The answer"),
    ("<longcat_think>\nhm\n</longcat_think>\nThe answer", "hm", "The answer"),
    ("Here are my reasoning steps:\nhm\n[BEGIN FINAL RESPONSE]\nThe answer\n[END FINAL RESPONSE]\n"
     "<|end|>", "hm", "The answer"),
    ("Here is my thought process:\nhm\n\nHere is my response:\nThe answer", "hm", "The answer"),
    ("analysisthe user asks.assistantfinalThe answer", "the user asks.", "The answer"),
    ("analysis\nWe see.\nassistantfinal\nThe answer", "We see.", "The answer"),
    ("</think>\n\nThe answer", "", "The answer"),
]  # fmt: skip
"""What is read alike wherever the thought was opened, as far as that is known."""


@pytest.mark.parametrize("opened", [False, None])
@pytest.mark.parametrize(("text", "thought", "answer"), FORMS)
def test_forms_of_single_models(text: str, thought: str, answer: str, opened: bool | None) -> None:
    found = split_thought(text, opened)
    assert (found.reasoning, found.answer, found.closed) == (thought, answer, True)
    assert text[found.begins :].startswith(answer)


ABOUT_THOUGHTS = [
    "Like so:\n```xml\n<think>\nx\n</think>\n```\nThat is all.",
    "<response> opens it, </response> closes it, and so on.",
    "Not <|END_RESPONSE|> yet.",
    "Close it:\n```\n</think>\n```\nThat is all.",
    "It ends with </think> and goes on.",
    "The mark\n</think>",
]


@pytest.mark.parametrize("answer", ABOUT_THOUGHTS)
def test_an_answer_about_thoughts_is_kept(answer: str) -> None:
    assert split_thought(f"<think>hm</think>{answer}").answer == answer


@pytest.mark.parametrize("answer", ABOUT_THOUGHTS[:3])
def test_a_mark_named_within_a_thought_needs_no_end(answer: str) -> None:
    text = f"<think>They ask about <think> here.</think>{answer}"
    assert split_thought(text).answer == answer


@pytest.mark.parametrize(
    "text",
    [
        "Here are my reasoning steps:\n1. Look.\n2. Leap.",
        "Here is my thought process:\nI look. Here is my response: I leap.",
        "Here is my response:\nYes.",
        "analysis: it is so",
        "</think>",
        "<response>Yes.</response>",
    ],
)
@pytest.mark.parametrize("opened", [False, None])
def test_plain_words_open_no_thought(text: str, opened: bool | None) -> None:
    found = split_thought(text, opened)
    assert (found.answer or text, found.closed) == (text, True)
    assert found.reasoning in (None, "")


HARMONY = [
    ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b"
     "<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>", "a\n\nb", "Yes."),
    ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>"
     "I look it up.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
     "a\n\nI look it up.", "Yes."),
    ('<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final <|constrain|>json'
     '<|message|>{"verdict": "A"}<|return|>', "a", '{"verdict": "A"}'),
    ('<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary '
     'to=functions.get <|constrain|>json<|message|>{"in": "Rome"}<|call|>',
     "a", '[{"name": "get", "arguments": {"in": "Rome"}}]'),
    ('<|channel|>analysis<|message|>a<|end|><|start|>assistant to=functions.get<|channel|>'
     'commentary<|message|>{"in": "Ro', "a", '[{"name": "get", "arguments": "{\\"in\\": \\"Ro"}]'),
    ("<|channel|>analysis<|message|>The mark '<|end|>' ends it.<|end|><|start|>assistant<|channel|>"
     "final<|message|>Yes.", "The mark '<|end|>' ends it.", "Yes."),
    ("<|start|>assistant<|channel|>final<|message|> Yes.<|return|>", None, "Yes."),
]  # fmt: skip


@pytest.mark.parametrize("opened", [False, None])
@pytest.mark.parametrize(("text", "thought", "answer"), HARMONY)
def test_messages_of_harmony(
    text: str, thought: str | None, answer: str, opened: bool | None
) -> None:
    found = split_thought(text, opened)
    assert (found.reasoning, found.answer, found.closed) == (thought, answer, True)


@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>analysis<|message|>a",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary "
        "to=functions.get<|message|>",
    ],
)
def test_an_analysis_alone_is_no_answer(text: str) -> None:
    found = split_thought(text)
    assert (found.reasoning, found.answer, found.closed) == ("a", "", False)


def test_a_thought_that_the_template_opens_in_words() -> None:
    opening = "Here are my reasoning steps:\n"
    assert opened_by(f"<|assistant|>\n{opening}") == opening
    found = split_thought("hm\n[BEGIN FINAL RESPONSE]\nYes.", opened=True)
    assert (found.reasoning, found.answer) == ("hm", "Yes.")
    found = split_thought("hm\n[BEGIN FINAL RESPONSE]\nYes.", opened=None)
    assert (found.reasoning, found.answer) == ("hm", "Yes.")
    assert split_thought("hm", opened=True).closed is False
    assert closing_of(opening).strip() == "[BEGIN FINAL RESPONSE]"


def test_hostile_texts_within_thoughts_take_linear_time() -> None:
    for text in ("<think><think></think>" * 20_000, "</think>\n\nx\n</think>\n\n" * 20_000,
                 "<|channel|>analysis<|message|>a<|end|>" * 20_000, "analysis" * 50_000,
                 "Here are my reasoning steps:\n" * 20_000):  # fmt: skip
        for opened in (False, True, None):
            split_thought(text, opened)
