"""What runs need, imported: a fork server imports this once, and its children have it."""

import gc
from importlib import import_module

for name in (
    "torch",
    "transformers",
    "trl",
    "datasets",
    "matplotlib.pyplot",
    "prefloop.pipeline.loop",
    "prefloop.pipeline.engines.transformers_engine",
    "prefloop.training.trainers.pair_trainer",
    "statsmodels.api",
    "scipy.stats",
):
    import_module(name)
gc.collect()
gc.freeze()  # the children need not look for garbage in it
