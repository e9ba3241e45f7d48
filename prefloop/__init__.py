"""Raw prompts in, preference datasets and better policies out, in one resumable loop.

Each command of the command line is one function of the same name. Nothing heavy is imported
before it is used.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefloop.data.errors import PrefloopError
    from prefloop.pipeline.api import (
        agreement,
        audit,
        calibrate,
        check,
        check_relabel,
        compare,
        export,
        init,
        judge_eval,
        label,
        make_models,
        plan,
        plan_relabel,
        plan_sweep,
        publish,
        queue,
        relabel,
        reparse,
        report,
        run,
        status,
        sweep,
        train,
        view,
        win_rate,
    )
    from prefloop.pipeline.config import RunConfig, load_config
    from prefloop.pipeline.results import Run

    __version__: str

__all__ = [
    "PrefloopError",
    "Run",
    "RunConfig",
    "__version__",
    "agreement",
    "audit",
    "calibrate",
    "check",
    "check_relabel",
    "compare",
    "export",
    "init",
    "judge_eval",
    "label",
    "load_config",
    "make_models",
    "plan",
    "plan_relabel",
    "plan_sweep",
    "publish",
    "queue",
    "relabel",
    "reparse",
    "report",
    "run",
    "status",
    "sweep",
    "train",
    "view",
    "win_rate",
]

_ELSEWHERE = {
    "PrefloopError": "prefloop.data.errors",
    "Run": "prefloop.pipeline.results",
    "RunConfig": "prefloop.pipeline.config",
    "load_config": "prefloop.pipeline.config",
}

# Read when torch is imported. Threads that spin for long while they wait are a hundred times slower
# as soon as anything else wants one of the cores (seen on two: 40 tokens/s; so, 2,000; undisturbed
# 10,000 either way).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("prefloop")
        except PackageNotFoundError:  # a checkout that was not installed
            return "0+unknown"
    if name not in __all__:
        raise AttributeError(f"module 'prefloop' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_ELSEWHERE.get(name, "prefloop.pipeline.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
