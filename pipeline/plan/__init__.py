"""What a run will ask, take and cost, before any of it is spent."""
