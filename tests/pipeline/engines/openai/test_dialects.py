"""What servers of many kinds do that the API does not say: no answer is taken for another one."""

import json
import math

import pytest

from prefloop.data.protocol import EverythingRefused, RequestRejected
from prefloop.labelers.judges.folder import load_judge
from prefloop.labelers.judges.ratings import from_ratings_logprobs
from prefloop.labelers.judges.rubric.values import from_criteria_logprobs
from prefloop.labelers.judges.settings import VerdictWords
from prefloop.labelers.judges.verdicts import from_logprobs
from prefloop.pipeline.engines.openai.openai_errors import retry_after
from tests.helpers.served import ask, asked, question
from tests.helpers.servers import by_prompt, faulty_server, good, says, status

AB = ("A", "B")


def body(message=None, usage=None, **choice):
    message = {"role": "assistant", "content": "hello"} if message is None else message
    usage = {"prompt_tokens": 10, "completion_tokens": 5} if usage is None else usage
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}],
            "usage": usage}  # fmt: skip


def answer_to(reply, asking=None, **settings):
    with faulty_server(says(reply)) as server:
        [[completion]] = ask(server.url, question(**(asking or {})), **settings)
    return completion


def steps(*each):
    """Log-probabilities of tokens: what was drawn, its probability, and what is listed."""
    return {"content": [
        {"token": token, "logprob": math.log(share),
         "top_logprobs": [{"token": one, "logprob": math.log(p)} for one, p in listed.items()]}
        for token, share, listed in each
    ]}  # fmt: skip


def choices_of(content, logprobs, usage=None, **more):
    reply = body({"content": content, **more}, usage, logprobs=logprobs)
    found = answer_to(reply, {"choices": AB}).choice_logprobs
    return found and {word: math.exp(value) for word, value in found.items()}


ERROR = {"code": 502, "message": "Provider disconnected"}


@pytest.mark.parametrize(
    "broken",
    [
        body({"content": "half an ans"}, finish_reason=None, error=ERROR),
        body({"content": "half an ans"}, finish_reason="stop", error=ERROR),
        body({"content": "half an ans"}, finish_reason="error", error=ERROR),
        body({"content": "half an ans"}, finish_reason="stop") | {"error": ERROR},
        body({"content": "half an ans"}, finish_reason="stop", error="Provider disconnected"),
    ],
)
def test_an_answer_that_an_error_broke_off_is_none(broken, tmp_path):
    replies = by_prompt(lambda text: says(broken) if text == "odd" else good())
    with faulty_server(replies) as server:
        odd, even = ask(server.url, question("odd"), question("even"), folder=tmp_path / "c")
        assert asked(server).count("odd") >= 2
    assert isinstance(odd, RequestRejected)
    assert "Provider disconnected" in odd.detail
    assert even[0].text == "hello"
    with faulty_server(good("whole")) as server:  # and is not kept
        [[again]] = ask(server.url, question("odd"), folder=tmp_path / "c")
    assert again.text == "whole"


@pytest.mark.parametrize("error", [None, {}, "", {"code": None, "message": None}, {"code": 0}])
def test_an_error_that_is_none_breaks_nothing(error):
    assert answer_to(body(error=error) | {"error": error}).text == "hello"


def test_of_several_answers_the_one_that_broke_off_is_asked_for_alone():
    def choice(index, **more):
        message = {"content": f"no. {index}"}
        return {"index": index, "message": message, "finish_reason": "stop", **more}

    several = {"choices": [choice(0), choice(1, error=ERROR), choice(2)],
               "usage": {"prompt_tokens": 10, "completion_tokens": 9}}  # fmt: skip
    whole = {**several, "error": ERROR}

    def reply(handler):
        n = handler.body.get("n", 1)
        text = handler.body["messages"][-1]["content"]
        said = (whole if text == "all" else several) if n == 3 else body()
        handler.send(200, json.dumps(said))

    with faulty_server(reply) as server:
        one, every = ask(
            server.url, question("one", seeds=(1, 2, 3)), question("all", seeds=(1, 2, 3)),
            n_per_request=3,
        )  # fmt: skip
    assert [each.text for each in one] == ["no. 0", "hello", "no. 2"]
    assert [each.text for each in every] == ["hello"] * 3


