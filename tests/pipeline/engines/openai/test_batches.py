"""Prompts of token ids that go into one request, and those that are asked alone."""

import json

import pytest

from prefloop.data.protocol import RequestRejected
from tests.helpers.engine_models import make_tokenizer
from tests.helpers.served import ask, ask_endpoints, question
from tests.helpers.servers import Handler, faulty_server, status

CHOICES = ("A", "B")


def asked_of(body):
    """The prompts of a request."""
    prompt = body["prompt"]
    return prompt if isinstance(prompt[0], list) else [prompt]


def chosen(index, prompt, **more):
    """An answer whose log-probability tells which prompt it is for."""
    top = {"A": -len(prompt) / 100, "B": -3.0}
    said = {"tokens": ["A"], "token_logprobs": [-0.5], "top_logprobs": [top]}
    return {
        "index": index, "text": "A", "logprobs": said, "finish_reason": "length",
        "token_ids": [65], "prompt_token_ids": prompt, **more,
    }  # fmt: skip


def verdicts(spoil=lambda answer: None):
    """A server that answers as many prompts as a request has, last first."""

    def reply(handler: Handler) -> None:
        prompts = asked_of(handler.body)
        answer = {
            "choices": [chosen(index, each) for index, each in enumerate(prompts)][::-1],
            "usage": {
                "prompt_tokens": sum(map(len, prompts)), "completion_tokens": len(prompts),
            },
        }  # fmt: skip
        if len(prompts) > 1:
            spoil(answer)
        handler.send(200, json.dumps(answer))

    return reply


@pytest.fixture
def config(tmp_path):
    make_tokenizer(tmp_path / "tokenizer")
    return {
        "api": "completions", "tokenizer": str(tmp_path / "tokenizer"), "vllm_extensions": True,
        "folder": tmp_path / "engine",
    }  # fmt: skip


def judge(text, **more):
    fixed = {"choices": CHOICES, "max_tokens": 1, "temperature": 0.0, **more}
    return question(text, **fixed)


QUESTIONS = [judge("a " * length) for length in range(1, 11)]


def read(outcomes):
    """Of each answer: what it took, and what it says."""
    return [
        (one.prompt_tokens, one.completion_tokens, one.choice_logprobs["A"]) for [one] in outcomes
    ]


def test_greedy_verdicts_share_requests_and_each_gets_its_own(config):
    with faulty_server(verdicts()) as server:
        found = read(ask(server.url, *QUESTIONS, **config))
        # One alone, as nobody knows yet whether there are log-probabilities.
        assert [len(asked_of(body)) for _, _, body in server.requests] == [1, 9]
        assert all(tokens / 100 == -logprob for tokens, _, logprob in found)
        assert len({tokens for tokens, _, _ in found}) == 10
        again = read(ask(server.url, *QUESTIONS, **config))
        assert again == found
        assert len(server.requests) == 2  # the answers are kept as if each had been asked alone


def test_they_do_over_several_endpoints_and_what_one_refuses_another_answers(config):
    with faulty_server(verdicts()) as one, faulty_server(status(429, "full")) as other:
        found = read(ask_endpoints([one.url, other.url], *QUESTIONS, **config))
        assert all(tokens / 100 == -logprob for tokens, _, logprob in found)
        assert len({tokens for tokens, _, _ in found}) == 10
        answered = [len(asked_of(body)) for body in one.answered]
        assert sum(answered) == 10
        assert max(answered) > 1


def test_what_was_asked_alone_is_found_together_and_the_other_way_round(config):
    with faulty_server(verdicts()) as server:
        for one in QUESTIONS:
            ask(server.url, one, **config)
        sent = len(server.requests)
        ask(server.url, *QUESTIONS, **config)
        assert len(server.requests) == sent == len(QUESTIONS)


@pytest.mark.parametrize("more", [{"temperature": 1.0}, {"max_tokens": 64}])
def test_what_is_drawn_or_long_is_asked_alone(config, more):
    with faulty_server(verdicts()) as server:
        ask(server.url, *(judge(f"{number}", **more) for number in range(6)), **config)
        assert all(len(asked_of(body)) == 1 for _, _, body in server.requests)


def swap(answer):
    one, other = answer["choices"][:2]
    one["index"], other["index"] = other["index"], one["index"]


def lose(answer):
    del answer["choices"][0]


def untold(answer):
    del answer["choices"][0]["prompt_token_ids"]


def miscount(answer):
    answer["usage"]["completion_tokens"] += 1


@pytest.mark.parametrize("spoil", [swap, lose, untold, miscount, dict.clear])
def test_a_server_that_does_not_say_which_answer_is_whose_is_asked_one_by_one(config, spoil):
    with faulty_server(verdicts(spoil)) as server:
        found = read(ask(server.url, *QUESTIONS, **config))
        assert all(tokens / 100 == -logprob for tokens, _, logprob in found)
        sizes = [len(asked_of(body)) for _, _, body in server.requests]
    assert sorted(sizes) == [1] * 10 + [9]


def test_one_that_is_refused_costs_itself(config):
    def reply(handler):
        if max(map(len, asked_of(handler.body))) > 30:
            status(400, "maximum context length is 30 tokens")(handler)
        else:
            verdicts()(handler)

    with faulty_server(reply) as server:
        *others, refused = ask(server.url, *QUESTIONS, judge("a " * 40), **config)
    assert isinstance(refused, RequestRejected)
    assert refused.reason == "context_overflow"
    assert all(tokens / 100 == -logprob for tokens, _, logprob in read(others))


def test_a_budget_counts_all_prompts_of_a_request(config):
    with faulty_server(verdicts()) as server:
        found = read(ask(server.url, *QUESTIONS, **config))
        used = sum(prompt + completion for prompt, completion, _ in found)
        more = [judge("b " * length) for length in range(1, 5)]
        outcomes = ask(server.url, *more, **config, max_total_tokens=used + 1)
    assert "budget reached" in str(outcomes[0])
    assert f"{used} of max_total_tokens" in str(outcomes[0])
