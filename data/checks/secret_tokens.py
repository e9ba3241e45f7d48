"""What in a text opens a door: keys and tokens of known forms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache

_OWN_TOKENS = {
    "Hugging Face token": re.compile(r"\b(?:hf|api_org)_[A-Za-z]{30,40}\b"),
    "OpenAI key": re.compile(r"\bsk-(?:proj|svcacct|admin)-[\w-]{40,}"),
    "Anthropic key": re.compile(r"\bsk-ant-[\w-]{32,}"),
    "Google API key": re.compile(r"\bAIza[\w-]{35}\b"),
}
"""Forms that detect-secrets does not know."""
_PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")


def secret_parts(text: str) -> Iterator[tuple[str, str]]:
    """The keys and tokens in ``text``: kind, by detect-secrets' names, and the part itself."""
    for kind, pattern, is_valid in _detectors():
        for match in pattern.finditer(text):
            if is_valid(match.group()):
                yield kind, match.group()
    for kind, pattern in _OWN_TOKENS.items():
        yield from ((kind, match.group()) for match in pattern.finditer(text))
    for match in _PRIVATE_KEY.finditer(text):
        yield "private key", match.group()


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
