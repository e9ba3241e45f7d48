"""Set before anything imports torch, as the command line does: see
``prefloop.pipeline.commands.app.main``."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
