"""People in the loop: pairs to Argilla, their votes back, and an Argilla to begin with."""
