"""What in a text opens a door, or is about a person: secrets and personal data of plain kinds."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path

from prefloop.pipeline.report.redact import environment_secrets

_OWN_TOKENS = {
    "Hugging Face token": re.compile(r"\b(?:hf|api_org)_[A-Za-z]{30,40}\b"),
    "OpenAI key": re.compile(r"\bsk-(?:proj|svcacct|admin)-[\w-]{40,}"),
    "Anthropic key": re.compile(r"\bsk-ant-[\w-]{32,}"),
    "Google API key": re.compile(r"\bAIza[\w-]{35}\b"),
}
"""Forms that detect-secrets does not know."""
_PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")
_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b"
)
_NOBODYS = re.compile(
    r"(?:^|[@.])(?:example\.(?:com|net|org)|test|example|invalid|localhost)$", re.I
)
"""Domains that are nobody's, by RFC 2606."""
_PHONE = re.compile(
    r"(?<![\w.+/-])(?:"
    r"\+[1-9]\d{0,2}(?:[ .\-/]?\(?\d{1,4}\)?){2,5}\d"  # international
    r"|\([2-9]\d\d\) ?[2-9]\d\d[-. ]\d{4}"  # North American
    r"|[2-9]\d\d([-.])[2-9]\d\d\1\d{4}"
    r")(?![\w-]|\.\d)"
)
_FICTION = re.compile(r"555\D?01\d\d$")
"""Numbers that North America keeps for films and examples."""
_IPV4 = re.compile(r"(?<![\w./-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){4,7}[0-9a-fA-F]{1,4}(?![\w:])")
_CARD = re.compile(r"(?<![\w.,-])[3-6]\d{3}(?:[ -]?\d){9,15}(?![\w-]|[.,]\d)")
_CARD_LENGTHS = range(13, 20)


@lru_cache(maxsize=4096)  # a prompt stands in many rows, one after the other
def sensitive_parts(text: str) -> tuple[tuple[str, str], ...]:
    """What ``text`` has of secrets and of personal data: kind and the part itself, each part once.

    Kinds are those of detect-secrets for well-known tokens, and ``e-mail address``, ``phone
    number``, ``IP address``, ``credit card``, ``home folder`` and ``secret of the environment``
    (the value of a variable here that is named like a key).
    """
    found = dict.fromkeys(_secrets(text))
    found |= dict.fromkeys(_personal(text))
    return tuple(found)


def masked(part: str) -> str:
    """The beginning of ``part``: enough to find it again, too little to use it."""
    return f"{part[: min(4, len(part) // 3)]}… ({len(part)} characters)"


def _secrets(text: str) -> Iterator[tuple[str, str]]:
    for value in environment_secrets():
        if value in text:
            yield "secret of the environment", value
    for kind, pattern, is_valid in _detectors():
        for match in pattern.finditer(text):
            if is_valid(match.group()):
                yield kind, match.group()
    for kind, pattern in _OWN_TOKENS.items():
        yield from ((kind, match.group()) for match in pattern.finditer(text))
    for match in _PRIVATE_KEY.finditer(text):
        yield "private key", match.group()


def _personal(text: str) -> Iterator[tuple[str, str]]:
    for match in _EMAIL.finditer(text):
        if not _NOBODYS.search(match.group()):
            yield "e-mail address", match.group()
    for match in _PHONE.finditer(text):
        digits = sum(map(str.isdigit, match.group()))
        if 7 <= digits <= 15 and not _FICTION.search(match.group()):
            yield "phone number", match.group()
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            if _is_somebodys(match.group()):
                yield "IP address", match.group()
    for match in _CARD.finditer(text):
        digits_only = re.sub(r"\D", "", match.group())
        if len(digits_only) in _CARD_LENGTHS and _luhn(digits_only):
            yield "credit card", match.group()
    home = str(Path.home())
    if len(Path(home).parts) > 2 and home + os.sep in text:  # not "/root", which any text may say
        yield "home folder", home


def _is_somebodys(address: str) -> bool:
    """Whether ``address`` is one of the open internet (not 127.0.0.1, 192.168.0.1, ...)."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _luhn(digits: str) -> bool:
    """Whether the check digit of a card's number fits; a number of one digit only is no card's."""
    doubled = [int(one) * 2 for one in digits[-2::-2]]
    total = sum(int(one) for one in digits[-1::-2]) + sum(n - 9 if n > 9 else n for n in doubled)
    return total % 10 == 0 and len(set(digits)) > 1


@cache
def _detectors() -> list[tuple[str, re.Pattern[str], Callable[[str], bool]]]:
    """Those of detect-secrets that go by a token's form; its guesses by entropy and by words
    ("password is") would find half of what people write."""
    from detect_secrets.plugins import (
        aws,
        azure_storage_key,
        basic_auth,
        discord,
        github_token,
        gitlab_token,
        jwt,
        mailchimp,
        npm,
        openai,
        pypi_token,
        sendgrid,
        slack,
        square_oauth,
        stripe,
        telegram_token,
        twilio,
    )  # fmt: skip

    chosen = [
        aws.AWSKeyDetector, azure_storage_key.AzureStorageKeyDetector,
        basic_auth.BasicAuthDetector, discord.DiscordBotTokenDetector,
        github_token.GitHubTokenDetector, gitlab_token.GitLabTokenDetector,
        jwt.JwtTokenDetector, mailchimp.MailchimpDetector, npm.NpmDetector,
        openai.OpenAIDetector, pypi_token.PypiTokenDetector, sendgrid.SendGridDetector,
        slack.SlackDetector, square_oauth.SquareOAuthDetector, stripe.StripeDetector,
        telegram_token.TelegramBotTokenDetector, twilio.TwilioKeyDetector,
    ]  # fmt: skip
    is_token = jwt.JwtTokenDetector.is_formally_valid
    return [
        (str(one.secret_type), pattern, is_token if one is jwt.JwtTokenDetector else bool)
        for one in chosen
        for pattern in one.denylist
    ]
