"""What a kept answer or vote depends on."""

from pathlib import Path

from prefloop.data.strict import fingerprint
from prefloop.labelers.config import LabelConfig, VerifierLabeler
from prefloop.pipeline.run.answer_key import of_engines, of_labelers, of_settings
from tests.helpers.runs import small_config


def settings(**keys: object) -> object:
    label = LabelConfig(labelers=[{"type": "verifier", "function": "my:score", **keys}])
    return of_settings({"label": label.model_dump(mode="json"), "evaluate": {"judges": None}})


def test_how_a_function_is_called_is_no_part_of_a_key() -> None:
    assert settings() == settings(timeout_s=1, processes=3)
    assert settings() != settings(min_gap=0.5)
    assert "timeout_s" not in str(settings())


def test_the_code_of_a_function_in_the_working_directory_is(tmp_path: Path, monkeypatch) -> None:
    module = tmp_path / "checks_of_a_key.py"
    module.write_text("def score(text, **_):\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    labeler = VerifierLabeler(function="checks_of_a_key:score")
    before = of_labelers([labeler])
    module.write_text("def score(text, **_):\n    return 2\n")
    assert before != of_labelers([labeler])
    assert before["verifier"]["code"]


def test_where_an_engine_computes_is_no_part_of_a_key() -> None:
    one, two = (
        small_config(engines={"default": {"type": "vllm", **settings}})
        for settings in ({}, {"replicas": 2, "gpus": 2})
    )
    assert of_engines(one) == of_engines(two)
    assert fingerprint(one).keys() == fingerprint(two).keys()
    assert "replicas" not in fingerprint(one)["engines"]["default"]
    assert of_engines(one) != of_engines(small_config())


def test_whether_a_server_is_asked_in_jobs_is_no_part_of_a_key() -> None:
    one, two = (
        small_config(engines={"default": {"type": "openai", **settings}}, sample={"n": 2})
        for settings in ({}, {"mode": "batch", "batch": {"discount": 0.25}})
    )
    assert of_engines(one) == of_engines(two)
    assert "mode" not in fingerprint(one)["engines"]["default"]
    assert "batch" not in fingerprint(one)["engines"]["default"]
