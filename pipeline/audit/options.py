"""What a person asks of an audit on the command line."""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.data.checks.against import parse_against
from prefloop.data.checks.facts import Tokens
from prefloop.data.config import NearDuplicates
from prefloop.data.embedded import resolve_embedded
from prefloop.data.errors import InputError
from prefloop.data.preferences import named_columns
from prefloop.pipeline.audit.check import AuditOptions


def make_options(
    *,
    against: Sequence[str] = (),
    near_duplicates: bool = False,
    tokenizer: str | None = None,
    columns: str | None = None,
    labels: str | None = None,
    seed: int = 0,
) -> AuditOptions:
    """The options in their words. Raises ``InputError`` for one that cannot be read."""
    sets = tuple(parse_against(one) for one in against)
    names = [one.name for one in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"--against {twice}: two sets have this name: give each its own")
    return AuditOptions(
        columns=named_columns(columns, labels),
        against=sets,
        near_duplicates=NearDuplicates() if near_duplicates else None,
        tokens=_tokens(tokenizer) if tokenizer else None,
        seed=seed,
    )


def _tokens(name: str) -> Tokens:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_embedded(name))
    except (OSError, ValueError, KeyError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"--tokenizer {name}: cannot be loaded: {why}") from None

    def count(texts: list[str]) -> list[int]:
        found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
        return [len(ids) for ids in found["input_ids"]]

    return count
