"""A run on disk and in memory: its folder, manifest, models, promotion, guards, progress."""
