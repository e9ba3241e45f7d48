"""Hashes of settings stay what they were before a key was added."""

from prefloop.data.hashing import json_hash
from prefloop.data.strict import fingerprint
from prefloop.pipeline.config import validate_config
from prefloop.pipeline.run.answer_key import of_engines

RAW = {
    "prompts": {"train": {"path": "embedded:prompts"}},
    "engines": {"default": {"type": "transformers"}, "v": {"type": "vllm"},
                "o": {"type": "openai"}},
    "label": {"labelers": [{"type": "judge", "model": "m"}, {"type": "verifier"}]},
    "train": {},
}  # fmt: skip


def test_a_key_at_its_default_is_as_if_it_were_not_known() -> None:
    config = validate_config(RAW, "test")
    judge = config.label.labelers[0]
    # Of the version before `thought_tokens` and the like.
    assert json_hash(of_engines(config)) == "1eba44be49d6396d7de1bb547fc5bb81"
    assert json_hash(fingerprint(judge)) == "1f55a63674db681f2d15bf7cda3d379d"
    changed = judge.model_copy(update={"thought_tokens": 7})
    assert fingerprint(changed) == fingerprint(judge) | {"thought_tokens": 7}
    assert fingerprint(config)["label"]["labelers"][0] == fingerprint(judge)


def test_a_set_key_is_part_of_the_hash() -> None:
    for engine, key, value in [
        ("o", "extra_body", {"a": 1}),
        ("v", "engine_args", {"kv_cache_dtype": "fp8"}),
        ("default", "chat_template_kwargs", {"enable_thinking": False}),
    ]:
        engines = {**RAW["engines"], engine: {**RAW["engines"][engine], key: value}}
        found = of_engines(validate_config({**RAW, "engines": engines}, "test"))
        assert found[engine][key] == value
