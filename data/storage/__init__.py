"""Where the files of a run lie, and how one becomes there: whole or not at all, and once."""
