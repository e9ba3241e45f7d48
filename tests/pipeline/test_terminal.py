"""Data never become markup or escape sequences on a terminal, and errors of files are one line."""

from __future__ import annotations

import errno
import io
import logging
import os
from pathlib import Path

import pytest
from rich.table import Table

from prefloop.pipeline.commands import app as command
from prefloop.pipeline.terminal import OneLine, PlainConsole


def test_names_in_tables_are_neither_markup_nor_escapes() -> None:
    out = io.StringIO()
    table = Table()
    table.add_column("[bold]head")
    table.add_row("[/red] :smile: a word")
    table.add_row("\x1b]0;title\x07\u202e")
    PlainConsole(file=out, width=80, force_terminal=False).print(table)
    assert "\\x1b]0;title" in out.getvalue()
    assert "[/red] :smile:" in out.getvalue()
    assert "[bold]head" in out.getvalue()
    assert not {"\x1b", "\x07", "\u202e"} & set(out.getvalue())


def test_messages_are_one_harmless_line() -> None:
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "a\nb \x1b[2J%s", ("\x9b",), None)
    assert OneLine("prefloop: %(message)s").format(record) == "prefloop: a b \\x1b[2J\\x9b"


@pytest.mark.parametrize(
    "run_dir", ["{tmp}/file", "{tmp}/file/below", "/proc/prefloop-test", "{tmp}/" + "x" * 300]
)
def test_a_run_dir_that_cannot_be_is_one_line(
    run_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    config = tmp_path / "c.yaml"
    config.write_text(
        "prompts: {train: {path: 'embedded:prompts', limit: 2}}\n"
        "label: {labelers: [{type: verifier}]}\n"
    )
    place = run_dir.format(tmp=tmp_path)
    monkeypatch.setattr("sys.argv", ["prefloop", "run", str(config), "--run-dir", place])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code not in (0, None)
    said = str(ended.value.code) if isinstance(ended.value.code, str) else capfd.readouterr().err
    assert said.strip().startswith("prefloop: error: ")
    assert "\n" not in said.strip()


@pytest.mark.parametrize("number", sorted(command._OF_THE_MACHINE))
def test_errors_of_files_name_the_file_and_a_remedy(number: int) -> None:
    error = OSError(number, os.strerror(number), "a/file")
    assert command._explain(error).startswith(f"a/file: {os.strerror(number)}: ")


def test_errors_that_are_bugs_keep_their_traceback() -> None:
    assert errno.EBADF not in command._OF_THE_MACHINE