USAGES = [
    # usage, tokens of the prompt, of all that was generated, of the thought
    ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 95,
      "completion_tokens_details": {"reasoning_tokens": 80}}, 10, 85, 80),
    ({"prompt_tokens": 10, "completion_tokens": 5,
      "completion_tokens_details": {"reasoning_tokens": 80}}, 10, 85, 80),
    ({"prompt_tokens": 10, "completion_tokens": 90, "reasoning_tokens": 80}, 10, 90, 80),
    ({"prompt_tokens": 10, "completion_tokens": 90, "total_tokens": 100,
      "completion_tokens_details": {"reasoning_tokens": 80}}, 10, 90, 80),
    ({"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 1000,
      "cache_creation_input_tokens": 200}, 1210, 5, 0),
    ({"prompt_tokens": 1210, "completion_tokens": 5, "cache_read_input_tokens": 1000,
      "prompt_tokens_details": {"cached_tokens": 1000}}, 1210, 5, 0),
    ({"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": None}, 10, 5, 0),
]  # fmt: skip


@pytest.mark.parametrize(("usage", "prompt", "generated", "thought"), USAGES)
def test_all_that_was_used_is_counted(usage, prompt, generated, thought, tmp_path):
    prices = {"price_per_million_prompt_tokens": 1e6, "price_per_million_completion_tokens": 1e6}
    found = answer_to(body(usage=usage), folder=tmp_path / "c", **prices)
    counts = (found.prompt_tokens, found.completion_tokens, found.reasoning_tokens)
    assert counts == (prompt, generated, thought)
    assert found.cost == prompt + generated
    ledger = (tmp_path / "c.spent.jsonl").read_text().splitlines()
    assert json.loads(ledger[-1])["tokens"] == prompt + generated


def test_the_verdict_is_read_where_the_answer_begins_not_in_a_thought_that_is_not_shown():
    """As ``include_reasoning: false`` does it: the thought is gone, its tokens are listed."""
    tokens = [("B", 0.9, {"B": 0.9, "A": 0.1}), (" it is", 0.9, {" it is": 0.9}),
              ("</think>", 1.0, {"</think>": 1.0}), ("\n", 1.0, {"\n": 1.0}),
              ("A", 0.8, {"A": 0.8, "B": 0.2})]  # fmt: skip
    counted = {"prompt_tokens": 1, "completion_tokens": 5,
               "completion_tokens_details": {"reasoning_tokens": 4}}  # fmt: skip
    for usage in (None, counted):
        found = choices_of("A", steps(*tokens), usage)
        assert found == {"A": pytest.approx(0.8), "B": pytest.approx(0.2)}
    # Nobody can say which token it was.
    with faulty_server(says(body({"content": "A"}, logprobs=steps(*tokens[:3])))) as server:
        [failure] = ask(server.url, question(choices=AB))
    assert "gives no log-probabilities" in str(failure)


@pytest.mark.parametrize("before", ["\n", " ", "▁"])
def test_the_verdict_is_read_behind_white_space(before):
    tokens = [(before, 0.99, {before: 0.99}), ("A", 0.8, {"A": 0.8, "B": 0.2})]
    found = choices_of(f"{before.strip('▁')}A", steps(*tokens))
    assert found == {"A": pytest.approx(0.8), "B": pytest.approx(0.2)}


def test_tokens_in_the_vocabulary_s_words_behind_a_thought():
    tokens = [("hm", 0.9, {"hm": 0.9}), ("▁A", 0.8, {"▁A": 0.8, "▁B": 0.2})]
    found = choices_of("A", steps(*tokens), reasoning_content="hm")
    assert found == {"A": pytest.approx(0.8), "B": pytest.approx(0.2)}


