"""YAML that people write by hand: what is no config is one line."""

from __future__ import annotations

import contextlib
from datetime import date
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from prefloop.data.yaml_files import YamlError, parse_yaml, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = [
    ("a: 1\nb: 2\na: 3", r"line 3: the key 'a' stands a second time \(first in line 1\)"),
    ("a: {x: 1, x: 2}", "line 1: the key 'x' stands a second time"),
    ("1: a\n1.0: b", "stands a second time"),
    ("a: " + "[" * 5000 + "]" * 5000, "nested deeper"),
    ("{" * 100, "nested deeper"),
    ("- " * 6000, "nested deeper"),
    (BOMB, "more than 100,000 values"),
    ("a: &x [*x]", "an alias of what it stands in"),
    ("a:\n\tb: 1", "line 2, column 1.*not with tabs"),
    ("? [a]\n: 1", "cannot be a key"),
    ("a: !!python/object:os.system x", "could not determine a constructor"),
    ("a: 2026-99-99", "none of its type"),
    ("a: !!timestamp foo", "none of its type"),
    ("a: " + "9" * 6000, "none of its type"),
    ("a: 1\n---\nb: 2", "another document"),
    ("a: \x1b[31m", "not allowed"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_is_no_config_is_one_line(text: str, message: str) -> None:
    with pytest.raises(YamlError, match=message) as raised:
        parse_yaml(text)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_what_yaml_may_do_stays() -> None:
    text = "base: &b {x: 1, y: 2}\nmore:\n  <<: *b\n  y: 3\nlist: [*b, *b]\n"
    assert parse_yaml(text) == {
        "base": {"x": 1, "y": 2}, "more": {"x": 1, "y": 3}, "list": [{"x": 1, "y": 2}] * 2,
    }  # fmt: skip


def test_a_file_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes("a: 1\nb: é".encode("latin-1"))
    with pytest.raises(YamlError, match="line 2: not UTF-8"):
        read_yaml(file)
    file.write_bytes("\ufeffa: é".encode())
    assert read_yaml(file) == {"a": "é"}
    file.write_bytes(b"a: " + b"x" * 5_000_000)
    with pytest.raises(YamlError, match="longer than"):
        read_yaml(file)


@given(st.text(alphabet="ab:1.-[]{}&*!<?|>'\"#%\t\n 0x_eE+~,é\x85", max_size=60) | st.text())
@example("&a a: *a")
@example("!!binary x")
@example("? !!int '0o'\n: 3")
@example("!!set {a, a}")
@example("<<: 1")
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(YamlError):  # anything else is a bug
        parse_yaml(text)


def test_values_mean_the_same_whatever_other_libraries_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that vLLM imports has dates read as texts by every loader."""
    shared = yaml.SafeLoader.yaml_constructors
    monkeypatch.setitem(shared, "tag:yaml.org,2002:timestamp", shared["tag:yaml.org,2002:str"])
    assert parse_yaml("a: 2026-01-02") == {"a": date(2026, 1, 2)}
