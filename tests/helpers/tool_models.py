"""Tiny models whose chat template knows tools."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.engine_models import make_model

TOOL_TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}call {{ c.function.name }}"
    "({{ c.function.arguments | tojson }}){% endfor %}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def make_tool_model(folder: Path) -> str:
    """A random Llama with that template."""
    path = make_model(folder, layers=1)
    for file in (folder / "chat_template.jinja", folder / "tokenizer_config.json"):
        if file.suffix == ".jinja":
            file.write_text(TOOL_TEMPLATE)
        else:
            settings = json.loads(file.read_text())
            settings.pop("chat_template", None)
            file.write_text(json.dumps(settings))
    return path
