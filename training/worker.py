"""One of the processes of a launched training: ``python -m prefloop.training.worker JOB.json``.

``prefloop.training.methods.offline`` starts it through ``accelerate launch`` and reads what it
prints.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from prefloop.training.errors import TrainingError
from prefloop.training.methods.offline import PROBLEM, STEP, train_as_one


def main() -> None:
    """Train, report steps and a problem on stdout; status 1 after a problem."""

    def say(kind: str, what: Any) -> None:
        # Where whoever launched this was killed, the pipe is broken and this raises: nobody trains
        # on in secret, beside a second attempt.
        print(kind + (json.dumps(what) if kind == STEP else what), flush=True)

    try:
        train_as_one(Path(sys.argv[1]).read_text(encoding="utf-8"), say)
    except TrainingError as problem:
        say(PROBLEM, " ".join(str(problem).split()))
        sys.exit(1)


if __name__ == "__main__":
    main()
