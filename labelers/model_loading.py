"""One model is loaded, or made, at a time in this process.

While transformers loads a model, ``PreTrainedModel.tie_weights`` and the functions of
``torch.nn.init`` do nothing, for the whole process, and torch's default dtype is the model's. Who
loads or makes one meanwhile has tied weights, heads and adapters of random memory, and where two
loads overlap the last puts back what the first had put in: none that comes later is whole.

Imports transformers inside functions only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOADING = threading.RLock()


@contextmanager
def making_model() -> Iterator[None]:
    """Nobody else loads or makes a model until the block ends. What begins within the block, in
    the same thread, is part of it."""
    with _LOADING:
        yield


@contextmanager
def loading_model() -> Iterator[None]:
    """The same, without a bar of transformers', which would break into the run's own."""
    from transformers.utils import logging

    with _LOADING:
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            if shown:
                logging.enable_progress_bar()
