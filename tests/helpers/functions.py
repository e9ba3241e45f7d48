"""What users write as a verifier's function, good and bad. Imported by its processes."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

_CALLS = 0


def length(text: str, *, messages, reference, metadata) -> float:
    assert messages[0]["role"] == "user"
    assert reference == "ref"
    assert metadata == {}
    return len(text)


def longer(text: str, **_: object) -> float:
    """Long answers are good ones."""
    return min(len(text) / 50, 1.0)


def how_often(text: str, **_: object) -> int:
    """The number of its calls in this process."""
    global _CALLS
    _CALLS += 1
    return _CALLS


def misbehaving(text: str, **_: object) -> object:
    """1, or what the answer asks for."""
    match text:
        case "raise":
            raise KeyError("no such thing")
        case "mute":
            raise Mute
        case "leave":
            sys.exit("I leave")
        case "interrupt":
            raise KeyboardInterrupt
        case "loop":
            while True:
                pass
        case "sleep":
            time.sleep(600)
        case "backtrack":
            re.match(r"(a|a)*$", "a" * 60 + "b")  # holds the interpreter meanwhile
        case "die":
            os._exit(3)
        case "terminate":
            os.kill(os.getpid(), 15)
        case "kill":
            os.kill(os.getpid(), 9)
        case "function":
            return lambda: 1
        case "print":
            print("printed by the function")
        case "fork":
            if os.fork() == 0:
                return 2
        case "child":
            subprocess.Popen(["sleep", "600"])
            time.sleep(600)
    return {"nan": math.nan, "inf": math.inf, "none": None, "word": "high"}.get(text, True)


def length_of_answer(text: str, **_: object) -> float:
    return len(text)


def wait_for_another(text: str, *, metadata, **_: object) -> float:
    """The length, once two processes were seen."""
    folder = Path(metadata["folder"])
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.01)
    return len(text)


def terminated_once(text: str, *, metadata, **_: object) -> float:
    """1; the first call for a text that says so is ended with its process."""
    mark = Path(metadata["folder"]) / text
    if text.startswith("terminate") and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), 15)
    return 1


class Mute(Exception):
    """An exception that does not know what it says."""

    def __str__(self) -> str:
        raise ValueError
