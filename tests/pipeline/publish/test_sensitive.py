"""What is found in texts, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefloop.pipeline.publish.checked_files import look_through
from prefloop.pipeline.publish.sensitive import masked, sensitive_parts


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("key AKIAIOSFODNN7EXAMPLQ here", "AWS Access Key"),
        ("hf_" + "AbCdEfGhIj" * 3 + "AbCd", "Hugging Face token"),
        ("sk-ant-api03-" + "x7Yz" * 12, "Anthropic key"),
        ("sk-proj-" + "x7Yz" * 12, "OpenAI key"),
        ("AIza" + "Sy7Xa" * 7, "Google API key"),
        ("ghp_" + "b7" * 18, "GitHub Token"),
        ("glpat-" + "x7Yz" * 5, "GitLab Token"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII", "private key"),
        ("https://me:hunter2secret@judge:8000/v1", "Basic Auth Credentials"),
        ("write to jane.doe+x@mail.foxes.co.uk!", "e-mail address"),
        ("call +49 (0)30 901820 today", "phone number"),
        ("call +1-202-456-1111", "phone number"),
        ("call (202) 456-1111.", "phone number"),
        ("call 202-456-1111", "phone number"),
        ("from 81.2.69.142 at noon", "IP address"),
        ("from 2a02:2e0:3fe:1001:302::1a", "IP address"),
        ("card 4111 1111 1111 1111.", "credit card"),
        ("card 378282246310005", "credit card"),
        ("to DE89 3704 0044 0532 0130 00 BY MONDAY", "bank account"),
        ("to GB29NWBK60161331926819.", "bank account"),
        ("to BE71 0961 2345 6769 THIS WEEK", "bank account"),
        ("SSN 536-90-4399", "national id (US)"),
        ("NINO AB 12 34 56 C", "national id (UK)"),
        ("DNI 54362315K", "national id (Spain)"),
        ("NIE X-2482300W", "national id (Spain, foreigners)"),
        ("CF RCCMNL83S18D969H", "national id (Italy)"),
        ("NIR 2 95 10 99 126 111 93", "national id (France)"),
        ("CPF 390.533.447-05", "national id (Brazil)"),
        ("id 360426199101010071", "national id (China)"),
        ("aadhaar 2341 2341 2346", "national id (India)"),
        ("id 971013-9019902", "national id (South Korea)"),
        ("pnr 880320-0016", "national id (Sweden)"),
    ],
)
def test_found(text: str, kind: str) -> None:
    assert [found for found, _ in sensitive_parts(text)] == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "write to name@example.com or a@b.test", "call 202-555-0147", "127.0.0.1 and 192.168.0.7",
        "version 1.2.3.4.5 and std::vector::at", "2024-10-12 and 10:20:30:40", "1234567890123",
        "card 4111 1111 1111 1112", "0000 0000 0000 0000", "a1b2" * 8, "3.14159265358979",
        "4111111111111111.5", "[0.421, 0.583] of 1,234 at 5e-07", "sk-learn and hf_hub_download",
        "100-200-3000 foxes, 12-345-6789", "-----BEGIN PUBLIC KEY-----", "isbn 978-3-16-148410-0",
        "DE88 3704 0044 0532 0130 00", "078-05-1120 and 000-12-3456", "54362315A", "880320-0017",
        "2341 2341 2347", "390.533.447-06", "GB 12 34 56 C", "part 12345678-A", "971013-9019903",
    ],
)  # fmt: skip
def test_not_found(text: str) -> None:
    assert sensitive_parts(text) == ()


def test_the_environments_own_secrets_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_JUDGE_KEY", "correct-horse-battery")
    found = sensitive_parts("He said: correct-horse-battery.")
    assert found == (("secret of the environment", "correct-horse-battery"),)


def test_a_secret_is_not_told_on() -> None:
    assert masked("correct-horse") == "corr… (13 characters)"
    assert masked("abcd") == "a… (4 characters)"


def test_texts_and_pages_are_read_and_drawings_are_not(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{\n "x": "jane@foxes.org"\n}')
    (tmp_path / "tokenizer.json").write_text('{"jane@foxes.org": 1}')
    page = (
        "<p>a</p>\n<p>jane&#64;foxes.org</p><svg><path d='x'/><text>81.2.69.142</text></svg>"
        "<style>202-456-1111</style><p>\n81.2.69.143</p>"
    )
    (tmp_path / "report.html").write_text(page)
    found = [str(one) for one in look_through(tmp_path).named]
    assert found == [
        "config.json:2: e-mail address jane… (14 characters)",
        "report.html:2: e-mail address jane… (14 characters)",
        "report.html:2: IP address 81.… (11 characters)",
    ]
