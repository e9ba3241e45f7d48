"""What an audit looks for, and how people say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefloop.data.checks.against import EvaluationSet, parse_against
from prefloop.data.checks.facts import Tokens
from prefloop.data.config import NearDuplicates
from prefloop.data.embedded import resolve_embedded
from prefloop.data.errors import InputError
from prefloop.data.preferences import PreferenceColumns, named_columns


@dataclass(frozen=True)
class AuditOptions:
    """What to look for beyond the defaults."""

    columns: PreferenceColumns | None = None
    against: tuple[EvaluationSet, ...] = ()
    near_duplicates: NearDuplicates | None = None
    """Null: near-duplicate prompts are not looked for, which needs all prompts in memory."""
    tokens: Tokens | None = None
    languages: int = 2_000
    """Pairs whose languages are told; 0 for none."""
    seed: int = 0


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
