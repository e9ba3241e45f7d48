"""`prefloop --help` answers at once because settings do not pull in the engines' libraries."""

from tests.helpers.processes.loading import loaded_by


def test_settings_and_factory_import_no_engine_library():
    found = loaded_by(
        "import prefloop.pipeline.engines.settings, prefloop.pipeline.engines.factory\n"
        "import prefloop.pipeline.engines.policy_check"
    )
    assert not found & {"torch", "transformers", "vllm", "openai", "peft"}
