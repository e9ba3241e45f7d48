"""The shipped checks that need nothing to be known: refusals and personal data."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from prefloop.labelers.base import Vote
from prefloop.labelers.config import VerifierLabeler
from prefloop.labelers.factory import build_labeler
from prefloop.labelers.scorers.shipped import no_personal_data, no_refusal
from prefloop.labelers.scorers.shipped.outcomes import RIGHT, UNPARSED, WRONG
from tests.labelers.scorers.test_verifier import make_pair


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but I can\u2019t assist with that request.",
        "I cannot provide instructions on how to pick a lock.",
        "Sorry, I can't do that.",
        "Sorry, but I cannot comply.",
        "I apologize, but I am not able to fulfill your request.",
        "As an AI language model, I am unable to provide medical advice.",
        "**I won't write that.** It would hurt people.",
        "I must respectfully decline to answer this.",
        "I have to decline.",
        "I'm really not comfortable writing this.",
        "I understand that you are curious. However, this is not something I can help with.",
        "Thanks for asking! Unfortunately, I will not be able to help you with this one.",
        "I'm not going to help you do that, but here is a number to call.",
        "Es tut mir leid, aber ich kann Ihnen dabei nicht helfen.",
        "Leider kann ich keine Anleitung dafür bereitstellen.",
        "Ich muss diese Anfrage ablehnen.",
        "Je suis désolé, mais je ne peux pas vous aider avec cela.",
        "Lo siento, pero no puedo ayudarte con eso.",
        "Mi dispiace, ma non posso aiutarti con questo.",
        "Desculpe, mas não posso ajudar com isso.",
        "Извините, но я не могу помочь с этим запросом.",
        "i cant help with that",
        "죄송하지만 그 요청은 도와드릴 수 없습니다.",
        "죄송합니다. 해당 정보를 제공할 수는 없습니다.",
        "抱歉，我无法提供这方面的信息。",
        "申し訳ありませんが、そのご質問にはお答えできません。",
    ],
)
def test_refusals(text: str) -> None:
    assert no_refusal.score(text) == WRONG


@pytest.mark.parametrize(
    "text",
    [
        "Paris is the capital of France.",
        "파리는 프랑스의 수도입니다.",
        "You can't divide by zero, and no calculator will help you with it.",
        "I can't help but smile when I think of the sea, and of everyone who was there.",
        "I won't give up, she said, and I will not offer excuses.",
        "Dear Ms Fox,\n\nI am unable to provide references at this time.",
        "I'm sorry to hear that. Here is what you can do: first, call your bank.",
        "The committee had to decline the offer, since nobody could assist.",
        "If you are not comfortable with the command line, use the installer.",
        "Here is the letter. " + "It goes on for long. " * 15 + "I cannot help with more.",
        "Ich kann Ihnen den Zug um neun empfehlen, der nicht so voll ist.",
        "Je peux vous aider : prenez le train de neuf heures.",
        "No puedo creer lo bonita que es esta ciudad en primavera.",
        "我们不能忘记历史。",
        "I can't.",  # is an answer to many a question
        "42",
    ],
)
def test_answers(text: str) -> None:
    assert no_refusal.score(text) == RIGHT


@pytest.mark.parametrize(
    "text",
    ["", " \n", "Üzgünüm, ancak bu konuda size yardımcı olamam. Başka bir sorunuz var mı? " * 2],
)
def test_of_some_nothing_can_be_said(text: str) -> None:
    """Turkish is no language whose refusals are known."""
    assert no_refusal.score(text) == UNPARSED


@pytest.mark.parametrize(
    "text",
    [
        "Write to jane.doe@foxes.org.",
        "call +49 (0)30 901820 today",
        "My card is 4111 1111 1111 1111.",
        "Pay to DE89 3704 0044 0532 0130 00, please.",
        "His SSN is 536-90-4399.",
        "export KEY=hf_" + "AbCdEfGhIj" * 3 + "AbCd",
    ],
)
def test_personal_data(text: str) -> None:
    assert no_personal_data.score(text) == WRONG


@pytest.mark.parametrize(
    "text", ["", "Write to name@example.com.", "Jane Doe lives in Elm Street."]
)
def test_what_has_no_form_is_not_found(text: str) -> None:
    assert no_personal_data.score(text) == RIGHT


def vote_of(a: str, b: str, **settings: Any) -> Vote:
    labeler = build_labeler(VerifierLabeler(**settings), engine=None, seed=0)
    [vote] = asyncio.run(labeler.label([make_pair(a, b)], block="b"))
    return vote


def test_the_votes_say_which_it_was() -> None:
    refused = vote_of("I can't help with that.", "Take the train at nine.", check="refusal")
    assert (refused.preference, refused.score_a, refused.score_b) == ("b", 0.0, 1.0)
    assert refused.completion == "a: refuses, b: answers"
    private = vote_of("Ask her.", "Ask jane@foxes.org.", check="pii")
    assert private.completion == "a: nothing found, b: personal data or a key"
    assert private.preference == "a"


def test_what_cannot_be_said_is_what_the_labeler_makes_of_it() -> None:
    empty = {"a": "", "b": "Take the train.", "check": "refusal"}
    assert vote_of(**empty).score_a == WRONG
    assert vote_of(**empty, unparsed="worse").score_a == UNPARSED
    invalid = vote_of(**empty, unparsed="invalid")
    assert invalid.preference == "invalid"
    assert "cannot be told" in str(invalid.completion)


@pytest.mark.parametrize("check", ["refusal", "pii"])
def test_nothing_is_known_to_be_right(check: Any) -> None:
    with pytest.raises(ValidationError, match="gold is for check math or choice"):
        VerifierLabeler(check=check, gold="answer")
