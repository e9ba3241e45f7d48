"""One of the processes of a launched training: ``python -m prefloop.training.worker JOB.json``.

``prefloop.training.methods.offline`` starts it through ``accelerate launch`` and reads what it
prints.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from prefloop.training.errors import TrainingError
from prefloop.training.methods.offline import PROBLEM, STEP, WARNING, offline_method
from prefloop.training.session.fit import fit
from prefloop.training.session.job import Job
from prefloop.training.session.setup import has_gpu


def main() -> None:
    """Train, report steps and a problem on stdout; status 1 after a problem."""
    from accelerate import PartialState

    # Joins the other processes, and takes this one's device.
    state = PartialState(cpu=not has_gpu())
    if state.is_main_process:
        _report_warnings()
    job = Job.load(Path(sys.argv[1]).read_text(encoding="utf-8"))

    def on_step(record: dict[str, float]) -> None:
        # Where whoever launched this was killed, the pipe is broken and this raises: nobody trains
        # on in secret, beside a second attempt.
        print(STEP + json.dumps(record), flush=True)

    try:
        fit(job, offline_method(job.config), on_step=on_step)
    except TrainingError as problem:
        print(PROBLEM + " ".join(str(problem).split()), flush=True)
        sys.exit(1)


def _report_warnings() -> None:
    """To whoever launched this; libraries' stay among the lines that nobody asked for."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(WARNING + "%(message)s"))
    ours = logging.getLogger("prefloop")
    ours.addHandler(handler)
    ours.propagate = False


if __name__ == "__main__":
    main()
