"""What in a text is about a person: addresses and numbers that can be told by their form, and by
their check digits where they have some. Names and streets have no form, and are not found."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

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
_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Z]{2}\d\d"
    r"(?:[A-Z0-9]{11,30}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?)(?![A-Za-z0-9])"
)
_BEFORE, _AFTER = r"(?<![\w.,/-])", r"(?![\w/-]|[.,]\d)"
_NATIONAL: dict[str, tuple[str, str | None]] = {
    "US": (r"\d{3}-\d{2}-\d{4}", "us.ssn"),
    "UK": (
        r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]",
        None,
    ),
    "Spain": (r"\d{8}-?[A-HJ-NP-TV-Z]", "es.dni"),
    "Spain, foreigners": (r"[XYZ]-?\d{7}-?[A-HJ-NP-TV-Z]", "es.nie"),
    "Italy": (r"[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z]", "it.codicefiscale"),
    "France": (r"[12] ?\d\d ?\d\d ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d", "fr.nir"),
    "Brazil": (r"\d{3}\.\d{3}\.\d{3}-\d\d", "br.cpf"),
    "China": (r"[1-9]\d{5}(?:19|20)\d{9}[\dX]", "cn.ric"),
    "India": (r"[2-9]\d{3}([ -])\d{4}\1\d{4}(?! \d)", "in_.aadhaar"),
    "South Korea": (r"\d{6}-\d{7}", "kr.rrn"),
    "Sweden": (r"\d{6}[-+]\d{4}", "se.personnummer"),
}
"""The form of a country's numbers of persons, and the module of python-stdnum that checks them.
Numbers without a form of their own (a row of digits, as in Germany, Poland or the Netherlands) are
left out: too many rows of digits are something else and would pass the check."""


def personal_parts(text: str) -> Iterator[tuple[str, str]]:
    """Personal data in ``text``: kind and the part itself.

    Kinds are ``e-mail address``, ``phone number``, ``IP address``, ``credit card``, ``bank
    account`` and ``national id (COUNTRY)``.
    """
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
    for match in _IBAN.finditer(text):
        account = _account(match.group())
        if account is not None:
            yield "bank account", account
    for country, (pattern, module) in _national().items():
        for match in pattern.finditer(text):
            if module is None or module.is_valid(match.group()):
                yield f"national id ({country})", match.group()


def _is_somebodys(address: str) -> bool:
    """Whether ``address`` is one of the open internet (not 127.0.0.1, 192.168.0.1, ...)."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _luhn(digits: str) -> bool:
    """Whether the check digit of a card's number fits; a number of one digit only is no card's."""
    from stdnum import luhn

    return bool(luhn.is_valid(digits)) and len(set(digits)) > 1


def _account(found: str) -> str | None:
    """The IBAN that ``found`` begins with, to which a word in capitals may have been taken."""
    from stdnum import iban

    while found:
        if iban.is_valid(found):
            return found
        found = found.rpartition(" ")[0]
    return None


@cache
def _national() -> dict[str, tuple[re.Pattern[str], Any]]:
    return {
        country: (
            re.compile(_BEFORE + form + _AFTER),
            import_module(f"stdnum.{module}") if module else None,
        )
        for country, (form, module) in _NATIONAL.items()
    }