def test_the_token_that_was_drawn_counts_beside_the_likeliest():
    found = choices_of("B", steps(("B", 0.3, {"A": 0.6})))
    assert found == {"A": pytest.approx(0.6), "B": pytest.approx(0.3)}
    found = choices_of("B", steps(("B", 0.3, {"A": 0.6, "▁B": 0.3})))  # and once alone
    assert found == {"A": pytest.approx(0.6), "B": pytest.approx(0.3)}
    found = choices_of(" B", steps((" B", 0.1, {"A": 0.6, "B": 0.3})))
    assert found == {"A": pytest.approx(0.6), "B": pytest.approx(0.4)}


@pytest.mark.parametrize(
    ("listed", "is_known"),
    [
        ({"A": 0.6}, False),  # B may have 0.4
        ({"A": 0.58, "The": 0.4}, True),
        ({"A": 0.55, "The": 0.3}, False),  # or 0.15
        ({"A": 0.97}, True),
        ({"A": 0.9, "The": 0.04, "An": 0.02}, True),
        ({"A": 0.7, "An": 0.02}, True),
        ({"The": 0.6}, True),  # neither: the judge was about to say something else
    ],
)
def test_a_verdict_that_was_not_listed_may_be_as_likely(listed, is_known):
    said = next(iter(listed))
    reply = body({"content": said}, logprobs=steps((said, listed[said], listed)))
    found = answer_to(reply, {"choices": AB}).choice_logprobs
    assert math.isnan(found["B"]) != is_known
    verdict = from_logprobs(found, VerdictWords(), 0.5, said)
    assert (verdict.preferred == "invalid") == (not is_known or "A" not in listed)
    if not is_known:
        assert "left out" in verdict.note


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ({"first": 0.5, "sec": 0.45, "The": 0.05}, (0.5, math.nan)),
        ({"first": 0.9, "sec": 0.01, "The": 0.09}, (0.9, 0.0)),
        ({"first": 0.5, "second": 0.3, "sec": 0.2}, (0.5, 0.3)),
        ({"fir": 0.5, "sec": 0.5}, (0.0, 0.0)),
    ],
)
def test_a_verdict_that_begins_with_a_token_is_not_unlikely(listed, found):
    """``first`` is a token, and ``second`` is two: who looks for it whole would never see it."""
    said = next(iter(listed))
    reply = body({"content": said}, logprobs=steps((said, listed[said], listed)))
    choices = answer_to(reply, {"choices": ("first", "second")}).choice_logprobs
    shares = tuple(map(math.exp, choices.values()))
    assert shares == pytest.approx(found, nan_ok=True)


def test_ratings_and_criteria_of_which_one_was_not_listed_are_no_ratings():
    found = {"1": math.log(0.6), "2": math.nan, "3": math.nan, "4": math.nan, "5": math.nan}
    settings = load_judge("rating").settings
    with pytest.raises(ValueError, match="left out"):
        from_ratings_logprobs([found] * len(settings.aspects), settings)
    criteria = load_judge("safety").settings.criteria
    judged = from_criteria_logprobs([found] * len(criteria), criteria, 0.5, ["1"] * len(criteria))
    assert "left out" in judged.problem


@pytest.mark.parametrize(
    "content",
    ["</think>\n\nthe answer", "<think>\n\n</think>\n\nthe answer", "\n</think>the answer"],
)
def test_marks_that_a_server_left_before_the_answer_are_no_part_of_it(content):
    message = {"content": content, "reasoning_content": "hm"}
    found = answer_to(body(message))
    assert (found.text, found.reasoning, found.raw_text) == ("the answer", "hm", None)


