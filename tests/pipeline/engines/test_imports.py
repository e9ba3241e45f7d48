"""`prefloop --help` answers at once because settings do not pull in the engines' libraries."""

import subprocess
import sys


def test_settings_and_factory_import_no_engine_library():
    code = (
        "import sys, prefloop.pipeline.engines.settings, prefloop.pipeline.engines.factory\n"
        "import prefloop.pipeline.engines.policy_check\n"
        "print(sorted({'torch', 'transformers', 'vllm', 'openai', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
