"""One training, whatever the method: set up, watched, guarded, saved, recorded."""