TOO_LONG = [
    (400, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 "
          "`inputs` tokens and 100 `max_new_tokens`"),
    (422, "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000"),
    (400, "The input token count (40000) exceeds the maximum number of tokens allowed (32768)."),
    (400, "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"),
    (400, "The prompt (length 5000) exceeds max_num_tokens (4096)"),
    (400, "Range of input length should be [1, 30720]"),
    (400, "Please reduce the length of the messages or completion."),
    (500, "the request exceeds the available context size. try increasing the context size"),
    (429, "Request too large for gpt-4o in organization org on tokens per min (TPM): Limit 30000, "
          "Requested 50000. The input or output tokens must be reduced in order to run."),
]  # fmt: skip


@pytest.mark.parametrize(("code", "words"), TOO_LONG)
def test_a_prompt_that_is_too_long_is_refused_at_once_and_alone(code, words):
    long = status(code, words, "rate_limit_exceeded" if code == 429 else None)
    with faulty_server(by_prompt(lambda text: long if text == "odd" else good())) as server:
        odd, even = ask(server.url, question("odd"), question("even"))
        assert asked(server).count("odd") == 1
    assert isinstance(odd, RequestRejected)
    assert odd.reason == "context_overflow"
    assert even[0].text == "hello"


LIMITS_OF_ANSWERS = [
    "`max_tokens` must be less than or equal to `50`, the maximum value for `max_tokens` is less "
    "than the `context_window` for this model",
    "Invalid max_tokens value, the valid range of max_tokens is [1, 50]",
]


@pytest.mark.parametrize("words", LIMITS_OF_ANSWERS)
def test_a_limit_of_answers_is_no_length_of_a_prompt_and_ends_the_run(words):
    def reply(handler):
        is_much = handler.body.get("max_tokens", 0) > 50
        (status(400, words) if is_much else good())(handler)

    with faulty_server(reply) as server:
        outcomes = ask(server.url, *(question(str(i), max_tokens=60) for i in range(9)))
    assert all(isinstance(each, EverythingRefused) for each in outcomes)
    assert "refuses the field 'max_tokens'" in str(outcomes[0])
    assert "max_tokens: a smaller number" in outcomes[0].remedy


def test_what_a_gateway_was_told_is_shown_and_understood():
    """OpenRouter's form: the provider's own words are packed into the error."""
    told = json.dumps({"error": {"message": "Unsupported parameter: seed"}})
    error = {"message": "Provider returned error", "code": 400,
             "metadata": {"raw": told, "provider_name": "some"}}  # fmt: skip

    def reply(handler):
        (says({"error": error}, 400) if "seed" in handler.body else good())(handler)

    with faulty_server(reply) as server:
        [failure] = ask(server.url, question())
    assert isinstance(failure, EverythingRefused)
    assert "leave_out: [seed]" in failure.remedy
    assert "Unsupported parameter: seed" in str(failure)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2.0),
        ({"retry-after": "500ms"}, 0.5),
        ({"retry-after": "1m30s"}, 90.0),
        ({"retry-after": "1.5s"}, 1.5),
        ({"retry-after": "2h"}, 7200.0),
        ({"retry-after": "ms"}, None),
    ],
)
def test_other_words_for_a_wait(headers, seconds):
    assert retry_after(headers) == seconds


ENDS = ["<|im_end|>", "<|eot_id|>", "<|endoftext|>\n", "<|end|>", "<end_of_turn>", "</s>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>"]  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("before", ["", "<think>hm</think>"])
def test_the_token_that_ended_an_answer_is_no_part_of_it(before, end):
    found = answer_to(body({"content": f"{before}the answer{end}"}))
    assert found.text == "the answer"


@pytest.mark.parametrize(
    "text",
    ["It ends with `<|im_end|>`", "<s>old</s>", "<|im_end|>", "<|im_end|> ends it.", "<p>yes</p>"],
)
def test_a_word_about_such_a_token_is_kept(text):
    assert answer_to(body({"content": text})).text == text
