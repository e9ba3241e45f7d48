"""Set before anything imports torch or a library of the hub."""

import os

import prefloop  # noqa: F401  # sets what torch reads when it is imported

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
