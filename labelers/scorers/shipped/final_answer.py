"""Where an answer says what it comes to: the box, the last line, the words before it."""

from __future__ import annotations

import re

_MARKED = re.compile(
    r"(?:final\s+answer|correct\s+(?:answer|option|choice)|answer|option|choice"
    r"|antwort|respuesta(?:\s+correcta)?|réponse(?:\s+correcte)?|risposta(?:\s+corretta)?"
    r"|resposta(?:\s+correta)?|ответ|答案|答え|正解|정답)"
    r"[*_]*\s*(?:(?:is|ist|es|est|è|é)\b|[:：=是为為は은는]|\s[-–—]\s)+[*_]*\s*[:：]?\s*(.+)",
    re.IGNORECASE,
)
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_STYLED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathsf|operatorname)\s*\{([^{}]*)\}")


def without_styles(text: str) -> str:
    r"""``text`` without the commands of LaTeX that only say how words look: ``\text{B}`` is B."""
    return _STYLED.sub(r"\1", text)


def boxed(text: str) -> str | None:
    r"""What the last ``\boxed{...}`` holds; null where there is none that is closed."""
    found = None
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        depth, at = 1, match.end()
        while at < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        if not depth:
            found = text[match.end() : at - 1].strip()
    return found


def tagged(text: str) -> str | None:
    """What the last ``<answer>`` holds; null where there is none that is closed."""
    found = _TAGGED.findall(text)
    return found[-1].strip() if found else None


def behind_hashes(text: str) -> str | None:
    """What stands behind the last ``####``, as in GSM8K; null where there is none."""
    _, mark, found = text.rpartition("####")
    return found.strip().split("\n", 1)[0].strip() if mark and found.strip() else None


def marked(text: str) -> str | None:
    """What the last line that says "the answer is ..." says; null where none does."""
    found = _MARKED.findall(text)
    return found[-1].strip() if found else None


def last_line(text: str) -> str:
    """The last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
