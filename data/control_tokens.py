"""Strings that chat templates write as control tokens, in content that must not speak for them.

What is encoded here is cut by the tokenizer's own list (``prefloop.data.chat``). A server that
renders the template itself encodes the whole text, so such a string in a message would be a token;
and a judge may take one for the end of what it is to judge.
"""

from __future__ import annotations

import re

_ANGLED = re.compile(
    r"<([|\uff5c][^<>\n]{1,80}[|\uff5c]|[|\uff5c][a-z_]{1,40}|[a-z_]{1,40}[|\uff5c]"
    r"|/?(?:s|bos|eos|pad|unk|mask|cls|sep)"
    r"|/?(?:start|end)_of_(?:turn|image|text|role)"
    r"|<?/?SYS>?|extra_id_\d+|(?:reserved|unused|special)_?\d+)>",
    re.IGNORECASE,
)
_SQUARE = re.compile(
    r"\[(/?(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|PREFIX"
    r"|MIDDLE|SUFFIX|IMG|ARGS|CALL_ID|THINK|BOS|EOS|PAD|UNK|CLS|SEP|MASK|gMASK|sMASK))\]"
)


def broken(text: str) -> str:
    """``text`` with the brackets of every such string changed: still to be read, but no token."""
    changed = _SQUARE.sub("⟦\\1⟧", _ANGLED.sub("‹\\1›", text))
    return changed if changed == text else broken(changed)
