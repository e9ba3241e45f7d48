"""The loop and all around it: engines, runs, stages, reports, reviews, the command line."""
