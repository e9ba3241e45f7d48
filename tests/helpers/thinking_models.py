"""Tiny models that think before they answer, overfitted on the spot to a few conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.engine_models import make_tokenizer

SAID = {
    "Which? one": "We see one.{end}A",
    "Which? two": "First A, but then two.{end}B",
    "Which? never": "And so on and on and on and on and on and on and on and on and on",
}
"""What the model thinks and answers, by the prompt."""
KINDS: dict[str, dict[str, Any]] = {
    "tags": {},
    "opened": {"opened": True},
    "special": {"marks": ("[THINK]", "[/THINK]"), "special": True},
    "special_opened": {
        "marks": ("<|START_THINKING|>", "<|END_THINKING|>"), "special": True, "opened": True,
    },
}  # fmt: skip
"""How such a model may mark its thoughts."""
QUICK = {"Which? one": "B", "Which? two": "A", "Which? never": "A"}
"""What it answers where the template tells it not to think."""

_TURNS = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n"
)


def make_thinking_model(
    folder: Path, *, marks: tuple[str, str] = ("<think>", "</think>"), opened: bool = False,
    special: bool = False,
) -> str:  # fmt: skip
    """A tiny Llama that answers the prompts of ``SAID``; the folder as a string.

    ``opened``: its template opens the thought. ``special``: the marks are special tokens. With
    ``enable_thinking`` false the template closes an empty thought, and the model answers at once.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from prefloop.data.conversations.chat import render_tokens

    make_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(marks), special_tokens=special)
    middle = "{% if enable_thinking is defined and not enable_thinking %}BEGIN\n\nEND\n\n"
    middle += "{% else %}BEGIN\n{% endif %}" if opened else "{% endif %}"
    template = f"{_TURNS}{middle}{{% endif %}}"
    tokenizer.chat_template = template.replace("BEGIN", marks[0]).replace("END", marks[1])
    tokenizer.save_pretrained(folder)
    rows = []
    begin = "" if opened else f"{marks[0]}\n"
    for thinks, answers in ((True, SAID), (False, QUICK)):
        for prompt, said in answers.items():
            ids = render_tokens(
                tokenizer, [{"role": "user", "content": prompt}],
                template_kwargs={} if thinks else {"enable_thinking": False},
            )  # fmt: skip
            text = begin + said.format(end=f"\n{marks[1]}\n\n") if thinks else said
            answer = tokenizer.encode(text, add_special_tokens=False)
            rows.append((ids, [*answer, tokenizer.eos_token_id]))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    inputs = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for row, (prompt, answer) in enumerate(rows):
        both = torch.tensor([*prompt, *answer])
        inputs[row, : len(both)] = both
        labels[row, len(prompt) : len(both)] = torch.tensor(answer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(300):
        loss = model(input_ids=inputs, labels=labels).loss
        if loss.item() < 0.01:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.01
    model.save_pretrained(folder, safe_serialization=True)
    return str(folder)
