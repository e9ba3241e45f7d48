"""Columns that are a part of the prompt by their names: what a reader leaves out of them is said.

Nothing is more silent than a prompt that lost its text: "Summarise the text." is a fine prompt.
"""

from __future__ import annotations

from typing import Any

from prefloop.data.utf8 import is_blank

TEXTS = (
    "input", "inputs", "instruction", "context", "contexts", "passage", "passages", "paragraph",
    "document", "documents", "article", "background", "evidence", "knowledge", "options", "choices",
)  # fmt: skip
SYSTEMS = ("system", "system_prompt", "system_message")
TOOLS = ("tools", "functions")
TURNS = ("messages", "conversation", "conversations", "history", "dialogue", "turns")
PICTURES = ("image", "images", "audio", "audios", "video", "videos")


def is_filled(value: Any) -> bool:
    """Whether a cell holds something: no null, NaN, blank text or empty list."""
    if isinstance(value, str):
        return not is_blank(value) and value.strip() not in ("[]", "{}", "null")
    return value is not None and value != [] and value != {} and value == value
