"""What servers say they serve, compared."""

from __future__ import annotations

import json

import pytest

from prefloop.pipeline.engines.endpoints.models_served import Served, compared, others_in, served_in


def listed(*rows: object) -> bytes:
    return json.dumps({"object": "list", "data": rows}).encode()


def test_a_list_is_read_whatever_else_is_in_it() -> None:
    row = {"id": "m", "root": "/models/m", "max_model_len": 8, "permission": []}
    body = listed({"id": "n"}, row, "x", {"id": 7})
    assert served_in(body, "m") == Served(("n", "m"), "/models/m", 8)
    assert served_in(listed({"id": "m", "root": 3, "max_model_len": "8"}), "m") == Served(("m",))
    assert served_in(listed(), "m") == Served(())


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"data": {}}', b"null"])
def test_what_is_no_list_says_nothing(body: bytes) -> None:
    assert served_in(body, "m") is None


def test_one_that_lacks_what_others_list_has_no_such_model() -> None:
    found = compared("m", {"a": Served(("m",)), "b": Served(tuple("nopqrs")), "c": None})
    assert found.lacking == {"b": "it lists 'n', 'o', 'p', 'q', 'r' and 1 more, and not 'm'"}
    assert found.notes == ()


def test_a_name_that_no_server_lists_may_be_right_all_the_same() -> None:
    assert compared("alias", {"a": Served(("m",)), "b": Served(("n",))}).lacking == {}


def test_differences_are_told_and_places_of_one_model_are_none() -> None:
    same = {"a": Served(("m",), "org/Model", 8), "b": Served(("m",), "/mnt/models/Model/", 8)}
    assert compared("m", same).notes == ()
    other = compared("m", {**same, "c": Served(("m",), "/mnt/Other", 4), "d": Served(("m",))})
    assert [note.split(":")[0] for note in other.notes] == [
        "'m' may not be the same model everywhere", "'m' reads prompts of different length",
    ]  # fmt: skip
    assert "c 4" in other.notes[1]


@pytest.mark.parametrize(
    ("model", "names", "others"),
    [
        ("m", ("m", "n"), None),
        ("org/m", ("m",), None),
        ("m", ("/models/M/",), None),
        ("m", ("m:latest",), None),
        ("m", ("models/m.gguf",), None),
        ("m", ("n",), "'n'"),
        ("m-large", ("m", "n"), "'m', 'n'"),
        ("m", (), None),
        ("m", tuple("abcdef"), None),
    ],
)
def test_what_a_server_lists_in_the_place_of_a_model(
    model: str, names: tuple[str, ...], others: str | None
) -> None:
    assert others_in(model, Served(names)) == others
    assert others_in(model, None) is None
